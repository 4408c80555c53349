//! `rollout`: how many samples of how many prompts, sampled how, and how far they may lag behind.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Problems, SearchSection};

/// Precision in which the key-value cache holds what was read and written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvCacheDtype {
    /// As it was computed.
    #[default]
    #[serde(alias = "f32", alias = "fp32", alias = "auto")]
    Float32,
    /// Rounded to bf16, in half the memory. The learner rounds in the same way, so that log-probs of both are equal bit for bit.
    #[serde(alias = "bf16")]
    Bfloat16,
}

/// Name of the environment in which a policy searches.
const SEARCH: &str = "search";

/// The section `rollout`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutSection {
    /// Samples of one prompt: the group.
    pub num_generations: u32,
    /// Prompts of one optimiser step.
    pub num_prompts: u32,
    /// Longest prompt, in tokens; a longer one is refused by name.
    pub max_prompt_length: u32,
    /// Most tokens that the policy writes in one turn.
    pub max_completion_length: u32,
    /// Divides the logits; 0 is greedy, which cannot be trained on.
    pub temperature: f64,
    /// Keeps the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f64,
    /// Keeps the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Drops tokens less likely than this share of the likeliest; 0 keeps all.
    pub min_p: f64,
    /// Divides positive and multiplies negative logits of tokens already seen; 1 is off.
    pub repetition_penalty: f64,
    /// Texts that end a completion; they stay in it.
    pub stop: Vec<String>,
    /// Name of the environment that plays the episode: `single_turn` or `search`.
    pub environment: String,
    /// How a policy searches, in the environment `search`.
    pub search: SearchSection,
    /// Optimiser steps that the oldest token of a sample may lag behind the step that trains on it; 0: generating and
    /// learning alternate, and a run repeats bit for bit.
    pub max_staleness: u32,
    /// Sequences that the engine decodes together: bounds the memory of the key-value cache, which is made for so many sequences of
    /// `max_prompt_length + max_completion_length` tokens (with `search`, of all turns and what they bring) before the first one and does not grow.
    pub max_concurrent_sequences: u32,
    /// Tokens that the key-value cache may hold, which bound it instead; a sequence that finds no room waits. None: enough for
    /// `max_concurrent_sequences` of full length.
    pub kv_tokens: Option<u64>,
    /// Precision of the key-value cache.
    pub kv_cache_dtype: KvCacheDtype,
    /// Scores are asked of reward workers (`folgore worker --role reward`) and not computed where the sample is made.
    pub remote_reward: bool,
    /// Variables of the chat template, by name.
    pub chat_template_kwargs: Map<String, Value>,
}

impl Default for RolloutSection {
    fn default() -> Self {
        Self {
            num_generations: 8,
            num_prompts: 8,
            max_prompt_length: 512,
            max_completion_length: 256,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            environment: "single_turn".into(),
            search: SearchSection::default(),
            max_staleness: 0,
            max_concurrent_sequences: 64,
            kv_tokens: None,
            kv_cache_dtype: KvCacheDtype::Float32,
            remote_reward: false,
            chat_template_kwargs: Map::new(),
        }
    }
}

impl RolloutSection {
    /// Samples of one optimiser step.
    pub fn samples_per_step(&self) -> u64 {
        u64::from(self.num_prompts) * u64::from(self.num_generations)
    }

    /// True if the policy searches.
    pub fn searches(&self) -> bool {
        self.environment == SEARCH
    }

    /// Most turns of an episode in which the policy searches, the last one included; none in other environments.
    fn search_turns(&self) -> Option<u64> {
        self.searches().then(|| u64::from(self.search.max_turns) + 1)
    }

    /// Most tokens that the policy writes in an episode.
    pub fn most_sampled(&self) -> u64 {
        self.search_turns().unwrap_or(1) * u64::from(self.max_completion_length)
    }

    /// Most tokens that follow a prompt: what the policy writes and what it is told in between.
    pub fn most_after_prompt(&self) -> u64 {
        let told = self.search_turns().map_or(0, |turns| (turns - 1) * u64::from(self.search.max_obs_length));
        self.most_sampled() + told
    }

    /// The settings that [`Self::most_after_prompt`] follows from, for messages.
    pub fn lengths(&self) -> &'static str {
        if self.searches() {
            "rollout.max_completion_length for each of rollout.search.max_turns + 1 turns, and \
             rollout.search.max_obs_length for each search"
        } else {
            "rollout.max_completion_length"
        }
    }

    /// True if log-probs of the sampled tokens are those of the whole distribution.
    pub fn samples_the_full_distribution(&self) -> bool {
        self.top_p == 1.0 && self.top_k == 0 && self.min_p == 0.0 && self.repetition_penalty == 1.0
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.range("num_generations", 1.0, 4096.0, self.num_generations.into());
        p.range("num_prompts", 1.0, 65_536.0, self.num_prompts.into());
        p.range("max_prompt_length", 1.0, 4_194_304.0, self.max_prompt_length.into());
        p.range("max_completion_length", 1.0, 4_194_304.0, self.max_completion_length.into());
        let t = self.temperature;
        p.expect(t > 0.0 && t <= 10.0, "temperature", "above 0 and at most 10", t);
        p.expect(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", "above 0 and at most 1", self.top_p);
        p.expect((0.0..1.0).contains(&self.min_p), "min_p", "0 or more and below 1", self.min_p);
        let r = self.repetition_penalty;
        p.expect(r > 0.0 && r.is_finite(), "repetition_penalty", "above 0", r);
        p.expect(self.stop.iter().all(|s| !s.is_empty()), "stop", "texts of at least one character", "an empty text");
        p.expect(!self.environment.is_empty(), "environment", "a name", "nothing");
        p.range("max_staleness", 0.0, 1000.0, self.max_staleness.into());
        p.range("max_concurrent_sequences", 1.0, 65_536.0, self.max_concurrent_sequences.into());
        self.search.check(p);
        let longest = u64::from(self.max_prompt_length) + self.most_after_prompt();
        if let Some(kv) = self.kv_tokens {
            let lengths = self.lengths().trim_start_matches("rollout.");
            let want = format!("at least max_prompt_length + {lengths} = {longest} tokens");
            p.expect(kv >= longest, "kv_tokens", want, kv);
        }
        let full = self.samples_the_full_distribution();
        let text = "top_p, top_k, min_p or repetition_penalty is on: the log-probs trained on are those of the whole \
                    distribution, not of the truncated one that is sampled from";
        p.warn(!full, "top_p", text);
    }
}
