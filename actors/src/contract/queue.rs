//! Work queues.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{LONG, REDELIVER, SHORT, message};
use crate::{Delivery, LinkError, Links};

async fn publish(links: &Links, key: &str) {
    links.queue.publish("work", message(links, key, key.as_bytes())).await.expect("publish");
}

/// The one delivery that must come.
async fn one(links: &Links) -> Delivery {
    let mut deliveries = links.queue.pull("work", 1, LONG).await.expect("pull");
    assert_eq!(deliveries.len(), 1, "one delivery");
    deliveries.remove(0)
}

async fn nothing_comes(links: &Links, wait: Duration) {
    let deliveries = links.queue.pull("work", 10, wait).await.expect("pull");
    assert!(deliveries.is_empty(), "nothing should come, got {} deliveries", deliveries.len());
}

/// Waits until the queue holds `waiting` and `held` messages: over a network the counts follow a moment later.
async fn depth_becomes(links: &Links, waiting: usize, held: usize) {
    let until = Instant::now() + LONG;
    loop {
        let depth = links.queue.depth("work").await.expect("depth");
        if depth == (waiting, held) {
            return;
        }
        assert!(Instant::now() < until, "expected {:?} waiting and held, got {depth:?}", (waiting, held));
        sleep(SHORT / 4).await;
    }
}

fn key(delivery: &Delivery) -> &str {
    &delivery.message.envelope.key
}

fn not_held() -> LinkError {
    LinkError::NotHeld { subject: "work".into() }
}

pub(super) async fn each_message_goes_to_one_puller(links: &Links) {
    nothing_comes(links, SHORT).await;
    for i in 0..20 {
        publish(links, &format!("k{i:02}")).await;
    }
    depth_becomes(links, 20, 0).await;
    let (a, b) = tokio::join!(links.queue.pull("work", 8, LONG), links.queue.pull("work", 8, LONG));
    let mut taken = a.expect("pull");
    taken.extend(b.expect("pull"));
    let held = taken.len();
    assert!(held <= 16, "no puller gets more than it asked for");
    depth_becomes(links, 20 - held, held).await;
    while taken.len() < 20 {
        taken.extend(links.queue.pull("work", 20, LONG).await.expect("pull"));
    }
    let mut seen = BTreeMap::new();
    for delivery in &taken {
        *seen.entry(key(delivery).to_owned()).or_insert(0) += 1;
        assert_eq!(delivery.attempt, 1);
        let k = key(delivery);
        assert_eq!(delivery.message, message(links, k, k.as_bytes()), "body and envelope arrive as they were sent");
        delivery.settle.ack().await.expect("ack");
    }
    assert!(seen.len() == 20 && seen.values().all(|n| *n == 1), "each message once: {seen:?}");
    depth_becomes(links, 0, 0).await;
    assert_eq!(taken[0].settle.ack().await, Err(not_held()), "settled once");
    nothing_comes(links, 2 * REDELIVER).await;
}

pub(super) async fn unsettled_is_delivered_again(links: &Links) {
    publish(links, "k").await;
    let first = one(links).await;
    nothing_comes(links, REDELIVER / 4).await;
    let second = one(links).await;
    assert_eq!((key(&second), second.attempt), ("k", 2));
    assert_eq!(first.settle.ack().await, Err(not_held()), "a late ack is refused");
    assert_eq!(first.settle.progress().await, Err(not_held()));
    assert_eq!(first.settle.nak(Duration::ZERO).await, Err(not_held()));
    assert_eq!(first.settle.term().await, Err(not_held()));
    second.settle.ack().await.expect("the second holder's ack");
    nothing_comes(links, 2 * REDELIVER).await;
}

pub(super) async fn nak_term_and_progress(links: &Links) {
    publish(links, "k").await;
    let first = one(links).await;
    first.settle.nak(REDELIVER / 2).await.expect("nak");
    assert_eq!(first.settle.ack().await, Err(not_held()), "handed back");
    nothing_comes(links, REDELIVER / 4).await;
    let second = one(links).await;
    assert_eq!(second.attempt, 2);
    for _ in 0..4 {
        sleep(REDELIVER / 2).await;
        second.settle.progress().await.expect("progress");
        nothing_comes(links, Duration::from_millis(1)).await;
    }
    second.settle.nak(Duration::ZERO).await.expect("nak");
    let third = one(links).await;
    assert_eq!(third.attempt, 3);
    third.settle.term().await.expect("term");
    assert_eq!(third.settle.ack().await, Err(not_held()), "ended");
    nothing_comes(links, 2 * REDELIVER).await;
}

pub(super) async fn a_full_queue_says_so(links: &Links) {
    for i in 0..64 {
        publish(links, &format!("k{i}")).await;
    }
    let full = links.queue.publish("work", message(links, "more", b"")).await;
    assert_eq!(full, Err(LinkError::Full { subject: "work".into(), bound: 64 }));
    let held = one(links).await;
    let full = links.queue.publish("work", message(links, "more", b"")).await;
    assert!(matches!(full, Err(LinkError::Full { .. })), "what is held counts");
    let waiting = links.publish_job_waiting("work", &1.5, "waits", SHORT).await.expect_err("still full");
    assert!(matches!(waiting.link(), Some(LinkError::Full { .. })), "{waiting}");
    let (published, ()) = tokio::join!(links.publish_job_waiting("work", &1.5, "waits", LONG), async {
        sleep(SHORT).await;
        held.settle.ack().await.expect("ack");
    });
    published.expect("room was made");
    publish_elsewhere(links).await;
}

/// A full queue is no other queue's concern.
async fn publish_elsewhere(links: &Links) {
    links.queue.publish("other", message(links, "k", b"")).await.expect("publish");
}

pub(super) async fn a_waiting_puller_is_woken(links: &Links) {
    let (pulled, ()) = tokio::join!(timeout(LONG / 2, links.queue.pull("work", 1, LONG)), async {
        sleep(SHORT).await;
        publish(links, "k").await;
    });
    assert_eq!(pulled.expect("woken in time").expect("pull").len(), 1);
    // What another puller holds wakes this one when it lapses.
    let again = timeout(LONG / 2, links.queue.pull("work", 1, LONG)).await.expect("woken in time").expect("pull");
    assert_eq!(again[0].attempt, 2);
}
