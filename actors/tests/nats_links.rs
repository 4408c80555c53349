//! What the NATS form does beyond the contract: senders, large bodies, strangers' messages, callers who have left.

mod with_server;

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use folgore_actors::{
    LinkError,
    nats::{Limits, Nats, admin, connect, server::LocalServer},
};
use folgore_protocol::{
    Search,
    subjects::{JOBS, TRAJECTORIES},
};
use futures_util::StreamExt;
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use with_server::{LONG, becomes_true, config, join, start};

const SHORT: Duration = Duration::from_millis(300);

fn search(query: &str) -> Search {
    Search { query: query.into(), top_k: 1 }
}

/// A head of run `run`, with the stores of the run made. Redelivery takes longer than any test.
async fn head(server: &LocalServer, run: &str) -> Nats {
    let mut config = config(server, run, "head-1");
    config.ack_wait_jobs = 10 * LONG;
    config.ack_wait_trajectories = 10 * LONG;
    let nats = connect(config).await.expect("a connection");
    admin::ensure(&nats, &Limits::within(1 << 27)).await.expect("the stores of the run");
    nats
}

/// Somebody who speaks to the server without these links.
async fn stranger(server: &LocalServer) -> async_nats::Client {
    async_nats::connect(server.url()).await.expect("a connection")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trajectories_carry_their_sender() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let head = head(&server, "senders").await.links();
    for worker in ["w0", "w1"] {
        let links = join(&server, "senders", worker).await.links();
        links.publish_job(TRAJECTORIES, &search(worker), worker).await.unwrap();
    }
    for _ in 0..2 {
        let pulled = head.pull_jobs::<Search>(TRAJECTORIES, 1, LONG).await.unwrap();
        let job = &pulled.jobs[0];
        assert_eq!(job.sender.as_deref(), Some(job.body.query.as_str()));
        job.ack().await.unwrap();
    }
    head.publish_job(JOBS, &search("job"), "k").await.unwrap();
    let pulled = head.pull_jobs::<Search>(JOBS, 1, LONG).await.unwrap();
    assert_eq!(pulled.jobs[0].sender, None, "the subject of a job proves nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_travels_beside_its_message() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let nats = head(&server, "large").await;
    let links = nats.links();
    for (queue, len) in [(JOBS, 1 << 20), (TRAJECTORIES, 3 << 20), (TRAJECTORIES, 100_000)] {
        let large = search(&"x".repeat(len));
        links.publish_job(queue, &large, "large").await.unwrap();
        let pulled = links.pull_jobs::<Search>(queue, 1, LONG).await.unwrap();
        assert!(pulled.jobs[0].body == large, "the body that was sent");
        pulled.jobs[0].ack().await.unwrap();
    }
    let length = |asked: Search| async move { Ok::<_, String>(asked.query.len()) };
    let _served = links.serve_typed("search", 1, length).await.unwrap();
    let length: usize = links.call("search", &search(&"x".repeat(2 << 20)), "large", LONG).await.unwrap();
    assert_eq!(length, 2 << 20, "what a request that is stored says");

    links.publish_job(JOBS, &search(&"y".repeat(1 << 20)), "gone").await.unwrap();
    let jetstream = async_nats::jetstream::new(stranger(&server).await);
    jetstream.delete_object_store(nats.config().run.bodies_bucket()).await.unwrap();
    admin::ensure(&nats, &Limits::within(1 << 27)).await.unwrap();
    let pulled = links.pull_jobs::<Search>(JOBS, 1, LONG).await.unwrap();
    assert_eq!((pulled.jobs.len(), pulled.rejected.len()), (0, 1), "a body that is gone is told, not waited for");
    assert_eq!(pulled.rejected[0].key, "gone");
    assert_eq!(links.queue.depth(JOBS).await, Ok((0, 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_puller_who_has_left_would_have_got_goes_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let links = head(&server, "left").await.links();
    let job = search("job");
    for n in 0..10 {
        let leaver = links.clone();
        let pulling = tokio::spawn(async move { leaver.queue.pull(JOBS, 4, LONG).await.map(|taken| taken.len()) });
        sleep(Duration::from_millis(30)).await;
        let publish = links.publish_job(JOBS, &job, "k");
        if n % 2 == 0 {
            pulling.abort();
            publish.await.unwrap();
        } else {
            // The message may be on its way to the one who leaves.
            let (published, ()) = tokio::join!(publish, async { pulling.abort() });
            published.unwrap();
        }
        if let Ok(taken) = pulling.await {
            panic!("aborted, but took {taken:?}");
        }
        let pulled = links.pull_jobs::<Search>(JOBS, 4, LONG).await.unwrap();
        assert_eq!(pulled.jobs.len(), 1, "long before its redelivery time");
        pulled.jobs[0].ack().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_while_a_body_is_fetched_takes_no_message_along() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let links = head(&server, "fetch").await.links();
    let large = search(&"x".repeat(8 << 20));
    for n in 0..20 {
        links.publish_job(JOBS, &large, "large").await.unwrap();
        let leaver = links.clone();
        let pulling = tokio::spawn(async move { leaver.queue.pull(JOBS, 1, LONG).await });
        sleep(Duration::from_millis(2 * n)).await;
        pulling.abort();
        // It may have been faster.
        let taken = match pulling.await {
            Ok(taken) => taken.unwrap(),
            Err(_) => links.queue.pull(JOBS, 1, LONG).await.unwrap(),
        };
        assert_eq!(taken.len(), 1, "after {} ms, long before its redelivery time", 2 * n);
        taken[0].settle.ack().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_strangers_are_refused_where_it_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let nats = head(&server, "strange").await;
    let (links, names) = (nats.links(), nats.config().run.clone());
    let stranger = stranger(&server).await;

    stranger.publish(names.rollout_jobs(), "no headers".into()).await.unwrap();
    let pulled = links.pull_jobs::<Search>(JOBS, 1, LONG).await.unwrap();
    assert_eq!((pulled.jobs.len(), pulled.rejected.len()), (0, 1));
    assert!(pulled.rejected[0].reason.contains("protocol version"), "{}", pulled.rejected[0].reason);

    let begun = Arc::new(AtomicUsize::new(0));
    let count = begun.clone();
    let handler = move |request: Search| {
        count.fetch_add(1, SeqCst);
        async move { Ok::<_, String>(request) }
    };
    let _served = links.serve_typed("search", 1, handler).await.unwrap();
    let mut headers = None;
    becomes_true("the server knows who serves", async || {
        let reply = stranger.request(names.request("search"), "no headers".into()).await;
        headers = reply.ok().and_then(|reply| reply.headers);
        headers.is_some()
    })
    .await;
    let headers = headers.expect("headers");
    let said = headers.get("Rl-Error").expect("a refusal").as_str();
    assert!(said.contains("unreadable request"), "{said}");
    assert_eq!(begun.load(SeqCst), 0);

    let victim = names.trajectories_by("w0");
    let mut hears = stranger.subscribe(victim.clone()).await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Rl-Schema", "1.0");
    headers.insert("Rl-Run", "strange");
    headers.insert("Rl-Id", "k");
    let body = folgore_protocol::encode(&search("Chad")).unwrap();
    let subject = names.request("search");
    stranger.publish_with_reply_and_headers(subject, victim, headers, body.into()).await.unwrap();
    let answer = links.call::<_, Search>("search", &search("Lake"), "k", LONG).await.unwrap();
    assert_eq!(answer, search("Lake"));
    assert!(timeout(SHORT, hears.next()).await.is_err(), "a reply goes to an inbox, not to a queue");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asked_and_left_is_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let links = head(&server, "asks").await.links();
    let (begun, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, wait) = (begun.clone(), gate.clone());
    let handler = move |request: Search| {
        count.fetch_add(1, SeqCst);
        let wait = wait.clone();
        async move {
            wait.acquire().await.map_err(|e| e.to_string())?.forget();
            Ok::<_, String>(request)
        }
    };
    let _served = links.serve_typed("search", 1, handler).await.unwrap();
    let first = tokio::spawn({
        let links = links.clone();
        async move { links.call::<_, Search>("search", &search("first"), "first", LONG).await }
    });
    becomes_true("the first one has the only place", async || begun.load(SeqCst) == 1).await;
    for _ in 0..3 {
        let late = links.call::<_, Search>("search", &search("late"), "late", SHORT).await.unwrap_err();
        assert!(matches!(late.link(), Some(LinkError::Deadline { .. })), "{late}");
    }
    sleep(SHORT).await;
    gate.add_permits(10);
    assert_eq!(first.await.unwrap().unwrap(), search("first"));
    let last = links.call::<_, Search>("search", &search("last"), "last", LONG).await.unwrap();
    assert_eq!((last, begun.load(SeqCst)), (search("last"), 2), "those who left were not begun");

    let large = search(&"x".repeat(17 << 20));
    let refused = links.call::<_, Search>("search", &large, "large", LONG).await.unwrap_err();
    assert!(!refused.is_transient() && refused.to_string().contains("at most 16777216 bytes"), "{refused}");
}

/// A server that says it is `version`, and answers pings.
fn pretend(version: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let info =
        format!("INFO {{\"server_id\":\"x\",\"version\":\"{version}\",\"proto\":1,\"max_payload\":1048576}}\r\n");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(info.as_bytes()).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        for _ in lines.map_while(Result::ok).filter(|line| line == "PING") {
            // The client may have gone.
            let _ = stream.write_all(b"PONG\r\n");
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_server_is_refused_by_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let mut config = config(&server, "old", "w0");
    config.url = pretend("2.9.10");
    let error = connect(config.clone()).await.err().expect("a refusal").to_string();
    assert!(error.contains("2.14") && error.contains("2.9.10") && error.contains(&config.url), "{error}");
}
