//! The memory that a run will take, by component, before anything is loaded.

use crate::policy::kv_precision;
use folgore_config::{Config, optim::OptimizerName};
use folgore_model::{ModelConfig, backend::BLOCK, lora::LoraShape};
use folgore_rollout::{EngineConfig, cache_blocks};

/// Predicted peak memory of a run, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// Name of the component, its bytes, and the settings that lower it.
    pub parts: Vec<(&'static str, u64, &'static str)>,
}

impl Memory {
    /// All components together.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes, _)| bytes).sum()
    }
}

/// Bytes of an f32.
const F32: u64 = 4;

/// Predicts the memory of a run on `model` with an adapter of `shape`; `base` is what the weights take.
pub fn memory(c: &Config, model: &ModelConfig, shape: &LoraShape, base: u64) -> Memory {
    let layers = model.num_hidden_layers as u64;
    let kv_width = 2 * (model.num_key_value_heads * model.head_dim) as u64;
    let blocks = cache_blocks(&c.rollout, model.max_position_embeddings) as u64;
    let kv = blocks * BLOCK as u64 * kv_width * layers * kv_precision(&c.rollout).bytes() as u64;
    let policies = EngineConfig::from(&c.rollout).max_policies_in_flight as u64;
    // two moments of each weight, in codes with a scale for each block; small tensors, which keep numbers, weigh nothing
    let moments = match c.optim.optim {
        OptimizerName::AdamwTorch => 2 * F32,
        OptimizerName::Adamw8bit => 2 + 1,
    };
    // values, gradients, moments; then the device form of the learner's adapter and of those that samplers hold
    let training = shape.parameters(model) as u64 * (F32 * (2 + 1 + policies) + moments);
    let per_step =
        c.rollout.samples_per_step() * u64::from(c.rollout.max_prompt_length + c.rollout.max_completion_length);
    let tokens = per_step.min(u64::from(c.optim.max_tokens_per_micro_batch));
    let (hidden, feed) = (model.hidden_size as u64, model.intermediate_size as u64);
    let q = (model.num_attention_heads * model.head_dim) as u64;
    // what goes into the norms that not every family has; in the backward it has a gradient beside it
    let normed = if model.variant.output_norms { 2 * hidden } else { 0 }
        + if model.variant.qk_norm { q + kv_width / 2 } else { 0 };
    let state = 2 * hidden + 2 * q + kv_width + 2 * feed + normed;
    let kept = match c.model.recompute() {
        None => state * layers,
        // inputs of one layer in so many, and the states of so many layers, one of which is part of what is worked on
        Some(every) => {
            let every = (every.get() as u64).min(layers);
            hidden * layers.div_ceil(every) + state * (every - 1)
        }
    };
    let working = 7 * hidden + 3 * q + 2 * kv_width + 5 * feed + 2 * normed;
    // Twice what is alive: buffers of ever other sizes leave gaps that the allocator keeps. Measured peaks over many steps are
    // 0.85 to 1.2 of the sum.
    let activations = 2 * tokens * F32 * (kept + working);
    Memory {
        parts: vec![
            ("base weights", base, "model.model_name_or_path (a smaller model)"),
            ("adapter and optimiser", training, "lora.lora_r, optim.optim"),
            ("key-value cache", kv, "rollout.max_concurrent_sequences, rollout.kv_cache_dtype"),
            ("activations", activations, "optim.max_tokens_per_micro_batch, model.gradient_checkpointing"),
        ],
    }
}
