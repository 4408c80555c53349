//! `model`: which weights are the frozen base, and how they are held.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Problems;

/// Name of the policy that is compiled into the binary.
pub const EMBEDDED: &str = "embedded";

/// Precision in which the base is held in memory. Sums are always formed in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// f32, whatever the file holds: the sampler's and the learner's log-probs are then equal bit for bit.
    #[default]
    #[serde(alias = "f32", alias = "fp32")]
    Float32,
    /// bf16: half the memory.
    #[serde(alias = "bf16")]
    Bfloat16,
    /// As in the file.
    Auto,
}

/// The section `model`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face folder, a GGUF file, or `embedded`.
    pub model_name_or_path: String,
    /// A PEFT folder to start from.
    pub adapter: Option<PathBuf>,
    /// Precision of the base.
    pub dtype: Dtype,
    /// Recomputes activations layer by layer in the backward pass: less memory, about a third more time.
    pub gradient_checkpointing: bool,
    /// Most tokens of one sequence, prompt and completion together; none: the model's own limit.
    pub max_seq_length: Option<u32>,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self {
            model_name_or_path: EMBEDDED.into(),
            adapter: None,
            dtype: Dtype::Float32,
            gradient_checkpointing: false,
            max_seq_length: None,
        }
    }
}

impl ModelSection {
    /// True if the base is the policy that is compiled into the binary.
    pub fn is_embedded(&self) -> bool {
        self.model_name_or_path == EMBEDDED
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(!self.model_name_or_path.trim().is_empty(), "model_name_or_path", "a path or `embedded`", "nothing");
        if let Some(n) = self.max_seq_length {
            p.expect(n >= 2, "max_seq_length", "at least 2 tokens", n);
        }
    }
}
