//! `folgore export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What is made of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The adapter as a PEFT folder
    Peft,
    /// Base and adapter merged: a Hugging Face folder
    Merged,
    /// Base and adapter merged: one GGUF file
    Gguf,
    /// The adapter as GGUF, beside a GGUF file of its base
    GgufAdapter,
    /// A folder for `ollama create`
    Ollama,
}

/// How the numbers of a folder are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// As trained
    F32,
    /// IEEE half
    F16,
    /// bfloat16
    Bf16,
}

/// How the matrices of a GGUF file are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quant {
    /// As trained
    F32,
    /// IEEE half
    F16,
    /// bfloat16
    Bf16,
    /// 8.5 bits
    #[value(name = "q8_0")]
    Q8_0,
    /// 4.5 bits
    #[value(name = "q4_0")]
    Q4_0,
    /// 4.8 bits, the sensitive matrices 6.6
    #[value(name = "q4_k_m")]
    Q4KM,
}

/// `export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Run (its newest checkpoint), checkpoint or PEFT folder; with --check, instead of the one that the export names
    #[arg(value_name = "RUN | CHECKPOINT | ADAPTER", required_unless_present = "check")]
    pub source: Option<String>,
    /// What to make
    #[arg(long, value_enum, required_unless_present = "check")]
    pub to: Option<Target>,
    /// Folder to write, which must be new or empty [exports/NAME-TARGET]
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Base: model folder, GGUF file, owner/name on the hub, `embedded` or `random:SHAPE`, where the run or the adapter names none that is here
    #[arg(long)]
    pub model: Option<String>,
    /// Numbers of `merged` and `gguf-adapter`
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: Dtype,
    /// Coding of `gguf` and `ollama`
    #[arg(long, value_enum, default_value = "f16")]
    pub quant: Quant,
    /// Largest file of weights of `merged`: a number with MB or GB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub max_shard_size: u64,
    /// Leaves base and adapter apart in `ollama`: FROM and ADAPTER
    #[arg(long)]
    pub apart: bool,
    /// Folder that holds the folders of runs
    #[arg(long, default_value = "runs")]
    pub output_dir: PathBuf,
    /// Verifies the export in FOLDER again, and writes nothing
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["to", "out"])]
    pub check: Option<PathBuf>,
    /// Prints the report as one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// `quantize`
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// Model folder, GGUF file, owner/name on the hub, `embedded` or `random:SHAPE`
    #[arg(long)]
    pub model: String,
    /// Folder to write, which must be new or empty
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Numbers of what stays unquantised: embeddings, head, norms
    #[arg(long, value_enum, default_value = "bf16")]
    pub dtype: Dtype,
    /// Codes the scales of blocks too (double quantisation): 4.13 bits a weight instead of 4.5
    #[arg(long)]
    pub nested: bool,
    /// Largest file of weights: a number with MB or GB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub max_shard_size: u64,
}

fn size(text: &str) -> Result<u64, String> {
    let upper = text.trim().to_uppercase();
    let units = [("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((upper.strip_suffix(name)?, *unit)))
        .ok_or("expected a number with KB, MB or GB")?;
    let number: f64 = number.trim().parse().map_err(|_| "expected a number with KB, MB or GB")?;
    if number > 0.0 && number.is_finite() {
        Ok((number * f64::from(unit)) as u64)
    } else {
        Err("expected above 0".into())
    }
}
