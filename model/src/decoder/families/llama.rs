//! Llama 2 and 3, SmolLM2, TinyLlama: two norms a layer, a gated feed-forward part, biases where the file asks for them.

use super::Family;
use crate::{ModelConfig, ModelError, decoder::Linear, files::config_json::Object};

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    context: 2048,
    rope_theta: 10_000.0,
    head_dim: None,
    kv_heads: None,
    tied: false,
    refine,
};

fn refine(object: &Object<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    attention_bias(object, config)?;
    if object.flag("mlp_bias")?.unwrap_or(false) {
        config.variant.biases.extend([Linear::GateProj, Linear::UpProj, Linear::DownProj]);
    }
    Ok(())
}

/// `attention_bias`: all four maps of attention add a bias.
pub(super) fn attention_bias(object: &Object<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    if object.flag("attention_bias")?.unwrap_or(false) {
        config.variant.biases.extend([Linear::QProj, Linear::KProj, Linear::VProj, Linear::OProj]);
    }
    Ok(())
}
