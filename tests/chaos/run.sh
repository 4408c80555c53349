#!/usr/bin/env bash
# Ends, pauses and lies to the processes of small runs, with the server away for 30 s. Arguments choose scenarios; see README.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CHAOS_OUTAGE_S=${CHAOS_OUTAGE_S:-30}
cargo test --release -p folgore-deploy --test chaos -- --test-threads=2 "$@"
