//! The command line; see the library.

use std::time::Duration;

use clap::Parser;
use folgore_fuzz::{Run, TARGETS, Tally};

/// Feeds damaged files to every reader, and ends with 1 at the first that panics, takes too much memory or too long.
#[derive(Parser)]
struct Arguments {
    /// Seconds for each target.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// This target alone.
    #[arg(long)]
    target: Option<String>,
    /// Where the damage is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One input alone, written to `fuzz-input` before it is tried.
    #[arg(long)]
    only: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let names = TARGETS.iter().map(|t| t.name).filter(|name| arguments.target.as_deref().is_none_or(|t| t == *name));
    let mut names: Vec<&str> = names.collect();
    if let (true, Some(target)) = (names.is_empty(), &arguments.target) {
        names.push(target); // which the run refuses by name
    }
    for name in names {
        let run = Run::new(name, arguments.seed)?;
        if let Some(number) = arguments.only {
            std::fs::write("fuzz-input", run.input(number))?;
            let mut tally = Tally::default();
            run.one(number, &mut tally)?;
            println!("{name}: {tally:?}");
            continue;
        }
        let tally = run.run(Duration::from_secs(arguments.seconds), 0)?;
        println!(
            "{name}: {} inputs, {} taken; most memory {} KiB, slowest {:?}",
            tally.inputs,
            tally.taken,
            tally.worst_bytes >> 10,
            tally.slowest
        );
    }
    Ok(())
}
