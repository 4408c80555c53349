//! One seat to fill: the order that a rollout worker carries out.

use serde::{Deserialize, Serialize};

use crate::{
    generate::SamplingParams,
    ids::{PolicyId, SeatKey},
    task::Task,
};

/// What a trajectory is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Purpose {
    /// To be trained on.
    Train,
    /// Held-out evaluation of one policy; never trained on.
    Eval {
        /// The evaluation that the result belongs to (`before`, `step-20`, `after`).
        label: String,
        /// The policy to evaluate.
        policy: PolicyId,
    },
}

/// An order to make one trajectory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutJob {
    /// Which seat: key of the result, and with the run's seed the source of all its randomness.
    pub seat: SeatKey,
    /// The question.
    pub task: Task,
    /// Seed of the seat (`seed::seat`); turn `n` samples from `seed::mix(&[seed, n])`.
    pub seed: u64,
    /// Train or evaluate.
    pub purpose: Purpose,
    /// The oldest policy step that may begin this episode.
    pub min_policy_step: u64,
    /// Name of the environment (`single_turn`, ...).
    pub environment: String,
    /// How to sample.
    pub sampling: SamplingParams,
    /// Proof of having received this job, to be repeated by its trajectory: 32 hexadecimal digits that nobody can guess.
    #[serde(default)]
    pub token: String,
}
