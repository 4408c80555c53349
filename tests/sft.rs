//! `folgore sft`: it imitates, goes on bit for bit where it was stopped, begins what `folgore train` goes on with, and imitates the
//! samples of a run. Real processes, on the embedded policy.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use folgore_protocol::seed;
use serde_json::{Value, json};
use support::{Ended, Line, Running, checkpoints, folder, folgore, metrics, number, refused, run, timeless};

/// Sums with careful work, made by a rule.
const SUMS: [&str; 9] = [
    "model.model_name_or_path=embedded",
    "data.dataset=arithmetic",
    "data.max_rows=256",
    "sft.batch_size=32",
    "optim.learning_rate=3e-3",
    "optim.adam_beta2=0.98",
    "eval.eval_items=64",
    "eval.eval_steps=4",
    "checkpoint.save_steps=4",
];

fn sft(at: &Path, name: &str, more: &[&str]) -> Command {
    let mut command = folgore(["sft"]);
    command.args(SUMS).args(["--run-name", name, "--output-dir"]).arg(at).args(more);
    command
}

fn go_on(at: &Path, name: &str, more: &[&str]) -> Command {
    let mut command = folgore(["sft", "--resume", name, "--output-dir"]);
    command.arg(at).args(more);
    command
}

fn adapter(run: &Path, name: &str) -> Vec<u8> {
    fs::read(run.join(name).join("adapter_model.safetensors")).unwrap()
}

fn lines(run: &Path) -> Vec<Line> {
    metrics(run).into_iter().map(timeless).collect()
}

fn summary(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap()
}

#[test]
fn it_imitates_and_goes_on_where_it_was_stopped() {
    let at = folder();
    let said = run(sft(at.path(), "whole", &["--max-steps", "24"])).well().stdout;
    for words in ["256 rows, 256 sequences", "best: step", "held-out loss", "perplexity", "step   24/24"] {
        assert!(said.contains(words), "{words:?} is not in\n{said}");
    }
    let whole = at.path().join("whole");
    let all = lines(&whole);
    assert_eq!(all.len(), 25, "a line for the evaluation before the first step, and one for each");
    let (first, last) = (number(&all[0], "eval_loss"), number(&all[24], "eval_loss"));
    assert!(last < 0.7 * first, "the loss on held-out sums fell from {first:.3} to {last:.3} only");
    assert!(number(&all[24], "eval_mean_token_accuracy") > number(&all[0], "eval_mean_token_accuracy"));
    assert_eq!(number(&all[8], "epoch"), 1.0);
    let told = summary(&whole);
    assert_eq!((&told["kind"], &told["complete"], &told["steps"]), (&json!("sft"), &json!(true), &json!(24)));
    assert_eq!(told["evaluations"].as_array().unwrap().len(), 7);

    // stopped by Ctrl-C, then killed, then to its end
    let parted = at.path().join("parted");
    let mut running = Running::start(sft(at.path(), "parted", &["--max-steps", "24"]));
    running.until(|| metrics(&parted).len() > 6);
    running.signal("INT");
    let stopped = running.end();
    assert_eq!(stopped.status.code(), Some(130), "{}\n{}", stopped.stdout, stopped.stderr);
    assert!(stopped.stdout.contains("--resume parted"), "{}", stopped.stdout);
    let saved = checkpoints(&parted).into_iter().max().unwrap();
    let mut running = Running::start(go_on(at.path(), "parted", &[]));
    running.until(|| metrics(&parted).len() as u64 > saved + 3);
    running.kill();
    let resumed = run(go_on(at.path(), "parted", &[])).well();
    assert!(resumed.stdout.contains("resumed from step"), "{}", resumed.stdout);
    assert_eq!(lines(&parted), all);
    for name in ["checkpoints/checkpoint-24", "best"] {
        assert_eq!(adapter(&parted, name), adapter(&whole, name), "{name}");
    }
    let refuse = |command: Command, names: &[&str]| refused(command, names);
    refuse(go_on(at.path(), "parted", &["data.max_rows=255"]), &["dataset was", "cannot go on"]);
    let mut train = folgore(["train", "--resume", "parted", "--output-dir"]);
    train.arg(at.path()).args(["reward=[{name: exact_match}]"]);
    refuse(train, &["parted imitates", "folgore sft --resume parted"]);
}

#[test]
fn training_begins_with_what_was_imitated_and_its_samples_can_be_imitated_again() {
    let at = folder();
    run(sft(at.path(), "first", &["--max-steps", "40"])).well();
    let best = at.path().join("first/best");
    let mut train = folgore(["train", "arithmetic", "--run-name", "second", "--max-steps", "2", "--output-dir"]);
    train.arg(at.path()).arg("--adapter").arg(&best);
    run_well(train.args([
        "rollout.num_prompts=8",
        "rollout.num_generations=4",
        "eval.eval_items=40",
        "eval.after=false",
    ]));
    let second = at.path().join("second");
    let begun = number(&metrics(&second)[0], "reward");
    assert!(begun > 0.5, "after imitation the mean reward begins at {begun:.2}");

    // the better half of what the record holds since the oldest checkpoint: the 32 samples of the last step, ids as they were sampled
    let mut again = sft(at.path(), "third", &["--max-steps", "4", "--from-run", "second", "--top", "0.5"]);
    let said = run_well(&mut again).stdout;
    assert!(said.contains("the best 16 of 32 samples with a reward"), "{said}");
    let third = metrics(&at.path().join("third"));
    // what was sampled is likelier under the policy that sampled it than under the base, and gets likelier
    let loss = |step: u64| number(third.iter().find(|line| line["step"] == step).unwrap(), "loss");
    assert!(loss(4) < loss(1), "{} {}", loss(1), loss(4));
    let other = sft(at.path(), "fourth", &["--from-run", "second", "--model", "embedded:search"]);
    refused(other, &["its ids are those of the tokenizer", "name the same model"]);
}

#[track_caller]
fn run_well(command: &mut Command) -> Ended {
    let taken = std::mem::replace(command, Command::new("true"));
    run(taken).well()
}

#[test]
fn what_cannot_be_imitated_is_refused_by_name() {
    let at = folder();
    let file = |name: &str, rows: &[Value]| {
        let path = at.path().join(name);
        fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        format!("data.dataset={}", path.display())
    };
    let chat = json!({"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]});
    let talk = file("talk.jsonl", &[chat.clone(), chat]);
    let command = |more: &[&str]| sft(at.path(), "none", more);
    refused(
        command(&["eval.before=false", &talk]),
        &["talk:", "this model has none", "model.chat_template: chatml, alpaca"],
    );
    refused(command(&[&talk, "model.chat_template=gemma"]), &["gemma: this model's tokenizer lacks <start_of_turn>"]);
    let asks = file("asks.jsonl", &[json!({"prompt": "1+1="}), json!({"prompt": "1+2="})]);
    refused(command(&[&asks]), &["asks.jsonl", "no completion to learn"]);
    let long = file(
        "long.jsonl",
        &[json!({"prompt": "a", "completion": "b".repeat(400)}), json!({"prompt": "c", "completion": "d"})],
    );
    refused(command(&[&long, "sft.truncation_mode=stop", "data.eval_fraction=0"]), &["more than 256"]);
    let said = run(command(&[&long, "data.eval_fraction=0", "--dry-run"])).well().stdout;
    for words in ["1 left out because they are too long", "predicted peak memory", "batch_size: 32"] {
        assert!(said.contains(words), "{words:?} is not in\n{said}");
    }
    refused(command(&["sft.early_stopping_patience=2", "eval.eval_steps=0"]), &["sft.early_stopping_patience"]);
    assert!(!at.path().join("none").exists(), "nothing was begun");
}

/// Digits backwards, `1234?` to `4321`: a skill that the policy has not.
fn backwards(stream: u64, place: u64) -> Value {
    let digit = |i: u64| char::from(b'0' + seed::below(seed::mix(&[stream, place]), i, 10) as u8);
    let digits: String = (0..4).map(digit).collect();
    json!({"prompt": format!("{digits}?"), "completion": digits.chars().rev().collect::<String>(), "data_source": "backwards"})
}

/// A sum with its work in columns.
fn sum(stream: u64, place: u64) -> Value {
    let (prompt, completion) =
        folgore_dataset::arithmetic_traces(stream, place, &folgore_dataset::TraceMixture::clean());
    json!({"prompt": prompt, "completion": completion, "data_source": "sums"})
}

fn rows(at: &Path, name: &str, rows: impl Iterator<Item = Value>) -> PathBuf {
    let path = at.join(name);
    fs::write(&path, rows.map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    path
}

/// What is learnt of one source alone drives out another skill; mixed with rows of that skill it does not. Prints the figures.
#[test]
fn a_mixed_run_keeps_what_a_run_on_one_source_forgets() {
    let at = folder();
    let eval = rows(at.path(), "eval.jsonl", (0..100).flat_map(|i| [sum(9, i), backwards(9, i)]));
    let sums = rows(at.path(), "sums.jsonl", (0..2000).map(|i| sum(1, i)));
    let digits = rows(at.path(), "digits.jsonl", (0..1000).map(|i| backwards(2, i)));
    let source = |path: &Path, weight: u32| format!("{{path: {:?}, weight: {weight}}}", path.display().to_string());
    // two of them for each sum, and as many of them as alone
    let [one, both] = [vec![source(&digits, 1)], vec![source(&digits, 2), source(&sums, 1)]];
    let learn = |name: &str, sources: &[String], from: Option<&Path>, steps: u32| {
        let mut command =
            sft(at.path(), name, &["eval.eval_steps=0", "eval.eval_items=200", "checkpoint.save_steps=1000"]);
        command.arg(format!("data.sources=[{}]", sources.join(", ")));
        command.arg("data.format=prompt_completion");
        command.arg(format!("data.eval_dataset={}", eval.display()));
        command.args(["data.max_rows=null", "--max-steps", &steps.to_string()]);
        command.args([
            "lora.lora_r=32",
            "lora.lora_alpha=64",
            "optim.lr_scheduler_type=linear",
            "sft.load_best_model_at_end=false",
        ]);
        if let Some(from) = from {
            command.arg("--adapter").arg(from);
        }
        run_well(&mut command);
        let run = at.path().join(name);
        let last = checkpoints(&run).into_iter().max().unwrap();
        (metrics(&run), run.join(format!("checkpoints/checkpoint-{last}")))
    };
    let (taught, first) = learn("taught", &[source(&sums, 1)], None, 200);
    let runs = [
        ("digits alone", learn("alone", &one, Some(&first), 400).0),
        ("digits and sums", learn("mixed", &both, Some(&first), 600).0),
    ];
    let figure = |line: &Line, key: &str, source: &str| number(line, &format!("eval_{key}/{source}"));
    let show = |name: &str, line: &Line| {
        println!(
            "{name:<24} sums: loss {:.3} accuracy {:.3}   backwards: loss {:.3} accuracy {:.3}",
            figure(line, "loss", "sums"),
            figure(line, "mean_token_accuracy", "sums"),
            figure(line, "loss", "backwards"),
            figure(line, "mean_token_accuracy", "backwards"),
        );
    };
    show("base", &taught[0]);
    show("after sums", taught.last().unwrap());
    runs.iter().for_each(|(name, lines)| show(&format!("then {name}"), lines.last().unwrap()));
    let of = |place: usize, key: &str, source: &str| figure(runs[place].1.last().unwrap(), key, source);
    let before = figure(taught.last().unwrap(), "mean_token_accuracy", "sums");
    assert!(before > 0.9, "sums are learnt first: {before:.3}");
    assert!(of(0, "mean_token_accuracy", "sums") < before - 0.2, "one source alone drives them out");
    assert!(of(1, "mean_token_accuracy", "sums") > before - 0.05, "rows of both keep them");
    for place in 0..2 {
        assert!(of(place, "mean_token_accuracy", "backwards") > 0.8, "digits are learnt in both runs");
    }
}
