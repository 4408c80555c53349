//! How much a run holds at once: sequences, cache blocks, and the memory that it will take, by component.

use folgore_config::Config;
use folgore_model::{ModelConfig, backend::BLOCK, lora::LoraShape};
use folgore_rollout::EngineConfig;

/// Limits of the engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Sequences and tokens.
    pub engine: EngineConfig,
    /// Blocks of the cache.
    pub blocks: usize,
}

/// Limits of the engine of a run.
pub fn engine(c: &Config, model: &ModelConfig) -> EngineLimits {
    let sequences = c.rollout.max_concurrent_sequences as usize;
    let longest = ((c.rollout.max_prompt_length + c.rollout.max_completion_length) as usize).min(model.max_position_embeddings);
    let blocks = match c.rollout.kv_tokens {
        Some(tokens) => (tokens as usize).div_ceil(BLOCK),
        None => sequences * (longest.div_ceil(BLOCK) + 1),
    };
    let engine = EngineConfig { max_concurrent_sequences: sequences, ..EngineConfig::default() };
    EngineLimits { engine, blocks }
}

/// Predicted peak memory of a run, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// Name of the component, its bytes, and the setting that lowers it.
    pub parts: Vec<(&'static str, u64, &'static str)>,
}

impl Memory {
    /// All components together.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes, _)| bytes).sum()
    }
}

/// Predicts the memory of a run on `model` with an adapter of `shape`; `base` is what the weights take.
pub fn memory(c: &Config, model: &ModelConfig, shape: &LoraShape, base: u64) -> Memory {
    let f32_bytes = 4u64;
    let blocks = engine(c, model).blocks as u64;
    let kv_width = 2 * (model.num_key_value_heads * model.head_dim) as u64;
    let kv = blocks * BLOCK as u64 * kv_width * model.num_hidden_layers as u64 * f32_bytes;
    let adapter = shape.parameters(model) as u64;
    // values, gradients, two moments; the device form of learner and of the policies that samplers hold
    let training = adapter * f32_bytes * (4 + 1 + engine(c, model).engine.max_policies_in_flight as u64);
    let per_step = c.rollout.samples_per_step() * u64::from(c.rollout.max_prompt_length + c.rollout.max_completion_length);
    let tokens = per_step.min(u64::from(c.optim.max_tokens_per_micro_batch));
    let (h, f) = (model.hidden_size as u64, model.intermediate_size as u64);
    let q = (model.num_attention_heads * model.head_dim) as u64;
    let kept = if c.model.gradient_checkpointing { h } else { 4 * h + 2 * q + kv_width + 2 * f };
    let layer = 6 * h + 3 * q + 2 * kv_width + 5 * f;
    let activations = tokens * f32_bytes * (kept * model.num_hidden_layers as u64 + layer);
    Memory {
        parts: vec![
            ("base weights", base, "model.model_name_or_path (a smaller model)"),
            ("adapter and optimiser", training, "lora.lora_r"),
            ("key-value cache", kv, "rollout.max_concurrent_sequences"),
            ("activations", activations, "optim.max_tokens_per_micro_batch, model.gradient_checkpointing"),
        ],
    }
}
