#!/usr/bin/env python3
"""Makes tests/parity/fixtures/quants: GGUF blocks of every served type, and what the `gguf` package decodes and encodes.

  python3 -m venv VENV && VENV/bin/pip install gguf==0.19.0 libgguf==0.2.2 numpy
  VENV/bin/python tests/parity/make_quants.py

TYPE.blocks holds blocks of random bytes whose scales are sane numbers, TYPE.f32 their decoding. values.f32 holds numbers that
are hard to code, TYPE.encoded the blocks that the package makes of them; it does not encode K blocks, so theirs are made by
`libgguf`, which wraps ggml's own code. Everything is drawn from fixed seeds.
"""
import os

import libgguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "quants")
# where each type's scales of 16 bits lie in its block
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
    "Q5_K": [0, 2], "Q6_K": [208],
}
ENCODED = ["F16", "BF16", "Q8_0", "Q4_0", "Q5_0"]


def save(array, name):
    with open(os.path.join(OUT, name), "wb") as file:
        file.write(np.ascontiguousarray(array).tobytes())


def blocks(kind, scales, random):
    size = GGML_QUANT_SIZES[kind][1]
    count = 8 if size > 40 else 32
    out = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in scales:
        d = (random.standard_normal(count) * 0.05).astype(np.float16)
        d[1], d[2], d[3] = 0, 6e-8, -0.0  # nothing, the smallest one, and nothing below zero
        out[:, at : at + 2] = d.view(np.uint8).reshape(count, 2)
    return out


def values(random):
    """Eight rows of 256."""
    rows = random.standard_normal((8, 256)).astype(np.float32)
    rows[1] *= 1e-6
    rows[2, :128], rows[2, 128:] = 0, 0.25
    rows[3] = np.abs(rows[3]) * 300
    rows[4, 7], rows[4, 100], rows[4, 101] = 1000, -1000, 1000
    rows[5] = np.round(rows[5] * 4) / 8
    rows[6] = np.linspace(-1, 1, 256, dtype=np.float32)
    rows[7] *= np.exp(random.standard_normal(256)).astype(np.float32)
    return rows


def main():
    os.makedirs(OUT, exist_ok=True)
    random = np.random.default_rng(5)
    for name, scales in SCALES.items():
        kind = GGMLQuantizationType[name]
        drawn = blocks(kind, scales, random)
        save(drawn, name + ".blocks")
        save(dequantize(drawn, kind).astype(np.float32), name + ".f32")
    hard = values(random)
    save(hard, "values.f32")
    for name in ENCODED:
        save(quantize(hard, GGMLQuantizationType[name]), name + ".encoded")
    for name in ["Q4_K", "Q6_K"]:
        save(libgguf.quantize_rows(hard, GGMLQuantizationType[name]), name + ".encoded")


if __name__ == "__main__":
    main()
