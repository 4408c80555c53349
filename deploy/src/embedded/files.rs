//! Writes the files of a policy, as Hugging Face has them.

use std::path::Path;

use anyhow::{Context as _, Result};
use folgore_model::{
    HostData, HostTensor, ModelConfig, Tensors,
    files::{atomic::write_atomic, safetensors},
};
use serde_json::{Value, json};

/// Id of the token that is put where nothing is.
pub const PAD: u32 = 0;
/// Id of the token that ends a response.
pub const EOS: u32 = 1;

/// Writes weights (in bfloat16), shape and tokenizer into `folder`.
pub fn write(folder: &Path, config: &ModelConfig, tokenizer: &Value, how: &Value, values: Tensors) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for (name, value) in
        [("config.json", &config_json(config)), ("tokenizer.json", tokenizer), ("tokenizer_config.json", how)]
    {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        write_atomic(&folder.join(name), &text)?;
    }
    safetensors::write(&folder.join("model.safetensors"), &to_bf16(values))?;
    Ok(())
}

fn config_json(c: &ModelConfig) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": c.model_type, "vocab_size": c.vocab_size, "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": c.rope_theta, "tie_word_embeddings": c.tie_word_embeddings,
        "max_position_embeddings": c.max_position_embeddings, "eos_token_id": EOS, "pad_token_id": PAD,
        "attention_bias": false, "mlp_bias": false, "dtype": "bfloat16",
    })
}

/// Rounds to bfloat16, ties to even.
fn to_bf16(tensors: Tensors) -> Tensors {
    let round = |v: f32| ((v.to_bits() + 0x7fff + ((v.to_bits() >> 16) & 1)) >> 16) as u16;
    let tensor = |(name, t): (String, HostTensor)| {
        let bits = t.to_f32().into_iter().map(round).collect();
        (name, HostTensor { shape: t.shape, data: HostData::Bf16(bits) })
    };
    tensors.into_iter().map(tensor).collect()
}
