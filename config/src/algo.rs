//! `algo`: the objective.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `algo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlgoSection {
    /// Weight of the divergence from the reference.
    pub beta: f64,
}

impl Default for AlgoSection {
    fn default() -> Self {
        Self { beta: 0.0 }
    }
}

impl AlgoSection {
    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(self.beta >= 0.0, "beta", "0 or more", self.beta);
    }
}
