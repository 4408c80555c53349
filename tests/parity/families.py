"""Tiny random models of every family beyond plain Llama: what makes them different is on, and large enough to show.

Windows are shorter than the rows, norms are not all ones, biases are not zero, and rotary scaling begins at a context that the
rows outgrow. `make_fixtures.py` writes them; `make_fixtures.py --families [NAME ...]` writes these folders alone, or those named.
"""
import torch
from transformers import (
    Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
    Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
)

COMMON = dict(
    vocab_size=300, num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None, tie_word_embeddings=True,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
# a ramp over several of the eight frequencies
YARN = dict(
    rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=64, beta_fast=4.0, beta_slow=1.0,
)
PLAIN = dict(rope_type="default", rope_theta=10000.0)

FAMILIES = {
    "llama3": (LlamaForCausalLM, LlamaConfig, dict(rope_parameters=LLAMA3, rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True)),
    "llama-linear": (LlamaForCausalLM, LlamaConfig, dict(rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=3.0))),
    "mistral": (MistralForCausalLM, MistralConfig, dict(rope_parameters=PLAIN, head_dim=12, sliding_window=8)),
    "qwen2": (
        Qwen2ForCausalLM, Qwen2Config,
        dict(rope_parameters=PLAIN, use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=False),
    ),
    "qwen2-yarn": (
        Qwen2ForCausalLM, Qwen2Config,
        dict(rope_parameters=YARN, use_sliding_window=False, num_attention_heads=2, num_key_value_heads=1),
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, dict(rope_parameters=PLAIN, head_dim=16)),
    "gemma3": (
        Gemma3ForCausalLM, Gemma3TextConfig,
        dict(
            num_hidden_layers=4, num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            final_logit_softcapping=12.0, hidden_activation="gelu_pytorch_tanh",
            rope_parameters={
                "full_attention": dict(rope_type="linear", rope_theta=20000.0, factor=2.0),
                "sliding_attention": dict(rope_type="default", rope_theta=100.0),
            },
        ),
    ),
}


def build(name, seed):
    """The model `name` with weights from stream `seed`."""
    kind, config, shape = FAMILIES[name]
    model = kind(config(**{**COMMON, **shape})).float().eval()
    # Gemma multiplies by one plus the weight
    centre = 0.0 if name == "gemma3" else 1.0
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if "norm" in parameter_name:
                parameter.copy_(centre + 0.2 * drawn)
            elif parameter_name.endswith("bias"):
                parameter.copy_(0.5 * drawn)
            elif "embed" in parameter_name or "lm_head" in parameter_name:
                parameter.copy_(0.6 * drawn)
            else:
                parameter.copy_(1.6 / parameter.shape[-1] ** 0.5 * drawn)
    model.generation_config.eos_token_id = [2, 0]
    return model
