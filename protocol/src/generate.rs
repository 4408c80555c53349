//! The request to the engine and its reply: token ids in, token ids and log-probs out.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{ids::PolicyId, runlength::RunLength};

/// How to sample; the names are those of TRL and of the OpenAI API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Most tokens to make.
    pub max_new_tokens: u32,
    /// Divides the logits; 0 means greedy.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keeps the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Drops tokens less likely than this share of the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens already seen; 1 is off.
    pub repetition_penalty: f32,
    /// Text that ends the generation; it stays in the ids.
    pub stop: Vec<String>,
    /// Token ids that end the generation, besides the model's own end ids.
    pub stop_ids: Vec<u32>,
    /// Goes on past the model's end ids, to exactly `max_new_tokens`.
    pub ignore_eos: bool,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            stop_ids: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl SamplingParams {
    /// Checks ranges; the error names the key, the range and the value.
    pub fn validate(&self) -> Result<(), String> {
        let check = |ok: bool, key: &str, want: &str, got: f64| {
            if ok { Ok(()) } else { Err(format!("{key}: expected {want}, got {got}")) }
        };
        check(self.max_new_tokens > 0, "max_new_tokens", "at least 1", f64::from(self.max_new_tokens))?;
        check(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "temperature",
            "0 or more",
            self.temperature.into(),
        )?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", "above 0 and at most 1", self.top_p.into())?;
        check((0.0..1.0).contains(&self.min_p), "min_p", "0 or more and below 1", self.min_p.into())?;
        check(
            self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
            "repetition_penalty",
            "above 0",
            self.repetition_penalty.into(),
        )
    }

    /// True if the reported log-probs are those of the distribution sampled from: what training needs.
    pub fn samples_the_full_distribution(&self) -> bool {
        self.temperature > 0.0
            && self.top_p == 1.0
            && self.top_k == 0
            && self.min_p == 0.0
            && self.repetition_penalty == 1.0
    }
}

/// Asks the engine to continue `ids`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// The whole context: prompt, earlier turns, observations. Never empty.
    pub ids: Vec<u32>,
    /// How to sample.
    pub sampling: SamplingParams,
    /// Stream of the draws: token `i` of the reply uses number `i` of it.
    pub seed: u64,
    /// The policy to use; none: the newest one that the engine serves.
    pub policy: Option<PolicyId>,
    /// Epoch and step from which on another policy will do while `policy` is still on its way to the engine; none: wait.
    #[serde(default)]
    pub at_least: Option<(u32, u64)>,
    /// A learner is going to see what comes of it: in one process it need not compute again what the engine did.
    #[serde(default)]
    pub for_training: bool,
}

impl Generate {
    /// True if `policy` will do while the one that is asked for is on its way.
    pub fn is_content_with(&self, policy: &PolicyId) -> bool {
        self.at_least.is_some_and(|(epoch, step)| policy.epoch >= epoch && policy.step >= step)
    }
}

/// Asks how sure a policy is of what was said before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// What was said.
    pub rows: Vec<MeasuredRow>,
    /// Divides the logits.
    pub temperature: f32,
    /// The policy that is asked; none: the newest one that the engine serves.
    pub policy: Option<PolicyId>,
}

/// A sequence, and which of it is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredRow {
    /// All of its ids.
    pub ids: Vec<u32>,
    /// Places of those that are measured; the first id of all is in none of them.
    pub said: Vec<Range<u32>>,
}

/// The answer to [`Measure`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// By row.
    pub rows: Vec<Entropy>,
}

/// Entropy of the distributions that tokens come from, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entropy {
    /// Sum over the tokens.
    pub sum: f64,
    /// Number of the tokens.
    pub tokens: u32,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// An end id of the model or a requested stop id was sampled; it is the last id.
    Eos,
    /// A stop string appeared.
    StopString,
    /// `max_new_tokens` were made.
    Length,
    /// The model's context was full.
    Context,
}

impl StopReason {
    /// True if the policy was cut off rather than finished.
    pub fn truncated(self) -> bool {
        matches!(self, StopReason::Length | StopReason::Context)
    }
}

/// What the engine sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// New ids, the end id included.
    pub ids: Vec<u32>,
    /// Log-prob of each id under the sampling temperature (temperature 1 when greedy), over the full vocabulary.
    pub logprobs: Vec<f32>,
    /// The policy that made each id.
    pub policies: RunLength<PolicyId>,
    /// Why it ended.
    pub stop_reason: StopReason,
}
