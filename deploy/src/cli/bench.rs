//! `folgore bench`, as types.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};

/// `bench`
#[derive(Debug, Args)]
#[command(after_help = BENCH_HELP, args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// Another measurement than that of the engine.
    #[command(subcommand)]
    pub other: Option<OtherBench>,
    /// Model folder, GGUF file, `embedded`, or `random:SHAPE` for random weights: tiny, smollm2, qwen2.5-0.5b, qwen2.5-1.5b, mistral-7b
    #[arg(long, default_value = "random:smollm2")]
    pub model: String,
    /// Threads
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Repetitions; the best counts
    #[arg(long, default_value_t = 3)]
    pub repeat: usize,
    /// Tokens of a prompt in a GRPO step
    #[arg(long, default_value_t = 64)]
    pub prompt_tokens: usize,
    /// Only these: ceilings, decode, prefill, rollout, train, recompute, step
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Prints one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// How the figures of `bench` are to be read.
const BENCH_HELP: &str = "\
Ceilings, best of five: a product of two 2048 x 2048 matrices in f32 with our kernels, and reading 512 MiB. A share is the \
time that the ceilings allow at the least, divided by the time taken, where every call of the model takes the larger of \
operations / product ceiling and bytes / reading ceiling.

Operations, nothing computed again being counted, with P weights of the layers' linear maps, A of the adapter, V = \
vocabulary x hidden size, L layers and q = heads x head size:
  forward   2 (P + A) + 4 L q keys  a token, and 2 V for each that is scored
  backward  2 P + 4 A + 8 L q keys  a token, and 2 V for each that is scored
Bytes: the weights of layers and head once a call, and the keys and values of every sequence.";

/// What else is measured.
#[derive(Debug, Subcommand)]
pub enum OtherBench {
    /// How samples per second grow with worker processes, over a NATS server on this machine
    Scale(ScaleArgs),
    /// What OpenTelemetry costs a training step: the same steps with it and without
    Telemetry(TelemetryArgs),
    /// What memory a training step takes on bases of several sizes, and what the planner says
    Memory(MemoryArgs),
}

/// `bench memory`
#[derive(Clone, Debug, Args)]
#[command(after_help = MEMORY_HELP)]
pub struct MemoryArgs {
    /// Shapes of the bases, whose weights are random: tiny, smollm2, qwen2.5-0.5b, qwen2.5-1.5b, mistral-7b
    #[arg(long, value_delimiter = ',', default_value = "qwen2.5-0.5b,qwen2.5-1.5b,mistral-7b")]
    pub shape: Vec<String>,
    /// Settings over those of the measured run
    #[arg(value_name = "KEY=VALUE")]
    pub given: Vec<String>,
    /// Prints one JSON list instead of a table
    #[arg(long)]
    pub json: bool,
    /// Measures in this process
    #[arg(long, hide = true)]
    pub here: bool,
}

/// How `bench memory` is to be read.
const MEMORY_HELP: &str = "\
One GRPO step, trained as `folgore train` does it, in a process of its own for each base: 4 samples of 448 + 64 tokens, rank 16 on \
all linear maps, the base in NF4 with nested scales, embeddings, head and key-value cache in bfloat16, 8-bit AdamW, recomputation every 2 layers, activations of the sampler not reused. The measured peak \
is VmHWM of the whole process from its start to its end; the parts are what `folgore train --dry-run` predicts before anything is \
loaded. Settings change the run: model.load_in_4bit=false model.use_bnb_nested_quant=false holds the base in bfloat16.";

/// `bench telemetry`
#[derive(Clone, Debug, Args)]
#[command(after_help = TELEMETRY_HELP)]
pub struct TelemetryArgs {
    /// What configures the run.
    #[command(flatten)]
    pub config: super::ConfigArgs,
    /// Steps measured, each once traced and once not
    #[arg(long, default_value_t = 80)]
    pub steps: u32,
    /// Prints one JSON object instead of a line
    #[arg(long)]
    pub json: bool,
}

/// How `bench telemetry` is to be read.
const TELEMETRY_HELP: &str = "\
One training in this process, done twice, and a receiver on loopback that takes what it is sent. In the first every even step \
is traced, in the second every odd one. Both do the same work at the same step, so that the ratio is the median over the steps of \
how many times longer a step takes when it is traced: rollouts, rewards, replay and learning together.";

/// `bench scale`
#[derive(Clone, Debug, Args)]
#[command(after_help = SCALE_HELP)]
pub struct ScaleArgs {
    /// Configurations: worker processes, or processes x slots of each
    #[arg(long, value_delimiter = ',', value_name = "N|NxSLOTS", default_value = "1,4,16,64,64x4")]
    pub processes: Vec<Shape>,
    /// Slots of a process where the configuration does not say
    #[arg(long, default_value_t = 1)]
    pub slots: u32,
    /// Makes every process a host of its own, which shares no cache of policies with the others
    #[arg(long)]
    pub host_each: bool,
    /// Seconds measured
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Seconds before that
    #[arg(long, default_value_t = 15.0)]
    pub warmup: f64,
    /// Mean seconds of a sample, lognormal
    #[arg(long, default_value_t = 4.0)]
    pub mean: f64,
    /// Deviation of their logarithm
    #[arg(long, default_value_t = 0.5)]
    pub sigma: f64,
    /// Megabytes of an adapter
    #[arg(long, default_value_t = 8.0)]
    pub adapter_mb: f64,
    /// Seconds between two adapters, about: a step trains on as many samples as the slots make in that time
    #[arg(long, default_value_t = 10.0)]
    pub publish_every: f64,
    /// Seed of times and adapters
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Prints one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// How `bench scale` is to be read.
const SCALE_HELP: &str = "\
Everything is real but the computing: server (every write synced), coordinator, replay and its record, links and worker \
processes; a generator sleeps for each sample as long as its seed says and gives 512 tokens, and a learner trains nothing. \
Ideal is slots / mean of the times drawn. Publish to served is from the announcement of an adapter until the last process \
serves it; its bound is bytes x hosts / wire rate, where the rate is that of plain gets beforehand: by one reader for one \
host, with --host-each by all processes at once.";

/// Worker processes, and slots of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Processes.
    pub processes: u32,
    /// Slots of each; none: what `--slots` says.
    pub slots: Option<u32>,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.parse::<u32>().ok().filter(|n| *n > 0);
        let (processes, slots) = match text.split_once('x') {
            None => (number(text), Some(None)),
            Some((processes, slots)) => (number(processes), number(slots).map(Some)),
        };
        let shape = processes.zip(slots).map(|(processes, slots)| Self { processes, slots });
        shape.ok_or_else(|| format!("{text:?}: expected processes (16) or processes x slots (64x4)"))
    }
}

/// `bench-worker`, which `bench scale` starts
#[derive(Debug, Args)]
pub struct BenchWorkerArgs {
    /// NATS server
    #[arg(long)]
    pub nats: String,
    /// Name of the run
    #[arg(long)]
    pub run: String,
    /// Name of this worker
    #[arg(long)]
    pub name: String,
    /// Samples at once
    #[arg(long)]
    pub slots: u32,
    /// Mean seconds of a sample
    #[arg(long)]
    pub mean: f64,
    /// Deviation of their logarithm
    #[arg(long)]
    pub sigma: f64,
    /// Folder of the host's cache
    #[arg(long)]
    pub cache: PathBuf,
    /// Policies that the host keeps
    #[arg(long)]
    pub kept: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_processes_and_slots() {
        assert_eq!("16".parse(), Ok(Shape { processes: 16, slots: None }));
        assert_eq!("64x4".parse(), Ok(Shape { processes: 64, slots: Some(4) }));
        for bad in ["", "0", "x", "4x", "4x0", "-1", "1.5"] {
            assert!(bad.parse::<Shape>().unwrap_err().contains("64x4"), "{bad} was taken");
        }
    }
}
