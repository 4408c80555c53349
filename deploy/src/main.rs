//! The `folgore` executable.

mod capacity;
mod cli;
mod cluster;
mod commands;
mod compose;
mod console;
mod crew;
mod embedded;
mod metrics;
mod nats;
mod policy;
mod prompts;
mod report;
mod run_dir;
mod samples;
mod signals;
mod stream;
mod summary;
mod tensorboard;
mod witnesses;

use std::process::ExitCode;

/// Every step allocates a few hundred buffers of a few megabytes, each a little larger or smaller than the last time; the
/// system's allocator keeps the holes between them and grows with every step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use clap::Parser as _;
use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Train(args) => commands::train::run(args),
        Command::Worker(args) => commands::worker::run(args),
        Command::Up(args) => commands::up::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::MakeBase(args) => commands::make_base::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Doctor => commands::doctor::run(),
        Command::Tokenize(args) => commands::tokenize::run(args),
        Command::Score(args) => commands::score::run(args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Loss(args) => commands::loss::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::BenchWorker(args) => commands::bench::worker(args),
        Command::Nats(command) => commands::nats::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::FAILURE
        }
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
