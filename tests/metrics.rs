//! What a run shows of itself to other software: the same numbers everywhere, and nothing of it can hold a run up.

#[path = "metrics/tfevents.rs"]
mod tfevents;

mod support;

use std::path::Path;

use serde_json::Value;
use support::{Line, Running, folder, folgore, metrics, run};

const SETTINGS: [&str; 8] = [
    "run.name=r",
    "rollout.num_prompts=2",
    "rollout.num_generations=4",
    "checkpoint.save_steps=2",
    "eval.eval_items=4",
    "eval.sampled=2",
    "eval.eval_steps=2",
    "log.report=false",
];

fn train(at: &Path, more: &[&str]) -> std::process::Command {
    let mut command = folgore(["train"]);
    command.args(SETTINGS).arg("--output-dir").arg(at).args(more);
    command
}

fn go_on(at: &Path, more: &[&str]) -> std::process::Command {
    let mut command = folgore(["train", "--resume", "r"]);
    command.arg("--output-dir").arg(at).args(more);
    command
}

/// What the event files of the run should show: each number of each line, and each evaluation.
fn expected(run: &Path) -> tfevents::Scalars {
    let mut scalars = tfevents::Scalars::new();
    let mut put = |tag: String, step: u64, value: &Value| {
        if let Some(value) = value.as_f64() {
            scalars.entry(tag).or_default().insert(step, value as f32);
        }
    };
    for line in metrics(run) {
        let step = line["step"].as_u64().unwrap();
        line.iter().filter(|(tag, _)| *tag != "step").for_each(|(tag, value)| put(tag.clone(), step, value));
    }
    let summary: Value = serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap();
    for evaluation in summary["evaluations"].as_array().unwrap() {
        for way in ["greedy", "sampled"] {
            for name in ["accuracy", "mean_reward", "any_correct", "truncated", "mean_length"] {
                put(format!("eval/{way}/{name}"), evaluation["step"].as_u64().unwrap(), &evaluation[way][name]);
            }
        }
    }
    scalars
}

#[test]
fn tensorboard_shows_the_numbers_of_the_run_and_no_step_twice() {
    let at = folder();
    let of_run = at.path().join("r");
    let shown = || tfevents::read(&of_run.join("tb"));
    run(train(at.path(), &["optim.max_steps=4"])).well();
    assert!(!of_run.join("tb").exists(), "it is off unless asked for");
    // switched on later, killed in the middle, gone on with: three launches, two of them with event files
    let mut launch = Running::start(go_on(at.path(), &["optim.max_steps=2000", "log.tensorboard=true"]));
    assert!(launch.until(|| metrics(&of_run).len() > 6), "it ended too early");
    launch.kill();
    let steps = (metrics(&of_run).len() + 3).to_string();
    run(go_on(at.path(), &[&format!("optim.max_steps={steps}"), "log.tensorboard=true"])).well();
    let (scalars, files) = shown();
    assert_eq!(files, 2);
    let lines: Vec<Line> = metrics(&of_run);
    assert_eq!(scalars["reward"].keys().copied().collect::<Vec<_>>(), (1..=lines.len() as u64).collect::<Vec<_>>());
    assert!(scalars["eval/greedy/accuracy"].contains_key(&0), "what was measured before is shown too");
    assert_eq!(scalars, expected(&of_run));
}
