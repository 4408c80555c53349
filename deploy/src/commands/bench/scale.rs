//! `folgore bench scale`: how samples per second grow with worker processes, and how long a new policy takes to reach them.
//!
//! | file | what it is for |
//! |---|---|
//! | `head` | the head of one configuration, and what is measured on it |
//! | `learner` | a learner that trains nothing: takes batches, commits, publishes |
//! | `heard` | what workers and replay tell, gathered |
//! | `wire` | how fast plain bytes travel |
//! | [`worker`], `sleeper` | a worker process, and its generator that sleeps |
//! | `report` | the table |
//!
//! The head holds no lease; all else is what a run over NATS is made of.

mod head;
mod heard;
mod learner;
mod report;
mod sleeper;
mod wire;
pub mod worker;

use std::{io::Write as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use folgore_actors::nats::server::{LocalServer, ServerOptions};

use self::{head::Plan, report::Report};
use crate::cli::bench::ScaleArgs;

/// Name of the run on the server.
const RUN: &str = "bench";
/// Largest adapter: what a server's bucket holds some of.
const ADAPTER_MB_MAX: f64 = 128.0;

/// Runs the command.
pub fn run(args: &ScaleArgs) -> Result<()> {
    check(args)?;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let mut lines = Vec::new();
    for shape in &args.processes {
        let plan = Plan::new(args, shape.processes, shape.slots.unwrap_or(args.slots));
        if !args.json {
            let seconds = args.warmup + args.seconds;
            eprintln!("measuring {} processes with {} slots each for {seconds} s ...", plan.processes, plan.slots);
        }
        lines.push(one(&plan).with_context(|| format!("{} processes", plan.processes))?);
    }
    let report = Report::new(args, lines);
    let text = if args.json { format!("{}\n", serde_json::to_string(&report)?) } else { report.to_string() };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// One configuration, on a server of its own.
fn one(plan: &Plan) -> Result<report::Line> {
    let folder = tempfile::Builder::new().prefix("folgore-bench-").tempdir().context("a folder for the server")?;
    let options = ServerOptions { with_parent: true, ..ServerOptions::new(folder.path().join("nats")) };
    let server = LocalServer::start(options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let measured = runtime.block_on(head::measure(plan, &server, folder.path()));
    runtime.shutdown_timeout(Duration::from_secs(2));
    measured
}

fn check(args: &ScaleArgs) -> Result<()> {
    let numbers = [
        ("--seconds", args.seconds, 1.0, 86_400.0),
        ("--warmup", args.warmup, 0.0, 86_400.0),
        ("--mean", args.mean, 0.001, 3600.0),
        ("--sigma", args.sigma, 0.0, 3.0),
        ("--adapter-mb", args.adapter_mb, 0.001, ADAPTER_MB_MAX),
        ("--publish-every", args.publish_every, 0.1, 3600.0),
    ];
    for (name, value, least, most) in numbers {
        if !(least..=most).contains(&value) {
            bail!("{name}: expected {least} to {most}, got {value}");
        }
    }
    if args.slots == 0 {
        bail!("--slots: expected at least 1, got 0");
    }
    Ok(())
}
