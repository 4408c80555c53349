//! Rewards that compare the completions of a question (`scope: group`): they teach, in one process and over a server; a head
//! that is killed between a group and its verdict goes on with the same numbers; a judge that fails costs groups and no truth.

mod support;

use std::{fs, path::Path, process::Command};

use folgore_actors::nats::server::{LocalServer, ServerOptions, nats_server_for_tests};
use folgore_learner::record::{Record, evidence::Fate};
use serde_json::{Value, json};
use support::{Line, Running, folder, folgore, metrics, number, recorded, root, run, timeless};

fn accuracy(run: &Path, when: &str) -> [f64; 2] {
    let summary: Value = serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    ["greedy", "sampled"].map(|name| summary["eval"][when][name].as_f64().unwrap())
}

#[track_caller]
fn proven(at: &Path, name: &str) {
    let mut command = folgore(["inspect", name, "--check", "--output-dir"]);
    command.arg(at);
    run(command).well();
}

#[test]
fn a_reward_that_compares_teaches_and_its_second_scorer_evaluates() {
    let at = folder();
    let mut command =
        folgore(["train", "arithmetic", "examples/rewards/group.yaml", "--run-name", "group", "--seed", "1"]);
    command.current_dir(root()).args(["--max-steps", "40", "eval.eval_items=100", "replay.retention_steps=100"]);
    command.arg("--output-dir").arg(at.path());
    run(command).well();
    let path = at.path().join("group");
    for line in metrics(&path) {
        let (reward, best, spread) = ("reward", "rewards/best/mean", "rewards/exact/mean");
        assert_eq!(number(&line, reward), number(&line, best), "a weight of 0 is not counted: {line:?}");
        assert!((0.0..=1.0).contains(&number(&line, spread)));
    }
    let (before, after) = (accuracy(&path, "before"), accuracy(&path, "after"));
    assert!(after[1] > before[1] + 0.2, "it learns: {before:?} to {after:?}");
    // What was judged is kept with its parts, and its text is not.
    let record = Record::open(&path.join("record.redb")).unwrap();
    let batch = record.batch(40).unwrap().unwrap();
    for group in &batch.groups {
        let rewards: Vec<f64> = group.rewards().into_iter().map(Option::unwrap).collect();
        let alike = rewards.iter().all(|reward| *reward == 0.5);
        assert!(alike || rewards.contains(&1.0) && rewards.contains(&0.0), "not judged together: {rewards:?}");
    }
    drop(record);
    proven(at.path(), "group");
}

/// Ranks by a checksum, and fails on one completion in twelve. While the file `gate` is missing, groups from `from` on wait.
const JUDGE: &str = r#"
import json, os, sys, time, zlib

gate, start = sys.argv[1], int(sys.argv[2])
for line in sys.stdin:
    asked = json.loads(line)
    assert asked["scope"] == "group" and len(asked["items"]) == 4, asked
    group = asked["items"][0]["id"]["group"]
    while group >= start and not os.path.exists(gate):
        open(gate + ".waits", "w").close()
        time.sleep(0.01)
    sums = [zlib.crc32(item["completion"].encode()) for item in asked["items"]]
    scores = [{"error": "no opinion"} if s % 12 == 0 else sorted(sums).index(s) / 4 for s in sums]
    print(json.dumps({"id": asked["id"], "scores": scores}), flush=True)
"#;

const SMALL: [&str; 6] = [
    "rollout.num_prompts=4",
    "rollout.num_generations=4",
    "optim.max_steps=6",
    "checkpoint.save_steps=1",
    "--seed=3",
    "--run-name=r",
];

/// A run of the embedded task that [`JUDGE`] judges; its gate opens the groups from `from` on.
fn judged(at: &Path, from: u64, more: &[&str]) -> Command {
    let (program, config) = (at.join("judge.py"), at.join("judge.yaml"));
    fs::write(&program, JUDGE).unwrap();
    let command = json!(["python3", program, at.join("gate"), from.to_string()]);
    fs::write(&config, json!({ "reward": [{ "name": "judge", "command": command, "scope": "group" }] }).to_string())
        .unwrap();
    let mut command = folgore(["train", "arithmetic"]);
    command
        .arg(config)
        .args(SMALL)
        .args(["eval.before=false", "eval.after=false"])
        .args(more)
        .arg("--output-dir")
        .arg(at);
    command
}

fn lines(at: &Path) -> Vec<Line> {
    metrics(&at.join("r")).into_iter().map(timeless).collect()
}

#[test]
fn a_head_killed_before_a_verdict_asks_again_and_ends_with_the_same_numbers() {
    let calm = folder();
    fs::write(calm.path().join("gate"), "").unwrap();
    run(judged(calm.path(), 0, &[])).well();
    let calm_lines = lines(calm.path());
    assert_eq!(calm_lines.len(), 6);
    assert!(calm_lines.iter().any(|line| number(line, "reward/error") > 0.0), "the judge never failed");

    let at = folder();
    let mut head = Running::start(judged(at.path(), 12, &[]));
    let path = at.path().join("r");
    assert!(head.until(|| at.path().join("gate.waits").exists()), "nobody waits for a verdict: {}", head.said());
    head.kill();
    assert!(recorded(&path).groups.values().any(|group| group.is_unjudged()));
    proven(at.path(), "r");
    fs::write(at.path().join("gate"), "").unwrap();
    let mut resume = folgore(["train", "--resume", "r", "--output-dir"]);
    resume.arg(at.path());
    run(resume).well();
    assert_eq!(lines(at.path()), calm_lines);
    proven(at.path(), "r");
    let adapter = "r/checkpoints/checkpoint-6/adapter_model.safetensors";
    assert!(
        fs::read(at.path().join(adapter)).unwrap() == fs::read(calm.path().join(adapter)).unwrap(),
        "the adapters differ"
    );
}

#[test]
fn a_judge_that_fails_leaves_groups_out_and_trains_no_zero() {
    let at = folder();
    let program = at.path().join("judge.py");
    // Every third group has no verdict; the others have no score of 0.
    let text = "import json, sys\nfor line in sys.stdin:\n    asked = json.loads(line)\n    n = len(asked['items'])\n    \
                lost = asked['items'][0]['id']['group'] % 3 == 0\n    \
                said = {'error': 'no oracle today'} if lost else {'scores': [i + 1 for i in range(n)]}\n    \
                print(json.dumps({'id': asked['id']} | said), flush=True)\n";
    fs::write(&program, text).unwrap();
    let spec = json!([{ "name": "judge", "command": ["python3", program], "scope": "group", "retries": 0 }]);
    let config = at.path().join("judge.yaml");
    fs::write(&config, json!({ "reward": spec }).to_string()).unwrap();
    let mut command = folgore(["train", "arithmetic"]);
    command.arg(&config).args(SMALL).args(["replay.retention_steps=100", "--output-dir"]);
    command.arg(at.path());
    let ended = run(command).well();
    // Nothing is there to evaluate by.
    assert!(ended.stderr.contains("note: evaluations are left out: reward judge"), "{}", ended.stderr);
    let mut eval = folgore(["eval", "arithmetic"]);
    eval.arg(&config);
    support::refused(eval, &["judge", "weight: 0"]);

    let path = at.path().join("r");
    let record = Record::open(&path.join("record.redb")).unwrap();
    let ends = record.evidence().unwrap().ends;
    for (id, end) in &ends {
        let fate = if id.0 % 3 == 0 { Fate::Dropped("no_score".into()) } else { Fate::Batch };
        assert_eq!(end.fate, fate, "group {id}");
    }
    let left_out: f64 = metrics(&path).iter().map(|line| number(line, "reward/unscored_groups")).sum();
    let dropped = record.load().unwrap().counters.dropped_groups["no_score"];
    assert!((8.0..=dropped as f64).contains(&left_out), "{left_out} groups left out, {dropped} dropped");
    for line in metrics(&path) {
        assert_eq!((number(&line, "reward"), number(&line, "reward/error")), (2.5, 0.0), "{line:?}");
    }
    drop(record);
    proven(at.path(), "r");
}

#[test]
fn workers_elsewhere_train_the_same_whoever_judges() {
    let one = folder();
    fs::write(one.path().join("gate"), "").unwrap();
    run(judged(one.path(), 0, &[])).well();
    for (judge, name) in [("false", "near"), ("true", "far")] {
        let at = folder();
        fs::write(at.path().join("gate"), "").unwrap();
        let server = nats_server_for_tests().unwrap();
        let server = LocalServer::start_with(server, ServerOptions::new(at.path())).unwrap();
        let worker = |role: &str| {
            let mut worker = folgore(["worker", "--nats", &server.url(), "--run", "r", "--name", role, "--role", role]);
            worker.env("FOLGORE_CACHE", at.path());
            Running::start(worker)
        };
        let remote = format!("rollout.remote_reward={judge}");
        let head = Running::start(judged(at.path(), 0, &["--nats", &server.url(), &remote]));
        let _rollout = worker("rollout");
        let _reward = (judge == "true").then(|| worker("reward"));
        head.end().well();
        assert_eq!(lines(at.path()), lines(one.path()), "judged {name}");
        proven(at.path(), "r");
    }
}
