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

/// The groups of one optimiser step, in the order of their ids. Step numbers start at 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The step that trains on it, and no other.
    pub step: u64,
    /// Whole groups.
    pub groups: Vec<GroupRecord>,
    /// Groups that were closed for this step and left out (equal rewards, unscorable), for the metrics.
    pub filtered_groups: u32,
}
