//! One seat to fill: the order that a rollout worker carries out.

use serde::{Deserialize, Serialize};

use crate::{
    generate::{SamplingParams, StopReason},
    ids::{PolicyId, SeatKey},
    task::Task,
    trajectory::Row,
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

/// What a seat is given, so that it is not sampled from its first token on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Given {
    /// What an expert said. It is played as if the policy said it: the environment answers, and the reward judges.
    Trace {
        /// Turn after turn; what the expert was told in between is not part of it.
        turns: Vec<String>,
        /// Share of its tokens that is copied, above 0; the policy goes on from there. 1: all of it.
        share: f64,
        /// A trace that is worth less is not used: the policy plays the seat itself. None: it is used, whatever it is worth.
        min_reward: Option<f64>,
    },
    /// What the policy itself did right before: the one that it is surest of now.
    Experience {
        /// What it may be chosen from. Empty where replay keeps it: it is put in when the job is handed out.
        past: Vec<Past>,
    },
}

/// An earlier success at a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// As it was sampled, with the log-probs of then.
    pub rows: Vec<Row>,
    /// Why its last turn ended.
    pub stop_reason: StopReason,
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
    /// What it begins with, where that is not for the policy to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Given>,
}
