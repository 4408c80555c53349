//! What holds also when messages are lost, late, doubled and out of order: an actor that tries again gets there, and
//! what must not be doubled is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use folgore_protocol::Search;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{LONG, SHORT};
use crate::{Links, TypedEvent};

const JOBS: u32 = 48;

fn job(n: u32) -> Search {
    Search { query: format!("job {n}"), top_k: n }
}

pub(super) async fn every_job_is_done_at_least_once(links: &Links) {
    let publisher = links.clone();
    let publishing = tokio::spawn(async move {
        for n in 0..JOBS {
            let (job, key) = (job(n), format!("k{n}"));
            let published = publisher.publish_job_waiting("work", &job, &key, 6 * LONG).await;
            published.expect("a publish that is tried again gets through");
        }
    });
    let mut done: BTreeMap<String, u32> = BTreeMap::new();
    let until = Instant::now() + 6 * LONG;
    while !publishing.is_finished() || links.queue.depth("work").await.expect("depth") != (0, 0) {
        assert!(Instant::now() < until, "done so far: {done:?}");
        let pulled = links.pull_jobs::<Search>("work", 5, SHORT).await.expect("pull");
        assert!(pulled.rejected.is_empty(), "nothing is damaged on the way: {:?}", pulled.rejected);
        for pulled in pulled.jobs {
            let n = pulled.body.top_k;
            assert_eq!((&pulled.body, &pulled.envelope.key), (&job(n), &format!("k{n}")), "key and body belong");
            *done.entry(pulled.envelope.key.clone()).or_default() += 1;
            // An ack that is lost means one more delivery, and that is allowed.
            let _ = pulled.ack().await;
        }
    }
    publishing.await.expect("the publisher");
    assert_eq!(done.len() as u32, JOBS, "every job at least once: {done:?}");
}

pub(super) async fn answers_belong_to_their_questions(links: &Links) {
    let echo = |request: Search| async move { Ok::<_, String>(request) };
    let _served = links.serve_typed("echo", 4, echo).await.expect("serve");
    let mut asking = JoinSet::new();
    for n in 0..JOBS {
        let links = links.clone();
        asking.spawn(async move {
            for _ in 0..40 {
                match links.call::<_, Search>("echo", &job(n), &format!("k{n}"), 2 * SHORT).await {
                    Ok(answer) => return assert_eq!(answer, job(n)),
                    Err(error) => assert!(error.is_transient(), "worth another try: {error}"),
                }
            }
            panic!("question {n} was never answered");
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.expect("an asker");
    }
}

/// Four writers append numbers to one value. A write whose answer is lost may have happened: who reads before writing
/// again never appends twice.
pub(super) async fn compared_writes_are_never_lost_or_doubled(links: &Links) {
    let mut writers = JoinSet::new();
    for writer in 0..4_u32 {
        let links = links.clone();
        writers.spawn(async move {
            for n in 0..8 {
                append(&links, writer * 100 + n).await;
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("a writer");
    }
    let (_, numbers) = timeout(LONG, read(links)).await.expect("in time");
    let unique: BTreeSet<u32> = numbers.iter().copied().collect();
    assert_eq!((numbers.len(), unique.len()), (32, 32), "each number once: {numbers:?}");
    for writer in 0..4 {
        let own: Vec<u32> = numbers.iter().copied().filter(|n| n / 100 == writer).collect();
        assert!(own.is_sorted(), "a writer's numbers are in its order: {own:?}");
    }
}

async fn append(links: &Links, number: u32) {
    let until = Instant::now() + 6 * LONG;
    loop {
        assert!(Instant::now() < until, "number {number} was never written");
        let (revision, mut numbers) = read(links).await;
        if numbers.contains(&number) {
            return;
        }
        numbers.push(number);
        // Whatever came of it, reading tells.
        let _ = links.put_state_if("numbers", revision, &numbers).await;
        tokio::time::sleep(Duration::from_millis(u64::from(number % 7))).await;
    }
}

async fn read(links: &Links) -> (u64, Vec<u32>) {
    loop {
        match links.get_state::<Vec<u32>>("numbers").await {
            Ok(Some(stored)) => return (stored.revision, stored.value),
            Ok(None) => return (0, Vec::new()),
            Err(error) => assert!(error.is_transient(), "worth another try: {error}"),
        }
    }
}

pub(super) async fn blobs_are_whole(links: &Links) {
    for n in 0..10_u8 {
        let bytes: std::sync::Arc<[u8]> = vec![n; 1000].into();
        let (mut tries, mut digest) = (0, None);
        while digest.is_none() {
            tries += 1;
            assert!(tries < 40, "blob {n} was never stored");
            digest = links.blob.put(bytes.clone()).await.ok();
        }
        let mut got = None;
        while got.is_none() {
            tries += 1;
            assert!(tries < 80, "blob {n} was never fetched");
            got = links.blob.get(digest.expect("stored")).await.ok();
        }
        assert_eq!(got, Some(bytes));
    }
}

pub(super) async fn events_are_whole(links: &Links) {
    let mut events = links.subscribe_events::<Search>("events").await.expect("subscribe");
    let mut heard = 0;
    for n in 0..JOBS {
        links.publish_event("events", &job(n), &format!("k{n}")).await.expect("publish");
        // A few at a time, so that the reader is never slow.
        if n % 3 < 2 {
            continue;
        }
        while let Ok(Some(event)) = timeout(SHORT, events.next()).await {
            let TypedEvent::Happened { envelope, body } = event.expect("nothing is damaged on the way") else {
                continue;
            };
            assert_eq!((&body, &envelope.key), (&job(body.top_k), &format!("k{}", body.top_k)));
            heard += 1;
        }
    }
    assert!(heard > JOBS / 2, "losable is not lost: {heard} of {JOBS}");
}
