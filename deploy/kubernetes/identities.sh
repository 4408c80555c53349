#!/usr/bin/env bash
# Makes the server's folder and an identity for each pod, and puts what each needs into Secrets of the namespace `folgore`.
#
#   deploy/kubernetes/identities.sh WORKERS [FOLDER]
#
# WORKERS is the most rollout workers that there will be. Run it again with a larger number for more; keys that are there are
# kept. FOLDER (nats) stays with you: it holds the authority's key. Needs folgore and kubectl on PATH.
set -euo pipefail
workers="${1:?how many rollout workers there may be}"
folder="${2:-nats}"
namespace=folgore

init=(folgore nats init --dir "$folder" --worker console:console)
for host in folgore-nats "folgore-nats.$namespace" "folgore-nats.$namespace.svc"; do
    init+=(--host "$host")
done
for ((i = 0; i < workers; i++)); do
    init+=(--worker "folgore-rollout-$i")
done
"${init[@]}"

# secret NAME KEY=PATH...: server-side, because another way keeps a copy of every key in an annotation
secret() {
    local name="$1"
    shift
    kubectl create secret generic "$name" --namespace "$namespace" "${@/#/--from-file=}" --dry-run=client --output=yaml |
        kubectl apply --server-side --force-conflicts --filename=-
}

# the files of an identity, under PREFIX
files_of() {
    local identity="$folder/identities/$1" prefix="$2" file
    for file in nkey.seed ca.pem cert.pem key.pem name role; do
        files+=("$prefix$file=$identity/$file")
    done
}

secret folgore-nats-tls "tls.crt=$folder/tls/server.pem" "tls.key=$folder/tls/server.key" "ca.crt=$folder/tls/ca.pem"
secret folgore-nats-users "users.conf=$folder/users.conf"

files=()
files_of head ""
secret folgore-head-identity "${files[@]}"

files=()
for ((i = 0; i < workers; i++)); do
    files_of "folgore-rollout-$i" "folgore-rollout-$i."
done
secret folgore-rollout-identities "${files[@]}"
