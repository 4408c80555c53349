//! Mistral: Llama with a sliding window in every layer; `sliding_window: null` takes it away, as later versions do.

use super::Family;
use crate::{Local, ModelConfig, ModelError, files::config_json::Object};

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    context: 131_072,
    rope_theta: 10_000.0,
    head_dim: None,
    kv_heads: None,
    tied: false,
    refine,
};

fn refine(object: &Object<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let says_none = object.map.get("sliding_window").is_some_and(|value| value.is_null());
    if !says_none {
        let window = object.size_or("sliding_window", 4096)?;
        let layers = vec![true; config.num_hidden_layers];
        config.variant.local = Some(Local { window, layers, rope_theta: None });
    }
    Ok(())
}
