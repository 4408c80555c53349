//! What a user may choose: one typed YAML tree with dotted overrides.
//!
//! Every section is a struct with defaults, refuses unknown keys (`deny_unknown_fields`) and has a
//! `check(&self, &mut Problems)` that notes what is out of range. Leaf names are those of TRL.

pub mod algo;
pub mod check;
pub mod checkpoint;
pub mod data;
pub mod eval;
pub mod log;
pub mod lora;
pub mod model;
pub mod optim;
pub mod replay;
pub mod reward;
pub mod rollout;
pub mod run;

use serde::{Deserialize, Serialize};

pub use algo::AlgoSection;
pub use check::{Problem, Problems};
pub use checkpoint::CheckpointSection;
pub use data::DataSection;
pub use eval::EvalSection;
pub use log::LogSection;
pub use lora::LoraSection;
pub use model::ModelSection;
pub use optim::OptimSection;
pub use replay::ReplaySection;
pub use reward::RewardSpec;
pub use rollout::RolloutSection;
pub use run::RunSection;

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
    /// The rules that score them; their weighted sum is the reward.
    pub reward: Vec<RewardSpec>,
    /// The objective.
    pub algo: AlgoSection,
    /// The optimiser and its schedule.
    pub optim: OptimSection,
    /// What trains.
    pub lora: LoraSection,
    /// The record.
    pub replay: ReplaySection,
    /// What is saved.
    pub checkpoint: CheckpointSection,
    /// Held-out evaluation.
    pub eval: EvalSection,
    /// What is shown.
    pub log: LogSection,
}
