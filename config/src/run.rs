//! `run`: what the run is called, where it goes, and the one seed that all randomness comes from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunSection {
    /// Name of the run and of its folder; none: made from the time of the start.
    pub name: Option<String>,
    /// Seed of sampling, of the order of tasks and of fresh adapters.
    pub seed: u64,
    /// The folder that holds the folders of runs.
    pub output_dir: PathBuf,
}

impl Default for RunSection {
    fn default() -> Self {
        Self { name: None, seed: 0, output_dir: "runs".into() }
    }
}

impl RunSection {
    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        let fits = |n: &str| {
            !n.is_empty()
                && n.len() <= 64
                && !n.starts_with('.')
                && n.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if let Some(name) = &self.name {
            p.expect(fits(name), "name", "1 to 64 of A-Z a-z 0-9 - _ . and no leading dot", format!("{name:?}"));
        }
        p.expect(!self.output_dir.as_os_str().is_empty(), "output_dir", "a folder", "an empty path");
    }
}
