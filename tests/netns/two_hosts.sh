#!/usr/bin/env bash
# A run on two hosts: two network namespaces joined by a virtual link, which is delayed, cut for a while and joined again.
#
#   sudo tests/netns/two_hosts.sh [FOLGORE]        the executable; target/release/folgore without it
#
# Host a holds the NATS server (TLS, identities) and the head, host b two workers. At staleness 0 the numbers must be those of
# one process, whatever the link does; `inspect --check` proves the rest from the record. Needs root, iproute2 and a
# nats-server (found as by folgore, or obtained by deploy/nats/get_nats_server.py). CUT_S: seconds that the link is down (20).
set -euo pipefail
cd "$(dirname "$0")/../.."
folgore=$(realpath "${1:-target/release/folgore}")
server=${FOLGORE_NATS_SERVER:-$(command -v nats-server || python3 deploy/nats/get_nats_server.py)}
cut=${CUT_S:-20}
a="fg-a-$$" b="fg-b-$$" near="fga$$" far="fgb$$"
place=$(mktemp -d)
pids=()

finish() {
    kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    ip netns del "$a" 2>/dev/null || true
    ip netns del "$b" 2>/dev/null || true
    rm -rf "$place"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { echo "$(date +%T) $*"; }
on() { local host=$1; shift; ip netns exec "$host" "$@"; }
steps() { { wc -l <"$place/runs/two/metrics.jsonl"; } 2>/dev/null || echo 0; }
fail() { say "FAILED: $*"; tail -n 20 "$place"/*.log; exit 1; }
# Waits until the run has done $1 steps.
reach() {
    local until=$((SECONDS + 300))
    while [ "$(steps)" -lt "$1" ]; do
        kill -0 "$head" 2>/dev/null || { [ "$(steps)" -ge "$1" ] && return; fail "the head is gone at step $(steps)"; }
        [ $SECONDS -lt $until ] || fail "step $1 was not reached"
        sleep 0.2
    done
}

ip netns add "$a"
ip netns add "$b"
ip link add "$near" netns "$a" type veth peer name "$far" netns "$b"
on "$a" ip addr add 10.77.0.1/24 dev "$near"
on "$b" ip addr add 10.77.0.2/24 dev "$far"
for host in "$a" "$b"; do on "$host" ip link set lo up; done
on "$a" ip link set "$near" up
on "$b" ip link set "$far" up

"$folgore" nats init --dir "$place/nats" --host 10.77.0.1 --port 4222
for worker in w1 w2; do "$folgore" nats add-worker "$worker" --role rollout --dir "$place/nats"; done
ip netns exec "$a" "$server" -c "$place/nats/server.conf" >"$place/server.log" 2>&1 &
pids+=($!)

settings=(optim.max_steps=16 eval.eval_items=40 rollout.num_prompts=4 --output-dir "$place/runs")
say "one process, for comparison"
"$folgore" train --run-name one "${settings[@]}" >"$place/one.log" 2>&1 || fail "one process"
say "head on host a, two workers on host b"
ip netns exec "$a" "$folgore" train --run-name two "${settings[@]}" --nats nats://10.77.0.1:4222 \
    --identity "$place/nats/identities/head" >"$place/head.log" 2>&1 &
head=$!
pids+=("$head")
for worker in w1 w2; do
    FOLGORE_CACHE="$place/cache" ip netns exec "$b" "$folgore" worker --nats nats://10.77.0.1:4222 --run two \
        --identity "$place/nats/identities/$worker" >"$place/$worker.log" 2>&1 &
    pids+=($!)
done

reach 3
if on "$b" tc qdisc add dev "$far" root netem delay 100ms 20ms 2>/dev/null; then
    say "the link is delayed by 100 ms"
else
    # a kernel without netem: a narrow link, on which each full packet takes 24 ms and waits behind the others
    on "$b" tc qdisc add dev "$far" root tbf rate 500kbit burst 4kb latency 5s
    say "the link is narrowed to 500 kbit/s"
fi
reach 6
on "$b" tc qdisc del dev "$far" root
say "the link is cut for $cut s"
on "$a" ip link set "$near" down
sleep 2
before=$(steps)
sleep "$cut"
[ "$(steps)" -le $((before + 1)) ] || fail "steps went on without workers: $before, then $(steps)"
on "$a" ip link set "$near" up
say "the link is back at step $(steps)"
wait "$head" || fail "the head"
say "the run is over"

"$folgore" inspect two --check --output-dir "$place/runs" || fail "the record"
python3 - "$place/runs" <<'PYTHON' || fail "the numbers differ"
import json, sys
def lines(run):
    rows = [json.loads(line) for line in open(f"{sys.argv[1]}/{run}/metrics.jsonl")]
    return [{k: v for k, v in row.items() if k != "step_time" and not k.startswith(("time/", "perf/"))} for row in rows]
one, two = lines("one"), lines("two")
assert len(one) == len(two) == 16, (len(one), len(two))
for x, y in zip(one, two):
    differing = [k for k in x if x[k] != y.get(k)]
    assert not differing, (x["step"], differing)
PYTHON
say "passed: every number equals that of one process"
