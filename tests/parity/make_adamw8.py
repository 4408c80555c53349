#!/usr/bin/env python3
"""Makes tests/parity/fixtures/adamw8: eight updates by the 8-bit AdamW of bitsandbytes.

  VENV/bin/pip install torch bitsandbytes safetensors
  VENV/bin/python tests/parity/make_adamw8.py

steps.safetensors holds the parameter before the first update as `param.0`, and of update N, from 1, the gradient `grad.N`, the
parameter after it and the moments as it left them: codes `m.N` and `v.N`, scales `m_absmax.N` and `v_absmax.N`.
"""
import ctypes
import os

import torch
from safetensors.torch import save_file


def no_library(*_):
    raise OSError("left out")


# bitsandbytes without its native library: see make_nf4.py
load, ctypes.cdll.LoadLibrary = ctypes.cdll.LoadLibrary, no_library
from bitsandbytes.optim import AdamW8bit  # noqa: E402

ctypes.cdll.LoadLibrary = load

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "adamw8")
COUNT, UPDATES = 4200, 8  # 16 whole blocks and a short one; from 4096 numbers on it codes


def main():
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(COUNT) * 0.05)
    optimizer = AdamW8bit([param], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    scale = torch.logspace(-4, 0, COUNT)
    tensors = {"param.0": param.data.clone()}
    for n in range(1, UPDATES + 1):
        grad = (torch.randn(COUNT) * scale).bfloat16()
        grad[256:512] = 0  # a block that nothing moves
        grad[512:768] *= torch.logspace(-3, 0, 256).bfloat16()  # one of many magnitudes
        param.grad = grad.float()
        optimizer.step()
        state = optimizer.state[param]
        tensors |= {f"grad.{n}": grad, f"param.{n}": param.data.clone()}
        tensors |= {f"m.{n}": state["state1"].clone(), f"m_absmax.{n}": state["absmax1"].clone()}
        tensors |= {f"v.{n}": state["state2"].clone(), f"v_absmax.{n}": state["absmax2"].clone()}
    os.makedirs(OUT, exist_ok=True)
    save_file(tensors, os.path.join(OUT, "steps.safetensors"))
    print({key: (list(value.shape), str(value.dtype)) for key, value in tensors.items() if key.endswith(".1")})
    print("second moments coded as 0 beside gradients:", [(tensors[f"v.{n}"][512:] == 0).sum().item() for n in range(1, UPDATES + 1)])


main()
