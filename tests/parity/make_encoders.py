#!/usr/bin/env python3
"""Makes tests/parity/fixtures/bert-tiny: random BERTs with what sentence-transformers, transformers and ColBERT's rules make of texts.

  VENV/bin/pip install torch transformers sentence-transformers
  VENV/bin/python tests/parity/make_encoders.py

  VENV/bin/python tests/parity/make_encoders.py --model FOLDER --out FILE

The second form writes what sentence-transformers makes of the same texts with another model, for the test `a_real_encoder` (see
retriever/tests/encoders.rs). Folders: `sentence-mean` and `sentence-cls` (sentence-transformers), `cross` (one logit), `late` (ColBERT:
BERT and a projection). `expected.json` of each: texts with their vectors, or query, passages and scores.
"""
import argparse
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "bert-tiny")
TEXTS = [
    "The capital of France is Paris.",
    "paris",
    "",
    "Où est la Tour Eiffel ? Über 300 m hoch; 北京 is elsewhere.",
    "A sentence, with commas, (parentheses) and numbers like 3.14159!",
    "many words " * 60,
    "one more text of a middling length, about nothing in particular, so that batches mix lengths",
]
QUERY = "what is the capital of france?"
MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def tokenizer():
    """WordPiece over single letters, with and without ##, and a few whole words; BERT's special tokens."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789")
    words = "the capital of france is paris what words many text one more sentence numbers ##ing ##s ##ed eiffel".split()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    entries = special + letters + ["##" + x for x in letters] + list(MARKS) + words
    tok = Tokenizer(models.WordPiece({x: i for i, x in enumerate(dict.fromkeys(entries))}, unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = [("[CLS]", tok.token_to_id("[CLS]")), ("[SEP]", tok.token_to_id("[SEP]"))]
    tok.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", model_max_length=64
    )


def config(tok):
    return BertConfig(
        vocab_size=len(tok), hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, max_position_embeddings=64, num_labels=1,
        initializer_range=0.3,
    )


def write(folder, name, value):
    with open(os.path.join(folder, name), "w") as f:
        json.dump(value, f, ensure_ascii=False, indent=0)
        f.write("\n")


def rounded(rows):
    return [[round(float(x), 7) for x in row] for row in rows]


def fresh(name):
    folder = os.path.join(OUT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder


def keep(folder):
    """Only what is read: configuration, weights, tokenizer."""
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json", "artifact.metadata")
    for name in os.listdir(folder):
        if name not in (*names, "config_sentence_transformers.json", "1_Pooling"):
            path = os.path.join(folder, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def sentence(tok, name, mode):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    plain = fresh(name + ".tmp")
    BertModel(config(tok)).save_pretrained(plain)
    tok.save_pretrained(plain)
    body = Transformer(plain, max_seq_length=48)
    prompts = {"query": "query: ", "passage": "passage: "} if mode == "cls" else {}
    model = SentenceTransformer(modules=[body, Pooling(body.get_word_embedding_dimension(), pooling_mode=mode), Normalize()], prompts=prompts, device="cpu")
    folder = fresh(name)
    model.save(folder)
    shutil.rmtree(plain)
    keep(folder)
    expected(SentenceTransformer(folder, device="cpu"), os.path.join(folder, "expected.json"))


def expected(model, path):
    found = {"texts": TEXTS, "vectors": rounded(model.encode(TEXTS, normalize_embeddings=True, prompt=""))}
    prompts = getattr(model, "prompts", {})
    if prompts.get("query"):
        found["queries"] = rounded(model.encode(TEXTS, prompt_name="query", normalize_embeddings=True))
        found["passages"] = rounded(model.encode(TEXTS, prompt_name="passage", normalize_embeddings=True))
    write(*os.path.split(path), found)


def cross(tok):
    folder = fresh("cross")
    model = BertForSequenceClassification(config(tok)).eval()
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    batch = tok([QUERY] * len(TEXTS), TEXTS, padding=True, truncation="longest_first", max_length=64, return_tensors="pt", return_token_type_ids=True)
    with torch.no_grad():
        scores = model(**batch).logits[:, 0]
    keep(folder)
    write(folder, "expected.json", {"query": QUERY, "passages": TEXTS, "scores": [round(float(x), 6) for x in scores]})


def late(tok):
    """As colbert-ir's QueryTokenizer, DocTokenizer and MaxSim do, for a query length of 16 and passages of 40."""
    folder = fresh("late")
    bert, linear = BertModel(config(tok)).eval(), torch.nn.Linear(24, 8, bias=False)
    bert.save_pretrained(folder)
    tok.save_pretrained(folder)
    weights = {"bert." + k: v for k, v in load_file(os.path.join(folder, "model.safetensors")).items()}
    save_file({**weights, "linear.weight": linear.weight.data.clone()}, os.path.join(folder, "model.safetensors"))
    write(folder, "artifact.metadata", {"query_maxlen": 16, "doc_maxlen": 40, "dim": 8, "mask_punctuation": True, "attend_to_mask_tokens": False})
    cls, sep, mask, first, second = tok.convert_tokens_to_ids(["[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"])
    skip = set(tok.convert_tokens_to_ids(list(MARKS)))

    def vectors(ids, seen):
        with torch.no_grad():
            attention = torch.tensor([[1] * seen + [0] * (len(ids) - seen)])
            states = bert(input_ids=torch.tensor([ids]), attention_mask=attention).last_hidden_state[0]
            return torch.nn.functional.normalize(linear(states), dim=-1)

    def marked(text, mark, most):
        return [cls, mark] + tok(text, add_special_tokens=False)["input_ids"][: most - 3] + [sep]

    query = marked(QUERY, first, 16)
    q = vectors(query + [mask] * (16 - len(query)), len(query))
    scores = []
    for text in TEXTS:
        ids = marked(text, second, 40)
        d = vectors(ids, len(ids))[[i for i, x in enumerate(ids) if x not in skip]]
        scores.append(round(float((q @ d.T).max(dim=1).values.sum()), 6))
    keep(folder)
    write(folder, "expected.json", {"query": QUERY, "passages": TEXTS, "scores": scores})


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model")
    ap.add_argument("--out")
    a = ap.parse_args()
    torch.manual_seed(5)
    if a.model:
        from sentence_transformers import SentenceTransformer

        expected(SentenceTransformer(a.model, device="cpu"), os.path.abspath(a.out))
        return
    tok = tokenizer()
    sentence(tok, "sentence-mean", "mean")
    sentence(tok, "sentence-cls", "cls")
    cross(tok)
    late(tok)


main()
