//! `checkpoint`: how often the state is saved, and how many are kept.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `checkpoint`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSection {
    /// Saves after every so many optimiser steps; the last step is always saved.
    pub save_steps: u64,
    /// Checkpoints kept, the newest ones; the newest that verifies is never removed.
    pub save_total_limit: u32,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { save_steps: 10, save_total_limit: 3 }
    }
}

impl CheckpointSection {
    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(self.save_steps >= 1, "save_steps", "at least 1", self.save_steps);
        p.expect(self.save_total_limit >= 1, "save_total_limit", "at least 1", self.save_total_limit);
    }
}
