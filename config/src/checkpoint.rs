//! `checkpoint`: how often the state is saved, and how many are kept.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `checkpoint`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSection {}

impl CheckpointSection {
    /// Notes what is out of range.
    pub fn check(&self, _p: &mut Problems) {}
}
