//! `optim`: the optimiser and its schedule.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `optim`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimSection {
    /// Optimiser steps of the run.
    pub max_steps: u64,
}

impl Default for OptimSection {
    fn default() -> Self {
        Self { max_steps: 40 }
    }
}

impl OptimSection {
    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(self.max_steps > 0, "max_steps", "at least 1", self.max_steps);
    }
}
