#!/usr/bin/env python3
"""Makes tests/parity/fixtures/nf4: weights in 4 bits as bitsandbytes codes, stores and decodes them.

  VENV/bin/pip install torch safetensors bitsandbytes
  VENV/bin/python tests/parity/make_nf4.py

`weights.safetensors` holds `weight` in f32; each other file the state dict of a bitsandbytes layer made of it, and `decoded`.
"""
import ctypes
import os

import torch
from safetensors.torch import save_file


def no_library(*_):
    raise OSError("left out")


# bitsandbytes without its native library: the operations of its GPU kernels written in torch. The library's search on CPUs
# takes another code than the nearest for a few scales.
load, ctypes.cdll.LoadLibrary = ctypes.cdll.LoadLibrary, no_library
import bitsandbytes.functional as F  # noqa: E402

ctypes.cdll.LoadLibrary = load

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "nf4")
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


if __name__ == "__main__":
    main()
