//! Rewards of the user's own, each way that there is: they train as the built-in one does, from the examples that we ship, and
//! what goes wrong in them ends as it is documented.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    thread::sleep,
    time::Duration,
};

use folgore_actors::nats::server::{LocalServer, ServerOptions, nats_server_for_tests};
use folgore_learner::record::Record;
use serde_json::Value;
use support::{Line, Running, folder, folgore, metrics, number, root, run, timeless};

const STEPS: &str = "20";

/// The settings of the runs that are compared: the demonstration, shortened, with its accuracy at the end.
const SHORT: [&str; 4] = ["--max-steps", STEPS, "eval.before=false", "eval.eval_items=100"];

fn example(name: &str) -> PathBuf {
    root().join("examples/rewards").join(name)
}

/// A run from the repository's folder, as the examples are written for.
fn here(mut command: Command) -> Command {
    command.current_dir(root());
    command
}

/// `program train arithmetic examples/rewards/<way>.yaml`, to be compared.
fn train(program: &Path, at: &Path, way: &str, more: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command.args(["train", "arithmetic"]);
    if way != "built-in" {
        command.arg(example(&format!("{way}.yaml")));
    }
    command.args(["--run-name", way, "--seed", "1", "--output-dir"]).arg(at).args(SHORT).args(more);
    here(command)
}

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_folgore"))
}

/// All metrics but the clock's and those that bear the reward's name, and the accuracy at the end.
fn result(run: &Path) -> (Vec<Line>, [f64; 2]) {
    let mut lines: Vec<Line> = metrics(run).into_iter().map(timeless).collect();
    lines.iter_mut().for_each(|line| line.retain(|key, _| !key.starts_with("rewards/")));
    let summary: Value = serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    let accuracy = ["greedy", "sampled"].map(|name| summary["eval"]["after"][name].as_f64().unwrap());
    (lines, accuracy)
}

/// What the built-in reward comes to, run once for all.
fn built_in() -> &'static (Vec<Line>, [f64; 2]) {
    static RESULT: OnceLock<(Vec<Line>, [f64; 2])> = OnceLock::new();
    RESULT.get_or_init(|| {
        let at = folder();
        run(train(&program(), at.path(), "built-in", &[])).well();
        let result = result(&at.path().join("built-in"));
        let reward = |at: usize| number(&result.0[at], "reward");
        assert!(reward(19) > reward(0) + 0.2, "it learns: {} to {}", reward(0), reward(19));
        result
    })
}

/// The run trained what the built-in reward trains, to the last number.
#[track_caller]
fn as_built_in(run: &Path) {
    let (want, got) = (built_in(), result(run));
    assert_eq!(got.0, want.0, "metrics");
    assert_eq!(got.1, want.1, "accuracy");
}

#[test]
fn a_command_and_a_python_function_train_as_the_built_in_reward_does() {
    let at = folder();
    for way in ["command", "python"] {
        run(train(&program(), at.path(), way, &[])).well();
        as_built_in(&at.path().join(way));
    }
}

#[test]
fn an_address_trains_as_the_built_in_reward_does() {
    let at = folder();
    let mut server = Command::new("python3");
    server.arg(example("http_reward.py")).arg(example("exact.py")).args(["exact", "0"]);
    let mut server = Running::start(server);
    assert!(server.until_it_says("listening on "));
    let said = server.said();
    let url = said.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
    run(train(&program(), at.path(), "http", &[&format!("reward.0.url={url}")])).well();
    as_built_in(&at.path().join("http"));
}

#[test]
fn a_program_of_ones_own_trains_as_the_built_in_reward_does() {
    let at = folder();
    // `examples/rust-reward/`, built with the tests
    let own = program().with_file_name("examples").join("rust-reward");
    run(train(&own, at.path(), "rust", &[])).well();
    as_built_in(&at.path().join("rust"));
    let unknown = run(train(&program(), folder().path(), "rust", &[])).stderr;
    assert!(unknown.contains("there is no rule \"exact\""), "{unknown}");
}

/// Python with nats-py, which is installed where the build keeps such things.
fn python_with_nats() -> PathBuf {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON
        .get_or_init(|| {
            let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats-py");
            let python = place.join("bin/python");
            let works = |python: &Path| {
                Command::new(python).args(["-c", "import nats"]).output().is_ok_and(|done| done.status.success())
            };
            if !works(&python) {
                for (program, args) in [
                    (Path::new("python3"), vec!["-m", "venv", place.to_str().unwrap()]),
                    (&python, vec!["-m", "pip", "install", "nats-py"]),
                ] {
                    let done = Command::new(program).args(args).output().unwrap();
                    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
                }
            }
            assert!(works(&python), "nats-py cannot be imported");
            python
        })
        .clone()
}

/// A server, and what talks to it for the run `nats`.
struct OnNats {
    _server: LocalServer,
    place: tempfile::TempDir,
    url: String,
}

impl OnNats {
    fn start() -> Self {
        let place = folder();
        let executable = nats_server_for_tests().unwrap();
        let server = LocalServer::start_with(executable, ServerOptions::new(place.path())).unwrap();
        Self { url: server.url(), _server: server, place }
    }

    fn worker(&self) -> Running {
        let mut worker = folgore(["worker", "--nats", &self.url, "--run", "nats", "--name", "w0"]);
        worker.env("FOLGORE_CACHE", self.place.path());
        Running::start(worker)
    }

    /// The Python program, once it answers.
    fn responder(&self) -> Running {
        let mut command = Command::new(python_with_nats());
        command.arg(example("nats_reward.py")).arg(example("exact.py"));
        let mut responder = Running::start({
            command.args(["exact", "--run", "nats", "--server", &self.url]);
            command
        });
        assert!(responder.until_it_says("answering for run nats"), "{}", responder.end().stderr);
        responder
    }
}

#[test]
fn a_nats_responder_in_python_trains_as_the_built_in_reward_does() {
    let (nats, at) = (OnNats::start(), folder());
    let (_responder, _worker) = (nats.responder(), nats.worker());
    run(train(&program(), at.path(), "nats", &["--nats", &nats.url])).well();
    as_built_in(&at.path().join("nats"));
}

/// While nobody answers, places are drawn again and groups dropped whole; the run goes on when somebody is there.
#[test]
fn a_nats_responder_may_be_killed_and_started_again() {
    let (nats, at) = (OnNats::start(), folder());
    let (first, _worker) = (nats.responder(), nats.worker());
    let mut head = Running::start(train(&program(), at.path(), "nats", &["--nats", &nats.url]));
    let run = at.path().join("nats");
    assert!(head.until(|| metrics(&run).len() >= 3), "the head went away");
    first.kill();
    sleep(Duration::from_millis(500));
    let _second = nats.responder();
    head.end().well();
    assert_eq!(metrics(&run).len(), 20);
    proven(at.path(), "nats");
}

/// The record of the run proves itself.
#[track_caller]
fn proven(at: &Path, name: &str) {
    let mut command = folgore(["inspect", name, "--check", "--output-dir"]);
    command.arg(at);
    run(command).well();
}

/// A reward that the policy's text makes crash, hang, lie or give up, for about a tenth of the completions each.
const FAULTS: &str = r#"
import os, sys, time, zlib

def faulty(completions, **columns):
    scores = []
    for completion in completions:
        lot = zlib.crc32(completion.encode()) % 40
        if lot == 0: os._exit(9)
        if lot == 1: time.sleep(1000)
        if lot == 2: raise RuntimeError("unlucky")
        scores.append({3: float("nan"), 4: float("inf"), 5: None, 6: "1.0"}.get(lot, len(completion) / 48))
    return scores
"#;

#[test]
fn a_reward_that_crashes_hangs_and_lies_costs_its_samples_and_trains_no_zero() {
    let at = folder();
    let file = at.path().join("faults.py");
    fs::write(&file, FAULTS).unwrap();
    let reward = format!(
        "reward=[{{name: mine, python: {}:faulty, timeout_s: 1.5, retries: 0, breaker_failures: 1000000}}]",
        file.display()
    );
    let mut command =
        folgore(["train", "arithmetic", "--run-name", "faulty", "--seed", "1", "--max-steps", "4", "--output-dir"]);
    command.arg(at.path()).args(["eval.before=false", "eval.after=false", "replay.retention_steps=1000", &reward]);
    run(command).well();
    proven(at.path(), "faulty");
    let faulty = at.path().join("faulty");
    let sum = |name: &str| metrics(&faulty).iter().map(|line| number(line, name)).sum::<f64>();
    assert!(sum("reward/error") > 0.0 && sum("reward/unscorable") > 0.0, "nothing went wrong");
    let record = Record::open(&faulty.join("record.redb")).unwrap();
    for step in 1..=4 {
        let batch = record.batch(step).unwrap().expect("kept");
        let members = batch.groups.iter().flat_map(|group| &group.members);
        let totals: Vec<f64> =
            members.map(|member| member.outcome.total().expect("only scores are trained on")).collect();
        assert_eq!(totals.len(), 64, "step {step} is not whole");
        assert!(totals.iter().all(|total| *total > 0.0), "a score that nobody gave: {totals:?}");
    }
}

/// The process of a reward that hangs does not outlive a trainer that is killed.
#[test]
fn a_killed_trainer_leaves_no_reward_behind() {
    let at = folder();
    let (file, pids) = (at.path().join("hang.py"), at.path().join("pids"));
    let text = format!(
        "import os, time\ndef hang(completions, **columns):\n    open({:?}, 'a').write(f'{{os.getpid()}}\\n')\n    time.sleep(1000)\n",
        pids.display().to_string()
    );
    fs::write(&file, text).unwrap();
    let mut command = folgore(["train", "arithmetic", "--run-name", "hang", "eval.before=false", "--output-dir"]);
    command.arg(at.path()).arg(format!("reward=[{{name: mine, python: {}:hang}}]", file.display()));
    let mut trainer = Running::start(command);
    let written = || fs::read_to_string(&pids).unwrap_or_default();
    assert!(trainer.until(|| written().lines().count() >= 2), "the trainer ended");
    trainer.kill();
    for pid in written().lines() {
        let stat = format!("/proc/{pid}/stat");
        let lives = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        for _ in 0..3000 {
            if !lives() {
                break;
            }
            sleep(Duration::from_millis(10));
        }
        assert!(!lives(), "process {pid} outlived its trainer");
    }
}
