//! Whether an export is the policy: its shape, text in and out, every tensor, log-probs and greedy tokens, and whether its files
//! are still those that were written.

mod behaviour;
mod tensors;
mod text;

use std::path::Path;

use anyhow::Result;
use folgore_model::{
    export::{as_gguf, differences},
    files::ModelFiles,
};

use super::{
    Report, Source, Verified,
    reopen::{Reopened, reopen},
    report::{Bounds, Worst},
};

/// What both continue.
const PROMPTS: [&str; 8] = [
    "What is 48 + 7?",
    "Write one sentence about the sea.",
    "def add(a, b):",
    "The capital of France is",
    "1, 2, 3, 5, 8,",
    "Translate into Italian: good morning",
    "Once upon a time",
    "List three colours.",
];

/// Compares the export of `source` that lies in `folder` with the policy. An export that cannot be read is an error.
pub fn verify(source: &Source, report: &Report, folder: &Path) -> Result<Verified> {
    let bounds = report.kind.coding().bounds();
    let mut found = Verified { logprob_bound_max: bounds.max, logprob_bound_mean: bounds.mean, ..Verified::default() };
    let reopened = reopen(report, folder, source)?;
    let base = source.files()?;
    found.faults = text::compare(source, report, folder, &base, &reopened)?;
    let shape = compare_shape(report, &base, &reopened);
    let lost = tensors::compare(&mut found, source, report.kind, &base, &reopened)?;
    // what another shape says tells nothing more, and it may have no room for the prompts
    if shape.is_empty() {
        behaviour::compare(&mut found, source, base, reopened)?;
    }
    found.faults.extend(shape.into_iter().chain(lost));
    found.judge(bounds);
    found.faults.extend(report.files.iter().filter_map(|file| file.fault(folder)));
    found.passed = found.faults.is_empty();
    Ok(found)
}

/// The whole shape, in the words that the kind of file has for it.
fn compare_shape(report: &Report, base: &ModelFiles, reopened: &Reopened) -> Vec<String> {
    if !reopened.own_model {
        return Vec::new();
    }
    let expected = if report.kind.is_gguf() { as_gguf(&base.config, &base.tokenizer) } else { base.config.clone() };
    let faults = differences(&expected, &reopened.model.config);
    faults.into_iter().map(|fault| format!("shape: {fault}")).collect()
}

impl Verified {
    fn judge(&mut self, bounds: Bounds) {
        let mut expect = |what: &str, got: f64, bound: f64| {
            // not a number is beyond every bound
            if got.is_nan() || got > bound {
                self.faults.push(format!("{what}: expected at most {bound:.1e}, got {got:.2e}"));
            }
        };
        for (what, Worst { error, bound, name }) in [("tensor", &self.tensors), ("row", &self.rows)] {
            expect(&format!("error of {what} {name}"), *error, *bound);
        }
        expect("largest difference of a log-prob", self.logprob_gap_max, bounds.max);
        expect("mean difference of the log-probs", self.logprob_gap_mean, bounds.mean);
    }
}
