//! `summary.json`: what a run came to, in one object.
//!
//! `eval.<when>.<greedy|sampled>` are accuracies: the share of the scored answers whose reward reaches 1. Everything else
//! about an evaluation (mean reward, counts, standard errors) is in `evaluations`, in the order in which they were made.
//! The file is rewritten after each evaluation and at the end, so that a resumed run finds what it measured before.

pub mod hardware;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use folgore_learner::evaluation::{self, Evaluated};
use folgore_model::files::atomic::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use folgore_learner::evaluation::Measured;
pub use hardware::Hardware;

use crate::sop::Introduced;

/// Name of the file in a run's folder.
pub const FILE: &str = "summary.json";

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Name of the run.
    pub run: String,
    /// True once all steps and evaluations are done.
    pub complete: bool,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Seconds that the run took, all its launches together.
    pub wall_s: f64,
    /// Tokens of prompts and completions per second of the steps, generating and learning together.
    pub tokens_per_s: Option<f64>,
    /// Tokens of prompts and completions that were trained on.
    pub num_tokens: u64,
    /// Launches of the process.
    pub attempts: u32,
    /// Largest difference between the log-probs of sampler and learner, of all steps.
    pub mismatch_logp_abs_max: Option<f64>,
    /// The learning rate; 0 makes the run a control, in which nothing may be gained.
    pub learning_rate: f64,
    /// The seed.
    pub seed: u64,
    /// The base, as the user named it.
    pub model: String,
    /// First digits of the digest of the base.
    pub model_digest: String,
    /// First digits of the digest of the resolved configuration.
    pub config_digest: String,
    /// Version of this program.
    pub version: String,
    /// The machine.
    pub hardware: Hardware,
    /// What procedures did to the questions, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub procedures: Option<Introduced>,
    /// The evaluations, in order.
    pub evaluations: Vec<Evaluation>,
}

/// One evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// `before`, `step-<n>` or `after`.
    pub when: String,
    /// The step whose policy it is.
    pub step: u64,
    /// Greedy answers.
    pub greedy: Option<Measured>,
    /// Sampled answers.
    pub sampled: Option<Measured>,
}

impl From<&Evaluated> for Evaluation {
    fn from(evaluated: &Evaluated) -> Self {
        let [(_, greedy), (_, sampled)] = evaluated.measured();
        Self { when: evaluated.when.clone(), step: evaluated.step, greedy, sampled }
    }
}

impl Summary {
    /// Takes an evaluation in; one of the same name is replaced.
    pub fn note(&mut self, evaluated: &Evaluated) {
        self.evaluations.retain(|e| e.when != evaluated.when);
        self.evaluations.push(evaluated.into());
    }

    /// Goes on from what an earlier launch left in `folder`, up to the step that is resumed from.
    pub fn take_over(&mut self, folder: &Path, step: u64) -> Result<()> {
        self.attempts = 1;
        let Some(earlier) = Self::read(folder)? else { return Ok(()) };
        self.wall_s = earlier.wall_s;
        self.attempts = earlier.attempts + 1;
        self.evaluations = earlier.evaluations.into_iter().filter(|e| e.step <= step && e.when != "after").collect();
        Ok(())
    }

    /// Takes steps, tokens and speed from `metrics`, the lines of `metrics.jsonl`, and adds the seconds of this launch.
    pub fn measure(&mut self, metrics: &[Map<String, Value>], wall: Duration) {
        let number = |line: &Map<String, Value>, key: &str| line.get(key).and_then(Value::as_f64);
        self.wall_s += wall.as_secs_f64();
        self.steps = metrics.iter().filter_map(|line| line.get("step")?.as_u64()).max().unwrap_or(0);
        self.num_tokens = metrics.iter().filter_map(|line| number(line, "num_tokens")).fold(0.0, f64::max) as u64;
        let seconds: f64 = metrics.iter().filter_map(|line| number(line, "step_time")).sum();
        self.tokens_per_s = (seconds > 0.0).then(|| self.num_tokens as f64 / seconds);
        let worst = metrics.iter().filter_map(|line| number(line, "mismatch/logp_abs_max")).reduce(f64::max);
        self.mismatch_logp_abs_max = worst;
    }

    /// True if rewards are not just 0 and 1, so that a share of right answers does not tell how good they are.
    pub fn is_graded(&self) -> bool {
        let measured = self.evaluations.iter().flat_map(|e| [&e.greedy, &e.sampled]).flatten();
        measured.into_iter().any(|m| m.mean_reward != m.accuracy)
    }

    /// True if more held-out questions were answered rightly after training than before, by more than its error.
    pub fn has_gained(&self) -> bool {
        let (Some(before), Some(after)) = (self.evaluation("before"), self.evaluation("after")) else { return false };
        let pairs = [(&before.greedy, &after.greedy), (&before.sampled, &after.sampled)];
        pairs.into_iter().any(|(before, after)| {
            let of = |measured: &Option<Measured>| measured.as_ref().and_then(|m| Some((m.accuracy?, m.accuracy_se?)));
            of(before).zip(of(after)).is_some_and(|(before, after)| after.0 - before.0 > 3.0 * before.1.hypot(after.1))
        })
    }

    /// The evaluation called `when`.
    pub fn evaluation(&self, when: &str) -> Option<&Evaluation> {
        self.evaluations.iter().find(|e| e.when == when)
    }

    /// The object that is written.
    pub fn to_json(&self) -> Result<Value> {
        let accuracy = |measured: &Option<Measured>| measured.as_ref().and_then(|m| m.accuracy);
        let short = |e: &Evaluation| json!({ "greedy": accuracy(&e.greedy), "sampled": accuracy(&e.sampled) });
        let eval: Map<String, Value> = self.evaluations.iter().map(|e| (e.when.clone(), short(e))).collect();
        let mut object = Map::new();
        object.insert("eval".into(), eval.into());
        if let Value::Object(rest) = serde_json::to_value(self)? {
            object.extend(rest);
        }
        Ok(Value::Object(object))
    }

    /// Writes the file into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(&self.to_json()?)?;
        bytes.push(b'\n');
        Ok(write_atomic(&folder.join(FILE), &bytes)?)
    }

    /// Reads the file in `folder`; none if there is none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            bytes => {
                let bytes = bytes.with_context(|| path.display().to_string())?;
                serde_json::from_slice(&bytes).with_context(|| path.display().to_string()).map(Some)
            }
        }
    }
}

/// The lines of steps in the file `metrics.jsonl` at `path`; those of evaluations are left out, which the summary has too.
pub fn read_metrics(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let mut lines = read_lines(path)?;
    lines.retain(|line| !evaluation::is_evaluation(line));
    Ok(lines)
}

/// All lines of the file `metrics.jsonl` at `path`; what is no whole object (the line being written) is left out. A file
/// that is not there has none.
pub fn read_lines(path: &Path) -> Result<Vec<Map<String, Value>>> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        text => {
            let text = text.with_context(|| path.display().to_string())?;
            Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use folgore_protocol::{Digest, EvalItem, EvalSummary, GroupId, Outcome, PolicyId, SeatKey, StopReason};

    use super::*;

    fn summary(label: &str, totals: &[&[Option<f64>]]) -> EvalSummary {
        let item = |group: usize, sample: usize, total: Option<f64>| EvalItem {
            seat: SeatKey { group: GroupId(group as u64), sample: sample as u32, draw: 0 },
            task_id: format!("t{group}"),
            outcome: total.map_or(Outcome::Error { reason: "late".into() }, |t| Outcome::scored("exact", t)),
            completion_ids: vec![1; 3],
            stop_reason: if sample == 0 { StopReason::Eos } else { StopReason::Length },
        };
        let items: Vec<EvalItem> = totals
            .iter()
            .enumerate()
            .flat_map(|(g, members)| members.iter().enumerate().map(move |(s, total)| item(g, s, *total)))
            .collect();
        let policy = PolicyId { epoch: 0, step: 0, digest: Digest::of(b"") };
        EvalSummary { label: label.into(), policy, expected: items.len() as u32, items }
    }

    fn evaluated(when: &str, step: u64, totals: &[&[Option<f64>]]) -> Evaluated {
        Evaluated { when: when.into(), step, k: vec![1], greedy: Some(summary(when, totals)), sampled: None }
    }

    #[test]
    fn the_file_has_the_promised_keys_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Summary::read(folder.path()).unwrap(), None);
        let mut summary = Summary { run: "r".into(), learning_rate: 3e-3, ..Summary::default() };
        summary.note(&evaluated("before", 0, &[&[Some(0.0)], &[Some(1.0)]]));
        summary.note(&evaluated("after", 2, &[&[Some(1.0)], &[Some(1.0)]]));
        let line = |step: u64| {
            json!({"step": step, "num_tokens": 100 * step, "step_time": 0.5, "mismatch/logp_abs_max": 0.0})
                .as_object()
                .unwrap()
                .clone()
        };
        summary.measure(&[line(1), line(2)], Duration::from_secs(3));
        summary.write(folder.path()).unwrap();
        let value: Value = serde_json::from_slice(&fs::read(folder.path().join(FILE)).unwrap()).unwrap();
        assert_eq!(
            value["eval"],
            json!({"before": {"greedy": 0.5, "sampled": null}, "after": {"greedy": 1.0, "sampled": null}})
        );
        assert_eq!(
            (&value["steps"], &value["wall_s"], &value["tokens_per_s"]),
            (&json!(2), &json!(3.0), &json!(200.0))
        );
        assert_eq!(Summary::read(folder.path()).unwrap().unwrap(), summary);
    }

    #[test]
    fn a_resumed_run_keeps_what_was_measured_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Summary { attempts: 1, ..Summary::default() };
        for (when, step) in [("before", 0), ("step-10", 10), ("step-20", 20), ("after", 20)] {
            first.note(&evaluated(when, step, &[&[Some(0.0)]]));
        }
        first.measure(&[], Duration::from_secs(5));
        first.write(folder.path()).unwrap();
        let mut second = Summary::default();
        second.take_over(folder.path(), 10).unwrap();
        assert_eq!(second.evaluations.iter().map(|e| e.when.as_str()).collect::<Vec<_>>(), ["before", "step-10"]);
        second.note(&evaluated("step-10", 10, &[&[Some(1.0)]]));
        assert_eq!(second.evaluations.len(), 2);
        assert_eq!((second.wall_s, second.attempts), (5.0, 2));
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(format!("{:#}", second.take_over(folder.path(), 1).unwrap_err()).contains(FILE));
    }

    #[test]
    fn a_torn_last_line_of_the_metrics_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert!(read_metrics(&path).unwrap().is_empty());
        fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"st").unwrap();
        assert_eq!(read_metrics(&path).unwrap().len(), 2);
    }
}
