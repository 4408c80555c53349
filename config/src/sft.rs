//! `sft`: learning from rows that are to be imitated (`folgore sft`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Problems;

/// What to do with an example that is longer than it may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// Leave it out, and count it.
    #[default]
    Drop,
    /// Keep its beginning, and count it; it then does not teach how to end.
    KeepStart,
    /// Refuse the dataset, naming the row.
    Stop,
}

/// The section `sft`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SftSection {
    /// Examples of one optimiser update; every learnt token of them counts the same.
    pub batch_size: u32,
    /// Learns what was said alone: completions, and what the assistant said in a conversation. False: every token, prompts and tool
    /// results too.
    pub completion_only_loss: bool,
    /// What to do with an example longer than `model.max_seq_length` or the model's context.
    pub truncation_mode: Truncation,
    /// Computes several examples in one call of the model, up to `optim.max_tokens_per_micro_batch` tokens. None of them sees another,
    /// and the loss is the same; only time differs.
    pub packing: bool,
    /// Stops after so many evaluations in a row without a better loss; 0: never.
    pub early_stopping_patience: u32,
    /// By how much a loss has to be lower to be better.
    pub early_stopping_threshold: f64,
    /// Leaves the adapter of the evaluation with the lowest loss in `best/`, beside the checkpoints.
    pub load_best_model_at_end: bool,
    /// A row whose answer is worth less by the run's own `reward` is left out and counted, and so is one that it cannot judge. None: all
    /// rows are learnt, right or wrong.
    pub min_reward: Option<f64>,
    /// A run whose samples are imitated, as they were sampled: its folder, or its name under `run.output_dir`. It takes the place of
    /// `data`.
    pub from_run: Option<PathBuf>,
    /// Share of those samples that is imitated, the ones with the highest reward.
    pub top: f64,
}

impl Default for SftSection {
    fn default() -> Self {
        Self {
            batch_size: 16,
            completion_only_loss: true,
            truncation_mode: Truncation::Drop,
            packing: true,
            early_stopping_patience: 0,
            early_stopping_threshold: 0.0,
            load_best_model_at_end: true,
            min_reward: None,
            from_run: None,
            top: 0.5,
        }
    }
}

impl SftSection {
    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(self.batch_size > 0, "batch_size", "at least 1 example", self.batch_size);
        let threshold = self.early_stopping_threshold;
        p.expect(threshold >= 0.0 && threshold.is_finite(), "early_stopping_threshold", "0 or more", threshold);
        if let Some(reward) = self.min_reward {
            p.expect(reward.is_finite(), "min_reward", "a finite number", reward);
            let want = "null with sft.from_run, whose samples have their rewards (sft.top)";
            p.expect(self.from_run.is_none(), "min_reward", want, reward);
        }
        p.expect(self.top > 0.0 && self.top <= 1.0, "top", "above 0 and at most 1", self.top);
    }
}
