//! Spans of one process as a real receiver sees them: ids, parents, links, and what is lost.

#[path = "../../tests/support/otlp.rs"]
mod otlp;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use folgore_actors::{
    LocalConfig, Span, SpanKind, Telemetry, TraceContext, local,
    metrics::{Kind, Metric, Sample},
    telemetry::{Identity, Report, names, settings::Settings},
};
use folgore_protocol::{Passages, Search};
use otlp::{Got, Manner, Receiver};
use tokio::sync::Mutex;

/// The telemetry of a process is one.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn start(receiver: &Receiver, more: &[(&str, &str)]) -> Telemetry {
    let settings = Settings::read(|name| match name {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => Some(format!("{}/v1/traces", receiver.url)),
        _ => more.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()),
    });
    let who = Identity { run: "demo".into(), role: "head".into(), worker: "w0".into() };
    Telemetry::with(settings.unwrap(), &who).unwrap()
}

/// One job, delivered twice, whose worker asks somebody something.
async fn work() {
    let links = local("demo", LocalConfig::new(std::env::temp_dir().join("folgore-telemetry-blobs")));
    let served = links.serve_typed("search", 1, |search: Search| async move {
        let mut span = Span::child(SpanKind::Internal, format_args!("retrieval {}", "wiki"));
        span.set(names::DATA_SOURCE, "wiki");
        span.event("found", Vec::new);
        drop(search);
        Ok::<_, String>(Passages { passages: Vec::new() })
    });
    let _served = served.await.unwrap();
    let search = Search { query: "q".into(), top_k: 1 };
    links.publish_job("jobs", &search, "g1.0.0").await.unwrap();
    for attempt in 1..=2 {
        let pulled = links.pull_jobs::<Search>("jobs", 1, Duration::from_secs(60)).await.unwrap();
        let job = &pulled.jobs[0];
        assert_eq!(job.attempt, attempt);
        let ask = links.call::<_, Passages>("search", &job.body, "g1.0.0.t0", Duration::from_secs(60));
        job.keep_while(Duration::from_secs(1), ask).await.unwrap().unwrap();
        if attempt == 1 { job.nak(Duration::ZERO).await.unwrap() } else { job.ack().await.unwrap() }
    }
    drop(Span::root(TraceContext::root("demo", "g1.0.0"), SpanKind::Internal, names::SAMPLE));
}

fn check(spans: &[Got]) {
    let of = |name: &str| spans.iter().filter(|got| got.span.name == name).collect::<Vec<_>>();
    let (sample, send, process, retrieval) = (of("sample"), of("send jobs"), of("process jobs"), of("retrieval wiki"));
    assert_eq!((sample.len(), send.len(), process.len(), retrieval.len(), spans.len()), (1, 1, 2, 2, 6));
    let root = TraceContext::root("demo", "g1.0.0");
    assert!(root.traceparent().contains(&format!("{}-{}", sample[0].trace(), sample[0].id())), "ids are ours");
    assert_eq!(sample[0].parent(), "");
    assert_eq!(send[0].parent(), sample[0].id());
    for (process, retrieval) in process.iter().zip(&retrieval) {
        assert_eq!((process.parent(), retrieval.parent()), (send[0].id(), process.id()));
    }
    assert!(spans.iter().all(|got| got.trace() == root.trace_id() && got.schema == names::SCHEMA));
    assert_eq!(process[0].span.links.len(), 0);
    assert_eq!(otlp::hex(&process[1].span.links[0].span_id), process[0].id(), "a redelivery points at the work before");
    assert_eq!(process[1].attribute(names::DELIVERY_COUNT).as_deref(), Some("2"));
    assert_eq!(process[0].attribute(names::MESSAGING_SYSTEM).as_deref(), Some("local"));
    assert_eq!(send[0].attribute(names::MESSAGE_ID).as_deref(), Some("g1.0.0"));
    assert_eq!(retrieval[0].attribute(names::DATA_SOURCE).as_deref(), Some("wiki"));
    assert_eq!(retrieval[0].span.events[0].name, "found");
    assert_eq!(sample[0].sender(names::ROLE).as_deref(), Some("head"));
    assert_eq!(sample[0].sender("service.name").as_deref(), Some("folgore"));
}

#[tokio::test(flavor = "current_thread")]
async fn one_trace_over_http_and_over_grpc_from_a_runtime_of_one_thread() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for (receiver, protocol) in [(Receiver::http(Manner::Take), "http/protobuf"), (Receiver::grpc(), "grpc")] {
        let telemetry = start(&receiver, &[("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)]);
        work().await;
        // From the one thread of the runtime: the export must not need it.
        assert_eq!(telemetry.end(), Some(Report { exported: 6, lost: 0 }), "{protocol}");
        check(&receiver.spans());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_not_in_the_share_is_not_sent_and_peers_are_told() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let receiver = Receiver::http(Manner::Take);
    let telemetry = start(&receiver, &[("OTEL_TRACES_SAMPLER", "always_off")]);
    assert!(TraceContext::root("demo", "g1.0.0").traceparent().ends_with("-00"));
    work().await;
    assert_eq!(telemetry.end(), Some(Report::default()));
    assert_eq!(receiver.asked(), 0);
    assert!(TraceContext::root("demo", "g1.0.0").traceparent().ends_with("-01"), "it is for others to say again");
}

#[tokio::test(flavor = "current_thread")]
async fn a_receiver_that_takes_nothing_costs_spans_that_are_counted() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for manner in [Manner::Hang, Manner::Close, Manner::Unavailable] {
        let receiver = Receiver::http(manner);
        let telemetry = start(&receiver, &[]);
        work().await;
        assert_eq!(telemetry.end(), Some(Report { exported: 0, lost: 6 }), "{manner:?}");
        assert!(receiver.asked() > 0, "{manner:?}: it was tried");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn without_an_endpoint_there_is_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let who = Identity { run: "demo".into(), role: "head".into(), worker: "w0".into() };
    let telemetry = Telemetry::with(Settings::read(|_| None).unwrap(), &who).unwrap();
    assert!(telemetry.place().is_none());
    let span = Span::root(TraceContext::root("demo", "k"), SpanKind::Internal, names::SAMPLE);
    assert!(!span.is_on());
    assert_eq!(span.context(), Some(TraceContext::root("demo", "k")), "what is sent still belongs together");
    assert_eq!(telemetry.end(), None);
}

/// A telemetry that sends the value of `level` as often as it may.
fn numbers(receiver: &Receiver, protocol: &str, level: &Arc<AtomicU64>) -> Telemetry {
    let settings = Settings::read(|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(receiver.url.clone()),
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(protocol.into()),
        "OTEL_TRACES_EXPORTER" => Some("none".into()),
        "OTEL_METRIC_EXPORT_INTERVAL" => Some("1".into()),
        _ => None,
    });
    let who = Identity { run: "demo".into(), role: "head".into(), worker: "w0".into() };
    let mut telemetry = Telemetry::with(settings.unwrap(), &who).unwrap();
    let metric = |name: &str, kind| Metric { name: name.into(), kind, unit: "s", help: "a test" };
    let table = [metric("level_seconds", Kind::Gauge), metric("made_total", Kind::Counter)];
    let level = level.clone();
    let read = move || {
        let value = level.load(Relaxed) as f64;
        let sample = |metric, label: &str| Sample { metric, labels: vec![("kind", label.into())], value };
        vec![sample(0, "a"), sample(1, "b"), sample(1, "c")]
    };
    telemetry.export_metrics(&table, read).unwrap();
    telemetry
}

#[test]
fn numbers_go_out_again_and_again_and_as_they_are_at_the_end() {
    let _alone = ONE_AT_A_TIME.blocking_lock();
    for (receiver, protocol) in [(Receiver::http(Manner::Take), "http/protobuf"), (Receiver::grpc(), "grpc")] {
        let level = Arc::new(AtomicU64::new(1));
        let telemetry = numbers(&receiver, protocol, &level);
        let begin = Instant::now();
        while receiver.numbers().is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(120), "{protocol}: nothing was sent");
            std::thread::sleep(Duration::from_millis(10));
        }
        level.store(7, Relaxed);
        assert_eq!(telemetry.end(), None, "there were no spans");
        let mut got: Vec<_> =
            receiver.numbers().into_iter().map(|n| (n.name, n.counter, n.labels[0].1.clone(), n.value)).collect();
        got.sort_by(|a, b| (&a.0, &a.2).cmp(&(&b.0, &b.2)));
        let made = |label: &str| ("made_total".to_owned(), true, label.to_owned(), 7.0);
        assert_eq!(got, [("level_seconds".into(), false, "a".into(), 7.0), made("b"), made("c")], "{protocol}");
    }
}

#[test]
fn a_receiver_that_takes_no_numbers_holds_nobody_up() {
    let _alone = ONE_AT_A_TIME.blocking_lock();
    for manner in [Manner::Hang, Manner::Close, Manner::Unavailable] {
        let receiver = Receiver::http(manner);
        let telemetry = numbers(&receiver, "http/protobuf", &Arc::default());
        let begin = Instant::now();
        while receiver.asked() == 0 {
            assert!(begin.elapsed() < Duration::from_secs(120), "{manner:?}: it was not tried");
            std::thread::sleep(Duration::from_millis(10));
        }
        telemetry.end();
    }
}
