//! `sft`, as types.

use std::path::PathBuf;

use clap::Args;

use super::ConfigArgs;

/// `sft`
#[derive(Debug, Args)]
pub struct SftArgs {
    /// What configures the run.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Name of the run and of its folder [run.name]
    #[arg(long)]
    pub run_name: Option<String>,
    /// Folder that holds the folders of runs [run.output_dir]
    #[arg(long)]
    pub output_dir: Option<PathBuf>,
    /// Optimiser updates [optim.max_steps]
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Imitates the samples of a run, as they were sampled, in the place of rows: its name or folder [sft.from_run]
    #[arg(long, value_name = "RUN")]
    pub from_run: Option<PathBuf>,
    /// Share of those samples that is imitated, the ones with the highest reward [sft.top]
    #[arg(long, value_name = "SHARE")]
    pub top: Option<f64>,
    /// Goes on with a run from its newest checkpoint: its name
    #[arg(long, value_name = "RUN")]
    pub resume: Option<String>,
    /// Begins although the run may take more memory than is available
    #[arg(long)]
    pub ignore_memory: bool,
    /// Shows what would be done, and the memory it would take; trains nothing
    #[arg(long)]
    pub dry_run: bool,
}
