//! Stop it anywhere and go on: the rest of the run is the one that was not stopped, bit for bit.
//!
//! Real processes, real files. Where a run was killed is aimed at by the clock and then told from what it left: the metrics,
//! the record, the folders of checkpoints. Whatever was hit, going on must lead to the same numbers.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread::sleep,
    time::Duration,
};

use folgore_protocol::seed::mix;
use support::{
    Ended, Line, Running, checkpoints, folder, folgore, is_saving, lines, metrics, number, raw_metrics, recorded,
    refused, run, timeless,
};

const STEPS: u64 = 12;
/// Small, and with several updates of each batch, so that learning takes as long as generating.
const SETTINGS: [&str; 11] = [
    "run.name=r",
    "rollout.num_prompts=4",
    "rollout.num_generations=4",
    "algo.num_iterations=4",
    "optim.max_steps=12",
    "checkpoint.save_steps=2",
    "checkpoint.save_total_limit=2",
    "eval.before=false",
    "eval.eval_items=8",
    "eval.eval_steps=3",
    "eval.sampled=2",
];
/// Runs that may miss the moment that is aimed at.
const TRIES: u64 = 24;

fn begin(at: &Path) -> Command {
    let mut command = folgore(["train", "arithmetic"]);
    command.args(SETTINGS).arg("--output-dir").arg(at);
    command
}

fn go_on(at: &Path, more: &[&str]) -> Command {
    let mut command = folgore(["train", "--resume", "r"]);
    command.arg("--output-dir").arg(at).args(more);
    command
}

/// What a run comes to.
#[derive(PartialEq)]
struct Outcome {
    metrics: Vec<Line>,
    files: Vec<(&'static str, Vec<u8>)>,
}

fn outcome(run: &Path) -> Outcome {
    let last = run.join(format!("checkpoints/checkpoint-{STEPS}"));
    let names =
        ["adapter_model.safetensors", "adapter_config.json", "state/optimizer.safetensors", "state/trainer.json"];
    // the writer's epoch counts launches: the one thing in these files that is meant to differ
    let read = |name: &str| {
        let bytes = fs::read(last.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        match name {
            "state/trainer.json" => {
                let mut state: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                state.as_object_mut().unwrap().remove("epoch");
                state.to_string().into_bytes()
            }
            _ => bytes,
        }
    };
    Outcome { metrics: lines(run).into_iter().map(timeless).collect(), files: names.map(|n| (n, read(n))).into() }
}

/// A run that nobody disturbed.
struct Calm {
    outcome: Outcome,
    /// Seconds of each step: generating, learning.
    seconds: Vec<(f64, f64)>,
}

fn calm() -> &'static Calm {
    static CALM: OnceLock<Calm> = OnceLock::new();
    CALM.get_or_init(|| {
        let at = folder();
        run(begin(at.path())).well();
        let run = at.path().join("r");
        let lines = metrics(&run);
        let steps: Vec<u64> = lines.iter().map(|l| number(l, "step") as u64).collect();
        assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>());
        assert!(lines.iter().any(|l| number(l, "grad_norm") > 0.0), "a run that learns nothing proves nothing");
        let all = support::lines(&run);
        let evaluated: Vec<&str> = all.iter().filter_map(|line| line.get("eval")?.as_str()).collect();
        assert_eq!(evaluated, ["step-3", "step-6", "step-9", "after"]);
        assert!(all.iter().any(|line| line.contains_key("eval/sampled/maj@2/ci95_low")), "{all:?}");
        let seconds = lines.iter().map(|l| (number(l, "time/generate"), number(l, "time/train"))).collect();
        Calm { outcome: outcome(&run), seconds }
    })
}

#[track_caller]
fn assert_same(found: &Outcome, what: &str) {
    let calm = &calm().outcome;
    for (a, b) in calm.metrics.iter().zip(&found.metrics) {
        for (key, value) in a {
            assert_eq!(Some(value), b.get(key), "{what}: step {}: {key}", a["step"]);
        }
    }
    assert_eq!(calm.metrics, found.metrics, "{what}: metrics.jsonl");
    for ((name, a), (_, b)) in calm.files.iter().zip(&found.files) {
        assert!(a == b, "{what}: checkpoint-{STEPS}/{name} differs");
    }
}

/// What a run was about when it died, told by what it left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Generating,
    Learning,
    Saving,
    Other,
}

fn moment(run: &Path) -> Moment {
    if is_saving(run) {
        return Moment::Saving;
    }
    let done = raw_metrics(run).len() as u64;
    let snapshot = recorded(run);
    let asked = snapshot.groups.values().any(|group| group.step == done + 1);
    match snapshot.steps.get(&(done + 1)) {
        Some(step) if step.batch.is_some() => Moment::Learning,
        Some(_) if asked => Moment::Generating,
        _ => Moment::Other,
    }
}

/// The record proves what became of everything.
#[track_caller]
fn proven(at: &Path, what: &str) {
    let mut command = folgore(["inspect", "r", "--check", "--output-dir"]);
    command.arg(at);
    let ended = run(command);
    assert!(ended.status.success(), "{what}: {}\n{}", ended.stdout, ended.stderr);
    for name in ["seats", "line", "versions", "staleness", "checkpoints"] {
        assert!(ended.stdout.contains(&format!("ok      {name} ")), "{what}: {name} is missing in\n{}", ended.stdout);
    }
}

/// Goes on with a run that was stopped, and checks all that going on promises.
#[track_caller]
fn goes_on_as_if_nothing_had_happened(at: &Path, what: &str) -> Ended {
    let run_dir = at.join("r");
    let from = checkpoints(&run_dir).into_iter().max().unwrap_or(0);
    assert!(from >= 1, "{what}: there is no checkpoint to go on from");
    let before = raw_metrics(&run_dir);
    proven(at, what);
    let ended = run(go_on(at, &[])).well();
    assert!(ended.stdout.contains(&format!("resumed from step {from}\n")), "{what}: {}", ended.stdout);
    let after = raw_metrics(&run_dir);
    // with their times: a step done again would have another one
    assert_eq!(before[..from as usize], after[..from as usize], "{what}: a step up to {from} was done again");
    let step = |line: &str| line.strip_prefix("step ")?.trim_start().split('/').next()?.parse::<u64>().ok();
    let shown: Vec<u64> = ended.stdout.lines().filter_map(step).collect();
    assert_eq!(shown, (from + 1..=STEPS).collect::<Vec<_>>(), "{what}: {}", ended.stdout);
    assert_same(&outcome(&run_dir), what);
    proven(at, what);
    assert!(!is_saving(&run_dir), "{what}: what a save left is still there");
    ended
}

/// Begins runs and kills them where `aim` ends, until one was hit in the `wanted` moment; each of them goes on.
fn killed_and_resumed(wanted: Moment, seed: u64, mut aim: impl FnMut(&mut Running, &Path, u64) -> bool) {
    let mut hits = Vec::new();
    for attempt in 0..TRIES {
        let at = folder();
        let run_dir = at.path().join("r");
        let mut running = Running::start(begin(at.path()));
        let alive = aim(&mut running, &run_dir, mix(&[seed, attempt]));
        running.kill();
        if !alive {
            continue;
        }
        let hit = moment(&run_dir);
        let steps = raw_metrics(&run_dir).len();
        goes_on_as_if_nothing_had_happened(at.path(), &format!("killed after step {steps}, {hit:?}"));
        hits.push(hit);
        if hit == wanted {
            return;
        }
    }
    panic!("none of {TRIES} runs was killed while {wanted:?}, but: {hits:?}");
}

/// Waits for an odd number of steps, after which nothing is saved, and then for `share` of what the calm run took.
fn after_a_step(running: &mut Running, run: &Path, random: u64, wait: impl Fn(f64, f64) -> f64) -> bool {
    let step = 3 + 2 * (random % 4) as usize;
    let reached = running.until(|| raw_metrics(run).len() >= step);
    let (generating, learning) = calm().seconds[step];
    sleep(Duration::from_secs_f64(wait(generating, learning)));
    reached
}

fn share(random: u64) -> f64 {
    0.1 + 0.8 * (random >> 40) as f64 / (1u64 << 24) as f64
}

#[test]
fn killed_while_it_generates() {
    killed_and_resumed(Moment::Generating, 1, |running, run, random| {
        after_a_step(running, run, random, |generating, _| share(random) * generating)
    });
}

#[test]
fn killed_while_it_learns() {
    killed_and_resumed(Moment::Learning, 2, |running, run, random| {
        after_a_step(running, run, random, |generating, learning| generating + share(random) * learning)
    });
}

#[test]
fn killed_while_it_saves() {
    killed_and_resumed(Moment::Saving, 3, |running, run, random| {
        let step = 2 + 2 * (random % 4);
        running.until(|| checkpoints(run).contains(&step)) && running.until(|| is_saving(run))
    });
}

#[test]
fn killed_again_and_again_at_any_moment() {
    let at = folder();
    let run_dir = at.path().join("r");
    let mut running = Running::start(begin(at.path()));
    assert!(running.until(|| !checkpoints(&run_dir).is_empty()));
    running.kill();
    for launch in 0..10 {
        let mut running = Running::start(go_on(at.path(), &[]));
        running.until_it_says("resumed from step");
        sleep(Duration::from_micros(mix(&[4, launch]) % 250_000));
        running.kill();
    }
    goes_on_as_if_nothing_had_happened(at.path(), "killed ten times");
}

#[test]
fn one_interrupt_saves_and_stops_a_second_one_stops_at_once() {
    let at = folder();
    let run_dir = at.path().join("r");
    let mut running = Running::start(begin(at.path()));
    assert!(running.until(|| raw_metrics(&run_dir).len() >= 3));
    running.signal("INT");
    let ended = running.end();
    assert!(ended.stdout.contains("saving and stopping"), "{}", ended.stdout);
    assert!(ended.stdout.contains("Ctrl-C again stops now"), "{}", ended.stdout);
    assert_eq!(ended.status.code(), Some(130), "{}\n{}", ended.stdout, ended.stderr);
    let done = raw_metrics(&run_dir).len() as u64;
    assert!(done < STEPS, "the run was over before the signal");
    assert_eq!(checkpoints(&run_dir).into_iter().max(), Some(done), "what was done is saved");
    goes_on_as_if_nothing_had_happened(at.path(), "interrupted");

    let at = folder();
    let run_dir = at.path().join("r");
    let mut running = Running::start(begin(at.path()));
    assert!(running.until(|| raw_metrics(&run_dir).len() >= 3));
    running.signal("INT");
    running.signal("INT");
    let ended = running.end();
    assert_eq!(ended.status.code(), Some(130), "{}\n{}", ended.stdout, ended.stderr);
    goes_on_as_if_nothing_had_happened(at.path(), "interrupted twice");
}

#[test]
fn a_run_in_use_is_refused_and_its_holder_named() {
    let at = folder();
    let run_dir = at.path().join("r");
    let mut first = begin(at.path());
    first.arg("optim.max_steps=100000");
    let mut first = Running::start(first);
    assert!(first.until(|| raw_metrics(&run_dir).len() >= 2));
    let holder = format!("process {}", first.pid());
    refused(go_on(at.path(), &[]), &[&holder, "r: in use", "another run name"]);
    refused(begin(at.path()), &["--resume r", "another --run-name"]);
    first.kill();
}

#[test]
fn what_changed_is_shown_and_must_be_forced() {
    let at = folder();
    let run_dir = at.path().join("r");
    let mut first = Running::start(begin(at.path()));
    assert!(first.until(|| raw_metrics(&run_dir).len() >= 4));
    first.kill();
    let before = (checkpoints(&run_dir), raw_metrics(&run_dir));
    refused(go_on(at.path(), &["run.seed=5"]), &["run.seed", "began with 0", "now 5", "--force"]);
    refused(go_on(at.path(), &["temperature=0.7"]), &["rollout.temperature", "began with 1", "now 0.7"]);
    assert_eq!((checkpoints(&run_dir), raw_metrics(&run_dir)), before, "a refusal costs nothing");
    goes_on_as_if_nothing_had_happened(at.path(), "after two refusals");
    let forced = run(go_on(at.path(), &["run.seed=5", "--force", "--max-steps", "14"])).well();
    assert!(forced.stdout.contains(&format!("resumed from step {STEPS}\n")), "{}", forced.stdout);
    assert_eq!(raw_metrics(&run_dir).len(), 14);
}

#[test]
fn moments_in_eight_bits_go_on_too_and_in_no_other_form() {
    // of this rank the matrices of the embedded model are large enough to be coded
    let coded = ["optim.optim=adamw_8bit", "lora.lora_r=48"];
    let calm = folder();
    let begin = |at: &Path| {
        let mut command = begin(at);
        command.args(coded);
        command
    };
    run(begin(calm.path())).well();
    let at = folder();
    let run_dir = at.path().join("r");
    let mut running = Running::start(begin(at.path()));
    assert!(running.until(|| raw_metrics(&run_dir).len() >= 5));
    running.kill();
    refused(go_on(at.path(), &["optim.optim=adamw_torch"]), &["moments of adamw_8bit", "optim.optim=adamw_8bit"]);
    run(go_on(at.path(), &[])).well();
    let (found, want) = (outcome(&run_dir), outcome(&calm.path().join("r")));
    assert!(found.metrics == want.metrics, "metrics.jsonl");
    for ((name, a), (_, b)) in want.files.iter().zip(&found.files) {
        assert!(a == b, "checkpoint-{STEPS}/{name} differs");
        assert!(*name != "state/optimizer.safetensors" || String::from_utf8_lossy(a).contains("lora_A.m.absmax"));
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_said_so() {
    let at = folder();
    let run_dir = at.path().join("r");
    let mut first = Running::start(begin(at.path()));
    assert!(first.until(|| checkpoints(&run_dir).contains(&6)));
    first.kill();
    let newest = checkpoints(&run_dir).into_iter().max().unwrap();
    let file = run_dir.join(format!("checkpoints/checkpoint-{newest}/adapter_model.safetensors"));
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let ended = run(go_on(at.path(), &[])).well();
    assert!(ended.stdout.contains(&format!("resumed from step {}\n", newest - 2)), "{}", ended.stdout);
    let warning = format!("checkpoint-{newest}");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert!(lines.len() == 1 && lines[0].contains(&warning) && lines[0].contains("adapter_model"), "{lines:?}");
    assert_same(&outcome(&run_dir), "a damaged checkpoint");
}

#[test]
fn a_damaged_record_is_named_with_the_way_out() {
    let at = folder();
    let run_dir = at.path().join("r");
    let mut first = Running::start(begin(at.path()));
    assert!(first.until(|| raw_metrics(&run_dir).len() >= 3));
    first.kill();
    let record: PathBuf = run_dir.join("record.redb");
    let bytes = fs::read(&record).unwrap();
    for damaged in [Vec::new(), b"not a record".to_vec(), bytes[..bytes.len() / 3].to_vec()] {
        fs::write(&record, &damaged).unwrap();
        refused(go_on(at.path(), &[]), &["record.redb", "restore the file", "another name"]);
    }
    fs::write(&record, &bytes).unwrap();
    goes_on_as_if_nothing_had_happened(at.path(), "after the record was restored");
}

#[test]
fn a_finished_run_has_nothing_left_to_do() {
    let at = folder();
    run(begin(at.path())).well();
    let run_dir = at.path().join("r");
    let before = raw_metrics(&run_dir);
    let ended = run(go_on(at.path(), &[])).well();
    assert!(ended.stdout.contains(&format!("resumed from step {STEPS}\n")), "{}", ended.stdout);
    assert_eq!(before, raw_metrics(&run_dir));
    assert_same(&outcome(&run_dir), "a finished run");
}
