//! `report.html`: one file that shows what a run did, with nothing loaded from elsewhere, made from the run's folder alone.

mod chart;
mod curves;
mod demonstration;
mod html;
mod samples;
mod sections;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use folgore_config::Config;
use folgore_model::files::atomic::write_atomic;
use serde_json::{Map, Value};

pub use demonstration::Demonstration;

use crate::{
    samples::{Sample, read, step_files},
    summary::{Summary, read_metrics},
};

/// Name of the file in a run's folder.
pub const FILE: &str = "report.html";

/// Everything that is shown.
#[derive(Clone, Debug, Default)]
pub struct ReportData {
    /// Name of the run.
    pub run: String,
    /// The resolved configuration.
    pub config: Config,
    /// Its text.
    pub config_yaml: String,
    /// What was typed.
    pub command: Option<String>,
    /// The lines of `metrics.jsonl`.
    pub metrics: Vec<Map<String, Value>>,
    /// What the run came to; default where it has not come to anything yet.
    pub summary: Summary,
    /// Answers before training: those of the evaluation, or of the first step.
    pub before: Vec<Sample>,
    /// Answers after it, likewise.
    pub after: Vec<Sample>,
}

/// Gathers what the folder of a run holds.
pub fn from_run_dir(run: &Path) -> Result<ReportData> {
    let path = run.join("config.yaml");
    let config_yaml = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let config = serde_norway::from_str(&config_yaml).with_context(|| path.display().to_string())?;
    let steps = step_files(run);
    let samples = |evaluation: &str, step: Option<&(u64, String)>| {
        let answers = read(run, &format!("eval-{evaluation}.jsonl"));
        match step {
            Some((_, name)) if answers.is_empty() => read(run, name),
            _ => answers,
        }
    };
    let full = run.canonicalize().unwrap_or_else(|_| run.to_owned());
    Ok(ReportData {
        run: full.file_name().map_or_else(|| run.display().to_string(), |name| name.to_string_lossy().into_owned()),
        config,
        config_yaml,
        command: fs::read_to_string(run.join("command.txt")).ok().map(|text| text.trim().to_owned()),
        metrics: read_metrics(&run.join("metrics.jsonl"))?,
        summary: Summary::read(run)?.unwrap_or_default(),
        before: samples("before", steps.last()),
        after: samples("after", steps.first()),
    })
}

/// Writes the report to `path`.
pub fn write(path: &Path, data: &ReportData) -> Result<()> {
    Ok(write_atomic(path, page(data).as_bytes())?)
}

/// The whole page.
fn page(data: &ReportData) -> String {
    let title = html::escape(&format!("{} · Folgore", data.run));
    let body = [
        sections::header(data),
        sections::headline(data),
        sections::reading(data),
        curves::section(data),
        sections::evaluations(data),
        samples::section(data),
        sections::machine(data),
        sections::configuration(data),
        sections::numbers(data),
        sections::footer(data),
    ]
    .concat();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        include_str!("report/style.css"),
    )
}

impl ReportData {
    /// True if nothing could be learnt.
    fn is_control(&self) -> bool {
        self.config.optim.learning_rate == 0.0
    }

    /// The values of a metric by step, where it was measured.
    fn series(&self, name: &str) -> Vec<(f64, f64)> {
        let point = |line: &Map<String, Value>| Some((line.get("step")?.as_f64()?, line.get(name)?.as_f64()?));
        self.metrics.iter().filter_map(point).filter(|(_, y)| y.is_finite()).collect()
    }
}

#[cfg(test)]
#[path = "report/tests.rs"]
mod tests;
