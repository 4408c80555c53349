//! `folgore bench telemetry`: what tracing costs a training step, as a ratio of the same steps with it and without.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, bail};
use folgore_actors::{
    Telemetry,
    telemetry::{self, Identity, Report, settings::Settings},
};
use folgore_learner::{alarm::Alarm, evaluation::Evaluated, learner::Witness};
use folgore_protocol::Batch;
use serde_json::{Map, Value, json};

use super::solo;
use crate::{
    cli::{ConfigArgs, bench::TelemetryArgs},
    commands::train::{ingredients, load_config},
};

/// Steps before those that count.
const WARM_UP: u32 = 4;

/// Runs the command.
pub fn run(args: &TelemetryArgs) -> Result<()> {
    if args.steps < 2 {
        bail!("--steps: expected at least 2, got {}", args.steps);
    }
    let Costs { traced, plain, ratio, report: Report { exported, lost } } = measure(&args.config, args.steps)?;
    if args.json {
        println!(
            "{}",
            json!({ "traced_s": traced, "plain_s": plain, "ratio": ratio, "exported": exported, "lost": lost })
        );
    } else {
        println!(
            "a step takes {:.1} ms traced and {:.1} ms not: ratio {ratio:.3}; {exported} spans sent, {lost} lost",
            1e3 * traced,
            1e3 * plain,
        );
    }
    Ok(())
}

/// What was measured.
struct Costs {
    /// Median seconds of a traced step,
    traced: f64,
    /// and of one that is not.
    plain: f64,
    /// Median over all steps of how many times longer the step takes when it is traced.
    ratio: f64,
    report: Report,
}

/// Trains twice: a run does the same work at the same step, bit for bit, so that each step is compared with itself. In the first
/// run every even step is traced, in the second every odd one.
fn measure(config: &ConfigArgs, steps: u32) -> Result<Costs> {
    let mut config = config.clone();
    let last = steps + WARM_UP;
    let settings = [("optim.max_steps", last.to_string()), ("checkpoint.save_steps", last.to_string())];
    config.given.extend(settings.map(|(key, value)| format!("{key}={value}")));
    config.given.extend(["eval.before=false", "eval.after=false", "log.report=false"].map(str::to_owned));
    let receiver = receiver()?;
    let settings = Settings::read(|name| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| receiver.clone()))?;
    let settings = Settings { metrics: None, ..settings };
    let who = Identity { run: "bench".into(), role: "bench".into(), worker: "bench".into() };
    let telemetry = Telemetry::with(settings, &who)?;
    let [even, odd] = [0, 1].map(|traced| Arc::new(Switch { traced, times: Mutex::default() }));
    for switch in [&even, &odd] {
        let (what, adapter) = ingredients(load_config(&config)?, None, true, |_| Ok(()))?;
        solo::train(&what, adapter.as_ref(), switch.clone())?;
    }
    telemetry::listen(true);
    let report = telemetry.end().context("no spans")?;
    let (even, odd) = (even.take(), odd.take());
    let pairs: Vec<(f64, f64)> = even
        .into_iter()
        .filter_map(|(step, took)| {
            let other = *odd.get(&step)?;
            Some(if step.is_multiple_of(2) { (took, other) } else { (other, took) })
        })
        .collect();
    let of = |value: fn(&(f64, f64)) -> f64| median(pairs.iter().map(value).collect());
    Ok(Costs { traced: of(|pair| pair.0)?, plain: of(|pair| pair.1)?, ratio: of(|pair| pair.0 / pair.1)?, report })
}

/// Turns telemetry on and off between steps, and notes how long they take.
struct Switch {
    /// Steps that are traced, modulo 2.
    traced: u64,
    /// Seconds of each step.
    times: Mutex<BTreeMap<u64, f64>>,
}

impl Switch {
    fn take(&self) -> BTreeMap<u64, f64> {
        std::mem::take(&mut *self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Witness for Switch {
    fn stepped(&self, step: u64, line: &Map<String, Value>, _batch: &Batch) {
        telemetry::listen((step + 1) % 2 == self.traced);
        let Some(took) = line.get("step_time").and_then(Value::as_f64) else { return };
        if step > u64::from(WARM_UP) {
            self.times.lock().unwrap_or_else(PoisonError::into_inner).insert(step, took);
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
