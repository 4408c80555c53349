#!/usr/bin/env python3
"""Makes tests/parity/fixtures/gguf-*: the small models of families.py as GGUF files, and what transformers computes from their weights.

  VENV/bin/python tests/parity/make_gguf.py      (the VENV of make_fixtures.py)

The files are laid out as llama.cpp's converter lays them out: matrices in F16, vectors in F32, q and k rows of the llama
architecture interleaved, Gemma's norms with their one added, the divisors of Llama 3's frequencies as `rope_freqs.weight`.
"""
import json
import math
import os
import shutil

import gguf
import make_fixtures as base
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

# folder, fixture, architecture, changes of its configuration: what GGUF has no words for takes llama.cpp's value
MODELS = [
    ("gguf-llama3", "tiny-llama3", "llama", {}),
    ("gguf-mistral", "tiny-mistral", "llama", {}),
    ("gguf-qwen2", "tiny-qwen2-yarn", "qwen2", {}),
    ("gguf-qwen3", "tiny-qwen3", "qwen3", {}),
    ("gguf-gemma3", "tiny-gemma3", "gemma3", {"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention"] * 4}),
]


def llama3_factors(config):
    rope = config.rope_parameters
    freqs = 1.0 / rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    low, high = (rope["original_max_position_embeddings"] / rope[k] for k in ("low_freq_factor", "high_freq_factor"))
    out = []
    for freq in freqs:
        wave = 2 * math.pi / freq
        if wave < high:
            out.append(1.0)
        elif wave > low:
            out.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"])
            out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(out, dtype=np.float32)


def rope(writer, config, name):
    parameters = config.rope_parameters
    full = parameters.get("full_attention", parameters)
    writer.add_rope_freq_base(full["rope_theta"])
    if full["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(full["rope_type"]))
        writer.add_rope_scaling_factor(full["factor"])
    if full["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(full["beta_fast"])
    if "sliding_attention" in parameters:
        writer.add_float32(f"{name}.rope.freq_base_swa", parameters["sliding_attention"]["rope_theta"])
    if full["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config))


def tokenizer(writer, tok):
    document = json.loads(tok.backend_tokenizer.to_str())
    vocab = sorted(document["model"]["vocab"], key=document["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocab)
    writer.add_token_types([3 if i < 4 else 1 for i in range(len(vocab))])
    writer.add_token_merges([" ".join(m) for m in document["model"]["merges"]])
    for role, number in (("bos", 1), ("eos", 2), ("pad", 3)):
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tok.chat_template)


def make(folder, source, name, changes):
    source, path = os.path.join(base.OUT, source), os.path.join(base.OUT, folder, "tiny.gguf")
    config = AutoConfig.from_pretrained(source)
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForCausalLM.from_pretrained(source, config=config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(parameter.half().float())
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)
    os.makedirs(os.path.dirname(path))
    writer = gguf.GGUFWriter(path, name)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if source.endswith(("mistral", "gemma3")):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    rope(writer, config, name)
    tokenizer(writer, PreTrainedTokenizerFast.from_pretrained(source))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.float().numpy()
        if name == "llama" and ("q_proj" in key or "k_proj" in key):
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            data = base.permute(data.reshape(data.shape[0], -1), heads).reshape(data.shape)
        if name == "gemma3" and key.endswith("norm.weight"):
            data = data + 1
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")) , data.astype(np.float16 if data.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base.expect(model, folder)


if __name__ == "__main__":
    for entry in MODELS:
        make(*entry)
