//! What the learner trains on: whole groups, keyed by step.

use serde::{Deserialize, Serialize};

use crate::{ids::GroupId, task::Task, trajectory::Trajectory};

/// A closed group: all its seats are filled and scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Which draw.
    pub id: GroupId,
    /// The question.
    pub task: Task,
    /// Members in the order of their seats.
    pub members: Vec<Trajectory>,
}

impl GroupRecord {
    /// The rewards, in the order of the members; none where a member has no score.
    pub fn rewards(&self) -> Vec<Option<f64>> {
        self.members.iter().map(|m| m.outcome.total()).collect()
    }
}

/// What became of draws of seats for training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Draws {
    /// The reward gave a score.
    pub scored: u64,
    /// The reward failed.
    pub errors: u64,
    /// The reward could not judge the item.
    pub unscorable: u64,
    /// There was nothing to judge: the episode could not be played.
    pub unplayed: u64,
    /// Seats drawn again, for these reasons and others.
    pub refilled: u64,
}

impl Draws {
    /// Adds `other`.
    pub fn add(&mut self, other: &Draws) {
        let Draws { scored, errors, unscorable, unplayed, refilled } = other;
        self.scored += scored;
        self.errors += errors;
        self.unscorable += unscorable;
        self.unplayed += unplayed;
        self.refilled += refilled;
    }

    /// Share of the draws put to the reward on which it failed; none if there were none.
    pub fn error_share(&self) -> Option<f64> {
        let judged = self.scored + self.errors + self.unscorable;
        (judged > 0).then(|| self.errors as f64 / judged as f64)
    }
}

/// The groups of one optimiser step, in the order of their ids. Step numbers start at 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The step that trains on it, and no other.
    pub step: u64,
    /// Whole groups.
    pub groups: Vec<GroupRecord>,
    /// Groups that were closed for this step and left out (equal rewards, unscorable), for the metrics.
    pub filtered_groups: u32,
    /// Those of them that were left out because a member got no score.
    #[serde(default)]
    pub unscored_groups: u32,
    /// Positions of the stream of questions that were passed over while it was gathered.
    #[serde(default)]
    pub passed_over: u32,
    /// What became of the draws of its groups. Those of left-out groups are not among them: how many there were before a group
    /// was given up depends on who came first.
    #[serde(default)]
    pub draws: Draws,
}
