#!/usr/bin/env python3
"""Exports a trained policy and loads the files in other software: transformers, PEFT, and llama.cpp.

  VENV/bin/pip install torch transformers peft xllamacpp                      (xllamacpp: llama.cpp, with wheels)
  VENV/bin/python tests/peers/make_smollm2_hf.py --gguf GGUF --out HF         (the base's weights for PEFT)
  VENV/bin/python tests/peers/check_export.py --source runs/NAME/checkpoints/checkpoint-40 --base GGUF --hf HF --out FOLDER

Log-probs of transformers (merged folder) and PEFT (adapter folder) are compared with those of `folgore score` on base and
adapter; greedy texts of llama.cpp (merged GGUF, and base GGUF with adapter GGUF) with those of `folgore generate` on the same
files, for 64 tokens of 20 conversations that each side renders by the template that it finds in the files. Prints one line of
JSON; exit code 1 if log-probs differ by more than --tolerance, or a text differs.
"""
import argparse
import json
import os
import subprocess
import sys

QUESTIONS = [f"What is {a} + {b}? Reply with the number only." for a, b in
             [(48, 7), (16, 8), (93, 9), (35, 6), (71, 4), (52, 9), (27, 3), (88, 5), (64, 8), (19, 2)]] + [
    "What is the capital of France?", "Write one sentence about the sea.", "Name three colours.", "Who wrote Hamlet?",
    "Translate 'good morning' into Italian.", "What is water made of?", "Count from one to five.",
    "Give me a word that rhymes with cat.", "Is the sun a star?", "What day comes after Monday?",
]
TEXTS = [
    "What is 48 + 7? Reply with the number only.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "48 + 7 = 55\n16 + 8 = 24\n93 + 9 = 102",
    "def add(a, b):\n    return a + b\n",
    "x" * 40 + " 1234567890 äöü 你好",
]

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--source", required=True, help="checkpoint or adapter folder")
ap.add_argument("--base", required=True, help="the base for Folgore: GGUF file or folder")
ap.add_argument("--hf", help="the same base as a Hugging Face folder, for PEFT")
ap.add_argument("--out", required=True, help="folder for the exports; those that are there are used again")
ap.add_argument("--folgore", default="target/release/folgore")
ap.add_argument("--tolerance", type=float, default=1e-3)
ap.add_argument("--threads", type=int, default=int(os.environ.get("PEER_THREADS", "2")))
ap.add_argument("--show", type=int, default=0, help="print this many questions with the answers of both sides")
ap.add_argument("--skip", default="", help="peers to leave out: transformers, peft, llama.cpp")
a = ap.parse_args()
skipped = a.skip.split(",")


def folgore(args, rows=None):
    lines = "".join(json.dumps(row) + "\n" for row in rows or [])
    ran = subprocess.run([a.folgore] + args, input=lines, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(args)}: {ran.stderr}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


def export(*args):
    out = os.path.join(a.out, "-".join(arg.strip("-") for arg in args))
    if not os.path.exists(os.path.join(out, "export.json")):
        folgore(["export", a.source, "--model", a.base, "--out", out, "--json", "--to", *args])
    return out


def largest(one, other):
    return max(abs(x - y) for row, o in zip(one, other, strict=True) for x, y in zip(row, o, strict=True))


def logprobs(model, rows):
    import torch
    result = []
    with torch.no_grad():
        for ids in rows:
            logits = model(torch.tensor([ids])).logits[0, :-1].float()
            result.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return result


def llama_cpp(model, adapter, conversations):
    """Greedy texts by llama.cpp, which renders by the template inside of the file."""
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel = 1024, 1
    params.cpuparams.n_threads = a.threads
    params.use_jinja = True
    if adapter:
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = adapter, 1.0
        params.lora_adapters = [info]
    server = xllamacpp.Server(params)
    texts = []
    for messages in conversations:
        reply = server.handle_chat_completions(
            {"messages": messages, "max_tokens": 64, "temperature": 0, "top_k": 1, "cache_prompt": False})
        texts.append(reply["choices"][0]["message"]["content"])
    return texts


def ours(model, adapter, conversations):
    args = ["generate", "--model", model, "--temperature", "0", "--max-new-tokens", "64"]
    rows = [{"messages": messages} for messages in conversations]
    return [row["text"] for row in folgore(args + (["--adapter", adapter] if adapter else []), rows)]


result, good = {"tolerance": a.tolerance}, True
if not {"transformers", "peft"} <= set(skipped):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    merged = export("merged", "--dtype", "f32")
    tokenizer = AutoTokenizer.from_pretrained(merged)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    expected = [r["logprobs"] for r in folgore(["score", "--model", a.base, "--adapter", a.source], [{"ids": r} for r in rows])]
    if "transformers" not in skipped:
        model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
        result["transformers_merged_abs_max"] = largest(logprobs(model, rows), expected)
        good &= result["transformers_merged_abs_max"] <= a.tolerance
    if "peft" not in skipped and a.hf:
        from peft import PeftModel
        base = AutoModelForCausalLM.from_pretrained(a.hf, dtype=torch.float32).eval()
        result["adapter_effect_abs_max"] = largest(logprobs(base, rows), expected)
        model = PeftModel.from_pretrained(base, export("peft")).eval()
        result["peft_abs_max"] = largest(logprobs(model, rows), expected)
        good &= result["peft_abs_max"] <= a.tolerance < result["adapter_effect_abs_max"]
if "llama.cpp" not in skipped:
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    gguf = export("gguf", "--quant", "f16")
    whole = os.path.join(gguf, next(name for name in os.listdir(gguf) if name.endswith(".gguf")))
    apart = export("ollama", "--quant", "f16", "--apart")
    base, adapter = os.path.join(apart, "base-F16.gguf"), os.path.join(apart, "adapter.gguf")
    of_whole = ours(whole, None, conversations)
    theirs_of_whole = llama_cpp(whole, None, conversations)
    for at in range(0, len(QUESTIONS), len(QUESTIONS) // a.show) if a.show else []:
        print(f"{QUESTIONS[at]}\n  Folgore:   {of_whole[at]}\n  llama.cpp: {theirs_of_whole[at]}", file=sys.stderr)
    for name, theirs, expected in [
        ("llama_cpp_merged_f16", theirs_of_whole, of_whole),
        ("llama_cpp_base_and_adapter_f16", llama_cpp(base, adapter, conversations), ours(base, a.source, conversations)),
    ]:
        result[name + "_equal"] = sum(t == e for t, e in zip(theirs, expected, strict=True))
        result[name + "_of"] = len(expected)
        differing = [(q, e, t) for q, e, t in zip(QUESTIONS, expected, theirs, strict=True) if t != e]
        for question, expected_text, text in differing:
            print(f"{name}: {question!r}: folgore {expected_text!r}, llama.cpp {text!r}", file=sys.stderr)
        good &= not differing
    result["first_answers"] = of_whole[:3]
print(json.dumps(result, ensure_ascii=False))
sys.exit(0 if good else 1)
