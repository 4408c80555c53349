//! One run in several processes over a real NATS server: it learns what one process learns, it tells what it waits for, and
//! it leaves nothing behind.

mod support;

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread::sleep,
    time::{Duration, Instant},
};

use folgore_actors::{
    Level, Shutdown,
    nats::{
        Holder, NatsConfig, acquire, admin, connect,
        server::{LocalServer, ServerOptions, nats_server_for_tests},
    },
};
use folgore_protocol::{Names, Role, RunName, subjects};
use serde_json::Value;
use support::{Line, Running, folder, folgore, metrics, refused, root, run, timeless};
use tempfile::TempDir;

/// A server with its folder, shared by the tests that run at the same time: each has a run of its own.
struct Server {
    url: String,
    cache: TempDir,
    _server: LocalServer,
    _folder: TempDir,
}

/// The server that is there, or a new one; it ends with the last test that holds it.
fn server() -> Arc<Server> {
    static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut there = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    there.upgrade().unwrap_or_else(|| {
        let place = folder();
        let executable = nats_server_for_tests().unwrap();
        let server = LocalServer::start_with(executable, ServerOptions::new(place.path())).unwrap();
        let made = Arc::new(Server { url: server.url(), cache: folder(), _server: server, _folder: place });
        *there = Arc::downgrade(&made);
        made
    })
}

impl Server {
    fn head(&self, at: &Path, run: &str, more: &[&str]) -> Command {
        let mut command = folgore(["train", "arithmetic", "--nats", &self.url, "--run-name", run]);
        command.arg("--output-dir").arg(at).args(more);
        command
    }

    fn worker(&self, run: &str, name: &str) -> Command {
        let mut command = folgore(["worker", "--nats", &self.url, "--run", run, "--name", name]);
        command.env("FOLGORE_CACHE", self.cache.path());
        command
    }

    fn crew(&self, run: &str, size: usize) -> Vec<Running> {
        (0..size).map(|i| Running::start(self.worker(run, &format!("{run}-{i}")))).collect()
    }
}

fn timeless_metrics(run: &Path) -> Vec<Line> {
    metrics(run).into_iter().map(timeless).collect()
}

/// Accuracy after the run: greedy and sampled.
fn accuracy(run: &Path) -> [f64; 2] {
    let summary: Value = serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    ["greedy", "sampled"].map(|name| summary["eval"]["after"][name].as_f64().unwrap())
}

/// The demonstration with three workers, for three seeds. At staleness 0 the samples depend on nothing but seeds and policies,
/// so that more is true than that the accuracy is about the same: every number is.
#[test]
fn three_workers_learn_what_one_process_learns() {
    let (server, at) = (server(), folder());
    for seed in ["0", "1", "2"] {
        let (apart, together) = (format!("apart-{seed}"), format!("together-{seed}"));
        let mut one = folgore(["train", "arithmetic", "--seed", seed, "--run-name", &together]);
        one.arg("--output-dir").arg(at.path());
        run(one).well();
        let workers = server.crew(&apart, 3);
        run(server.head(at.path(), &apart, &["--seed", seed])).well();
        drop(workers);
        let (apart, together) = (at.path().join(apart), at.path().join(together));
        assert_eq!(timeless_metrics(&apart), timeless_metrics(&together), "seed {seed}: metrics.jsonl");
        assert_eq!(accuracy(&apart), accuracy(&together), "seed {seed}: accuracy");
        let made_by: Vec<usize> = (0..3).map(|i| sampled_by(&apart, &format!("apart-{seed}-{i}"))).collect();
        assert!(made_by.iter().filter(|n| **n > 0).count() >= 2, "the work is shared: {made_by:?}");
    }
}

/// Rows of the samples kept by a run that `worker` made.
fn sampled_by(run: &Path, worker: &str) -> usize {
    let record = folgore_learner::record::Record::open(&run.join("record.redb")).unwrap();
    let steps = (1..=80).filter_map(|step| record.batch(step).unwrap());
    steps.flat_map(|batch| batch.groups).flat_map(|group| group.members).filter(|m| m.worker == worker).count()
}

#[test]
fn nobody_there_is_shown_and_is_no_error() {
    let (server, at) = (server(), folder());
    let settings = ["--max-steps", "3", "eval.before=false", "eval.after=false"];
    let mut head = Running::start(server.head(at.path(), "alone", &settings));
    assert!(head.until_it_says("no rollout worker is there"), "the head went away");
    let workers = server.crew("alone", 1);
    let ended = head.end().well();
    assert!(ended.stdout.contains("3 steps in"), "{}", ended.stdout);
    drop(workers);
}

/// Another head of the name is there, and has not said yet what its run is.
#[test]
fn a_name_that_is_taken_meanwhile_is_refused() {
    let (server, at) = (server(), folder());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (nats, lease) = runtime.block_on(async {
        let names = Names::new(&RunName::new("taken").unwrap()).unwrap();
        let nats = connect(NatsConfig::new(&server.url, names, Role::Head, "head").unwrap()).await.unwrap();
        admin::ensure(&nats, &admin::Limits::default()).await.unwrap();
        let lease = acquire(&nats, Holder::here("first", "here"), 0, |_| {}).await.unwrap();
        (nats, lease)
    });
    let leave = Shutdown::new();
    let held = runtime.spawn(lease.keep(leave.clone()));
    let mut second = Running::start(server.head(at.path(), "taken", &["--max-steps", "1"]));
    assert!(second.until_it_says("the run is held by first"));
    runtime.block_on(async {
        nats.links().put_state_if(subjects::CONFIG, 0, &"the card of the first").await.unwrap();
        leave.request(Level::Stopping);
        held.await.unwrap().unwrap();
    });
    let ended = second.end();
    assert!(!ended.status.success() && ended.stderr.contains("another run named taken"), "{}", ended.stderr);
    // And at once, where nobody is waited for.
    refused(
        server.head(folder().path(), "taken", &["--max-steps", "1"]),
        &["another run named taken", "nats rm taken"],
    );
}

#[test]
fn a_worker_leaves_in_order_and_another_goes_on() {
    let (server, at) = (server(), folder());
    let settings = ["--max-steps", "12", "eval.before=false", "eval.after=false"];
    let mut head = Running::start(server.head(at.path(), "leaving", &settings));
    let mut first = Running::start(server.worker("leaving", "first"));
    assert!(first.until_it_says("at work"));
    let begun = at.path().join("leaving/metrics.jsonl");
    assert!(head.until(|| fs::read_to_string(&begun).is_ok_and(|text| text.lines().count() >= 2)));
    first.signal("INT");
    let left = first.end().well();
    assert!(left.stdout.contains("left"), "{}", left.stdout);
    let _second = Running::start(server.worker("leaving", "second"));
    head.end().well();
    let mut check = folgore(["inspect", "leaving", "--check", "--output-dir"]);
    check.arg(at.path());
    run(check).well();
}

#[test]
fn a_worker_with_another_model_is_refused_with_both_digests() {
    let (server, at) = (server(), folder());
    let _head = Running::start(server.head(at.path(), "other-model", &["--max-steps", "2"]));
    let mut command = server.worker("other-model", "stranger");
    command.arg("--model").arg(root().join("tests/parity/fixtures/tiny-tied"));
    let ended = run(command);
    assert_eq!(ended.status.code(), Some(78), "{}\n{}", ended.stdout, ended.stderr);
    let said = ended.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default().to_owned();
    assert!(said.contains("base model: the run has ") && said.contains(", this worker has "), "{}", ended.stderr);
}

#[test]
fn a_retriever_is_not_needed_where_nothing_is_searched() {
    let (server, at) = (server(), folder());
    let _head = Running::start(server.head(at.path(), "no-search", &["--max-steps", "2"]));
    let mut command = server.worker("no-search", "finder");
    command.args(["--role", "retriever"]);
    let ended = run(command);
    assert_eq!(ended.status.code(), Some(78), "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("corpus: the run has nothing"), "{}", ended.stderr);
}

#[test]
fn rewards_may_come_from_workers_of_their_own() {
    let (server, at) = (server(), folder());
    let settings = ["--max-steps", "2", "rollout.remote_reward=true", "eval.before=false", "eval.after=false"];
    let head = Running::start(server.head(at.path(), "scored", &settings));
    let workers = server.crew("scored", 1);
    let mut judge = server.worker("scored", "judge");
    judge.args(["--role", "reward"]);
    let judge = Running::start(judge);
    head.end().well();
    drop((workers, judge));
}

/// Processes whose command line names `folder`.
fn processes_of(folder: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder)).collect()
}

fn up(at: &Path, temporary: &Path, name: &str, more: &[&str]) -> Command {
    let server = nats_server_for_tests().unwrap();
    let mut command = folgore(["up", "--workers", "2", "--run-name", name]);
    command.arg("--output-dir").arg(at).args(more);
    command.env("TMPDIR", temporary).env("FOLGORE_NATS_SERVER", server);
    command
}

#[test]
fn up_runs_everything_and_takes_it_along() {
    let (at, temporary) = (folder(), folder());
    let settings = ["--max-steps", "3", "eval.before=false", "eval.after=false"];
    let ended = run(up(at.path(), temporary.path(), "up", &settings)).well();
    assert!(ended.stdout.contains("3 steps in"), "{}", ended.stdout);
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "its folder is gone");
    assert!(at.path().join("up/logs/worker-0.log").is_file(), "what the workers said is kept");
    gone(temporary.path());
}

#[test]
fn what_up_started_does_not_outlive_it() {
    let (at, temporary) = (folder(), folder());
    let mut all = Running::start(up(at.path(), temporary.path(), "killed", &["eval.before=false"]));
    assert!(all.until_it_says("step    1/"));
    let there = processes_of(&temporary.path().display().to_string());
    assert!(there.len() >= 3, "a server and two workers are there: {there:?}");
    all.kill();
    gone(temporary.path());
}

#[track_caller]
fn gone(temporary: &Path) {
    let name = temporary.display().to_string();
    let until = Instant::now() + Duration::from_secs(60);
    while !processes_of(&name).is_empty() {
        assert!(Instant::now() < until, "still there: {:?}", processes_of(&name));
        sleep(Duration::from_millis(50));
    }
}
