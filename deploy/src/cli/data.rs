//! `folgore data`, as types.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use folgore_config::data::DataFormat;

/// What to do with files of rows.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Says what files hold: layout, format and why, counts, lengths, rows that are left out, and the first rows with what is learnt
    Check(CheckArgs),
    /// Writes rows in another shape, as JSON lines
    Convert(ConvertArgs),
    /// Writes what agents did and were rewarded for as rows to imitate, from spans of their calls of a language model
    Traces(TracesArgs),
}

fn format(name: &str) -> Result<DataFormat, String> {
    let names = || DataFormat::NAMES.map(|(name, _)| name).join(", ");
    DataFormat::named(name).ok_or_else(|| format!("expected one of {}", names()))
}

/// `data check`
#[derive(Debug, Args)]
#[command(after_help = "\
Files are JSON, JSONL, CSV or Parquet, JSON and CSV also as .gz and .zst, or SQLite with chats of a program. A configuration (RUN.yaml)
is checked as it is, with its sources mixed. Bad rows are counted and shown; the exit code is 1 if nothing is usable.")]
pub struct CheckArgs {
    /// Files, folders and names on the hub, or a configuration whose data is checked; key=value sets what data.* can say
    #[arg(value_name = "PATH | RUN.yaml | key=value", required = true)]
    pub given: Vec<String>,
    /// Shape of the rows; told by their fields without it [data.format]
    #[arg(long, value_parser = format)]
    pub format: Option<DataFormat>,
    /// Counts tokens of this model and shows rows as it reads them: folder, GGUF file, owner/name on the hub, or `embedded`
    #[arg(long)]
    pub model: Option<String>,
    /// Rows to show
    #[arg(long, default_value_t = 3)]
    pub rows: usize,
    /// Prints one JSON object for each path instead of lines
    #[arg(long)]
    pub json: bool,
}

/// Shapes that rows are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// `messages`, as TRL and OpenAI have them
    Messages,
    /// `prompt` and `completion`, as TRL has them
    #[value(name = "prompt_completion", alias = "prompt-completion")]
    PromptCompletion,
    /// `conversations` of `from` and `value`
    Sharegpt,
    /// `instruction`, `input`, `output`
    Alpaca,
    /// Questions with `reward_model.ground_truth`, as verl has them, and `target` where there is a trace
    Verl,
    /// `text`
    Text,
}

/// `data convert`
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// File, folder or name on the hub to read
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// File of JSON lines to write; - is standard output
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// key=value: what data.* can say of reading
    #[arg(value_name = "key=value")]
    pub settings: Vec<String>,
    /// Shape to write
    #[arg(long, value_enum)]
    pub to: Shape,
    /// Shape of the rows; told by their fields without it [data.format]
    #[arg(long, value_parser = format)]
    pub format: Option<DataFormat>,
}

/// `data traces`
#[derive(Debug, Args)]
#[command(after_help = "\
A row of IN is a span: rollout_id, name, and, where they are there, attempt_id, span_id, parent_id, sequence_id, start_time, end_time, attributes.
Calls are named openai.chat.completion or `chat MODEL`, with gen_ai.prompt.* and gen_ai.completion.*, or gen_ai.input.messages and
gen_ai.output.messages; rewards agentlightning.annotation, with agentlightning.reward.0.value.")]
pub struct TracesArgs {
    /// File of spans
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// File of JSON lines to write, the best first; - is standard output
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Share of the rows that is kept, the best of them; at least one
    #[arg(long, default_value_t = 1.0)]
    pub top: f64,
    /// Leaves out rows that are worth less
    #[arg(long)]
    pub min_reward: Option<f64>,
    /// key=value: what data.* can say of reading
    #[arg(value_name = "key=value")]
    pub settings: Vec<String>,
}
