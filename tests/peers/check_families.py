#!/usr/bin/env python3
"""Exports a small policy of every family as GGUF and compares its greedy tokens with llama.cpp's.

  VENV/bin/pip install xllamacpp
  VENV/bin/python tests/peers/check_families.py --folgore target/release/folgore

Base and adapter are those of tests/parity/fixtures, in F32; where llama.cpp computes one thing whatever a file says, the base's
config.json is made to say that too. Twelve prompts of 10 and 60 random tokens are continued by 50. Where tokens part, the two
candidates have to be nearly as likely: llama.cpp rounds keys and values to half. Prints one line of JSON; exit code 1 if a
family differs by more than --tie.
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

import xllamacpp

FIXTURES = os.path.join(os.path.dirname(__file__), "..", "parity", "fixtures")
# name, base, adapter, changes of config.json, changes of its rope_parameters
FAMILIES = [
    ("llama", "tiny-tied", "adapter-tied-rslora", {}, {}),
    ("llama3, with biases", "tiny-llama3", "adapter-llama3", {}, {}),
    ("llama, linear scaling", "tiny-llama-linear", "adapter-llama-linear", {}, {}),
    ("qwen2, YaRN", "tiny-qwen2-yarn", "adapter-qwen2-yarn", {}, {"beta_fast": 32.0}),
    ("qwen3", "tiny-qwen3", "adapter-qwen3", {}, {}),
    ("gemma3", "tiny-gemma3", "adapter-gemma3", {"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention"] * 4}, {}),
]

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--folgore", default="target/release/folgore")
ap.add_argument("--tie", type=float, default=0.03, help="difference of log-probs up to which tokens may part")
a = ap.parse_args()


def folgore(args, rows=()):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    ran = subprocess.run([a.folgore, *args], input=lines, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(args)}: {ran.stderr}")
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


def export(folder, base, adapter, changes, rope):
    shutil.copytree(os.path.join(FIXTURES, base), os.path.join(folder, "base"))
    path = os.path.join(folder, "base", "config.json")
    with open(path) as file:
        config = json.load(file)
    config.update(changes)
    config["rope_parameters"].update(rope)
    with open(path, "w") as file:
        json.dump(config, file)
    out = os.path.join(folder, "out")
    folgore(["export", os.path.join(FIXTURES, adapter), "--model", os.path.dirname(path), "--out", out, "--to", "gguf", "--quant", "f32"])
    return os.path.join(out, next(name for name in os.listdir(out) if name.endswith(".gguf")))


def llama_cpp(gguf, prompts):
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 128, 1, 2
    server = xllamacpp.Server(params)
    ask = {"n_predict": 50, "temperature": 0, "top_k": 1, "cache_prompt": False, "verbose": True, "return_tokens": True}
    return [server.handle_completions({"prompt": ids, **ask})["__verbose"]["tokens"] for ids in prompts]


random.seed(1)
prompts = [[random.randrange(4, 256) for _ in range(length)] for length in [10, 60] * 6]
result, good = {}, True
for name, *what in FAMILIES:
    with tempfile.TemporaryDirectory() as folder:
        gguf = export(folder, *what)
        rows = folgore(["generate", "--model", gguf, "--temperature", "0", "--max-new-tokens", "50"], [{"ids": ids} for ids in prompts])
        equal, ties = 0, []
        for ids, row, theirs in zip(prompts, rows, llama_cpp(gguf, prompts), strict=True):
            ours = row["ids"]
            parts = [i for i, (o, t) in enumerate(zip(ours, theirs)) if o != t]
            if not parts:
                # either may leave the token out that ends a text
                equal += abs(len(ours) - len(theirs)) <= 1
                continue
            at = parts[0]
            scored = folgore(["score", "--model", gguf], [{"ids": ids + ours[:at] + [token]} for token in (ours[at], theirs[at])])
            ties.append(round(abs(scored[0]["logprobs"][-1] - scored[1]["logprobs"][-1]), 4))
        result[name] = {"equal": equal, "of": len(prompts), "ties": ties}
        good &= equal + len(ties) == len(prompts) and max(ties, default=0) <= a.tie
print(json.dumps(result))
sys.exit(0 if good else 1)
