//! Request and reply.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{LONG, SHORT, message};
use crate::{BoxFuture, Handler, LinkError, Links, Message};

/// Does what the body says; counts what it has begun and what it does at once.
#[derive(Default)]
struct Server {
    begun: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Handler for Server {
    fn handle(&self, request: Message) -> BoxFuture<'_, Result<Message, String>> {
        Box::pin(async move {
            self.begun.fetch_add(1, SeqCst);
            let now = self.now.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(now, SeqCst);
            let answer = match &*request.body {
                b"refuse" => Err("no such thing".to_owned()),
                b"panic" => {
                    self.now.fetch_sub(1, SeqCst);
                    panic!("a planned panic")
                }
                b"hang" => {
                    sleep(2 * LONG).await;
                    Ok(request)
                }
                _ => {
                    sleep(Duration::from_millis(20)).await;
                    Ok(request)
                }
            };
            self.now.fetch_sub(1, SeqCst);
            answer
        })
    }
}

pub(super) async fn answers_and_errors(links: &Links) {
    let ask = |key: &str, body: &[u8], deadline| {
        let request = message(links, key, body);
        async move { links.ask.ask("echo", request, deadline).await }
    };
    let started = Instant::now();
    let nobody = ask("k", b"hello", LONG).await;
    assert_eq!(nobody, Err(LinkError::NoResponder { subject: "echo".into() }));
    assert!(started.elapsed() < LONG / 2, "nobody is known at once, not after {:?}", started.elapsed());

    let served = links.ask.serve("echo", 2, Arc::new(Server::default())).await.expect("serve");
    let large = vec![7; 300_000];
    for body in [&b"hello"[..], b"", &large] {
        let answer = ask("k", body, LONG).await.expect("an answer");
        assert_eq!(answer, message(links, "k", body), "body and envelope arrive as they were sent");
    }
    let refused = ask("k", b"refuse", LONG).await.expect_err("a refusal");
    assert!(matches!(&refused, LinkError::Refused { reason, .. } if reason.contains("no such thing")), "{refused}");
    let panicked = ask("k", b"panic", LONG).await.expect_err("an error");
    assert!(matches!(&panicked, LinkError::Refused { reason, .. } if reason.contains("panicked")), "{panicked}");
    let late = ask("k", b"hang", SHORT).await.expect_err("a missed deadline");
    assert_eq!(late, LinkError::Deadline { subject: "echo".into(), waited_ms: SHORT.as_millis() as u64 });
    assert!(ask("k", b"hello", LONG).await.is_ok(), "a panic and a hung request leave the other place usable");

    drop(served);
    // Over a network the leaving takes a moment; a request of that moment is answered, or not in time.
    let until = Instant::now() + LONG;
    while !matches!(ask("k", b"hello", SHORT).await, Err(LinkError::NoResponder { .. })) {
        assert!(Instant::now() < until, "served no more");
    }
}

pub(super) async fn concurrency_is_bounded(links: &Links) {
    let server = Arc::new(Server::default());
    let _served = links.ask.serve("echo", 3, server.clone()).await.expect("serve");
    ask_many(links, 30).await;
    assert_eq!(server.begun.load(SeqCst), 30);
    assert_eq!(server.most.load(SeqCst), 3, "as many at once as allowed, and no more");
}

pub(super) async fn servers_share_and_leave(links: &Links) {
    let (a, b) = (Arc::new(Server::default()), Arc::new(Server::default()));
    let served_a = links.ask.serve("echo", 4, a.clone()).await.expect("serve");
    let _served_b = links.ask.serve("echo", 4, b.clone()).await.expect("serve");
    ask_many(links, 60).await;
    let (by_a, by_b) = (a.begun.load(SeqCst), b.begun.load(SeqCst));
    assert_eq!(by_a + by_b, 60, "each request is answered once");
    assert!(by_a > 0 && by_b > 0, "both servers take part: {by_a} and {by_b}");
    drop(served_a);
    // Over a network the leaving takes a moment.
    sleep(5 * SHORT).await;
    ask_many(links, 20).await;
    assert_eq!((a.begun.load(SeqCst), b.begun.load(SeqCst)), (by_a, by_b + 20), "who left is not asked");
}

async fn ask_many(links: &Links, n: usize) {
    let mut asking = JoinSet::new();
    for i in 0..n {
        let links = links.clone();
        asking.spawn(async move {
            let request = message(&links, &format!("k{i}"), format!("body {i}").as_bytes());
            let answer = links.ask.ask("echo", request.clone(), LONG).await;
            assert_eq!(answer, Ok(request), "everyone gets the answer to their own question");
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.expect("an asker");
    }
}
