//! `summary.json` of a run that imitates.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use folgore_learner::sft::{Evaluation, best::Best};
use folgore_model::files::atomic::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::summary::{FILE, Hardware};

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SftSummary {
    /// Name of the run.
    pub run: String,
    /// `sft`.
    pub kind: String,
    /// True once all steps are done, or none got better for as long as it had patience.
    pub complete: bool,
    /// True in the second case.
    pub stopped_early: bool,
    /// Optimiser updates.
    pub steps: u64,
    /// Passes over the rows.
    pub epochs: f64,
    /// Seconds that the run took, all its launches together.
    pub wall_s: f64,
    /// Tokens that went through the decoder to learn.
    pub num_tokens: u64,
    /// Launches of the process.
    pub attempts: u32,
    /// The learning rate.
    pub learning_rate: f64,
    /// The seed.
    pub seed: u64,
    /// The base, as the user named it.
    pub model: String,
    /// First digits of the digest of the base.
    pub model_digest: String,
    /// First digits of the digest of the resolved configuration.
    pub config_digest: String,
    /// Version of this program.
    pub version: String,
    /// The machine.
    pub hardware: Hardware,
    /// What became of the rows.
    pub rows: String,
    /// What became of rows that were judged (`sft.min_reward`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judged: Option<String>,
    /// The best evaluation, whose adapter is in `best/`.
    pub best: Option<Best>,
    /// The evaluations, in order.
    pub evaluations: Vec<Evaluated>,
}

/// One evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evaluated {
    /// `before`, `step-<n>` or `after`.
    pub when: String,
    /// The step whose policy it is.
    pub step: u64,
    /// Numbers under the names of `metrics.jsonl`, without `eval_`.
    #[serde(flatten)]
    pub numbers: Map<String, Value>,
}

impl Evaluated {
    /// Of the weights of `step`, the last of the run or not.
    pub fn of(step: u64, last: bool, evaluation: &Evaluation) -> Self {
        let when = match step {
            0 => "before".into(),
            _ if last => "after".into(),
            step => format!("step-{step}"),
        };
        let mut numbers = Map::new();
        evaluation.metrics("", &mut numbers);
        Self { when, step, numbers }
    }
}

impl SftSummary {
    /// Goes on from what an earlier launch left in `folder`, up to `step`.
    pub fn take_over(&mut self, folder: &Path, step: u64) -> Result<()> {
        let Some(earlier) = Self::read(folder)? else { return Ok(()) };
        self.wall_s = earlier.wall_s;
        self.attempts = earlier.attempts + 1;
        self.evaluations = earlier.evaluations.into_iter().filter(|e| e.step <= step).collect();
        // what was the end is one step of many now
        self.evaluations.iter_mut().filter(|e| e.when == "after").for_each(|e| e.when = format!("step-{}", e.step));
        Ok(())
    }

    /// Writes the file into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(write_atomic(&folder.join(FILE), &bytes)?)
    }

    /// Reads the file in `folder`; none if there is none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            bytes => {
                let bytes = bytes.with_context(|| path.display().to_string())?;
                serde_json::from_slice(&bytes).with_context(|| path.display().to_string()).map(Some)
            }
        }
    }
}
