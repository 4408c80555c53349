//! `replay`: the record of groups and batches.

mod experience;

use serde::{Deserialize, Serialize};

pub use experience::{BucketLaw, Experience, ExperienceMetric};

use crate::Problems;

/// What happens to a step for which no group is left to train on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnEmptyBatch {
    /// The run stops and says why.
    #[default]
    Stop,
    /// The step has an empty batch: nothing is trained, and the run goes on.
    Skip,
}

/// The section `replay`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplaySection {
    /// Draws of one seat before its group is dropped whole: the first one, and refills where the reward failed.
    pub max_draws: u32,
    /// Seats that may wait for a trajectory at once; at least one group is always open.
    pub max_open_seats: u32,
    /// Seconds after which a seat that was handed out is handed out again, if no sample at all came in for as long.
    pub reissue_after_s: u32,
    /// How often a seat is handed out before the draw counts as failed.
    pub max_issues: u32,
    /// Strikes (NaN log-probs, tokens outside the vocabulary, another's name) after which nothing more is taken from a worker
    /// of another process; 0: never.
    pub max_strikes: u32,
    /// Trained batches kept besides those that a kept checkpoint may need again.
    pub retention_steps: u64,
    /// What happens to a step whose groups were all dropped.
    pub on_empty_batch: OnEmptyBatch,
    /// Earlier successes.
    pub experience: Experience,
}

impl Default for ReplaySection {
    fn default() -> Self {
        Self {
            max_draws: 3,
            max_open_seats: 4096,
            reissue_after_s: 600,
            max_issues: 5,
            max_strikes: 3,
            retention_steps: 0,
            on_empty_batch: OnEmptyBatch::Stop,
            experience: Experience::default(),
        }
    }
}

impl ReplaySection {
    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.range("max_draws", 1.0, 100.0, self.max_draws.into());
        p.range("max_open_seats", 1.0, 1_048_576.0, self.max_open_seats.into());
        p.range("reissue_after_s", 1.0, 86_400.0, self.reissue_after_s.into());
        p.range("max_issues", 1.0, 1000.0, self.max_issues.into());
        p.range("max_strikes", 0.0, 1000.0, self.max_strikes.into());
        self.experience.check(p);
    }
}
