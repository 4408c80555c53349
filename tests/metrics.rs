//! What a run shows of itself to other software: the same numbers everywhere, and nothing of it can hold a run up.

#[path = "support/otlp.rs"]
mod otlp;
#[path = "metrics/prometheus.rs"]
mod prometheus;
#[path = "metrics/tfevents.rs"]
mod tfevents;

mod support;

use std::path::Path;

use folgore_actors::nats::server::{LocalServer, ServerOptions, nats_server_for_tests};
use otlp::{Manner, Receiver};
use serde_json::Value;
use support::{Line, Running, folder, folgore, lines, metrics, number, refused, run, timeless};

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
    let mut command = folgore(["train", "arithmetic"]);
    command.args(SETTINGS).arg("--output-dir").arg(at).args(more);
    command
}

fn go_on(at: &Path, more: &[&str]) -> std::process::Command {
    let mut command = folgore(["train", "--resume", "r"]);
    command.arg("--output-dir").arg(at).args(more);
    command
}

/// What the event files of the run should show: each number of each line, those of evaluations too.
fn expected(run: &Path) -> tfevents::Scalars {
    let mut scalars = tfevents::Scalars::new();
    let mut put = |tag: String, step: u64, value: &Value| {
        if let Some(value) = value.as_f64() {
            scalars.entry(tag).or_default().insert(step, value as f32);
        }
    };
    for line in lines(run) {
        let step = line["step"].as_u64().unwrap();
        line.iter().filter(|(tag, _)| *tag != "step").for_each(|(tag, value)| put(tag.clone(), step, value));
    }
    let summary: Value = serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap();
    for evaluation in summary["evaluations"].as_array().unwrap() {
        for way in ["greedy", "sampled"] {
            let (step, measured) = (evaluation["step"].as_u64().unwrap(), &evaluation[way]);
            let told = |tag: &str| scalars[&format!("eval/{way}/{tag}")][&step];
            for name in ["accuracy", "mean_reward", "truncated", "mean_length"] {
                assert_eq!(told(name), measured[name].as_f64().unwrap() as f32, "{way} {name} of step {step}");
            }
            let (avg, n) = (&measured["estimates"]["avg"], &measured["estimates"]["samples"]);
            assert_eq!(
                told(&format!("avg@{n}/ci95_high")),
                avg["high"].as_f64().unwrap() as f32,
                "{way} of step {step}"
            );
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
    let steps: Vec<Line> = metrics(&of_run);
    assert_eq!(scalars["reward"].keys().copied().collect::<Vec<_>>(), (1..=steps.len() as u64).collect::<Vec<_>>());
    assert!(scalars["eval/greedy/accuracy"].contains_key(&0), "what was measured before is shown too");
    assert_eq!(scalars, expected(&of_run));
}

/// Where the process shows its numbers, as it told.
fn address(launch: &mut Running) -> String {
    assert!(launch.until_it_says("/metrics\n"), "it ended too early");
    let said = launch.said();
    let url = said.lines().find_map(|line| line.strip_prefix("metrics: http://")).unwrap();
    url.strip_suffix("/metrics").unwrap().to_owned()
}

#[test]
fn prometheus_reads_the_numbers_of_a_real_run() {
    let at = folder();
    let of_run = at.path().join("r");
    let mut launch = Running::start(train(at.path(), &["optim.max_steps=5000", "--metrics-port", "0"]));
    let address = address(&mut launch);
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert!(launch.until(|| metrics(&of_run).len() > 3));
    let page = prometheus::scrape(&address);
    let step = page.value("folgore_step", &[]);
    // a step is told after its line is written
    let line = metrics(&of_run).into_iter().find(|line| number(line, "step") == step).unwrap();
    let mut compared = 0;
    for (key, value) in &line {
        let Some(value) = value.as_f64() else { continue };
        let sanitized = key.replace('/', "_");
        let found = match key.strip_prefix("rewards/").and_then(|rest| rest.split_once('/')) {
            Some((rule, what)) => page.value(&format!("folgore_rewards_{what}"), &[("rule", rule)]),
            None => ["", "_seconds", "_total"]
                .iter()
                .find_map(|suffix| page.find(&format!("folgore_{sanitized}{suffix}"), &[]))
                .unwrap_or_else(|| panic!("{key} of metrics.jsonl is not shown")),
        };
        assert_eq!(found, value, "{key}");
        compared += 1;
    }
    assert!(compared > 40, "{compared}");
    let share = number(&line, "time/generate") / number(&line, "step_time");
    assert_eq!(page.value("folgore_idle_learner", &[]), share);
    for (name, label) in [
        ("folgore_build_info", ("version", env!("CARGO_PKG_VERSION"))),
        ("folgore_queue_waiting", ("queue", "jobs")),
        ("folgore_queue_held", ("queue", "trajectories")),
        ("folgore_episodes_total", ("outcome", "handed_in")),
        ("folgore_engine_tokens_total", ("kind", "decode")),
        ("folgore_scores_total", ("outcome", "scored")),
        ("folgore_replay_groups_total", ("outcome", "closed")),
        ("folgore_eval_accuracy", ("kind", "greedy")),
        ("folgore_service_restarts_total", ("service", "learner")),
    ] {
        let value = page.value(name, &[label, ("run", "r"), ("role", "head")]);
        assert!(value >= 0.0, "{name}");
    }
    for name in
        ["folgore_replay_committed_step", "folgore_policy_step", "folgore_score_seconds_total", "folgore_lease_epoch"]
    {
        page.value(name, &[]);
    }
    launch.signal("INT");
    assert_eq!(launch.end().status.code(), Some(130));
}

/// A run of four steps whose numbers go to `receiver`.
fn sent_to(receiver: &Receiver, at: &Path) -> Vec<Line> {
    let mut command = train(at, &["optim.max_steps=4"]);
    command.env("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", format!("{}/v1/metrics", receiver.url));
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "100").env("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "500");
    run(command).well();
    metrics(&at.join("r"))
}

#[test]
fn a_receiver_of_otlp_gets_the_same_numbers() {
    let (at, receiver) = (folder(), Receiver::http(Manner::Take));
    let lines = sent_to(&receiver, at.path());
    let numbers = receiver.numbers();
    let of = |name: &str| numbers.iter().filter(|n| n.name == name).collect::<Vec<_>>();
    let mut compared = 0;
    for (key, value) in lines.last().unwrap() {
        let Some(value) = value.as_f64().filter(|_| !key.starts_with("rewards/")) else { continue };
        let name = format!("folgore_{}", key.replace('/', "_"));
        let found = ["", "_seconds", "_total"].iter().flat_map(|suffix| of(&format!("{name}{suffix}"))).next();
        let found = found.unwrap_or_else(|| panic!("{key} of metrics.jsonl was not sent"));
        assert_eq!(found.value, value, "{key}");
        assert_eq!(found.counter, found.name.ends_with("_total"), "{key}");
        assert!(found.labels.contains(&("run".into(), "r".into())), "{found:?}");
        compared += 1;
    }
    assert!(compared > 40, "{compared}");
    let handed_in = of("folgore_episodes_total").into_iter().find(|n| n.labels.iter().any(|(_, v)| v == "handed_in"));
    assert!(handed_in.is_some(), "what services show is sent too");
}

#[test]
fn a_receiver_of_otlp_that_misbehaves_changes_nothing() {
    let calm = folder();
    run(train(calm.path(), &["optim.max_steps=4"])).well();
    let calm: Vec<Line> = metrics(&calm.path().join("r")).into_iter().map(timeless).collect();
    for manner in [Manner::Hang, Manner::Close, Manner::Unavailable] {
        let (at, receiver) = (folder(), Receiver::http(manner));
        let lines: Vec<Line> = sent_to(&receiver, at.path()).into_iter().map(timeless).collect();
        assert_eq!(lines, calm, "{manner:?}");
        assert!(receiver.asked() > 0, "{manner:?}: it was tried");
    }
}

#[test]
fn nonsense_and_slow_readers_do_no_harm() {
    let at = folder();
    let of_run = at.path().join("r");
    let mut launch = Running::start(train(at.path(), &["optim.max_steps=5000", "--metrics-port", "0"]));
    let address = address(&mut launch);
    let endless = "x".repeat(1 << 20);
    let nonsense: [&[u8]; 7] = [
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        endless.as_bytes(),
        b"POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n{",
        b"GET /metrics HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    ];
    for bytes in nonsense {
        let answer = prometheus::send(&address, bytes);
        let harmless =
            answer.is_empty() || ["400", "405", "408", "431", "505", "200"].iter().any(|s| answer[9..].starts_with(s));
        assert!(harmless, "{answer}");
    }
    assert!(prometheus::send(&address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").starts_with("HTTP/1.1 404"));
    // more than are let in at once, and none of them ever says what it wants
    let slow: Vec<_> = (0..64).map(|_| prometheus::half_a_request(&address)).collect();
    let before = metrics(&of_run).len();
    prometheus::scrape(&address).value("folgore_build_info", &[]);
    assert!(launch.until(|| metrics(&of_run).len() > before + 3), "the run goes on");
    drop(slow);
    launch.signal("INT");
    assert_eq!(launch.end().status.code(), Some(130));
}

#[test]
fn each_process_of_a_run_shows_its_own_work() {
    let (at, place, cache) = (folder(), folder(), folder());
    let options = ServerOptions::new(place.path());
    let server = LocalServer::start_with(nats_server_for_tests().unwrap(), options).unwrap();
    let mut head = train(at.path(), &["optim.max_steps=5000", "--metrics-port", "0", "--nats", &server.url()]);
    head.env("FOLGORE_CACHE", cache.path());
    let mut worker = folgore(["worker", "--nats", &server.url(), "--run", "r", "--name", "w", "--metrics-port", "0"]);
    worker.env("FOLGORE_CACHE", cache.path());
    let (mut head, mut worker) = (Running::start(head), Running::start(worker));
    let (at_head, at_worker) = (address(&mut head), address(&mut worker));
    assert!(head.until(|| metrics(&at.path().join("r")).len() > 2));
    let made = [("role", "rollout"), ("outcome", "handed_in")];
    assert!(
        worker.until(|| prometheus::scrape(&at_worker).find("folgore_episodes_total", &made).is_some_and(|n| n > 0.0))
    );
    let page = prometheus::scrape(&at_worker);
    assert!(page.value("folgore_scores_total", &[("outcome", "scored"), ("run", "r")]) > 0.0);
    assert!(page.value("folgore_policy_epoch", &[]) > 0.0);
    assert_eq!(page.find("folgore_reward", &[]), None, "the training is the head's to show");
    let page = prometheus::scrape(&at_head);
    assert!(page.value("folgore_lease_epoch", &[("role", "head")]) > 0.0);
    assert!(head.until(|| prometheus::scrape(&at_head).find("folgore_workers", &[("kind", "rollout")]) == Some(1.0)));
    assert!(page.value("folgore_replay_trajectories_total", &[]) > 0.0);
    assert_eq!(page.find("folgore_episodes_total", &made), None, "the worker's work is its own to show");
}

#[test]
fn a_port_that_is_taken_is_told_before_anything_is_written() {
    let at = folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(train(at.path(), &["--metrics-port", &port]), &["metrics at 127.0.0.1", &port]);
    assert!(!at.path().join("r").exists());
}
