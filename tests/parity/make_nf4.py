#!/usr/bin/env python3
"""Makes tests/parity/fixtures/nf4 and tiny-untied-nf4: weights in 4 bits as bitsandbytes codes, stores and decodes them.

  VENV/bin/pip install torch transformers accelerate bitsandbytes
  VENV/bin/python tests/parity/make_nf4.py

nf4/weights.safetensors holds `weight` in f32; each other file there the state dict of a bitsandbytes layer made of it, and
`decoded`. tiny-untied-nf4 is the fixture tiny-untied as transformers loads and saves it in 4 bits, and what it computes then.
"""
import ctypes
import json
import os
import shutil

import torch
from safetensors.torch import save_file


def no_library(*_):
    raise OSError("left out")


# bitsandbytes without its native library: the operations of its GPU kernels written in torch. The library's search on CPUs
# takes another code than the nearest for a few scales.
load, ctypes.cdll.LoadLibrary = ctypes.cdll.LoadLibrary, no_library
import bitsandbytes.functional as F  # noqa: E402
from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: E402

ctypes.cdll.LoadLibrary = load

FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
OUT = os.path.join(FIXTURES, "nf4")
ROWS, COLUMNS = 301, 75  # 353 blocks, the last one short; 75 columns: blocks run across rows


def main():
    torch.manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS) * 0.05
    flat = weight.view(-1)
    flat[64:128] = 0  # a block of zeros
    codes = F.get_4bit_type("nf4", device="cpu")
    flat[128:143] = (codes[:-1] + codes[1:]) / 2  # numbers between two codes
    flat[143] = 1.0
    flat[192:256] *= 1e-30
    os.makedirs(OUT, exist_ok=True)
    save_file({"weight": weight}, os.path.join(OUT, "weights.safetensors"))
    kinds = {"nested": ("nf4", 64, True), "plain": ("nf4", 64, False), "block-128": ("nf4", 128, True), "fp4": ("fp4", 64, True)}
    for name, (kind, block, nested) in kinds.items():
        packed, state = F.quantize_4bit(weight, blocksize=block, quant_type=kind, compress_statistics=nested)
        tensors = {"layer.weight." + key: value for key, value in state.as_dict(packed=True).items()}
        tensors |= {"layer.weight": packed, "decoded": F.dequantize_4bit(packed, state)}
        save_file({key: value.contiguous() for key, value in tensors.items()}, os.path.join(OUT, name + ".safetensors"))
        print(name, {key: (list(value.shape), str(value.dtype)) for key, value in tensors.items()})
    print("mean of the scales", state.offset.item())


def model():
    source, out = os.path.join(FIXTURES, "tiny-untied"), os.path.join(FIXTURES, "tiny-untied-nf4")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.float32, device_map="cpu")
    loaded.save_pretrained(out)
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]:
        shutil.copy(os.path.join(source, name), out)
    with open(os.path.join(source, "expected.json")) as file:
        rows = json.load(file)["rows"]
    logits, greedy = {}, []
    with torch.no_grad():
        for i, row in enumerate(rows):
            logits[f"logits.{i}"] = loaded(torch.tensor([row])).logits[0].contiguous()
            ids = list(row)
            for _ in range(32):
                ids.append(int(loaded(torch.tensor([ids])).logits[0, -1].argmax()))
            greedy.append(ids[len(row):])
    save_file(logits, os.path.join(out, "logits.safetensors"))
    with open(os.path.join(out, "expected.json"), "w") as file:
        json.dump({"rows": rows, "greedy": greedy}, file)
        file.write("\n")


if __name__ == "__main__":
    main()
    model()
