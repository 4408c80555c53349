//! The `folgore` executable as a library: a program of one's own becomes Folgore with [`Folgore::main`], and has all its commands
//! beside rewards written in Rust. `examples/rust-reward/` is such a program.

mod agent;
mod allocator;
mod base;
mod capacity;
mod cli;
mod cluster;
mod commands;
mod compose;
mod console;
mod crew;
mod embedded;
mod export;
mod metrics;
mod nats;
mod policy;
mod prompts;
mod report;
mod retriever;
pub mod reward;
mod rows;
mod run_dir;
mod samples;
mod sft;
mod signals;
mod sop;
mod stream;
mod summary;
mod telemetry;
mod template;
mod tensorboard;
mod witnesses;

use std::{process::ExitCode, sync::Arc};

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

use clap::Parser as _;
use cli::{Cli, Command};
use folgore_reward::Rewards;

use crate::reward::{Args, PerItem, Reward, RewardError, Rule};

/// The executable, with the rewards that it holds beside the built-in ones.
#[derive(Default)]
pub struct Folgore {
    rewards: Rewards,
    wrong: Option<RewardError>,
}

impl Folgore {
    /// The executable with the built-in rewards.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule that judges one completion at a time. Runs name it in their list `reward`, and `make` builds it from the
    /// `args` there; what it refuses is told to the user before anything starts.
    #[must_use]
    pub fn rule<R: Rule>(self, name: &str, make: impl Fn(&Args) -> Result<R, String> + Send + Sync + 'static) -> Self {
        self.reward(name, move |args| Ok(Arc::new(PerItem::new(make(args)?))))
    }

    /// As [`Folgore::rule`], for a reward that judges many completions at once, waits for others, or judges groups.
    #[must_use]
    pub fn reward(
        mut self,
        name: &str,
        make: impl Fn(&Args) -> Result<Arc<dyn Reward>, String> + Send + Sync + 'static,
    ) -> Self {
        let added = self.rewards.add(name, make);
        self.wrong = self.wrong.or(added.err());
        self
    }

    /// Does what the command line says, to the end of the process's work.
    pub fn main(self) -> ExitCode {
        let cli = Cli::parse();
        match self.wrong.map_or(Ok(()), Err).map_err(Into::into).and_then(|()| {
            reward::install(self.rewards);
            dispatch(cli)
        }) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {}", one_line(&error));
                ExitCode::FAILURE
            }
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Train(args) => commands::train::run(args),
        Command::Sft(args) => commands::sft::run(args),
        Command::Worker(args) => commands::worker::run(args),
        Command::Serve(args) => commands::serve::run(args),
        Command::Up(args) => commands::up::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::MakeBase(args) => commands::make_base::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Index(args) => commands::index::run(&args),
        Command::Search(args) => commands::search::run(&args),
        Command::Sop(command) => commands::sop::run(&command),
        Command::Data(command) => commands::data::run(&command),
        Command::Doctor => commands::doctor::run(),
        Command::Tokenize(args) => commands::tokenize::run(args),
        Command::Score(args) => commands::score::run(args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Loss(args) => commands::loss::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::BenchWorker(args) => commands::bench::worker(args),
        Command::Reward(command) => commands::reward::run(command),
        Command::Nats(command) => commands::nats::run(command),
    }
}

/// An error with its causes, each said once, on one line.
fn one_line(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !said.contains(&text) {
            let separator = if said.is_empty() { "" } else { ": " };
            said = format!("{said}{separator}{text}");
        }
    }
    said.replace('\n', " ")
}
