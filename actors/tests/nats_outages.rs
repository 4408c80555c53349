//! What the links do while the server is gone, when it comes back, and when it comes back without its data.

mod with_server;

use std::{collections::BTreeSet, fs, time::Duration};

use folgore_actors::{
    LinkError, Links,
    nats::{
        Identity, Limits, Nats, admin, connect,
        server::{LocalServer, ServerOptions, nats_server_for_tests},
    },
};
use folgore_protocol::{Search, subjects::JOBS};
use tokio::time::{Instant, sleep, timeout};
use with_server::{LONG, becomes_true, config, join, start};

const SHORT: Duration = Duration::from_millis(300);

fn job(n: u32) -> Search {
    Search { query: format!("job {n}"), top_k: n }
}

async fn make_stores(nats: &Nats) {
    admin::ensure(nats, &Limits::within(1 << 30)).await.expect("the stores of the run");
}

/// Publishes job `n`, however long that takes.
async fn publish(links: &Links, n: u32) {
    links.publish_job_waiting(JOBS, &job(n), &format!("k{n}"), LONG).await.expect("published in the end");
}

/// Pulls until job `n` comes.
async fn pull(links: &Links, n: u32) -> folgore_actors::Job<Search> {
    let mut pulled = links.pull_jobs::<Search>(JOBS, 1, LONG).await.expect("pull");
    assert_eq!((pulled.jobs.len(), pulled.rejected.len()), (1, 0));
    let job = pulled.jobs.remove(0);
    assert_eq!(job.body.top_k, n);
    job
}

fn is_late<T>(result: Result<T, LinkError>) -> bool {
    matches!(result, Err(LinkError::Deadline { .. }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_finds_everybody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path());
    let (nats, worker) = (join(&server, "outage", "head-1").await, join(&server, "outage", "w0").await);
    let (head, worker_links) = (nats.links(), worker.links());
    make_stores(&nats).await;
    let echo = |request: Search| async move { Ok::<_, String>(request) };
    let _served = head.serve_typed("search", 2, echo).await.unwrap();
    let mut events = head.subscribe_events::<Search>("events").await.unwrap();
    for n in 0..3 {
        publish(&head, n).await;
    }
    let held = pull(&worker_links, 0).await;

    server.kill();
    becomes_true("the loss is noticed", async || !*worker.connected().borrow()).await;
    let started = Instant::now();
    let unpublished = head.publish_job(JOBS, &job(9), "k9").await.unwrap_err();
    assert!(unpublished.is_transient(), "{unpublished}");
    assert!(started.elapsed() < LONG, "a publish does not wait for ever");
    let pulled = worker_links.pull_jobs::<Search>(JOBS, 2, SHORT).await.expect("a pull waits its time out");
    assert!(pulled.jobs.is_empty());
    let asked = worker_links.call::<_, Search>("search", &job(1), "k", SHORT).await.unwrap_err();
    assert!(asked.is_transient(), "{asked}");
    assert!(is_late(held.ack().await) && is_late(held.progress().await), "not known is not lost");
    worker_links.publish_event("events", &job(7), "gone").await.expect("a topic may lose it");

    server.restart(false).expect("a restart");
    // Who asks may be back before who serves: then nobody answers yet, and that is said at once.
    becomes_true("served again", async || {
        let answer = worker_links.call::<_, Search>("search", &job(1), "k", LONG).await;
        answer.is_ok_and(|answer| answer == job(1))
    })
    .await;
    // A crash may take the server's memory of who holds what: then the ack is not answered and the job comes again.
    let mut done: BTreeSet<u32> = held.ack().await.is_ok().then_some(0).into_iter().collect();
    while done.len() < 3 {
        let pulled = worker_links.pull_jobs::<Search>(JOBS, 3, LONG).await.expect("pull");
        assert!(!pulled.jobs.is_empty(), "nothing is lost; done so far: {done:?}");
        for job in pulled.jobs {
            job.ack().await.expect("ack");
            done.insert(job.body.top_k);
        }
    }
    becomes_true("nothing is left", async || worker_links.queue.depth(JOBS).await == Ok((0, 0))).await;
    becomes_true("events are heard again", async || {
        worker_links.publish_event("events", &job(8), "back").await.expect("publish");
        timeout(SHORT, events.next()).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_and_an_ask_outlive_a_restart_or_end_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path());
    let (nats, worker) = (join(&server, "inflight", "head-1").await, join(&server, "inflight", "w0").await);
    let (head, worker) = (nats.links(), worker.links());
    make_stores(&nats).await;
    let slow = |request: Search| async move {
        sleep(LONG).await;
        Ok::<_, String>(request)
    };
    let _served = head.serve_typed("slow", 1, slow).await.unwrap();
    let pulling = tokio::spawn({
        let worker = worker.clone();
        async move { pull(&worker, 5).await.ack().await }
    });
    let asking = tokio::spawn({
        let worker = worker.clone();
        async move { worker.call::<_, Search>("slow", &job(1), "k", 5 * SHORT).await }
    });
    sleep(SHORT).await;
    server.restart(false).expect("a restart");
    let asked = asking.await.expect("the asker").unwrap_err();
    assert!(asked.is_transient(), "an answer or an error within the deadline: {asked}");
    publish(&head, 5).await;
    pulling.await.expect("the puller").expect("ack");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_its_data_is_used_again_once_the_streams_are_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path());
    let nats = join(&server, "wiped", "head-1").await;
    let links = nats.links();
    make_stores(&nats).await;
    publish(&links, 0).await;
    let held = pull(&links, 0).await;

    server.restart(true).expect("a restart");
    becomes_true("the connection is back", async || *nats.connected().borrow()).await;
    let unpublished = links.publish_job(JOBS, &job(1), "k1").await.unwrap_err();
    assert!(unpublished.is_transient(), "the stream may come back: {unpublished}");
    assert!(links.pull_jobs::<Search>(JOBS, 2, SHORT).await.expect("a pull waits its time out").jobs.is_empty());
    assert!(links.queue.depth(JOBS).await.is_err());

    make_stores(&nats).await;
    publish(&links, 1).await;
    let subject = JOBS.to_owned();
    assert_eq!(held.ack().await, Err(LinkError::NotHeld { subject }), "same number, another stream, another message");
    let fresh = pull(&links, 1).await;
    assert_eq!(fresh.attempt, 1);
    fresh.ack().await.expect("ack");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_denies_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let config_file = dir.path().join("denies.conf");
    let allowed = r#"publish: ["$JS.API.>", "_INBOX.>"], subscribe: ["_INBOX.>"]"#;
    let key = nkeys::KeyPair::new_user();
    let user = format!("{{ nkey: {}, permissions: {{ {allowed} }} }}", key.public_key());
    fs::write(&config_file, format!("jetstream {{}}\nauthorization {{ users: [ {user} ] }}\n")).unwrap();
    let options = ServerOptions { config_file: Some(config_file), ..ServerOptions::new(dir.path().join("store")) };
    let server = LocalServer::start_with(nats_server_for_tests().unwrap(), options).expect("a running server");

    let stranger = connect(config(&server, "denied", "w0")).await.err().expect("no user, no connection");
    assert!(stranger.to_string().contains(&server.url()), "{stranger}");
    let mut config = config(&server, "denied", "w0");
    let identity = dir.path().join("identity");
    fs::create_dir(&identity).unwrap();
    fs::write(identity.join("nkey.seed"), key.seed().unwrap()).unwrap();
    config.identity = Some(Identity::read(&identity).expect("an identity"));
    let nats = connect(config).await.expect("a connection");
    let links = nats.links();
    assert_eq!(nats.faults().server_errors, 0);
    links.publish_event("events", &job(0), "k").await.expect("a denied publish looks like any other");
    becomes_true("the denial is counted", async || nats.faults().server_errors > 0).await;
    let said = nats.faults().last.expect("a text");
    assert!(said.contains("Permissions Violation") && said.contains("evt.head"), "{said}");
    let denied = links.publish_job("work", &job(0), "k").await.unwrap_err();
    assert!(denied.is_transient(), "not known to be stored: {denied}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_late_is_waited_for_as_long_as_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path());
    let config = config(&server, "late", "w0");
    server.kill();
    let refused = connect(config.clone()).await.err().expect("nobody is there");
    assert!(refused.to_string().contains(&config.url), "{refused}");
    let mut patient = config;
    patient.connect_within = LONG;
    let connecting = tokio::spawn(connect(patient));
    sleep(SHORT).await;
    server.restart(false).expect("a restart");
    connecting.await.expect("a task").expect("a connection in the end");
}

#[cfg(unix)]
fn signal(server: &LocalServer, name: &str) {
    let pid = server.pid().expect("a process").to_string();
    assert!(std::process::Command::new("kill").args([name, &pid]).status().expect("kill").success());
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_holds_up_nobody_who_tells_or_wants_to_listen() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let nats = join(&server, "deaf", "head-1").await;
    let links = nats.links();
    signal(&server, "-STOP");
    let large = Search { query: "x".repeat(16 << 10), top_k: 1 };
    // Until the connection takes no more, which shows in a publish that has to wait; each of them ends, and well.
    let flood = async {
        let mut waited = false;
        while !waited {
            let begun = Instant::now();
            links.publish_event("events", &large, "k").await.expect("a topic may lose it");
            waited = begun.elapsed() >= nats.config().request_timeout;
        }
    };
    timeout(LONG, flood).await.expect("no publish waits for ever");
    let listening = timeout(LONG, links.topic.subscribe("events")).await.expect("an end");
    assert!(is_late(listening.map(|_| ())));
    let echo = |request: Search| async move { Ok::<_, String>(request) };
    let serving = timeout(LONG, links.serve_typed("search", 1, echo)).await.expect("an end");
    assert!(is_late(serving.map(|_| ())));
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_not_waited_for_and_stores_a_retried_publish_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let mut config = config(&server, "hangs", "head-1");
    config.ack_wait_jobs = Duration::from_secs(20);
    let nats = connect(config).await.expect("a connection");
    let links = nats.links();
    make_stores(&nats).await;
    publish(&links, 0).await;
    let held = pull(&links, 0).await;
    signal(&server, "-STOP");
    let unpublished = links.publish_job(JOBS, &job(1), "k1").await.unwrap_err();
    assert!(unpublished.is_transient(), "{unpublished}");
    assert!(links.pull_jobs::<Search>(JOBS, 2, SHORT).await.expect("a pull waits its time out").jobs.is_empty());
    assert!(is_late(held.ack().await), "not known is not lost");
    assert!(is_late(links.queue.depth(JOBS).await));
    signal(&server, "-CONT");

    // What the server gave to the pull that had left meanwhile comes again after its redelivery time.
    let (mut done, mut first_deliveries) = (BTreeSet::new(), 0);
    if held.ack().await.is_ok() {
        done.insert(0);
    }
    becomes_true("everything is done", async || {
        for job in links.pull_jobs::<Search>(JOBS, 2, SHORT).await.expect("pull").jobs {
            first_deliveries += u32::from(job.attempt == 1);
            if job.ack().await.is_ok() {
                done.insert(job.body.top_k);
            }
        }
        links.queue.depth(JOBS).await == Ok((0, 0))
    })
    .await;
    assert!(done.contains(&1) && first_deliveries <= 1, "both tries to publish were one message: {first_deliveries}");
}
