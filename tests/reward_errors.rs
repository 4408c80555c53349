//! A run whose reward fails on a tenth of its items: nothing is scored 0 for it, seats are drawn again, and what the metrics,
//! the counters and the record say of it is the same. And `folgore reward test`, which shows the failures beforehand.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use folgore_learner::record::{
    Record,
    evidence::{DrawEnd, Fate, GroupEnd},
};
use serde_json::{Value, json};
use support::{folder, folgore, metrics, number, run};

const STEPS: u64 = 8;

/// Fails on every item whose digest says so, and else gives 0.25 or 1: a 0 in the record would be somebody's invention. It
/// keeps a log of what it gave.
const REWARD: &str = r#"
import hashlib, json, re, sys

log = open(sys.argv[1], "a")
for line in sys.stdin:
    asked = json.loads(line)
    scores = []
    for item in asked["items"]:
        said = item["completion"]
        digest = hashlib.sha256((json.dumps(item["prompt"]) + said).encode()).digest()
        if digest[0] % 10 == 0:
            score = {"error": "one in ten"}
        else:
            answer = re.fullmatch(r"<think>[^<]*</think><answer>(\d+)</answer>", said)
            right = answer is not None and answer.group(1) == str(item["columns"]["answer"])
            score = 1.0 if right else 0.25
        seat = item["id"]
        log.write(json.dumps([seat["group"], seat["sample"], seat["draw"], score]) + "\n")
        log.flush()
        scores.append(score)
    print(json.dumps({"id": asked["id"], "scores": scores}), flush=True)
"#;

/// The reward's program and its log, in `at`; gives the configuration that names them.
fn reward(at: &Path) -> (PathBuf, PathBuf) {
    let (program, log, config) = (at.join("reward.py"), at.join("given.jsonl"), at.join("reward.yaml"));
    fs::write(&program, REWARD).unwrap();
    let spec = json!([{ "name": "tenth", "command": ["python3", program, log], "retries": 0 }]);
    fs::write(&config, json!({ "reward": spec }).to_string()).unwrap();
    (config, log)
}

/// What the reward gave, by group, sample and draw; none where it failed.
fn given(log: &Path) -> BTreeMap<(u64, u32, u32), Option<f64>> {
    let read = |line: &str| {
        let (group, sample, draw, score): (u64, u32, u32, Value) = serde_json::from_str(line).unwrap();
        ((group, sample, draw), score.as_f64())
    };
    fs::read_to_string(log).unwrap().lines().map(read).collect()
}

#[test]
fn a_reward_that_fails_on_a_tenth_costs_draws_and_no_truth() {
    let at = folder();
    let (config, log) = reward(at.path());
    let mut command = folgore(["train", "arithmetic"]);
    command.arg(&config).args([
        "--run-name",
        "errors",
        "--seed",
        "1",
        "--max-steps",
        &STEPS.to_string(),
        "--output-dir",
    ]);
    command.arg(at.path()).args(["eval.before=false", "eval.after=false", "replay.retention_steps=1000"]);
    let ended = run(command).well();
    let path = at.path().join("errors");
    let given = given(&log);

    // Each reward in a batch is one that the reward gave, to that very draw; those before it had failed.
    let record = Record::open(&path.join("record.redb")).unwrap();
    let (mut trained, mut drawn_again) = (0, 0);
    for step in 1..=STEPS {
        let batch = record.batch(step).unwrap().expect("kept");
        for member in batch.groups.iter().flat_map(|group| &group.members) {
            let (seat, total) = (member.seat, member.outcome.total().expect("only scores are trained on"));
            assert_eq!(given[&(seat.group.0, seat.sample, seat.draw)], Some(total), "seat {seat}");
            assert!(total != 0.0, "seat {seat}: a zero that nobody gave");
            for earlier in 0..seat.draw {
                assert_eq!(
                    given[&(seat.group.0, seat.sample, earlier)],
                    None,
                    "seat {seat} was drawn again without need"
                );
            }
            trained += 1;
            drawn_again += u32::from(seat.draw > 0);
        }
        assert_eq!(batch.groups.len(), 8, "step {step} is not whole");
    }
    assert_eq!(trained, STEPS * 64);
    assert!(drawn_again > 0, "no seat was drawn again");

    // The record, the metrics of each step and the counters of the run say the same.
    let (evidence, counters) = (record.evidence().unwrap(), record.load().unwrap().counters);
    let given_up: usize = evidence.ends.values().flat_map(|end| &end.seats).map(|seat| seat.rejected.len()).sum();
    assert!(counters.draws().errors >= given_up as u64, "{counters:?}");
    let failed = |step: u64| {
        let ends = evidence.ends.values().filter(|end| end.step == step && end.fate == Fate::Batch);
        let rejected = ends.flat_map(|end| &end.seats).flat_map(|seat| &seat.rejected);
        rejected.filter(|end| **end == DrawEnd::RewardError).count() as f64
    };
    let (mut errors, mut judged) = (0.0, 0.0);
    for line in metrics(&path) {
        let (step, own) = (number(&line, "step") as u64, number(&line, "reward/error"));
        assert_eq!(own, failed(step), "step {step}");
        assert_eq!((number(&line, "reward/unscorable"), number(&line, "rollout/refilled")), (0.0, own), "step {step}");
        assert_eq!(number(&line, "reward/error_share"), own / (own + 64.0), "step {step}");
        let dropped = |end: &&GroupEnd| end.step == step && end.fate == Fate::Dropped("no_score".into());
        let dropped = evidence.ends.values().filter(dropped).count();
        assert_eq!(number(&line, "reward/unscored_groups"), dropped as f64, "step {step}");
        errors += own;
        judged += own + 64.0;
    }
    let share = errors / judged;
    assert!((0.03..0.25).contains(&share), "the reward failed on {share:.3} of the draws, not on a tenth");
    for end in evidence.ends.values() {
        let failed = end.seats.iter().any(|seat| seat.rejected.len() as u32 == seat.draws);
        assert_eq!(failed, end.fate == Fate::Dropped("no_score".into()), "a group without a score is left out whole");
    }
    drop(record);
    let checked = run(folgore(["inspect", path.to_str().unwrap(), "--check"])).well();
    assert!(checked.stdout.contains("reward_error"), "{}", checked.stdout);
    let shown: Value =
        serde_json::from_str(&run(folgore(["inspect", path.to_str().unwrap(), "--json"])).well().stdout).unwrap();
    assert!(shown["record"]["rejected"]["reward_error"].as_f64().unwrap() >= errors, "{}", shown["record"]);

    // The user is told: once as an alarm with the way out, in each step's line, and at the end.
    assert_eq!(ended.stdout.matches("ALARM: the reward failed on").count(), 1, "{}", ended.stdout);
    assert!(
        ended.stdout.contains("folgore reward test") && ended.stdout.contains("  reward errors "),
        "{}",
        ended.stdout
    );
    let told = format!("the reward failed on {errors} draws");
    assert!(ended.stdout.contains(&told), "{told:?} is not in {}", ended.stdout);
    let logs = fs::read_to_string(path.join("logs/attempt-1/folgore.log")).unwrap();
    assert!(logs.contains("reward_errors"), "the alarm is not in the log");

    // What was trained on is scored again, and comes out as it was recorded.
    let again = run(folgore(["reward", "test", "--json", "--limit", "128", "--run", path.to_str().unwrap()])).well();
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((&again["completions"], &again["recorded"]["differ"]), (&json!(128), &json!(0)), "{again}");
    assert_eq!((&again["failures"], &again["recorded"]["compared"]), (&json!([]), &json!(128)), "{again}");
}

#[test]
fn a_reward_that_always_fails_ends_the_run_with_its_reason() {
    let at = folder();
    let config = at.path().join("never.yaml");
    let program = "import json, sys\nfor line in sys.stdin:\n    print(json.dumps({'id': json.loads(line)['id'], 'error': 'no oracle today'}), flush=True)\n";
    fs::write(at.path().join("never.py"), program).unwrap();
    let spec = json!([{ "name": "never", "command": ["python3", at.path().join("never.py")], "retries": 0 }]);
    fs::write(&config, json!({ "reward": spec }).to_string()).unwrap();
    let mut command = folgore(["train", "arithmetic"]);
    command.arg(&config).args(["--run-name", "never", "--max-steps", "2", "--output-dir"]).arg(at.path());
    command.args(["eval.before=false", "eval.after=false", "rollout.num_prompts=2", "rollout.num_generations=2"]);
    let ended = run(command);
    assert!(!ended.status.success(), "{}", ended.stdout);
    assert!(
        ended.stderr.contains("no oracle today") && ended.stderr.contains("look at the reward"),
        "{}",
        ended.stderr
    );
    assert!(metrics(&at.path().join("never")).is_empty(), "something was trained");
}

#[test]
fn reward_test_shows_what_a_reward_gives_and_where_it_fails() {
    let at = folder();
    let rows = at.path().join("rows.jsonl");
    let row = |i: u32| {
        let completion = format!("<answer>{}</answer>", if i.is_multiple_of(2) { i } else { 0 });
        json!({ "prompt": format!("{i} = "), "completion": completion, "answer": i }).to_string() + "\n"
    };
    fs::write(&rows, (1..=40).map(row).collect::<String>()).unwrap();
    let test = |more: &[&str]| {
        let mut command = folgore(["reward", "test", "--in"]);
        command.arg(&rows).args(more);
        run(command)
    };
    let exact = "{name: exact_match, args: {tag: answer}}";
    let ended = test(&["--reward", exact, "--json"]).well();
    let shown: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&shown["completions"], &shown["scores"]["mean"]), (&json!(40), &json!(0.5)), "{shown}");
    assert_eq!(shown["latency_ms"]["requests"], 40);
    assert_eq!(
        shown["scores"]["histogram"],
        json!([{"from": 0.0, "to": 0.0, "count": 20}, {"from": 1.0, "to": 1.0, "count": 20}])
    );

    // A second reward of the opposite opinion.
    let opposite = "{name: exact_match, weight: -1, args: {tag: answer}}";
    let shown: Value =
        serde_json::from_str(&test(&["--reward", exact, "--second", opposite, "--json"]).well().stdout).unwrap();
    let agreement = &shown["agreement"];
    assert_eq!((&agreement["pairs"], &agreement["opposite"]), (&json!(400), &json!(400)), "{shown}");
    assert!((agreement["correlation"].as_f64().unwrap() + 1.0).abs() < 1e-9, "{shown}");
    let text = test(&["--reward", exact, "--second", opposite]).well().stdout;
    for part in ["scored      40", "quantiles", "correlation -1.000", "100.0 % of 400 pairs", "asked  "] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }

    // Failures by reason; the exit code says that there are some.
    let missing = "{name: exact_match, args: {tag: answer, column: gold}}";
    let ended = test(&["--reward", missing]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stdout);
    assert!(ended.stdout.contains("40  unscorable") && ended.stdout.contains("gold"), "{}", ended.stdout);
    assert!(ended.stderr.contains("--allow-failures"), "{}", ended.stderr);
    test(&["--reward", missing, "--allow-failures"]).well();
}

#[test]
fn a_reward_that_compares_completions_is_tested_in_groups() {
    let at = folder();
    let program = at.path().join("rank.py");
    // Gives each completion its rank by length among all that came in one request.
    let text = "import json, sys\nfor line in sys.stdin:\n    asked = json.loads(line)\n    said = [len(i['completion']) for i in asked['items']]\n    print(json.dumps({'id': asked['id'], 'scores': [sorted(said).index(s) for s in said]}), flush=True)\n";
    fs::write(&program, text).unwrap();
    let spec = json!([{ "name": "rank", "command": ["python3", program], "scope": "group" }]);
    let config = at.path().join("rank.yaml");
    fs::write(&config, json!({ "reward": spec }).to_string()).unwrap();
    let rows = at.path().join("rows.jsonl");
    let row = |i: usize| json!({ "prompt": format!("{}", i / 3), "completion": "x".repeat(i % 3) }).to_string() + "\n";
    fs::write(&rows, (0..12).map(row).collect::<String>()).unwrap();
    let mut command = folgore(["reward", "test", "--json", "--in"]);
    command.arg(&rows).arg("--reward").arg(&config);
    let shown: Value = serde_json::from_str(&run(command).well().stdout).unwrap();
    assert_eq!((&shown["latency_ms"]["requests"], &shown["scores"]["mean"]), (&json!(4), &json!(1.0)), "{shown}");
}
