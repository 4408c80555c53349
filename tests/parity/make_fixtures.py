#!/usr/bin/env python3
"""Makes tests/parity/fixtures: small checkpoints, logits, gradients, token ids and renderings by other software.

  python3 -m venv VENV && VENV/bin/pip install torch transformers tokenizers peft safetensors gguf numpy accelerate
  VENV/bin/python tests/parity/make_fixtures.py --gguf deploy/models/cache/SmolLM2-135M-Instruct.Q4_1.gguf

Everything is drawn from fixed seeds. The fixtures are committed: run this only to change them. What each file holds is in
fixtures/README.md. `versions.json` records what made them.

  VENV/bin/python tests/parity/make_fixtures.py --families [NAME ...]    # folders of families.py alone
"""
import argparse
import json
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import tokenizers
import torch
import transformers
import families
from awkward import AWKWARD
import gguf
import numpy as np
from gguf import GGUFReader
from safetensors.torch import save_file
from templates import BRACKETS, CHATML, CONVERSATIONS, TOOLS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "fixtures")
OTHERS = ("adapters", "quants", "tokenizers", "gguf-")  # made by scripts of their own
ROWS = [[1, 40, 77, 123, 9, 200, 261, 55, 299, 4], [7], [3, 3, 3, 90, 91, 92, 250, 14, 15, 16, 17, 18, 260, 261, 262, 263, 30, 31, 32, 33]]


def write_json(value, *path):
    with open(os.path.join(OUT, *path), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=None, separators=(",", ":"))
        file.write("\n")


def draw(tensor, std, generator):
    with torch.no_grad():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)


def tiny_tokenizer():
    """A byte-level BPE of 300 tokens whose four added tokens come first."""
    tk = Tokenizer(models.BPE())
    tk.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tk.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tk.train_from_iterator(["the cat sat on the mat and that is that; there it is then"] * 4 + AWKWARD, trainer)
    assert tk.get_vocab_size() == 300, tk.get_vocab_size()
    return PreTrainedTokenizerFast(
        tokenizer_object=tk, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<pad>", unk_token=None,
        chat_template=CHATML, clean_up_tokenization_spaces=False,
    )


def tiny_model(seed, **shape):
    common = dict(
        vocab_size=300, num_hidden_layers=2, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
        attention_bias=False, mlp_bias=False,  # no pad_token_id: torch would leave its row of the embedding without a gradient
    )
    model = LlamaForCausalLM(LlamaConfig(**common, **shape)).float().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            with torch.no_grad():
                parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
        else:
            draw(parameter, 0.6 if "embed" in name else 1.6 / parameter.shape[-1] ** 0.5, generator)
    model.generation_config.eos_token_id = [2, 0]
    return model


def greedy(model, prompt, count):
    """Up to `count` greedy ids; stops before the first choice that rounding could turn."""
    ids, new = list(prompt), []
    for _ in range(count):
        top = torch.topk(model(torch.tensor([ids])).logits[0, -1], 2)
        if top.values[0] - top.values[1] < 1e-3:
            break
        new.append(int(top.indices[0]))
        ids.append(new[-1])
    return new


@torch.no_grad()
def expect(model, folder, count=24):
    logits = {f"logits.{i}": model(torch.tensor([row])).logits[0].contiguous() for i, row in enumerate(ROWS)}
    save_file(logits, os.path.join(OUT, folder, "logits.safetensors"))
    continuations = [greedy(model, row, count) for row in ROWS]
    assert sum(map(len, continuations)) >= 30, "too close a call too early: change the seed"
    write_json({"rows": ROWS, "greedy": continuations}, folder, "expected.json")


def mean_cross_entropy(model, rows):
    """Mean over every token after the first of its row, all rows together."""
    total, count = 0.0, 0
    for row in rows:
        if len(row) > 1:
            ids = torch.tensor([row])
            logits = model(ids).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
            count += len(row) - 1
    return total / count


def full_gradients(model, folder):
    model.zero_grad()
    loss = mean_cross_entropy(model, ROWS)
    loss.backward()
    grads = {name: p.grad.contiguous() for name, p in model.named_parameters()}
    save_file(grads, os.path.join(OUT, folder, "gradients.safetensors"))
    write_json({"loss": float(loss.detach())}, folder, "gradients.json")


def adapter(base, folder, seed, **lora):
    """A PEFT adapter with random A and B on `base`: files, logits, loss and gradients."""
    path = os.path.join(OUT, folder)
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **lora)
    model = peft.get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            draw(parameter, 0.15, generator)
    model.save_pretrained(path)
    os.remove(os.path.join(path, "README.md"))
    saved = json.load(open(os.path.join(path, "adapter_config.json")))
    saved["target_modules"].sort()  # a set: its order changes from run to run
    with open(os.path.join(path, "adapter_config.json"), "w") as file:
        json.dump(saved, file, indent=2, sort_keys=True)
    expect(model, folder)
    model.zero_grad()
    loss = mean_cross_entropy(model, ROWS)
    loss.backward()
    grads = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): p.grad.contiguous()
        for name, p in model.named_parameters() if "lora_" in name
    }
    save_file(grads, os.path.join(path, "gradients.safetensors"))
    write_json({"loss": float(loss.detach())}, folder, "gradients.json")
    model.unload()


def tiny():
    tok = tiny_tokenizer()
    untied = tiny_model(
        1, hidden_size=48, intermediate_size=112, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    untied.save_pretrained(os.path.join(OUT, "tiny-untied"))
    tok.save_pretrained(os.path.join(OUT, "tiny-untied"))
    expect(untied, "tiny-untied")
    # head_dim is not hidden_size / heads here
    tied = tiny_model(
        6, hidden_size=32, intermediate_size=80, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    tied.save_pretrained(os.path.join(OUT, "tiny-tied"))
    tok.save_pretrained(os.path.join(OUT, "tiny-tied"))
    expect(tied, "tiny-tied")
    full_gradients(tied, "tiny-tied")
    # weights rounded to bf16, arithmetic in f32: what a reader that widens at load computes
    rounded = LlamaForCausalLM(tied.config).to(torch.bfloat16)
    rounded.load_state_dict({k: v.to(torch.bfloat16) for k, v in tied.state_dict().items()})
    rounded.tie_weights()
    rounded.generation_config.eos_token_id = [2, 0]
    rounded.save_pretrained(os.path.join(OUT, "tiny-tied-bf16-sharded"), max_shard_size="24KB")
    tok.save_pretrained(os.path.join(OUT, "tiny-tied-bf16-sharded"))
    # read anew: `float()` would keep the rotary frequencies as bf16 rounded them
    folder = os.path.join(OUT, "tiny-tied-bf16-sharded")
    expect(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), "tiny-tied-bf16-sharded")
    write_gguf(tied, tok)
    seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter(untied, "adapter-untied", 11, r=4, lora_alpha=10, target_modules=seven)
    adapter(tied, "adapter-tied-rslora", 12, r=9, lora_alpha=6, target_modules=["q_proj", "v_proj"], use_rslora=True)


def tiny_families(names=()):
    """Each family's model and an adapter on all its maps; the first seed whose greedy tokens are never a close call."""
    tok = tiny_tokenizer()
    seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for i, name in enumerate(families.FAMILIES):
        if names and name not in names:
            continue
        for folder in ("tiny-" + name, "adapter-" + name):
            shutil.rmtree(os.path.join(OUT, folder), ignore_errors=True)
        for seed in range(100 * i, 100 * i + 100):
            model = families.build(name, seed)
            with torch.no_grad():
                if all(len(greedy(model, row, 32)) == 32 for row in ROWS):
                    break
        else:
            raise SystemExit(f"{name}: every seed has a close call")
        path = os.path.join(OUT, "tiny-" + name)
        model.save_pretrained(path)
        tok.save_pretrained(path)
        expect(model, "tiny-" + name, 32)
        adapter(model, "adapter-" + name, 40 + i, r=2, lora_alpha=5, target_modules=seven)


GGUF_TYPES = {
    "token_embd": "Q8_0", "attn_q": "Q8_0", "attn_k": "Q4_1", "attn_v": "Q4_0", "attn_output": "BF16", "ffn_gate": "Q4_1",
    "ffn_up": "Q4_0", "ffn_down": "F16",
}


def permute(weight, heads):
    """Rows of q and k as llama GGUF files hold them: the two halves of each head interleaved."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_gguf(model, tok):
    """`model` with a type of block for each kind of weight, and what transformers computes from that file."""
    os.makedirs(os.path.join(OUT, "tiny-gguf"))
    path = os.path.join(OUT, "tiny-gguf", "tiny.gguf")
    config, document = model.config, json.loads(tok.backend_tokenizer.to_str())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocab = sorted(document["model"]["vocab"], key=document["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocab)
    writer.add_token_types([3 if i < 4 else 1 for i in range(len(vocab))])
    writer.add_token_merges([" ".join(m) for m in document["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        data = tensor.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            data = permute(data, config.num_attention_heads)
        short = names.get_name(name, try_suffixes=(".weight",))
        kind = gguf.GGMLQuantizationType[GGUF_TYPES.get(short.split(".")[-2], "F32")]
        writer.add_tensor(short, gguf.quants.quantize(np.ascontiguousarray(data), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = LlamaForCausalLM.from_pretrained(os.path.dirname(path), gguf_file="tiny.gguf", dtype=torch.float32).eval()
    # the file keeps the order of the checkpoint: what transformers undoes has to be what was done
    q = "model.layers.0.self_attn.q_proj.weight"
    assert (read.state_dict()[q] - model.state_dict()[q]).abs().max() < 0.02
    expect(read, "tiny-gguf")


def smollm2(gguf):
    """The original tokenizer, from the vocabulary and merges that the GGUF holds."""
    reader = GGUFReader(gguf)
    get = lambda key: reader.get_field("tokenizer." + key).contents()
    tokens, merges, template = get("ggml.tokens"), get("ggml.merges"), get("chat_template")
    first = len(tokens) - len(merges)
    assert tokens[first:] == [m.replace(" ", "", 1) for m in merges], "the vocabulary is not specials, bytes, merges"
    special = [t for t, kind in zip(tokens, get("ggml.token_type")) if kind == 3]
    os.makedirs(os.path.join(OUT, "smollm2"))
    with open(os.path.join(OUT, "smollm2", "merges.txt"), "w", encoding="utf-8") as file:
        file.write("\n".join(merges) + "\n")
    write_json({"tokens": tokens[:first], "special": len(special), "chat_template": template}, "smollm2", "vocab.json")

    def build(added):
        tk = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ", 1)) for m in merges]))
        tk.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tk.decoder = decoders.ByteLevel()
        tk.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special if added])
        return tk

    trusted, untrusted = build(True), build(False)
    rows = []
    for text in AWKWARD:
        ids = trusted.encode(text).ids
        rows.append({
            "text": text, "trusted": ids, "untrusted": untrusted.encode(text).ids,
            "decoded": trusted.decode(ids, skip_special_tokens=False),
            "decoded_skip": trusted.decode(ids, skip_special_tokens=True),
        })
    write_json(rows, "smollm2", "awkward.json")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=trusted, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>", clean_up_tokenization_spaces=False,
    )
    return fast, template


def renderings(tok, own):
    out = []
    for name, template in [("smollm2", own), ("chatml", CHATML), ("brackets", BRACKETS), ("tools", TOOLS)]:
        cases = []
        for conversation in CONVERSATIONS:
            variables = dict(conversation)
            if variables.pop("only", name) != name:
                continue
            messages = variables.pop("messages")
            prompt = variables.pop("add_generation_prompt", True)
            arguments = dict(chat_template=template, add_generation_prompt=prompt, **variables)
            case = {"messages": messages, "vars": variables, "add_generation_prompt": prompt}
            try:
                case["text"] = tok.apply_chat_template(messages, tokenize=False, **arguments)
                case["ids"] = tok.apply_chat_template(messages, tokenize=True, return_dict=False, **arguments)
            except Exception as error:
                case["error"] = str(error)
            cases.append(case)
        out.append({"name": name, "template": template, "cases": cases})
    write_json(out, "smollm2", "chat.json")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf")
    parser.add_argument("--families", nargs="*", choices=list(families.FAMILIES))
    arguments = parser.parse_args()
    if arguments.families is not None:
        return tiny_families(arguments.families)
    if not arguments.gguf:
        parser.error("--gguf is needed for everything but --families")
    for entry in os.listdir(OUT) if os.path.isdir(OUT) else []:
        if os.path.isdir(os.path.join(OUT, entry)) and not entry.startswith(OTHERS):
            shutil.rmtree(os.path.join(OUT, entry))
    os.makedirs(OUT, exist_ok=True)
    torch.manual_seed(0)
    tiny()
    tiny_families()
    renderings(*smollm2(arguments.gguf))
    versions = {m.__name__: m.__version__ for m in (torch, transformers, tokenizers, peft)}
    write_json(versions, "versions.json")


if __name__ == "__main__":
    main()
