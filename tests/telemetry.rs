//! OpenTelemetry as a receiver sees it: one trace follows a sample through three processes, and a receiver that misbehaves
//! changes nothing.

#[path = "support/otlp.rs"]
mod otlp;
mod support;

use std::{collections::BTreeSet, path::Path, process::Command};

use folgore_actors::{
    TraceContext,
    nats::server::{LocalServer, ServerOptions, nats_server_for_tests},
    telemetry::names,
};
use otlp::{Got, Manner, Receiver, hex};
use support::{Line, Running, folder, folgore, metrics, run, timeless};

const RUN: &str = "traced";
/// Two groups of four: every sample of a step has its link.
const SETTINGS: [&str; 7] = [
    "--max-steps",
    "2",
    "rollout.num_prompts=2",
    "rollout.num_generations=4",
    "eval.before=false",
    "eval.after=false",
    "log.report=false",
];

fn traced(mut command: Command, url: &str) -> Command {
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url).env("OTEL_METRICS_EXPORTER", "none");
    command.env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
    command
}

/// The spans of one run: a head, a rollout worker and a reward worker; and what the rollout worker said.
fn three_processes(receiver: &Receiver) -> (Vec<Got>, String) {
    let (place, at, cache) = (folder(), folder(), folder());
    let server = LocalServer::start_with(nats_server_for_tests().unwrap(), ServerOptions::new(place.path())).unwrap();
    let worker = |role: &str| {
        let mut command = folgore(["worker", "--role", role, "--nats", &server.url(), "--run", RUN, "--name", role]);
        command.env("FOLGORE_CACHE", cache.path()).env("RUST_LOG", "folgore_rollout=debug");
        Running::start(traced(command, &receiver.url))
    };
    let (rollout, reward) = (worker("rollout"), worker("reward"));
    let mut head =
        folgore(["train", "arithmetic", "--nats", &server.url(), "--run-name", RUN, "rollout.remote_reward=true"]);
    head.arg("--output-dir").arg(at.path()).args(SETTINGS);
    run(traced(head, &receiver.url)).well();
    rollout.signal("INT");
    reward.signal("INT");
    let said = rollout.end().well().stderr;
    reward.end().well();
    (receiver.spans(), said)
}

/// The spans of one name that are part of `parent`.
fn parts<'a>(spans: &'a [Got], parent: &Got, name: &str) -> Vec<&'a Got> {
    let own = |got: &&Got| got.parent() == parent.id() && got.trace() == parent.trace() && got.span.name == name;
    spans.iter().filter(own).collect()
}

/// The only one.
#[track_caller]
fn part<'a>(spans: &'a [Got], parent: &Got, name: &str) -> &'a Got {
    let found = parts(spans, parent, name);
    let there: Vec<&str> =
        spans.iter().filter(|got| got.trace() == parent.trace()).map(|got| got.span.name.as_str()).collect();
    assert_eq!(found.len(), 1, "{name} in {}: its trace has {there:?}", parent.span.name);
    found[0]
}

#[track_caller]
fn is(got: &Got, attributes: &[(&str, &str)]) {
    for (name, value) in attributes {
        assert_eq!(got.attribute(name).as_deref(), Some(*value), "{name} of {}", got.span.name);
    }
}

#[test]
fn one_trace_follows_a_sample_through_three_processes() {
    let receiver = Receiver::http(Manner::Take);
    let (spans, said) = three_processes(&receiver);
    let ids: BTreeSet<String> = spans.iter().map(Got::id).collect();
    assert_eq!(ids.len(), spans.len(), "no two spans have one id");
    for got in &spans {
        // A seat that was still open when the run was over has no end, hence no span of its own.
        let is_of_seat = || got.attribute(names::MESSAGE_ID).is_some_and(|seat| got.parent() == root_id(&seat));
        let known = got.parent().is_empty() || ids.contains(&got.parent()) || is_of_seat();
        assert!(known, "{} is a part of nothing", got.span.name);
        assert_eq!(got.schema, names::SCHEMA);
        assert_eq!(got.sender("deployment.environment.name").as_deref(), Some("test"));
    }
    let steps: Vec<&Got> = spans.iter().filter(|got| got.span.name == names::TRAIN_STEP).collect();
    assert_eq!(steps.len(), 2);
    for step in steps {
        assert_eq!(step.span.links.len(), 8);
        for name in [names::STEP, names::EPOCH, names::BATCH_GROUPS, "rl.loss", "rl.grad_norm", "rl.reward"] {
            assert!(step.attribute(name).is_some(), "{name} of a step");
        }
        for link in &step.span.links {
            let sample =
                spans.iter().find(|got| got.span.span_id == link.span_id && got.span.trace_id == link.trace_id);
            let sample = sample.unwrap_or_else(|| panic!("no sample of trace {}", hex(&link.trace_id)));
            check_sample(&spans, sample);
            assert!(said.contains(&format!("trace_id={}", sample.trace())), "logs carry trace ids: {said}");
        }
    }
}

/// Id of the root span of a seat.
fn root_id(seat: &str) -> String {
    TraceContext::root(RUN, seat).traceparent().split('-').nth(2).unwrap().to_owned()
}

/// From the seat to replay, each span in its process.
#[track_caller]
fn check_sample(spans: &[Got], sample: &Got) {
    let seat = sample.attribute(names::CONVERSATION).unwrap();
    let root = TraceContext::root(RUN, &seat);
    assert_eq!(root.traceparent(), format!("00-{}-{}-01", sample.trace(), sample.id()), "ids follow from run and seat");
    assert_eq!((sample.span.name.as_str(), sample.parent().as_str()), (names::SAMPLE, ""));
    is(sample, &[(names::OUTCOME, "taken"), (names::WORKER, "rollout"), (names::PURPOSE, "train")]);
    let send = part(spans, sample, "send jobs");
    let process = part(spans, send, "process jobs");
    let episode = part(spans, process, "invoke_agent rollout");
    let model = episode_model(spans, episode);
    let generated = part(spans, episode, &model);
    let score = spans.iter().find(|got| got.parent() == episode.id() && got.span.name.starts_with("score "));
    let score = score.unwrap_or_else(|| panic!("seat {seat}: no score"));
    let hand_in = part(spans, episode, "send trajectories");
    let taken = part(spans, hand_in, "process trajectories");

    let roles = [sample, send, process, episode, generated, score, hand_in, taken].map(|got| got.sender(names::ROLE));
    let expected = ["head", "head", "rollout", "rollout", "rollout", "reward", "rollout", "head"];
    assert_eq!(roles, expected.map(|role| Some(role.to_owned())));
    is(send, &[(names::MESSAGING_SYSTEM, "nats"), (names::DESTINATION, "jobs"), (names::MESSAGE_ID, &seat)]);
    is(process, &[(names::DELIVERY_COUNT, "1"), (names::MESSAGING_OPERATION, "process")]);
    is(episode, &[(names::OPERATION, "invoke_agent"), (names::CONVERSATION, &seat), (names::RUN, RUN)]);
    is(generated, &[(names::REQUEST_TEMPERATURE, "1")]);
    for name in [names::REQUEST_MODEL, names::INPUT_TOKENS, names::OUTPUT_TOKENS, names::FINISH_REASONS] {
        assert!(generated.attribute(name).is_some(), "{name} of a generation");
    }
    assert!(generated.attribute(names::INPUT_MESSAGES).is_none(), "texts are shown on request only");
    is(taken, &[(names::OUTCOME, "taken"), (names::DESTINATION, "trajectories")]);

    let result = &score.span.events[0];
    assert_eq!(result.name, names::EVALUATION);
    let told = otlp::render(&result.attributes);
    let score = told.iter().find(|(name, _)| name == names::SCORE).map(|(_, value)| value.clone());
    assert_eq!(score, sample.attribute(names::REWARD), "the score is the reward of the sample");
    assert!(sample.span.start_time_unix_nano <= send.span.start_time_unix_nano);
    assert!(sample.span.end_time_unix_nano >= hand_in.span.start_time_unix_nano);
}

/// The name of the one generation of an episode.
fn episode_model(spans: &[Got], episode: &Got) -> String {
    let asks = |got: &&Got| got.parent() == episode.id() && got.attribute(names::REQUEST_MODEL).is_some();
    let found: Vec<&Got> = spans.iter().filter(asks).collect();
    assert_eq!(found.len(), 1, "one turn");
    let (operation, model) = (found[0].attribute(names::OPERATION).unwrap(), found[0].attribute(names::REQUEST_MODEL));
    assert!(["chat", "text_completion"].contains(&operation.as_str()));
    format!("{operation} {}", model.unwrap())
}

fn alone(at: &Path, name: &str, more: &[&str]) -> Command {
    let mut command = folgore(["train", "arithmetic", "--run-name", name]);
    command.arg("--output-dir").arg(at).args(SETTINGS).args(more);
    command
}

fn timeless_metrics(run: &Path) -> Vec<Line> {
    metrics(run).into_iter().map(timeless).collect()
}

fn log(run: &Path) -> String {
    std::fs::read_to_string(run.join("logs/attempt-1/folgore.log")).unwrap()
}

#[test]
fn a_receiver_that_misbehaves_changes_nothing() {
    let at = folder();
    run(alone(at.path(), "plain", &[])).well();
    let expected = timeless_metrics(&at.path().join("plain"));
    assert!(!log(&at.path().join("plain")).contains("spans"), "nobody asked for telemetry");
    for (manner, name) in [(Manner::Hang, "hang"), (Manner::Close, "close"), (Manner::Unavailable, "unavailable")] {
        let receiver = Receiver::http(manner);
        let ended = run(traced(alone(at.path(), name, &[]), &receiver.url)).well();
        assert_eq!(timeless_metrics(&at.path().join(name)), expected, "{name}");
        assert!(ended.stderr.contains("spans were not taken"), "{name}: {}", ended.stderr);
        assert!(receiver.asked() > 0, "{name}: it was tried");
        assert!(log(&at.path().join(name)).contains("exported=0"), "{name}");
    }
    run(traced(alone(at.path(), "nowhere", &[]), "http://127.0.0.1:9")).well();
    assert_eq!(timeless_metrics(&at.path().join("nowhere")), expected);
}

#[test]
fn texts_are_shown_where_they_are_asked_for() {
    let (at, receiver) = (folder(), Receiver::http(Manner::Take));
    run(traced(alone(at.path(), "shown", &["log.otel_content=true"]), &receiver.url)).well();
    let asked = |got: &&Got| got.attribute(names::REQUEST_MODEL).is_some();
    let spans = receiver.spans();
    let turn = spans.iter().find(asked).unwrap();
    let input = turn.attribute(names::INPUT_MESSAGES).unwrap();
    let messages: serde_json::Value = serde_json::from_str(&input).unwrap();
    assert!(!messages[0]["parts"][0]["content"].as_str().unwrap().is_empty(), "{input}");
    assert!(turn.attribute(names::OUTPUT_MESSAGES).unwrap().contains("assistant"));
}

#[test]
fn what_cannot_be_had_is_told_and_the_run_goes_on() {
    let at = folder();
    let mut command = alone(at.path(), "json", &[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9").env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
    let ended = run(command).well();
    assert!(ended.stderr.contains("telemetry is off: OTEL_EXPORTER_OTLP_PROTOCOL"), "{}", ended.stderr);
}
