//! `config.json` of a BERT.

use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::Value;

/// The shape of the model.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Config {
    model_type: String,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) intermediate_size: usize,
    pub(super) max_position_embeddings: usize,
    #[serde(default = "two")]
    pub(super) type_vocab_size: usize,
    #[serde(default = "eps")]
    pub(super) layer_norm_eps: f32,
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

fn two() -> usize {
    2
}

fn eps() -> f32 {
    1e-12
}

/// A JSON file of a folder; null if it is not there.
pub(crate) fn json(folder: &Path, name: &str) -> Result<Value, String> {
    match fs::read(folder.join(name)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| format!("{name}: {e}")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(format!("{name}: {e}")),
    }
}

impl Config {
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let value = json(folder, "config.json")?;
        if value.is_null() {
            return Err("config.json is not there".into());
        }
        let config: Self = serde_json::from_value(value).map_err(|e| format!("config.json: {e}"))?;
        config.check().map_err(|what| format!("config.json: {what}"))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let is = |name: &str, got: &str, expected: &str| {
            if got == expected { Ok(()) } else { Err(format!("{name} is {got:?}, expected {expected:?}")) }
        };
        is("model_type", &self.model_type, "bert")?;
        is("hidden_act", self.hidden_act.as_deref().unwrap_or("gelu"), "gelu")?;
        is("position_embedding_type", self.position_embedding_type.as_deref().unwrap_or("absolute"), "absolute")?;
        is("is_decoder", &self.is_decoder.to_string(), "false")?;
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 14),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("intermediate_size", self.intermediate_size, 1 << 16),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 20),
            ("type_vocab_size", self.type_vocab_size, 1 << 10),
        ];
        if let Some((name, got, most)) = sizes.iter().find(|(_, got, most)| !(1..=*most).contains(got)) {
            return Err(format!("{name} is {got}, expected 1 to {most}"));
        }
        if self.max_position_embeddings < 8 {
            return Err(format!("max_position_embeddings is {}, expected 8 at least", self.max_position_embeddings));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!(
                "hidden_size {} is no multiple of {} heads",
                self.hidden_size, self.num_attention_heads
            ));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0) {
            return Err(format!("layer_norm_eps is {}", self.layer_norm_eps));
        }
        Ok(())
    }
}
