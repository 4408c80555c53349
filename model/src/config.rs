//! The shape of a decoder: what `config.json` or GGUF metadata say, in one form.

use serde::{Deserialize, Serialize};

/// Shape and constants of a Llama-like decoder; field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Family name (`llama`).
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// True if the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Ids that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Id that begins a sequence, where the family has one.
    pub bos_token_id: Option<u32>,
}

impl ModelConfig {
    /// The shape of SmolLM2-135M: the yardstick of the benchmarks.
    pub fn smollm2_135m() -> Self {
        Self {
            model_type: "llama".into(),
            vocab_size: 49_152,
            hidden_size: 576,
            intermediate_size: 1_536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 100_000.0,
            tie_word_embeddings: true,
            max_position_embeddings: 8_192,
            eos_token_ids: vec![2],
            bos_token_id: Some(1),
        }
    }
}
