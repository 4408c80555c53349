#!/usr/bin/env python3
"""Makes tests/parity/fixtures/bm25.json: what bm25s finds in a small corpus, with its own tokenizer.

  VENV/bin/pip install bm25s
  VENV/bin/python tests/parity/make_bm25.py

The words are made up, with the frequencies of a language (Zipf), in sentences with capitals, punctuation, figures, single letters and
letters beyond ASCII; fixed seed. Of each pair (k1, b) the file holds, by query, the ten best documents with their scores.
"""
import json
import os

import bm25s
import numpy as np

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "bm25.json")
DOCUMENTS, QUERIES, VOCABULARY = 300, 100, 1500
SETTINGS = [(1.5, 0.75), (0.9, 0.4), (2.0, 1.0)]
SYLLABLES = [c + v for c in "bdfgklmnprstvzñšß" for v in ("a", "e", "i", "o", "é", "я")]
MARKS = ["", "", "", "", "", ",", ".", ";", "-", "'s", " a", " 7", "_x", " (b)", "\n", "!"]


def main():
    dice = np.random.Generator(np.random.PCG64(11))
    words = ["".join(SYLLABLES[i] for i in dice.integers(0, len(SYLLABLES), dice.integers(1, 4))) for _ in range(VOCABULARY)]
    words[50::50] = [str(n * 37) for n in range(len(words[50::50]))]
    share = np.arange(1, VOCABULARY + 1) ** -1.07
    share /= share.sum()

    def text(count):
        picked = (words[i] for i in dice.choice(VOCABULARY, count, p=share))
        return " ".join((w.capitalize() if dice.random() < 0.1 else w) + MARKS[dice.integers(len(MARKS))] for w in picked)

    documents = [text(int(n)) for n in np.clip(dice.lognormal(3.3, 0.6, DOCUMENTS), 1, 200)]
    queries = [text(int(dice.integers(1, 9))) for _ in range(QUERIES)]
    tokens = bm25s.tokenize(documents, stopwords=None, show_progress=False)
    asked = bm25s.tokenize(queries, stopwords=None, show_progress=False, return_ids=False)
    found = []
    for k1, b in SETTINGS:
        index = bm25s.BM25(k1=k1, b=b)
        index.index(tokens, show_progress=False)
        top = []
        for query in asked:
            scores = index.get_scores(query) if query else np.zeros(DOCUMENTS)
            best = np.argsort(-scores, kind="stable")[:10]
            top.append([[int(i), round(float(scores[i]), 6)] for i in best if scores[i] > 0])
        found.append({"k1": k1, "b": b, "top": top})
    with open(OUT, "w") as f:
        json.dump({"bm25s": bm25s.__version__, "documents": documents, "queries": queries, "found": found}, f, ensure_ascii=False, indent=0)
    print(os.path.getsize(OUT), "bytes;", np.mean([len(t) for t in found[0]["top"]]), "hits a query")


main()
