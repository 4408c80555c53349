//! The demonstration learns; without a learning rate the same run does not. Shortened, from a fixed seed.

mod support;

use std::path::Path;

use support::{Line, folder, folgore, metrics, number, run};

const STEPS: usize = 25;
/// Steps at either end whose mean counts: 320 completions each.
const EDGE: usize = 5;
/// The mean reward rises by at least this; when the test was written it rose by 0.57, and by 0.41 with the least lucky of three
/// seeds.
const RISES: f64 = 0.3;
/// Without learning it stays within this: over three standard errors of the difference between two means of 320 answers.
const STAYS: f64 = 0.15;

/// `folgore train` as a newcomer types it, but shorter and without evaluations.
fn train(at: &Path, more: &[&str]) -> Vec<Line> {
    let mut command =
        folgore(["train", "--run-name", "demo", "--seed", "1", "--max-steps", &STEPS.to_string(), "--output-dir"]);
    command.arg(at).args(["eval.before=false", "eval.after=false"]).args(more);
    run(command).well();
    let lines = metrics(&at.join("demo"));
    assert_eq!(lines.len(), STEPS);
    lines
}

fn rise(lines: &[Line]) -> f64 {
    let mean = |lines: &[Line]| lines.iter().map(|l| number(l, "reward")).sum::<f64>() / lines.len() as f64;
    mean(&lines[STEPS - EDGE..]) - mean(&lines[..EDGE])
}

#[test]
fn the_demonstration_learns_and_its_samplers_agree_with_its_learner_to_the_bit() {
    let at = folder();
    let lines = train(at.path(), &[]);
    let risen = rise(&lines);
    assert!(risen >= RISES, "the reward rose by {risen:.3}, expected {RISES} at least");
    for line in &lines {
        assert_eq!(number(line, "mismatch/logp_abs_max"), 0.0, "step {}", line["step"]);
        assert_eq!(number(line, "ratio/max"), 1.0, "step {}", line["step"]);
        assert!(number(line, "grad_norm").is_finite() && number(line, "loss").is_finite(), "{line:?}");
    }
    let lengths: f64 = lines.iter().map(|l| number(l, "completions/mean_length")).sum();
    assert!(lengths > 0.0, "nothing was sampled");
}

#[test]
fn without_a_learning_rate_it_does_not() {
    let at = folder();
    let lines = train(at.path(), &["optim.learning_rate=0"]);
    let risen = rise(&lines);
    assert!(risen.abs() <= STAYS, "the reward moved by {risen:+.3} without learning");
    assert!(lines.iter().all(|l| number(l, "mismatch/logp_abs_max") == 0.0));
    assert!(lines.iter().any(|l| number(l, "grad_norm") > 0.0), "there was something to learn");
}
