//! The families: for each, what its `config.json` leaves out and where it departs from Llama.
//!
//! A family only fills in a [`ModelConfig`]; the decoder computes what that says and asks no family's name.

mod gemma3;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod windows;

use crate::{ModelConfig, ModelError, files::config_json::Object};

/// What one `model_type` means.
pub(crate) struct Family {
    /// Its name in `config.json`.
    pub(crate) model_type: &'static str,
    /// `max_position_embeddings` where the file has none.
    pub(crate) context: usize,
    /// `rope_theta` where the file has none.
    pub(crate) rope_theta: f64,
    /// `head_dim` where the file has none. None: hidden size over heads.
    pub(crate) head_dim: Option<usize>,
    /// `num_key_value_heads` where the file has none. None: as many as query heads.
    pub(crate) kv_heads: Option<usize>,
    /// `tie_word_embeddings` where the file has none.
    pub(crate) tied: bool,
    /// Adds to a configuration, whose sizes are checked, what this family has beyond the others.
    pub(crate) refine: fn(&Object<'_>, &mut ModelConfig) -> Result<(), ModelError>,
}

const ALL: [&Family; 5] = [&llama::FAMILY, &mistral::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY, &gemma3::FAMILY];

/// The family of `model_type`.
pub(crate) fn find(model_type: &str) -> Option<&'static Family> {
    ALL.into_iter().find(|family| family.model_type == model_type)
}

/// The names of all families.
pub(crate) fn names() -> String {
    ALL.map(|family| family.model_type).join(", ")
}
