//! `folgore bench telemetry`: what tracing costs a training step, as a ratio within one run.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, bail};
use folgore_actors::{
    Telemetry,
    telemetry::{self, Identity, Report, settings::Settings},
};
use folgore_learner::{
    alarm::Alarm,
    ask::Evaluated,
    learner::{Standing, Witness},
};
use folgore_protocol::Batch;
use serde_json::{Map, Value, json};

use crate::{
    cli::{ConfigArgs, bench::TelemetryArgs},
    commands::train::{ingredients, load_config, parts},
    compose::{self, House, Place},
    run_dir::RunDir,
};

/// Steps before those that count.
const WARM_UP: u32 = 4;

/// Runs the command.
pub fn run(args: &TelemetryArgs) -> Result<()> {
    if args.steps < 2 {
        bail!("--steps: expected at least 2, got {}", args.steps);
    }
    let (traced, plain, report) = measure(&args.config, args.steps)?;
    let ratio = traced / plain;
    if args.json {
        let Report { exported, lost } = report;
        println!(
            "{}",
            json!({ "traced_s": traced, "plain_s": plain, "ratio": ratio, "exported": exported, "lost": lost })
        );
    } else {
        println!(
            "a step takes {:.1} ms traced and {:.1} ms not: ratio {ratio:.3}; {} spans sent, {} lost",
            1e3 * traced,
            1e3 * plain,
            report.exported,
            report.lost
        );
    }
    Ok(())
}

/// Median seconds of a traced step and of another one, and what became of the spans.
fn measure(config: &ConfigArgs, steps: u32) -> Result<(f64, f64, Report)> {
    let mut config = config.clone();
    let last = steps + WARM_UP;
    let settings = [("optim.max_steps", last.to_string()), ("checkpoint.save_steps", last.to_string())];
    config.given.extend(settings.map(|(key, value)| format!("{key}={value}")));
    config.given.extend(["eval.before=false", "eval.after=false", "log.report=false"].map(str::to_owned));
    let receiver = receiver()?;
    let settings = Settings::read(|name| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| receiver.clone()))?;
    let settings = Settings { metrics: None, ..settings };
    let who = Identity { run: "bench".into(), role: "bench".into(), worker: "bench".into() };
    let (telemetry, switch) = (Telemetry::with(settings, &who)?, Arc::new(Switch::default()));
    train(config, switch.clone())?;
    telemetry::listen(true);
    let report = telemetry.end().context("no spans")?;
    let Times { traced, plain } = std::mem::take(&mut *switch.times());
    Ok((median(traced)?, median(plain)?, report))
}

fn train(config: ConfigArgs, witness: Arc<Switch>) -> Result<()> {
    let folder = tempfile::tempdir().context("a folder for the run")?;
    let (what, adapter) = ingredients(load_config(&config)?, None)?;
    let dir = RunDir::begin(folder.path(), Some("bench"))?;
    let (checkpoints, _) = dir.checkpoints(what.config.checkpoint.save_total_limit, |_| {})?;
    let (parts, _) = parts(&what, &dir, checkpoints, None, adapter.as_ref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let place = Place { record: dir.record(), blobs: dir.file("blobs") };
        let house = House::start("bench", &place, &what, false).await?;
        house.learn(parts, compose::plan(&what)?, Standing::default(), witness).await?;
        house.end().await
    })
}

/// Turns telemetry on and off between steps, and notes how long they take.
#[derive(Default)]
struct Switch(Mutex<Times>);

/// Seconds of steps.
#[derive(Default)]
struct Times {
    traced: Vec<f64>,
    plain: Vec<f64>,
}

impl Switch {
    fn is_traced(step: u64) -> bool {
        step.is_multiple_of(2)
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness for Switch {
    fn stepped(&self, step: u64, line: &Map<String, Value>, _batch: &Batch) {
        telemetry::listen(Self::is_traced(step + 1));
        let Some(took) = line.get("step_time").and_then(Value::as_f64) else { return };
        if step > u64::from(WARM_UP) {
            let mut times = self.times();
            if Self::is_traced(step) { times.traced.push(took) } else { times.plain.push(took) }
        }
    }
    fn alarm(&self, _: &Alarm) {}
    fn goes_on(&self, _: u64) {}
    fn evaluated(&self, _: &Evaluated) {}
    fn saved(&self, _: u64, _: &Path) {}
    fn waiting(&self, _: &str) {}
}

fn median(mut times: Vec<f64>) -> Result<f64> {
    times.sort_unstable_by(f64::total_cmp);
    times.get(times.len() / 2).copied().context("no step was measured")
}

/// Starts something that takes whatever it is sent over HTTP, until the process ends; gives its address.
fn receiver() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a port for the receiver")?;
    let url = format!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || while take(&stream).is_some() {});
        }
    });
    Ok(url)
}

/// Takes one request; none at the end of the connection.
fn take(mut stream: &TcpStream) -> Option<()> {
    let (mut reader, mut line, mut length) = (BufReader::new(stream), String::new(), 0);
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink()).ok()?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_step_is_traced_and_all_spans_arrive() {
        let small = ["rollout.num_prompts=2", "rollout.num_generations=2"].map(str::to_owned);
        let config = ConfigArgs { given: small.into(), ..ConfigArgs::default() };
        let (traced, plain, report) = measure(&config, 4).unwrap();
        assert!(traced > 0.0 && plain > 0.0);
        assert_eq!(report.lost, 0);
        // Four of eight steps, of four samples each; the first begins before anything is switched off.
        assert!(report.exported >= 4 * 4 * 7, "{report:?}");
    }
}
