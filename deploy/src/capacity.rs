//! The memory that a run will take, by component, before anything is loaded.
//!
//! Some of it is held throughout. The rest comes and goes with what the run does: it loads, then samples, learns, and hands the policy
//! over to checkpoints and samplers, one after another. The peak is that of the largest of these phases.

use std::{fmt, num::NonZeroUsize, path::Path};

use anyhow::{Result, bail};
use folgore_config::{Config, Dtype, optim::OptimizerName};
use folgore_model::{
    ModelConfig, TensorSource,
    backend::{BLOCK, KvPrecision, cpu::held_rows},
    decoder,
    files::{ModelFiles, is_linear, peft::AdapterFile},
    lora::LoraShape,
};
use folgore_rollout::{EngineConfig, cache_blocks};
use serde::{Deserialize, Serialize};

use crate::{
    compose::shares_activations,
    policy, retriever,
    summary::hardware::{self, bytes_text},
};

/// Predicted peak memory of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// What is held at the peak.
    pub parts: Vec<Part>,
    /// What the run does at its peak.
    pub phase: &'static str,
}

/// A component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// The settings that lower it.
    pub lower: String,
}

impl Memory {
    /// All components together, in bytes.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Refuses what does not fit into `available` bytes, where they are known.
    ///
    /// # Errors
    /// If it does not fit: with the largest parts that a setting lowers.
    pub fn fits(&self, available: Option<u64>) -> Result<()> {
        let Some(available) = available.filter(|available| self.total() > *available) else { return Ok(()) };
        let mut parts: Vec<&Part> = self.parts.iter().filter(|part| !part.lower.is_empty()).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let ways =
            parts.iter().take(4).map(|part| format!("{} ({}) by {}", part.name, bytes_text(part.bytes), part.lower));
        bail!(
            "the run may take up to {} of memory at its peak, while {}, and {} are available: lower {}; or begin it all the same with --ignore-memory",
            bytes_text(self.total()),
            self.phase,
            bytes_text(available),
            ways.collect::<Vec<_>>().join(", ")
        )
    }
}

/// Bytes of memory that a run could have now, where the system says.
pub fn available() -> Option<u64> {
    hardware::memory().1
}

/// Predicts the memory that this process takes in the run that `config` describes on the base of `files`, which begins with the adapter
/// in the folder `from`, if there is one. Without `samples`, other processes sample. Of the base only headers are read.
///
/// # Errors
/// If the adapter cannot be read, or what the retriever is made of.
pub fn memory(config: &Config, files: &ModelFiles, from: Option<&Path>, samples: bool) -> Result<Memory> {
    let shape = match from {
        None => policy::shape(&config.lora)?,
        Some(folder) => AdapterFile::read(folder)?.config.shape(),
    };
    let found = if config.rollout.searches() { retriever::memory(&config.retriever)? } else { Vec::new() };
    Ok(predict(config, &files.config, &shape, &*files.tensors, samples, &found))
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "predicted peak memory, while {}", self.phase)?;
        for Part { name, bytes, lower } in &self.parts {
            let by = if lower.is_empty() { String::new() } else { format!("   lower it by {lower}") };
            writeln!(f, "  {name:<26} {:>10.1} MB{by}", *bytes as f64 / 1e6)?;
        }
        writeln!(f, "  {:<26} {:>10.1} MB", "together", self.total() as f64 / 1e6)
    }
}

/// Bytes of an f32.
const F32: u64 = 4;
/// The process without a model: code, runtimes, record, and what buffers may exceed what is in use by.
const PROCESS: u64 = 128 << 20;
/// An entry of a vocabulary, from text to id and back.
const TOKEN: u64 = 200;
/// Copies of the adapter that a checkpoint and a publication make on their way.
const HANDED: u64 = 4;

/// Predicts the memory of a run on a base of shape `model` whose weights are `tensors`, with an adapter of `shape`; `found` is what finding
/// passages takes.
fn predict(
    c: &Config,
    model: &ModelConfig,
    shape: &LoraShape,
    tensors: &dyn TensorSource,
    samples: bool,
    found: &[Part],
) -> Memory {
    let base = Weights::of(model, tensors);
    let adapter = F32 * shape.parameters(model) as u64;
    let part = |name: &str, bytes: u64, lower: &str| Part { name: name.into(), bytes, lower: lower.into() };
    let rope = F32 * (model.max_position_embeddings * model.head_dim) as u64;
    let process = PROCESS + rope + TOKEN * model.vocab_size as u64;
    let (smaller, rank) = ("model.model_name_or_path (a smaller model)", "lora.lora_r, lora.lora_target_modules");
    let codes = if c.model.load_in_4bit { smaller } else { "model.load_in_4bit, model.dtype=bfloat16" };
    // values, gradients and what the learner computes with are three numbers a weight; beside them
    let moments = match c.optim.optim {
        OptimizerName::AdamwTorch => 2 * F32,
        // two codes; scales and what stays in f32 weigh little
        OptimizerName::Adamw8bit => 2,
    };
    let rows = Rows::of(c, model, samples);
    let (few_bits, few_moments) = (c.model.dtype == Dtype::Bfloat16, c.optim.optim == OptimizerName::Adamw8bit);
    let kept = match c.model.recompute().map(NonZeroUsize::get) {
        _ if rows.reused.is_some() => TOKENS,
        None => "model.gradient_checkpointing",
        Some(1) => TOKENS,
        Some(_) => "model.gradient_checkpointing_every",
    };
    let reused = match c.model.recompute() {
        None => "model.gradient_checkpointing, optim.max_tokens_per_micro_batch",
        Some(_) => TOKENS,
    };
    let cached = match policy::kv_precision(&c.rollout) {
        KvPrecision::F32 => "rollout.kv_cache_dtype=bfloat16, rollout.kv_tokens, rollout.max_concurrent_sequences",
        KvPrecision::Bf16 => "rollout.kv_tokens, rollout.max_concurrent_sequences",
    };
    let policies = EngineConfig::from(&c.rollout).max_policies_in_flight as u64;
    let sampling = part("sampling", sampling(c, model), "rollout.max_concurrent_sequences");
    let throughout = [
        part("linear maps", base.linears, codes),
        part("embeddings and head", base.others, if few_bits { smaller } else { "model.dtype=bfloat16" }),
        part("process and tokenizer", process, ""),
    ];
    // it is opened once the base is there
    let mut running = found.to_vec();
    let trains = if few_moments { rank } else { "lora.lora_r, lora.lora_target_modules, optim.optim" };
    running.push(part("adapter and optimiser", adapter * (3 * F32 + moments) / F32, trains));
    if samples {
        running.push(part("policies of the sampler", policies * adapter, rank));
        running.push(part("activations of the sampler", rows.reused(c, model), reused));
        running.push(part("key-value cache", cache(c, model), cached));
    }
    // at staleness 0 sampling and learning take turns
    let takes_turns = samples && c.rollout.max_staleness == 0;
    if samples && !takes_turns {
        running.push(sampling.clone());
    }
    let phases = [
        ("loading", vec![part("reading a matrix", base.loading, "")]),
        ("sampling", if takes_turns { vec![sampling] } else { Vec::new() }),
        (
            "learning",
            vec![
                part("layers kept", rows.kept(c, model), kept),
                part("gradients of a layer", rows.backward(model), TOKENS),
                part("head", rows.head(model), TOKENS),
            ],
        ),
        ("saving", vec![part("checkpoint and publication", HANDED * adapter, rank)]),
    ];
    let all = phases.map(|(phase, own)| {
        let running = running.iter().filter(|_| phase != "loading").cloned();
        Memory { parts: throughout.iter().cloned().chain(running).chain(own).collect(), phase }
    });
    let [first, rest @ ..] = all;
    rest.into_iter().fold(first, |most, other| if other.total() > most.total() { other } else { most })
}

/// What lowers whatever grows with the tokens of a call.
const TOKENS: &str = "optim.max_tokens_per_micro_batch";

/// Bytes of a base.
struct Weights {
    linears: u64,
    /// Embeddings, head, norms and biases.
    others: u64,
    /// By how much loading exceeds the two together.
    loading: u64,
}

impl Weights {
    /// Of a model of shape `model`, loaded in the order of the forward pass.
    fn of(model: &ModelConfig, tensors: &dyn TensorSource) -> Self {
        let (mut linears, mut others, mut most) = (0, 0, 0);
        for (name, _) in decoder::tensors(model) {
            let Some(footprint) = tensors.footprint(&name) else { continue };
            most = most.max(linears + others + footprint.loading);
            *if is_linear(&name) { &mut linears } else { &mut others } += footprint.held;
        }
        Self { linears, others, loading: most.saturating_sub(linears + others) }
    }
}

/// Keys and values together, of one token in one layer.
fn kv_width(model: &ModelConfig) -> u64 {
    2 * (model.num_key_value_heads * model.head_dim) as u64
}

fn q_width(model: &ModelConfig) -> u64 {
    (model.num_attention_heads * model.head_dim) as u64
}

/// Bytes of the cache that samplers fill.
fn cache(c: &Config, model: &ModelConfig) -> u64 {
    let blocks = cache_blocks(&c.rollout, model.max_position_embeddings) as u64;
    let number = policy::kv_precision(&c.rollout).bytes() as u64;
    number * blocks * BLOCK as u64 * kv_width(model) * model.num_hidden_layers as u64
}

/// Bytes of a call that samples.
fn sampling(c: &Config, model: &ModelConfig) -> u64 {
    let engine = EngineConfig::from(&c.rollout);
    let (hidden, feed) = (model.hidden_size as u64, model.intermediate_size as u64);
    let prompt = c.rollout.num_prompts as u64 * u64::from(c.rollout.max_prompt_length);
    let rows = prompt.min(engine.max_tokens_per_step as u64).max(engine.max_concurrent_sequences as u64);
    let logits = (engine.max_concurrent_sequences.min(32) * model.vocab_size) as u64;
    F32 * (rows * (5 * hidden + q_width(model) + kv_width(model) + 3 * feed) + logits)
}

/// Rows of one learning call, at most.
struct Rows {
    all: u64,
    /// Those whose log-probs are wanted.
    scored: u64,
    /// Those of a step whose activations the learner takes from the sampler; none where it computes them itself.
    reused: Option<u64>,
}

impl Rows {
    fn of(c: &Config, model: &ModelConfig, samples_here: bool) -> Self {
        let r = &c.rollout;
        let context = model.max_position_embeddings as u64;
        let (prompt, new, samples) =
            (u64::from(r.max_prompt_length), r.most_after_prompt(), u64::from(r.num_generations));
        // a group's prompt is computed once, and nobody asks what follows the last token
        let step = u64::from(r.num_prompts) * (prompt + samples * new.saturating_sub(1));
        let one = (prompt + new).min(context);
        let all = step.min(u64::from(c.optim.max_tokens_per_micro_batch).max(one));
        let scored = all * samples * r.most_sampled() / (prompt + samples * new).max(1);
        let most = u64::from(c.optim.max_tokens_per_micro_batch);
        let reuse = samples_here && shares_activations(c) && step <= most;
        Self { all, scored, reused: reuse.then_some(step) }
    }

    /// Bytes that the sampler keeps for the learner from step to step: what [`Self::kept`] would, and the last hidden states.
    fn reused(&self, c: &Config, model: &ModelConfig) -> u64 {
        let (hidden, layers) = (model.hidden_size as u64, model.num_hidden_layers as u64);
        let each = match c.model.recompute() {
            None => state(model) * layers,
            Some(every) => layers.div_ceil(every.get() as u64) * hidden,
        };
        F32 * self.reused.unwrap_or(0) * (each + hidden)
    }

    /// Bytes that layers keep for their backward: inputs of one layer in so many, and the states of so many.
    fn kept(&self, c: &Config, model: &ModelConfig) -> u64 {
        let layers = model.num_hidden_layers as u64;
        if self.reused.is_some() {
            // the rest is the sampler's
            return F32
                * self.all
                * state(model)
                * c.model.recompute().map_or(1, |every| (every.get() as u64).min(layers));
        }
        let every = c.model.recompute().map_or(layers, |every| (every.get() as u64).min(layers)).max(1);
        let inputs = layers.div_ceil(every).saturating_sub(1) * model.hidden_size as u64;
        F32 * self.all * (inputs + every * state(model))
    }

    /// Bytes of gradients while one layer is differentiated.
    fn backward(&self, model: &ModelConfig) -> u64 {
        let (hidden, feed) = (model.hidden_size as u64, model.intermediate_size as u64);
        let gradients = 3 * hidden + (3 * feed).max(2 * q_width(model) + kv_width(model)) + normed(model);
        F32 * self.all * (gradients + kv_width(model))
    }

    /// Bytes from the last hidden states to log-probs and back.
    fn head(&self, model: &ModelConfig) -> u64 {
        // logits are held where the sampler's log-probs are not taken
        let held = if self.reused.is_some() { 0 } else { self.scored.min(held_rows(model.vocab_size) as u64) };
        F32 * (4 * self.scored * model.hidden_size as u64 + held * model.vocab_size as u64)
    }
}

/// Numbers that a layer keeps of a row for its backward.
fn state(model: &ModelConfig) -> u64 {
    let (hidden, feed) = (model.hidden_size as u64, model.intermediate_size as u64);
    2 * hidden + 2 * q_width(model) + kv_width(model) + 2 * feed + normed(model)
}

/// What goes into the norms that not every family has.
fn normed(model: &ModelConfig) -> u64 {
    let outputs = if model.variant.output_norms { 2 * model.hidden_size as u64 } else { 0 };
    let heads = if model.variant.qk_norm { q_width(model) + kv_width(model) / 2 } else { 0 };
    outputs + heads
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QLoRA on a base of 7 billion weights, as `folgore bench memory` trains it.
    fn memory_of(set: impl FnOnce(&mut Config)) -> Memory {
        let mut c = Config::default();
        c.model.load_in_4bit = true;
        c.model.use_bnb_nested_quant = true;
        c.model.dtype = folgore_config::Dtype::Bfloat16;
        c.model.gradient_checkpointing = true;
        c.model.model_name_or_path = "random:mistral-7b".into();
        c.rollout.num_prompts = 1;
        c.rollout.num_generations = 4;
        c.rollout.max_prompt_length = 448;
        c.rollout.max_completion_length = 64;
        c.rollout.kv_tokens = Some(768);
        c.rollout.max_concurrent_sequences = 4;
        set(&mut c);
        let files = crate::base::Base::of(&c.model).unwrap().files().unwrap();
        memory(&c, &files, None, true).unwrap()
    }

    fn part(memory: &Memory, name: &str) -> u64 {
        memory.parts.iter().find(|part| part.name == name).map_or(0, |part| part.bytes)
    }

    #[test]
    fn parts_are_what_their_numbers_take() {
        let memory = memory_of(|_| {});
        let (linears, others) = (6_979_321_856u64, 262_410_240u64);
        // 4.127 bits a weight, and two bytes
        assert_eq!(part(&memory, "linear maps") * 8 * 1000 / linears, 4127);
        assert!(part(&memory, "embeddings and head").abs_diff(2 * others) < 1 << 20);
        assert_eq!(part(&memory, "key-value cache"), 768 * 32 * 2 * 1024 * 4);
        assert_eq!(memory.phase, "saving");
        // in f32 eight times as much
        let whole = memory_of(|c| {
            (c.model.load_in_4bit, c.model.use_bnb_nested_quant) = (false, false);
            c.model.dtype = folgore_config::Dtype::Float32;
        });
        assert_eq!(part(&whole, "linear maps"), 4 * linears);
    }

    #[test]
    fn the_settings_that_are_named_lower_their_parts() {
        let before = |name: &str| {
            memory_of(|c| {
                c.model.gradient_checkpointing = false;
                c.model.reuse_activations = name.starts_with("activations");
            })
        };
        type Set = fn(&mut Config);
        let sets: [(&str, Set); 6] = [
            ("layers kept", |c| c.model.gradient_checkpointing = true),
            ("activations of the sampler", |c| {
                (c.model.gradient_checkpointing, c.model.reuse_activations) = (true, true)
            }),
            ("gradients of a layer", |c| c.optim.max_tokens_per_micro_batch = 512),
            ("key-value cache", |c| c.rollout.kv_tokens = Some(512)),
            ("adapter and optimiser", |c| c.lora.lora_r = 4),
            ("linear maps", |c| c.model.model_name_or_path = "random:smollm2".into()),
        ];
        for (name, set) in sets {
            let after = memory_of(|c| {
                c.model.gradient_checkpointing = false;
                c.model.reuse_activations = false;
                set(c);
            });
            let before = before(name);
            assert!(part(&after, name) < part(&before, name), "{name}: {before} {after}");
            assert!(after.total() < before.total(), "{name}: {before} {after}");
        }
    }

    #[test]
    fn who_does_not_sample_holds_nothing_of_a_sampler() {
        let mut c = Config::default();
        c.model.model_name_or_path = "random:tiny".into();
        let files = crate::base::Base::of(&c.model).unwrap().files().unwrap();
        let [alone, head] = [true, false].map(|samples| memory(&c, &files, None, samples).unwrap());
        assert!(head.total() < alone.total(), "{alone} {head}");
        assert!(!head.parts.iter().any(|part| part.name.contains("sampler") || part.name == "key-value cache"));
        // where both go on at a time, both are counted
        c.rollout.max_staleness = 1;
        let both = memory(&c, &files, None, true).unwrap();
        assert!(part(&both, "sampling") > 0 && both.phase != "sampling", "{both}");
    }

    #[test]
    fn a_learner_that_trains_what_was_told_takes_nothing_from_the_sampler() {
        let kept = |masked: bool| {
            let set = |c: &mut Config| {
                c.rollout.environment = "search".into();
                c.algo.mask_observations = masked;
            };
            memory_of(set).parts.iter().filter(|part| part.name.contains("sampler")).map(|part| part.bytes).sum::<u64>()
        };
        assert!(kept(true) > kept(false), "{} {}", kept(true), kept(false));
    }

    #[test]
    fn what_finds_passages_is_held_throughout() {
        let mut c = Config::default();
        c.model.model_name_or_path = "random:tiny".into();
        let files = crate::base::Base::of(&c.model).unwrap().files().unwrap();
        let shape = policy::shape(&c.lora).unwrap();
        let found = [Part { name: "reranker".into(), bytes: 1 << 30, lower: "retriever.rerank".into() }];
        let [without, with] =
            [&[][..], &found].map(|found| predict(&c, &files.config, &shape, &*files.tensors, true, found));
        assert_eq!(with.total(), without.total() + (1 << 30), "{with}");
        let told = with.fits(Some(with.total() - 1)).unwrap_err().to_string();
        assert!(told.contains("reranker") && told.contains("retriever.rerank"), "{told}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_way_out() {
        let memory = memory_of(|c| (c.model.gradient_checkpointing, c.model.reuse_activations) = (false, false));
        assert_eq!(memory.phase, "learning");
        assert!(memory.fits(None).is_ok() && memory.fits(Some(memory.total())).is_ok());
        let told = memory.fits(Some(memory.total() - 1)).unwrap_err().to_string();
        for words in
            ["linear maps", "a smaller model", "lora.lora_r", "model.gradient_checkpointing", "--ignore-memory"]
        {
            assert!(told.contains(words), "{words}: {told}");
        }
    }
}
