//! What a user may choose: one typed YAML tree with dotted overrides.
//!
//! [`load()`] lays files and `key=value` over the defaults of [`Config`] and refuses what is unknown, of the wrong type, out
//! of range or contradictory, each with its place and the way out. [`Config::resolved_yaml`] is what a run keeps of it.
//!
//! Every section is a struct with defaults, refuses unknown keys (`deny_unknown_fields`) and has a
//! `check(&self, &mut Problems)` that notes what is out of range. Leaf names are those of TRL.

pub mod algo;
mod alias;
pub mod check;
pub mod checkpoint;
pub mod cluster;
mod contradiction;
pub mod data;
mod error;
pub mod eval;
mod explain;
pub mod hub;
mod load;
pub mod log;
pub mod lora;
pub mod model;
pub mod optim;
mod preset;
pub mod replay;
pub mod retriever;
pub mod reward;
pub mod rollout;
pub mod run;
mod schema;
pub mod search;
pub mod sft;
pub mod sop;
pub mod traces;
pub mod yaml;

use serde::{Deserialize, Serialize};

pub use algo::AlgoSection;
pub use check::{Problem, Problems};
pub use checkpoint::CheckpointSection;
pub use cluster::ClusterSection;
pub use data::DataSection;
pub use error::{ConfigError, Place, Refused};
pub use eval::EvalSection;
pub use hub::HubName;
pub use load::{Loaded, MAX_FILE_BYTES, load, load_for, load_text};
pub use log::LogSection;
pub use lora::LoraSection;
pub use model::{BaseForm, Dtype, ModelSection};
pub use optim::OptimSection;
pub use preset::{PRESETS, preset, preset_names};
pub use replay::ReplaySection;
pub use retriever::{FusionRule, FusionWeights, RankBy, RetrieverSection};
pub use reward::{JudgeSpec, MAX_TIMEOUT_S, RewardScope, RewardSpec, RewardWay};
pub use rollout::RolloutSection;
pub use run::RunSection;
pub use search::{ObservationForm, OnFailure, OnInvalid, SearchSection, SearchTags};
pub use sft::SftSection;
pub use sop::SopSection;
pub use traces::TracesSection;

/// What a configuration is read for: sections that are not needed may contradict the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Reinforcement learning, and whatever else asks questions.
    #[default]
    Train,
    /// Learning from rows that are to be imitated.
    Sft,
}

/// Everything that a run was asked to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name, seed, place.
    pub run: RunSection,
    /// The frozen base.
    pub model: ModelSection,
    /// The questions.
    pub data: DataSection,
    /// How samples are made.
    pub rollout: RolloutSection,
    /// Where passages come from, for who searches.
    pub retriever: RetrieverSection,
    /// Procedures that stand in prompts.
    pub sop: SopSection,
    /// The rules that score them; their weighted sum is the reward.
    pub reward: Vec<RewardSpec>,
    /// What experts said.
    pub traces: TracesSection,
    /// The objective.
    pub algo: AlgoSection,
    /// Learning from rows that are to be imitated.
    pub sft: SftSection,
    /// The optimiser and its schedule.
    pub optim: OptimSection,
    /// What trains.
    pub lora: LoraSection,
    /// The record.
    pub replay: ReplaySection,
    /// What is saved.
    pub checkpoint: CheckpointSection,
    /// Patience between the processes of a run.
    pub cluster: ClusterSection,
    /// Held-out evaluation.
    pub eval: EvalSection,
    /// What is shown.
    pub log: LogSection,
}

impl Config {
    /// Everything that is out of range or contradictory, and everything that is worth a warning.
    pub fn problems(&self) -> Problems {
        self.problems_of(Purpose::Train)
    }

    /// The same for what the configuration is read for.
    pub fn problems_of(&self, purpose: Purpose) -> Problems {
        let mut p = Problems::default();
        self.run.check(p.section("run"));
        self.model.check(p.section("model"));
        self.data.check(p.section("data"));
        self.rollout.check(p.section("rollout"));
        self.retriever.check(p.section("retriever"));
        self.sop.check(p.section("sop"));
        for (i, rule) in self.reward.iter().enumerate() {
            let mut own = Problems::default();
            rule.check(&mut own);
            p.nest(&format!("reward.{i}"), own);
        }
        self.traces.check(p.section("traces"));
        self.algo.check(p.section("algo"));
        self.sft.check(p.section("sft"));
        self.optim.check(p.section("optim"));
        self.lora.check(p.section("lora"));
        self.replay.check(p.section("replay"));
        self.checkpoint.check(p.section("checkpoint"));
        self.cluster.check(p.section("cluster"));
        self.eval.check(p.section("eval"));
        self.log.check(p.section("log"));
        match purpose {
            Purpose::Train => contradiction::check(self, &mut p),
            Purpose::Sft => contradiction::check_sft(self, &mut p),
        }
        p
    }

    /// Seconds that a sample waits for its score: enough for every attempt that its rewards may take.
    pub fn score_deadline_s(&self) -> f64 {
        let needed = |spec: &RewardSpec| (spec.timeout_s * f64::from(1 + spec.retries) * 1.25).min(MAX_TIMEOUT_S);
        self.reward.iter().filter(|spec| spec.way() != RewardWay::Held).map(needed).fold(60.0, f64::max)
    }

    /// Requests that every reward takes at once.
    pub fn score_concurrency(&self) -> usize {
        self.reward.iter().map(|spec| spec.concurrency).min().unwrap_or(1) as usize
    }

    /// Puts the number of steps into `optim.max_steps` where passes over the `questions` of the training side were asked for.
    pub fn settle_steps(&mut self, questions: u64) {
        if let Some(epochs) = self.optim.num_train_epochs {
            let steps = epochs * questions as f64 / f64::from(self.rollout.num_prompts.max(1));
            self.optim.max_steps = (steps.ceil() as u64).max(1);
        }
    }

    /// The whole tree as YAML, defaults included: reading it gives the same configuration. It holds what was configured
    /// and nothing of the environment.
    ///
    /// # Errors
    /// Not with any value that the sections can hold; the writer's error is passed on all the same.
    pub fn resolved_yaml(&self) -> Result<String, serde_norway::Error> {
        serde_norway::to_string(self)
    }
}
