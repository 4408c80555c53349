//! `replay`: the record of groups and batches.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `replay`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplaySection {}

impl ReplaySection {
    /// Notes what is out of range.
    pub fn check(&self, _p: &mut Problems) {}
}
