"""Runs Folgore's search and its peers on the same corpus, one after the other (A B A B), and prints both.

  python make_corpus.py --out $PEERS_DIR/corpus
  cargo bench -p folgore-retriever --no-run            # names the executable
  python compare_search.py --bench ../../target/release/deps/search-... [--only bm25,vectors,encode] [--rounds 2]

bm25     50,000 documents, queries of 8 words: 32 at a time     bm25s, with numpy and with numba; one thread
vectors  50,000 x 384: recall and queries a second, 32 at a time     hnswlib and faiss, M 16, efConstruction 200; two threads
encode   all-MiniLM-L6-v2, 32 passages of 256 tokens     sentence-transformers; two threads

Both sides compute on the same machine in turns; a figure is the best of its rounds. `noise` is how many cores others kept busy while
the peer ran: above 0.2 the ratio is a guess.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

import benchlib

HERE = os.path.dirname(os.path.abspath(__file__))
CORPUS = os.path.join(benchlib.peers_dir(), "corpus")
MINILM = os.environ.get("MINILM_DIR", os.path.join(benchlib.peers_dir(), "minilm"))
PEERS = {
    "bm25": [["peer_bm25.py", "--impl", "bm25s"], ["peer_bm25.py", "--impl", "bm25s-numba"]],
    "vectors": [["peer_ann.py", "--impl", "hnswlib"], ["peer_ann.py", "--impl", "faiss"], ["peer_ann.py", "--impl", "faiss-flat"]],
    "encode": [["peer_embed.py", "--passages", "32", "--model", MINILM]],
}


def ours(bench, what):
    """Seconds by name, and the lines about building and recall."""
    env = {**os.environ, "FOLGORE_CORPUS": CORPUS, "FOLGORE_ENCODER": MINILM}
    with tempfile.TemporaryDirectory() as folder:
        env["CRITERION_HOME"] = folder
        done = subprocess.run([bench, "--bench", what], env=env, stdout=subprocess.PIPE, text=True, check=True)
        found = {}
        for path, _, files in os.walk(folder):
            if path.endswith("new") and "benchmark.json" in files and "estimates.json" in files:
                about = json.load(open(os.path.join(path, "benchmark.json")))
                count = (about.get("throughput") or {}).get("Elements", 1)
                seconds = json.load(open(os.path.join(path, "estimates.json")))["median"]["point_estimate"] / 1e9
                found[about["full_id"]] = count / seconds
    return found, re.findall(r"^# (.*)$", done.stdout, re.M)


def peer(command):
    done = subprocess.run([sys.executable, *command], cwd=HERE, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bench", required=True)
    ap.add_argument("--only", default="bm25,vectors,encode")
    ap.add_argument("--rounds", type=int, default=2)
    a = ap.parse_args()
    for what in a.only.split(","):
        best = {}
        for _ in range(a.rounds):
            benchlib.wait_idle()
            rates, notes = ours(os.path.abspath(a.bench), what)
            for name, rate in rates.items():
                best[name] = max(rate, best.get(name, 0))
            print("\n".join(f"  {note}" for note in notes))
            for command in PEERS[what]:
                benchlib.wait_idle()
                row = peer(command)
                print(f"  {row['peer']:<28} {json.dumps(row['result'])}   noise {row['noise']['other_cores']}")
        for name, rate in sorted(best.items()):
            print(f"{name:<44} {rate:12.1f} a second")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
