//! What the ledger is told about the run.

use std::time::Duration;

use folgore_config::{
    Config, TracesSection,
    data::Curriculum,
    replay::{Experience, OnEmptyBatch},
};
use folgore_protocol::SamplingParams;

use crate::record::evidence::Rules;

/// The numbers that decide which seats are opened and when a batch is complete.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplaySettings {
    /// Seed of the run.
    pub run_seed: u64,
    /// Groups of a batch.
    pub num_prompts: u32,
    /// Seats of a group.
    pub num_generations: u32,
    /// Steps that the oldest token may lag behind the step that trains on it.
    pub max_staleness: u32,
    /// Seats that may be open; one group always may.
    pub max_open_seats: u32,
    /// Draws of one seat before its group is dropped whole.
    pub max_draws: u32,
    /// Milliseconds without any trajectory after which a seat that was handed out is handed out again.
    pub reissue_after_ms: u64,
    /// How often a seat is handed out before the draw counts as failed.
    pub max_issues: u32,
    /// Strikes after which nothing more is taken from a worker of another process; 0: never.
    pub max_strikes: u32,
    /// Leaves groups out whose rewards are all equal (dynamic sampling).
    pub drop_equal_rewards: bool,
    /// A step opens at most `max_generation_batches * num_prompts` groups, left-out ones included; 0: as many as it takes.
    pub max_generation_batches: u32,
    /// What happens to a step without any group to train on.
    pub on_empty_batch: OnEmptyBatch,
    /// Batches kept besides those after the oldest checkpoint.
    pub retention_steps: u64,
    /// Tokens of the vocabulary.
    pub vocab_size: u32,
    /// Name of the environment.
    pub environment: String,
    /// How samples are made; a greedy evaluation differs in its temperature.
    pub sampling: SamplingParams,
    /// Completions come in without a score, and each group is judged as a whole.
    pub judge_groups: bool,
    /// Longest wait for one verdict.
    pub judge_deadline: Duration,
    /// Groups that are judged at once.
    pub judge_concurrency: usize,
    /// Members of groups that are an expert's; none: there are none.
    pub traces: Option<Traces>,
    /// Successes that are kept and replayed; none: none are.
    pub experience: Option<Experience>,
    /// Questions that are passed over for now; none: none are.
    pub curriculum: Option<Curriculum>,
}

/// How an expert's traces become members of groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traces {
    /// Members of a group, where its question has traces.
    pub per_group: u32,
    /// A trace that is worth less is not used.
    pub min_reward: Option<f64>,
    /// Least and largest share of a trace that is copied.
    pub prefix_ratio: (f64, f64),
}

impl Traces {
    fn of(section: &TracesSection) -> Option<Self> {
        let TracesSection { per_group, min_reward, min_prefix_ratio, max_prefix_ratio, .. } = *section;
        section.is_on().then_some(Self { per_group, min_reward, prefix_ratio: (min_prefix_ratio, max_prefix_ratio) })
    }
}

impl ReplaySettings {
    /// What `config` says, for a vocabulary of `vocab_size` tokens. Whether groups are judged as a whole is up to the reward.
    pub fn from_config(config: &Config, vocab_size: u32) -> Self {
        let (rollout, replay) = (&config.rollout, &config.replay);
        let sampling = SamplingParams {
            max_new_tokens: rollout.max_completion_length,
            temperature: rollout.temperature as f32,
            top_p: rollout.top_p as f32,
            top_k: rollout.top_k,
            min_p: rollout.min_p as f32,
            repetition_penalty: rollout.repetition_penalty as f32,
            stop: rollout.stop.clone(),
            ..SamplingParams::default()
        };
        Self {
            run_seed: config.run.seed,
            num_prompts: rollout.num_prompts,
            num_generations: rollout.num_generations,
            max_staleness: rollout.max_staleness,
            max_open_seats: replay.max_open_seats,
            max_draws: replay.max_draws,
            reissue_after_ms: u64::from(replay.reissue_after_s) * 1000,
            max_issues: replay.max_issues,
            max_strikes: replay.max_strikes,
            drop_equal_rewards: config.algo.dynamic_sampling,
            max_generation_batches: config.algo.max_generation_batches,
            on_empty_batch: replay.on_empty_batch,
            retention_steps: replay.retention_steps,
            vocab_size,
            environment: rollout.environment.clone(),
            sampling,
            judge_groups: false,
            judge_deadline: Duration::from_secs_f64(config.score_deadline_s()),
            judge_concurrency: config.score_concurrency(),
            traces: Traces::of(&config.traces),
            experience: replay.experience.enabled.then(|| replay.experience.clone()),
            curriculum: config.data.curriculum.is_on().then(|| config.data.curriculum.clone()),
        }
    }

    /// Refuses numbers with which no batch could ever form; the error names the setting.
    pub fn check(&self) -> Result<(), String> {
        let positive = [
            ("num_prompts", self.num_prompts),
            ("num_generations", self.num_generations),
            ("max_draws", self.max_draws),
            ("max_issues", self.max_issues),
            ("vocab_size", self.vocab_size),
        ];
        match positive.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(format!("{name}: expected at least 1, got 0")),
            None => Ok(()),
        }
    }

    /// What batches are judged by afterwards.
    pub fn rules(&self) -> Rules {
        Rules {
            num_prompts: self.num_prompts,
            num_generations: self.num_generations,
            max_staleness: self.max_staleness,
            max_draws: self.max_draws,
            groups_max: self.groups_max(),
        }
    }

    /// Groups that one step may open.
    pub(super) fn groups_max(&self) -> u64 {
        match u64::from(self.max_generation_batches) {
            0 => u64::MAX,
            batches => batches * u64::from(self.num_prompts),
        }
    }

    /// The oldest policy that may have made a token of `step`'s batch.
    pub(super) fn oldest_policy(&self, step: u64) -> u64 {
        step.saturating_sub(1).saturating_sub(u64::from(self.max_staleness))
    }
}
