//! `export.json`: what an export is, and what its verification found.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use folgore_model::{
    ModelConfig,
    export::{Precision, Quant},
    files::{atomic::write_atomic, gguf::Block},
};
use serde::{Deserialize, Serialize};

use super::seal::Sealed;
use crate::cli::export::{self, Target};

/// Name of the file.
pub const FILE: &str = "export.json";
/// Version of its layout.
const SCHEMA: u32 = 2;

/// What kind of files an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "to")]
pub enum Kind {
    /// An adapter as PEFT folder.
    Peft,
    /// A Hugging Face folder.
    Merged {
        /// How its numbers are held.
        dtype: Coding,
    },
    /// One GGUF file.
    Gguf {
        /// How its matrices are coded.
        quant: Coding,
    },
    /// An adapter as GGUF.
    GgufAdapter {
        /// How its numbers are held.
        dtype: Coding,
    },
    /// A folder for `ollama create`.
    Ollama {
        /// How the matrices are coded.
        quant: Coding,
        /// Base and adapter are two files.
        apart: bool,
    },
}

/// How numbers are held in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names of the formats")]
pub enum Coding {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    #[serde(rename = "q4_k_m")]
    Q4KM,
}

/// What a coding may cost what the policy says, and still be the policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Largest difference of a log-prob.
    pub max: f64,
    /// Mean difference of the log-probs.
    pub mean: f64,
}

impl Coding {
    /// The bounds, above what small random models show, which are the least forgiving: SmolLM2-135M stays far below.
    pub fn bounds(self) -> Bounds {
        let (max, mean) = match self {
            Self::F32 => (1e-3, 1e-4),
            Self::F16 => (0.1, 0.01),
            Self::Bf16 => (0.8, 0.08),
            Self::Q8_0 => (1.5, 0.15),
            Self::Q4_0 | Self::Q4KM => (12.0, 1.5),
        };
        Bounds { max, mean }
    }

    /// For a folder; a coding of GGUF alone never comes here.
    pub fn precision(self) -> Precision {
        match self {
            Self::F16 => Precision::F16,
            Self::Bf16 => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// For an adapter in GGUF, and of the tensors of a folder.
    pub fn block(self) -> Block {
        match self {
            Self::F16 => Block::F16,
            Self::Bf16 => Block::Bf16,
            _ => Block::F32,
        }
    }

    /// For a GGUF file.
    pub fn quant(self) -> Quant {
        match self {
            Self::F32 => Quant::F32,
            Self::F16 => Quant::F16,
            Self::Bf16 => Quant::Bf16,
            Self::Q8_0 => Quant::Q8_0,
            Self::Q4_0 => Quant::Q4_0,
            Self::Q4KM => Quant::Q4KM,
        }
    }
}

impl Kind {
    /// What the command line asks for.
    pub fn of(target: Target, dtype: export::Dtype, quant: export::Quant, apart: bool) -> Self {
        let dtype = match dtype {
            export::Dtype::F32 => Coding::F32,
            export::Dtype::F16 => Coding::F16,
            export::Dtype::Bf16 => Coding::Bf16,
        };
        let quant = match quant {
            export::Quant::F32 => Coding::F32,
            export::Quant::F16 => Coding::F16,
            export::Quant::Bf16 => Coding::Bf16,
            export::Quant::Q8_0 => Coding::Q8_0,
            export::Quant::Q4_0 => Coding::Q4_0,
            export::Quant::Q4KM => Coding::Q4KM,
        };
        match target {
            Target::Peft => Self::Peft,
            Target::Merged => Self::Merged { dtype },
            Target::Gguf => Self::Gguf { quant },
            Target::GgufAdapter => Self::GgufAdapter { dtype },
            Target::Ollama => Self::Ollama { quant, apart },
        }
    }

    /// How its numbers are held.
    pub fn coding(self) -> Coding {
        match self {
            Self::Peft => Coding::F32,
            Self::Merged { dtype } | Self::GgufAdapter { dtype } => dtype,
            Self::Gguf { quant } | Self::Ollama { quant, .. } => quant,
        }
    }

    /// True if its model is in GGUF files.
    pub fn is_gguf(self) -> bool {
        matches!(self, Self::Gguf { .. } | Self::Ollama { .. })
    }

    /// How the tensor that the checkpoint calls `name` is coded in the files of its model.
    pub fn block_of(self, name: &str, shape: &[usize], config: &ModelConfig) -> Block {
        let coded = if self.is_gguf() { self.coding().quant().block_of(name, shape, config) } else { None };
        coded.unwrap_or(self.coding().block())
    }

    /// How an adapter is coded that is a file of its own.
    pub fn adapter_block(self) -> Block {
        if let Self::GgufAdapter { dtype } = self { dtype.block() } else { Block::F32 }
    }

    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Merged { .. } => "merged",
            Self::Gguf { .. } => "gguf",
            Self::GgufAdapter { .. } => "gguf-adapter",
            Self::Ollama { .. } => "ollama",
        }
    }
}

/// What an export is, and what its verification found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// Version of the program that wrote the files.
    pub version: String,
    /// What the files are.
    #[serde(flatten)]
    pub kind: Kind,
    /// The base, as the user named it.
    pub base: String,
    /// SHA-256 that identifies the base's weights.
    pub base_digest: String,
    /// Folder of the adapter.
    pub adapter: String,
    /// SHA-256 of the adapter.
    pub adapter_digest: String,
    /// The files, without this one.
    pub files: Vec<Sealed>,
    /// What users should know.
    pub notes: Vec<String>,
    /// What the verification found.
    pub verified: Option<Verified>,
}

/// The largest error of its kind, as the root mean square of the difference, relative to the expected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// The error.
    pub error: f64,
    /// The largest that would have passed.
    pub bound: f64,
    /// Where.
    pub name: String,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// True if nothing is wrong.
    pub passed: bool,
    /// What is wrong, in words.
    pub faults: Vec<String>,
    /// Prompts that both continued.
    pub prompts: usize,
    /// Tokens whose log-probs were compared.
    pub tokens: usize,
    /// Largest difference of a log-prob.
    pub logprob_gap_max: f64,
    /// The largest that would have passed.
    pub logprob_bound_max: f64,
    /// Mean difference.
    pub logprob_gap_mean: f64,
    /// The largest that would have passed.
    pub logprob_bound_mean: f64,
    /// Greedy tokens of the policy over all prompts.
    pub greedy_tokens: usize,
    /// Where greedy continuations part first: prompt and token, from 0. None: nowhere.
    pub first_difference: Option<(usize, usize)>,
    /// Prompts whose greedy continuations are equal.
    pub greedy_equal: usize,
    /// The tensor with the largest error, for its coding.
    pub tensors: Worst,
    /// The row of a matrix likewise.
    pub rows: Worst,
    /// Largest difference of a log-prob that the adapter makes: what is lost if it is dropped.
    pub adapter_effect: f64,
    /// How much of what the adapter adds is in the weights, 1 but for the coding's noise. None where it is a file of its own.
    pub adapter_kept: Option<f64>,
}

impl Report {
    /// The layout that this version writes.
    pub const SCHEMA: u32 = SCHEMA;

    /// Reads that of the export in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: expected the folder of an export", path.display()))?;
        let report: Self = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        if report.schema != SCHEMA {
            bail!("{}: expected schema {SCHEMA}, got {}", path.display(), report.schema);
        }
        Ok(report)
    }

    /// Writes it into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        Ok(write_atomic(&folder.join(FILE), format!("{:#}\n", serde_json::to_value(self)?).as_bytes())?)
    }
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2e} (bound {:.1e}) in {}", self.error, self.bound, self.name)
    }
}

impl Verified {
    /// In a few lines.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "log-probs   largest gap {:.2e} (bound {:.1e}), mean {:.2e} (bound {:.1e}), over {} tokens; the adapter moves them by up to {:.2}",
                self.logprob_gap_max,
                self.logprob_bound_max,
                self.logprob_gap_mean,
                self.logprob_bound_mean,
                self.tokens,
                self.adapter_effect
            ),
            match self.first_difference {
                None => format!("greedy      {} tokens on {} prompts: all equal", self.greedy_tokens, self.prompts),
                Some((prompt, token)) => format!(
                    "greedy      {} of {} continuations equal; the first to part is prompt {prompt}, at token {token}",
                    self.greedy_equal, self.prompts
                ),
            },
            format!(
                "tensors     largest error {}; of a row {}{}",
                self.tensors,
                self.rows,
                self.adapter_kept.map_or(String::new(), |kept| format!("; {kept:.3} of the adapter is in them"))
            ),
        ];
        lines.extend(self.faults.iter().map(|fault| format!("WRONG       {fault}")));
        lines
    }
}
