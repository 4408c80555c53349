//! The command line, as types.

pub mod bench;
pub mod data;
pub mod export;
pub mod nats;
pub mod reward;
pub mod search;
pub mod sft;
pub mod sop;
#[cfg(test)]
mod written;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::embedded::Embedded;

/// Reinforcement learning for language models, in one executable.
#[derive(Debug, Parser)]
#[command(name = "folgore", version, about, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trains a policy with reinforcement learning; without arguments, the demonstration on the embedded policy
    Train(TrainArgs),
    /// Trains a policy to say what rows of a dataset say: supervised fine-tuning
    Sft(sft::SftArgs),
    /// Works for a run whose head is elsewhere: makes samples, scores them, or finds passages
    Worker(WorkerArgs),
    /// Serves passages to other software, as Search-R1's server does
    Serve(ServeArgs),
    /// Tries it all on this machine: a NATS server, workers, and a head that trains; everything stops with it
    Up(UpArgs),
    /// Evaluates a policy on held-out questions: greedy, avg@k, pass@k and maj@k with 95 % intervals
    Eval(EvalArgs),
    /// Makes files for other software of a trained policy, and proves that they are the policy
    Export(export::ExportArgs),
    /// Shows what a run did: its state, metrics, evaluations and samples
    Inspect(InspectArgs),
    /// Shows this machine as the engine sees it, in one block to paste
    Doctor,
    /// Makes an index of documents to search, or brings it up to date
    Index(search::IndexArgs),
    /// Finds passages in an index
    Search(search::SearchArgs),
    /// Procedures that can stand in prompts: reads them, and finds those that fit a question
    #[command(subcommand)]
    Sop(sop::SopCommand),
    /// Looks at files of rows before they are trained on, and writes them in other shapes
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Text to token ids; rows {"text"} or {"messages", ...}
    Tokenize(TokenizeArgs),
    /// Log-probs of given tokens; rows {"ids"} or {"text"}
    Score(ScoreArgs),
    /// Continues prompts; rows {"ids"}, {"prompt"} or {"messages"}
    Generate(GenerateArgs),
    /// Evaluates an objective on given log-probs and rewards: advantages, loss, gradient
    Loss(StreamArgs),
    /// Measures the engine and the learner on this machine
    Bench(bench::BenchArgs),
    /// A worker of `bench scale`
    #[command(hide = true)]
    BenchWorker(bench::BenchWorkerArgs),
    /// Tries a reward out before it is trained with
    #[command(subcommand)]
    Reward(reward::RewardCommand),
    /// Sets up a NATS server for runs on several machines
    #[command(subcommand)]
    Nats(nats::NatsCommand),
    /// Writes a base in NF4, as bitsandbytes stores it
    Quantize(export::QuantizeArgs),
    /// Makes an embedded policy again from its recipe
    MakeBase(MakeBaseArgs),
}

/// What configures a run.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// YAML files or preset names (arithmetic, carries, demo, sft-smollm2, smollm2, two-hops), left to right, and key=value settings on top of them
    #[arg(value_name = "RUN.yaml | PRESET | key=value")]
    pub given: Vec<String>,
    /// Seed of sampling, task order and fresh adapters [run.seed]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Model folder, GGUF file, owner/name on the hub, `embedded` or `random:SHAPE` [model.model_name_or_path]
    #[arg(long)]
    pub model: Option<String>,
    /// PEFT folder, or owner/name on the hub, to start from [model.adapter]
    #[arg(long)]
    pub adapter: Option<PathBuf>,
}

/// `train`
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// What configures the run.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Name of the run and of its folder [run.name]
    #[arg(long)]
    pub run_name: Option<String>,
    /// Folder that holds the folders of runs [run.output_dir]
    #[arg(long)]
    pub output_dir: Option<PathBuf>,
    /// Optimiser steps [optim.max_steps]
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Goes on with a run from its newest checkpoint: its name, or the newest run
    #[arg(long, num_args = 0..=1, default_missing_value = "")]
    pub resume: Option<String>,
    /// Begins the run, goes on with it if it is there, and leaves it if it is done: for a service, which is started again and
    /// again with the same arguments. Needs the run's name
    #[arg(long = "continue", conflicts_with = "resume")]
    pub carry_on: bool,
    /// Goes on although the run began with another configuration
    #[arg(long, requires = "resume")]
    pub force: bool,
    /// Begins although the run may take more memory than is available
    #[arg(long)]
    pub ignore_memory: bool,
    /// Shows the run in numbers at http://127.0.0.1:PORT/metrics, for Prometheus; 0 is any free port [log.metrics_port]
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// Address of --metrics-port, where others than this machine are to read [log.metrics_address]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_address: Option<IpAddr>,
    /// Shows what would be done, and the memory it would take; trains nothing
    #[arg(long)]
    pub dry_run: bool,
    /// NATS server (nats://host:port): this process is the head, and workers make the samples
    #[arg(long, value_name = "URL")]
    pub nats: Option<String>,
    /// Folder of this process's identity on the server (folgore nats init)
    #[arg(long, requires = "nats", value_name = "FOLDER")]
    pub identity: Option<PathBuf>,
}

/// Where the server is, and who this process is there.
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// NATS server: nats://host:port
    #[arg(long, value_name = "URL")]
    pub nats: String,
    /// Folder of this process's identity on the server (folgore nats add-worker)
    #[arg(long, value_name = "FOLDER")]
    pub identity: Option<PathBuf>,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WorkerRole {
    /// Makes samples
    Rollout,
    /// Scores them
    Reward,
    /// Finds passages
    Retriever,
}

/// `worker`
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// What it does
    #[arg(long, value_enum, default_value = "rollout")]
    pub role: WorkerRole,
    /// Where the server is.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Name of the run
    #[arg(long)]
    pub run: String,
    /// Model folder, GGUF file, owner/name on the hub, `embedded` or `random:SHAPE`, where it lies elsewhere than on the head; must be the same model
    #[arg(long)]
    pub model: Option<String>,
    /// Folder of the index that is searched, where it lies elsewhere than on the head; must be the same index
    #[arg(long, value_name = "FOLDER")]
    pub index: Option<PathBuf>,
    /// Encoder of the index, where it lies elsewhere than on the head; must be the same encoder
    #[arg(long, value_name = "FOLDER | NAME")]
    pub encoder: Option<String>,
    /// Reranker, where it lies elsewhere than on the head; must be the same reranker
    #[arg(long, value_name = "FOLDER | NAME")]
    pub rerank: Option<String>,
    /// Name of this worker where it has no identity; made from role, machine and process without it
    #[arg(long, conflicts_with = "identity")]
    pub name: Option<String>,
    /// Samples made at once, or requests answered at once; the run's setting without it
    #[arg(long)]
    pub slots: Option<u32>,
    /// Shows this worker in numbers at http://127.0.0.1:PORT/metrics, for Prometheus; 0 is any free port
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// Address of --metrics-port, where others than this machine are to read
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub metrics_address: IpAddr,
    /// Stops when standard input ends: for a parent that started it
    #[arg(long)]
    pub with_parent: bool,
}

/// `serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// YAML files or presets and key=value settings, as for `train`; their section `retriever` says how passages are ranked
    #[arg(value_name = "RUN.yaml | key=value")]
    pub given: Vec<String>,
    /// Finds passages: POST /retrieve with {"queries", "topk", "return_scores"}
    #[arg(long)]
    pub retriever: bool,
    /// Folder of the index that is searched (folgore index); the embedded facts about countries without it [retriever.index]
    #[arg(long, value_name = "FOLDER")]
    pub index: Option<PathBuf>,
    /// Where it listens; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Passages for a query where a request does not say how many
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub topk: u32,
}

/// `up`
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The training.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Rollout workers, a process each
    #[arg(long, default_value_t = 2)]
    pub workers: u32,
}

/// `eval`
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// What configures the evaluation.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Held-out questions [eval.eval_items]
    #[arg(long)]
    pub items: Option<u32>,
    /// The k of pass@k and maj@k, several with commas between [eval.k]
    #[arg(short, long, value_delimiter = ',')]
    pub k: Vec<u32>,
    /// Samples of each question; without it as many as the largest k takes [eval.sampled]
    #[arg(short = 'n', long)]
    pub samples: Option<u32>,
    /// Prints one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Name or folder of the run
    pub run: String,
    /// Folder that holds the folders of runs
    #[arg(long, default_value = "runs")]
    pub output_dir: PathBuf,
    /// Proves from the record what became of every seat, batch and version; one line for each invariant, and exit code 1 if
    /// one does not hold
    #[arg(long)]
    pub check: bool,
    /// Samples to show
    #[arg(long, default_value_t = 3)]
    pub samples: usize,
    /// Prints one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// JSON lines in and out.
#[derive(Clone, Debug, Args)]
pub struct StreamArgs {
    /// File of JSON lines; standard input without it
    #[arg(long = "in", value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// File to write; standard output without it
    #[arg(long = "out", value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// A model for the plumbing commands.
#[derive(Clone, Debug, Args)]
pub struct PlumbingArgs {
    /// Where rows come from and go to.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Model folder, GGUF file, owner/name on the hub, `embedded` or `random:SHAPE`
    #[arg(long, default_value = crate::embedded::NAME)]
    pub model: String,
    /// PEFT folder, or owner/name on the hub
    #[arg(long)]
    pub adapter: Option<PathBuf>,
}

/// `tokenize`
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// Model and stream; the adapter changes nothing here.
    #[command(flatten)]
    pub plumbing: PlumbingArgs,
    /// Lets added tokens in {"text"} count; by default such text is plain text, as all text that a program did not write
    #[arg(long)]
    pub trusted: bool,
}

/// `score`
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// Model and stream.
    #[command(flatten)]
    pub plumbing: PlumbingArgs,
    /// Adds all logits of every position
    #[arg(long)]
    pub logits: bool,
    /// Writes the gradient of the mean cross-entropy over all rows, for every adapter tensor, as safetensors
    #[arg(long, value_name = "FILE", requires = "adapter")]
    pub grad: Option<PathBuf>,
    /// Divides the logits
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f32,
}

/// `generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Model and stream.
    #[command(flatten)]
    pub plumbing: PlumbingArgs,
    /// Most tokens to make
    #[arg(long, default_value_t = 256)]
    pub max_new_tokens: u32,
    /// Divides the logits; 0 is greedy
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probability reaches this
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    pub top_k: u32,
    /// Drops tokens less likely than this share of the likeliest
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens already seen
    #[arg(long, default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Text that ends a completion; may be given several times
    #[arg(long)]
    pub stop: Vec<String>,
    /// Puts procedures that fit a question into its prompt: of files, folders or `builtin`; without a value, as the adapter was
    /// trained with. Rows of ids stay as they are
    #[arg(long, value_name = "PATH", num_args = 0..)]
    pub sop: Option<Vec<String>>,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Completions of each row
    #[arg(short = 'n', long = "num-completions", default_value_t = 1)]
    pub n: u32,
    /// Goes on past the end token
    #[arg(long)]
    pub ignore_eos: bool,
}

/// `make-base`
#[derive(Debug, Args)]
pub struct MakeBaseArgs {
    /// Which of the policies
    #[arg(default_value = "search")]
    pub policy: Embedded,
    /// Folder to write; where the repository has the policy, if it is not given
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Optimiser updates, for a shorter trial
    #[arg(long)]
    pub steps: Option<u64>,
}
