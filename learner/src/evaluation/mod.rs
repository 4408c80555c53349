//! What an evaluation came to: numbers of each way of answering, and their line in `metrics.jsonl`.
//!
//! The line of an evaluation has `step`, `eval` (`before`, `step-<n>`, `after`), and under `eval/greedy/` and `eval/sampled/`:
//! `accuracy`, `mean_reward`, `truncated`, `mean_length`, and for each of `avg@n`, `pass@k` and `maj@k` ([`estimate`]) its value and, below it, `ci95_low`, `ci95_high` and
//! `questions`. Nothing in it depends on the clock.

pub mod estimate;
mod measured;

use folgore_protocol::EvalSummary;
use serde_json::{Map, Value, json};

pub use estimate::{Estimate, Estimates};
pub use measured::Measured;

/// Total reward from which an answer counts as right.
pub const CORRECT: f64 = 1.0;

/// Name of the evaluation, in its line of `metrics.jsonl`; no line of a step has it.
pub const NAME: &str = "eval";

/// Result of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    /// `before`, `step-<n>` or `after`.
    pub when: String,
    /// The step whose policy it is.
    pub step: u64,
    /// The k of pass@k and maj@k for what was sampled.
    pub k: Vec<u32>,
    /// Greedy answers.
    pub greedy: Option<EvalSummary>,
    /// Sampled answers.
    pub sampled: Option<EvalSummary>,
}

impl Evaluated {
    /// Both ways of answering, measured: `greedy`, which has one answer to each question, and `sampled`.
    pub fn measured(&self) -> [(&'static str, Option<Measured>); 2] {
        let of = |summary: &Option<EvalSummary>, ks: &[u32]| summary.as_ref().map(|s| Measured::of(s, ks));
        [("greedy", of(&self.greedy, &[])), ("sampled", of(&self.sampled, &self.k))]
    }

    /// Its line in `metrics.jsonl`.
    pub fn line(&self) -> Map<String, Value> {
        let mut line = Map::new();
        line.insert("step".into(), json!(self.step));
        line.insert(NAME.into(), json!(self.when));
        for (way, measured) in self.measured() {
            let numbers = measured.iter().flat_map(Measured::numbers);
            line.extend(numbers.map(|(name, value)| (format!("eval/{way}/{name}"), json!(value))));
        }
        line
    }
}

/// True if `line` of `metrics.jsonl` is that of an evaluation and not of a step.
pub fn is_evaluation(line: &Map<String, Value>) -> bool {
    line.contains_key(NAME)
}
