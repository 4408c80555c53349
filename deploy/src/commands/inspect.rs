//! `folgore inspect`: what a run did, from the files in its folder. Nothing in the folder is changed, and a run that is
//! going on is not disturbed.

mod check;

use std::{fmt::Write as _, fs, fs::File, path::Path, path::PathBuf};

use anyhow::{Context as _, Result};
use folgore_config::{Config, ModelSection};
use folgore_learner::{
    checkpoint::lock,
    record::{Record, RecordError, rows::Counters},
};
use serde_json::{Map, Value, json};

use crate::{
    cli::InspectArgs,
    run_dir,
    samples::{self, Sample},
    stream::quietly,
    summary::{Measured, Summary, hardware::bytes_text, read_metrics},
};

/// Records above this size are not read: every page of them would be checked.
const RECORD_LIMIT: u64 = 1 << 30;
/// Characters of a curve.
const CURVE: usize = 48;
/// Metrics shown of the last step, where they are there.
const SHOWN: [&str; 8] = [
    "reward",
    "loss",
    "grad_norm",
    "entropy",
    "kl",
    "completions/mean_length",
    "completions/clipped_ratio",
    "mismatch/logp_abs_max",
];
/// Characters of a sample's text.
const TEXT: usize = 400;

/// Runs the command.
pub fn run(args: InspectArgs) -> Result<()> {
    let path = run_dir::find(&args.output_dir, &args.run)?;
    if args.check {
        return check::run(&path, args.json);
    }
    let found = Found::look(&path, args.samples)?;
    let text = if args.json { format!("{:#}\n", found.json()?) } else { found.text()? };
    quietly(text.as_bytes())
}

/// What the folder of a run holds.
struct Found {
    path: PathBuf,
    /// Who is writing the run now.
    live: Option<String>,
    config: Value,
    metrics: Vec<Map<String, Value>>,
    summary: Option<Summary>,
    checkpoints: Vec<u64>,
    record: Result<Counters, String>,
    samples: Vec<Sample>,
}

impl Found {
    fn look(path: &Path, samples: usize) -> Result<Self> {
        let live = writer(path);
        let record = match &live {
            Some(writer) => Err(format!("not read while {writer} has it")),
            None => counters(&path.join("record.redb")),
        };
        Ok(Self {
            path: path.to_owned(),
            live,
            config: config(&path.join("config.yaml"))?,
            metrics: read_metrics(&path.join("metrics.jsonl"))?,
            summary: Summary::read(path)?,
            checkpoints: run_dir::checkpoint_steps(&path.join("checkpoints")),
            record,
            samples: newest_samples(path, samples),
        })
    }

    fn state(&self) -> &'static str {
        match (&self.live, &self.summary) {
            (Some(_), _) => "running",
            (None, Some(summary)) if summary.complete => "complete",
            _ => "stopped",
        }
    }

    fn steps_done(&self) -> u64 {
        self.metrics.iter().filter_map(|line| line.get("step")?.as_u64()).max().unwrap_or(0)
    }

    fn json(&self) -> Result<Value> {
        Ok(json!({
            "run": self.path.file_name().map(|n| n.to_string_lossy()),
            "path": self.path,
            "state": self.state(),
            "steps": self.steps_done(),
            "max_steps": self.config["optim"]["max_steps"],
            "last": self.metrics.last(),
            "reward": self.metrics.iter().map(|line| line.get("reward").cloned().unwrap_or(Value::Null)).collect::<Vec<_>>(),
            "summary": self.summary.as_ref().map(Summary::to_json).transpose()?,
            "checkpoints": self.checkpoints,
            "record": match &self.record {
                Ok(counters) => serde_json::to_value(counters)?,
                Err(why) => json!({ "not_read": why }),
            },
            "samples": self.samples,
        }))
    }

    fn text(&self) -> Result<String> {
        let mut out = String::new();
        let c = &self.config;
        writeln!(out, "run          {} ({})", self.path.display(), self.live.as_deref().unwrap_or(self.state()))?;
        let model: ModelSection = serde_json::from_value(c["model"].clone())?;
        writeln!(out, "model        {}", model.reference())?;
        writeln!(out, "steps        {} of {}", self.steps_done(), plain(&c["optim"]["max_steps"]))?;
        if let Some(summary) = &self.summary {
            let speed = summary.tokens_per_s.map(|s| format!(", {s:.0} tokens/s")).unwrap_or_default();
            writeln!(out, "time         {:.1} s in {} launch(es){speed}", summary.wall_s, summary.attempts)?;
        }
        let steps: Vec<String> = self.checkpoints.iter().map(u64::to_string).collect();
        writeln!(out, "checkpoints  {}", if steps.is_empty() { "none".into() } else { steps.join(", ") })?;
        writeln!(out, "record       {}", self.record_text())?;
        self.curves(&mut out)?;
        self.evaluations(&mut out)?;
        for sample in &self.samples {
            writeln!(out, "\nstep {}  {}  {}", sample.step, sample.task_id, verdict(sample))?;
            writeln!(out, "  asked  {}", shortened(sample.prompt.as_deref().unwrap_or("(not recorded)"), TEXT))?;
            writeln!(out, "  said   {}", shortened(sample.answer(), TEXT))?;
        }
        Ok(out)
    }

    fn record_text(&self) -> String {
        let record = match &self.record {
            Ok(record) => record,
            Err(why) => return why.clone(),
        };
        let mut text = format!("{} trajectories, {} groups closed", record.trajectories, record.closed_groups);
        for (what, counts) in
            [("dropped", &record.dropped_groups), ("drawn in vain", &record.rejected), ("refused", &record.refused)]
        {
            for (reason, count) in counts {
                let _ = write!(text, ", {count} {what} ({reason})"); // writing to a String does not fail
            }
        }
        text
    }

    fn curves(&self, out: &mut String) -> Result<()> {
        for name in SHOWN {
            let values: Vec<f64> = self.metrics.iter().filter_map(|line| line.get(name)?.as_f64()).collect();
            let (Some(first), Some(last)) = (values.first(), values.last()) else { continue };
            writeln!(out, "{name:<26} {:>9} -> {:<9} {}", number(*first), number(*last), sparkline(&values, CURVE))?;
        }
        Ok(())
    }

    fn evaluations(&self, out: &mut String) -> Result<()> {
        let Some(summary) = &self.summary else { return Ok(()) };
        let graded = summary.is_graded();
        let what = if graded { " reward" } else { "" };
        for evaluation in &summary.evaluations {
            write!(out, "eval {:<21}", evaluation.when)?;
            for (name, measured) in [("greedy", &evaluation.greedy), ("sampled", &evaluation.sampled)] {
                if let Some(measured) = measured {
                    write!(out, " {name}{what} {}  ", figure(measured, graded))?;
                    let of_many = measured.estimates.named().skip(1).filter(|_| measured.estimates.samples > 1);
                    for (name, e) in of_many {
                        write!(out, " {name} {:.3} [{:.3}, {:.3}]  ", e.value, e.low, e.high)?;
                    }
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// Whoever holds the lock of the run; it is only looked at.
pub(super) fn writer(run: &Path) -> Option<String> {
    let file = File::open(run.join("lock")).ok()?;
    match file.try_lock_shared() {
        Err(fs::TryLockError::WouldBlock) => Some(lock::holder(run).unwrap_or_else(|| "another process".into())),
        _ => None,
    }
}

fn config(path: &Path) -> Result<Value> {
    let name = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(name)?;
    let config: Config = serde_norway::from_str(&text).with_context(name)?;
    Ok(serde_json::to_value(config)?)
}

/// The counters of the record.
fn counters(path: &Path) -> Result<Counters, String> {
    let bytes = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?.len();
    if bytes > RECORD_LIMIT {
        return Err(format!("{}: {} are too much to read here", path.display(), bytes_text(bytes)));
    }
    with_copy(path, |record| Ok(record.load()?.counters))
}

/// Reads the record at `path` through a copy: opening a database writes to it.
pub(crate) fn with_copy<T>(path: &Path, read: impl FnOnce(&Record) -> Result<T, RecordError>) -> Result<T, String> {
    let say = |e: std::io::Error| format!("{}: {e}", path.display());
    let folder = tempfile::Builder::new().prefix("folgore-inspect-").tempdir().map_err(say)?;
    let copy = folder.path().join("record.redb");
    fs::copy(path, &copy).map_err(say)?;
    let named = |e: RecordError| format!("a copy of {}: {e}", path.display());
    Record::open(&copy).and_then(|record| read(&record)).map_err(named)
}

/// Steps of the checkpoints, ascending. Reading them through the store would remove what an interrupted save left.
fn newest_samples(run: &Path, most: usize) -> Vec<Sample> {
    let files = samples::step_files(run);
    files.iter().flat_map(|(_, name)| samples::read(run, name)).take(most).collect()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn verdict(sample: &Sample) -> String {
    match (sample.reward, &sample.unscored) {
        (Some(reward), _) => format!("reward {}", number(reward)),
        (None, why) => format!("not scored: {}", why.as_deref().unwrap_or("no reason recorded")),
    }
}

fn figure(m: &Measured, graded: bool) -> String {
    let (value, error) = m.figure(graded).unzip();
    let value = value.map_or_else(|| "-".into(), |value| format!("{value:.3}"));
    let error = error.flatten().map(|se| format!(" ±{se:.3}")).unwrap_or_default();
    format!("{value}{error} (n {})", m.scored)
}

/// Four significant digits, without trailing noise.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if value == 0.0 => "0".into(),
        s if !(1e-3..1e5).contains(&s) => format!("{value:.1e}"),
        s if s < 10.0 => format!("{value:.4}"),
        s if s < 1000.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

/// One line of a text, at most `most` characters of it.
pub(super) fn shortened(text: &str, most: usize) -> String {
    let line: String = text
        .chars()
        .flat_map(|c| if c == '\n' { vec!['⏎'] } else { vec![c] })
        .filter(|c| !c.is_control())
        .take(most)
        .collect();
    if text.chars().count() > most { format!("{line}…") } else { line }
}

/// A curve of at most `width` characters: means of equal parts, between the least and the greatest of them.
fn sparkline(values: &[f64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let n = values.len().min(width).max(1);
    let part = |i: usize| &values[i * values.len() / n..(i + 1) * values.len() / n];
    let means: Vec<f64> =
        (0..n).map(part).filter(|p| !p.is_empty()).map(|p| p.iter().sum::<f64>() / p.len() as f64).collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let bar = |x: f64| if high > low { BARS[((x - low) / (high - low) * 7.0).round() as usize] } else { BARS[0] };
    means.into_iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use folgore_learner::checkpoint::RunLock;

    use super::*;

    #[test]
    fn a_sparkline_spans_its_values() {
        assert_eq!(sparkline(&[0.0, 1.0], 8), "▁█");
        assert_eq!(sparkline(&[1.0, 1.0, 1.0], 8), "▁▁▁");
        assert_eq!(sparkline(&(0..800).map(f64::from).collect::<Vec<_>>(), 8), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[], 8), "");
    }

    #[test]
    fn numbers_are_short() {
        for (value, want) in
            [(0.0, "0"), (0.5, "0.5000"), (-12.345, "-12.35"), (1234.5, "1234"), (1e-9, "1.0e-9"), (2e6, "2.0e6")]
        {
            assert_eq!(number(value), want);
        }
    }

    #[test]
    fn samples_cannot_write_to_the_terminal() {
        assert_eq!(shortened("a\n\u{1b}[31mb", TEXT), "a⏎[31mb");
        assert!(shortened(&"x".repeat(1000), TEXT).ends_with('…'));
    }

    #[test]
    fn a_folder_is_read_without_being_changed() {
        let run = tempfile::tempdir().unwrap();
        let files = || {
            let mut names: Vec<_> = fs::read_dir(run.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let mut config = Config::default();
        config.model.model_name_or_path = "owner/name:x.gguf".into();
        config.model.model_revision = Some("v1".into());
        fs::write(run.path().join("config.yaml"), config.resolved_yaml().unwrap()).unwrap();
        fs::write(run.path().join("metrics.jsonl"), "{\"step\":1,\"reward\":0.25}\n{\"step\":2,\"reward\":0.5}\n")
            .unwrap();
        fs::create_dir_all(run.path().join("checkpoints/checkpoint-2")).unwrap();
        drop(Record::open(&run.path().join("record.redb")).unwrap());
        let (before, bytes) = (files(), fs::read(run.path().join("record.redb")).unwrap());
        let found = Found::look(run.path(), 3).unwrap();
        assert_eq!((found.state(), found.steps_done(), found.checkpoints.as_slice()), ("stopped", 2, &[2][..]));
        assert!(found.record.is_ok(), "{:?}", found.record);
        let text = found.text().unwrap();
        assert!(text.contains("reward") && text.contains("0.2500 -> 0.5000"), "{text}");
        assert!(text.contains("owner/name@v1:x.gguf\n"), "{text}");
        assert_eq!(found.json().unwrap()["reward"], json!([0.25, 0.5]));
        assert_eq!((files(), fs::read(run.path().join("record.redb")).unwrap()), (before, bytes));

        let held = RunLock::acquire(run.path()).unwrap();
        let found = Found::look(run.path(), 3).unwrap();
        assert_eq!(found.state(), "running");
        assert!(found.record.is_err_and(|why| why.contains(&std::process::id().to_string())));
        drop(held);
        assert_eq!(Found::look(run.path(), 3).unwrap().state(), "stopped");
    }
}
