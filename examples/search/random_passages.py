#!/usr/bin/env python3
"""A server like Search-R1's that finds nothing: passages about countries, drawn at random whatever is asked for.

The control of the demonstration. A policy that reads what it finds is lost here; one that remembers the facts would not be:

    python3 examples/search/random_passages.py 8123
    folgore eval demo retriever.url=http://127.0.0.1:8123/retrieve --adapter runs/run-1/checkpoints/checkpoint-40
"""

import json
import pathlib
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FACTS = pathlib.Path(__file__).parents[2] / "dataset/src/procedural/countries/facts.tsv"
FIELDS = ["capital", "language", "population", "area", "currency", "calling code"]


def rounded(number):
    if number < 10_000:
        return str(number)
    return f"{(number + 500) // 1000} thousand" if number < 999_500 else f"{number / 1e6:.1f} million"


def passages():
    for line in FACTS.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            name, capital, language, population, area, currency, code = line.split("\t")
            facts = [capital, language, rounded(int(population)), rounded(int(area)), currency, code]
            for i in (0, 2, 4):
                said = "; ".join(f"{field}: {fact}" for field, fact in list(zip(FIELDS, facts))[i : i + 2])
                yield f'"{name}"\n{said}'


PASSAGES = list(passages())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        result = [[self.hit() for _ in range(asked.get("topk") or 3)] for _ in asked["queries"]]
        body = json.dumps({"result": result}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hit(self):
        place = random.randrange(len(PASSAGES))
        return {"document": {"id": str(place), "contents": PASSAGES[place]}, "score": 1.0}

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
