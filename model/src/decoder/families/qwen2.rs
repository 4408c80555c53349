//! Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a window in the upper layers where it is switched on.

use super::{Family, windows};
use crate::{ModelConfig, ModelError, decoder::Linear, files::config_json::Object};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    context: 32_768,
    rope_theta: 10_000.0,
    head_dim: None,
    kv_heads: None,
    tied: false,
    refine,
};

fn refine(object: &Object<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    config.variant.biases = vec![Linear::QProj, Linear::KProj, Linear::VProj];
    windows::of_upper_layers(object, config)
}
