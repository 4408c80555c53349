//! `folgore reward`, as types.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What to do with a reward.
#[derive(Debug, Subcommand)]
pub enum RewardCommand {
    /// Runs a reward over saved completions: distribution, failures, latency, agreement with another reward
    Test(RewardTestArgs),
}

/// `reward test`
#[derive(Debug, Args)]
#[command(after_help = "\
SPEC is the name of a rule (math), a file (reward.yaml) or YAML text ('{name: mine, python: \"mine.py:score\"}') that holds one
reward, a list of them, or a configuration of a run. Rows of --in: {\"prompt\", \"completion\", and the columns that the reward
reads}; optional \"completion_ids\" (for rules that count tokens) and \"group\" (for rewards that compare completions).
The exit code is 1 if a completion got no score.")]
pub struct RewardTestArgs {
    /// YAML files or preset names, and key=value settings on top: the configuration whose reward is tested
    #[arg(value_name = "RUN.yaml | PRESET | key=value")]
    pub given: Vec<String>,
    /// The reward to test; without it, that of the configuration, which is the run's with --run
    #[arg(long, value_name = "SPEC")]
    pub reward: Option<String>,
    /// Another reward to compare it with
    #[arg(long, value_name = "SPEC")]
    pub second: Option<String>,
    /// Tests on the completions in the record of this run: its name or folder
    #[arg(long, value_name = "RUN", required_unless_present = "input", conflicts_with = "input")]
    pub run: Option<String>,
    /// Folder that holds the folders of runs
    #[arg(long, default_value = "runs")]
    pub output_dir: PathBuf,
    /// Tests on a file of JSON lines; - is standard input
    #[arg(long = "in", value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Completions at most, the newest of a run or the first of a file
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
    /// Requests at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub concurrency: u32,
    /// Seconds that each request may take
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub deadline_s: u32,
    /// Prints one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
    /// Ends well although completions got no score
    #[arg(long)]
    pub allow_failures: bool,
}
