//! The folder `state/` of a checkpoint: everything that a resumed learner needs besides the adapter.
//!
//! The optimiser's tensors are a safetensors file, written by `folgore_model::files::safetensors`.

use std::collections::BTreeMap;

use folgore_config::optim::OptimizerName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Path of the optimiser's tensors inside a checkpoint.
pub const OPTIMIZER: &str = "state/optimizer.safetensors";
/// Path of [`TrainerState`] inside a checkpoint.
pub const TRAINER: &str = "state/trainer.json";

/// What the learner goes on with, besides tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimiser steps taken.
    pub step: u64,
    /// The writer's epoch.
    pub epoch: u32,
    /// The learning-rate schedule, as its owner writes it.
    pub schedule: Value,
    /// Whose moments [`OPTIMIZER`] holds.
    #[serde(default)]
    pub optim: OptimizerName,
    /// Sums over the run (tokens, samples, seconds, skipped steps), by name.
    pub counters: BTreeMap<String, f64>,
    /// Positions in random streams and in the data, by name.
    pub cursors: BTreeMap<String, u64>,
}

impl TrainerState {
    /// As the bytes of [`TRAINER`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        serde_json::to_vec_pretty(self).map_err(|e| format!("{TRAINER}: {e}"))
    }

    /// From the bytes of [`TRAINER`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|e| format!("{TRAINER}: {e}"))
    }

    /// Refuses to go on with another optimiser than `wanted`, whose moments these are not.
    pub fn expect_optimizer(&self, wanted: OptimizerName) -> Result<(), String> {
        let found = self.optim;
        if found == wanted {
            return Ok(());
        }
        Err(format!("{OPTIMIZER} holds the moments of {found}, not of {wanted}: go on with optim.optim={found}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn state_reads_back_exactly() {
        let state = TrainerState {
            step: 3,
            epoch: 1,
            schedule: json!({"kind": "cosine", "warmup_steps": 2}),
            optim: OptimizerName::Adamw8bit,
            counters: [("tokens".to_owned(), 0.1 + 0.2)].into(),
            cursors: [("first_free_group".to_owned(), u64::MAX)].into(),
        };
        assert_eq!(TrainerState::from_bytes(&state.to_bytes().unwrap()).unwrap(), state);
        assert!(TrainerState::from_bytes(b"{}").unwrap_err().contains("state/trainer.json"));
        state.expect_optimizer(OptimizerName::Adamw8bit).unwrap();
        let refused = state.expect_optimizer(OptimizerName::AdamwTorch).unwrap_err();
        assert!(refused.contains("moments of adamw_8bit, not of adamw_torch"), "{refused}");
    }
}
