//! Qwen3: Llama with a norm on each head of q and k, heads of a size of their own, and a window as in Qwen2.

use super::{Family, llama, windows};
use crate::{ModelConfig, ModelError, files::config_json::Object};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    context: 32_768,
    rope_theta: 10_000.0,
    head_dim: Some(128),
    kv_heads: None,
    tied: false,
    refine,
};

fn refine(object: &Object<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    config.variant.qk_norm = true;
    llama::attention_bias(object, config)?;
    windows::of_upper_layers(object, config)
}
