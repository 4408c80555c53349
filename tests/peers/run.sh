#!/usr/bin/env bash
# Sets up the peers beside the checkout (about 8 GB, once) and runs every comparison. Arguments go to compare.py; see README.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PEERS_DIR=${PEERS_DIR:-$PWD/peers-data} PEER_WAIT_IDLE=${PEER_WAIT_IDLE:-120}
PYTHON=${PYTHON:-$PEERS_DIR/venv/bin/python}

mkdir -p "$PEERS_DIR"
if [ ! -x "$PYTHON" ]; then
  python3 -m venv "$PEERS_DIR/venv"
  "$PEERS_DIR/venv/bin/pip" install -r tests/peers/requirements-peers.txt
fi
if [ ! -f "$PEERS_DIR/smollm2-hf/config.json" ]; then
  ls deploy/models/cache/*.gguf >/dev/null 2>&1 || python3 deploy/models/get_smollm2.py
  "$PYTHON" tests/peers/make_smollm2_hf.py --gguf deploy/models/cache/*.gguf --out "$PEERS_DIR/smollm2-hf" --check
fi
cargo build --release
"$PYTHON" tests/peers/compare.py --folgore "${CARGO_TARGET_DIR:-target}/release/folgore" --out "$PEERS_DIR/results.jsonl" "$@"
