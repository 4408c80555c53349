//! Publish and subscribe.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{LONG, SHORT, message};
use crate::{Event, Links, Subscription};

async fn publish(links: &Links, key: &str) {
    links.topic.publish("news", message(links, key, key.as_bytes())).await.expect("publish");
}

async fn next(reader: &mut Box<dyn Subscription>, wait: Duration) -> Option<Event> {
    timeout(wait, reader.next()).await.ok().flatten()
}

pub(super) async fn readers_hear_from_then_on(links: &Links) {
    publish(links, "before").await;
    let mut a = links.topic.subscribe("news").await.expect("subscribe");
    let mut b = links.topic.subscribe("news").await.expect("subscribe");
    publish(links, "after").await;
    let heard = Some(Event::Message(message(links, "after", b"after")));
    assert_eq!(next(&mut a, LONG).await, heard);
    assert_eq!(next(&mut b, LONG).await, heard, "everyone who listens hears it");
    drop(b);
    links.topic.publish("other", message(links, "k", b"")).await.expect("publish");
    assert_eq!(next(&mut a, SHORT).await, None, "another subject is not heard");
    publish(links, "last").await;
    assert_eq!(next(&mut a, LONG).await, Some(Event::Message(message(links, "last", b"last"))));
}

pub(super) async fn slow_readers_are_told(links: &Links) {
    let mut reader = links.topic.subscribe("news").await.expect("subscribe");
    for i in 0..100 {
        publish(links, &format!("k{i}")).await;
    }
    // Over a network they are on the way a moment; who reads meanwhile is not slow.
    sleep(5 * SHORT).await;
    let (mut heard, mut missed) = (0, 0);
    while heard + missed < 100 {
        match next(&mut reader, LONG).await.expect("what was missed is told") {
            Event::Message(_) => heard += 1,
            Event::Missed(n) => missed += n,
        }
    }
    assert_eq!(heard + missed, 100, "heard and missed are all there was");
    assert!(missed > 0 && heard > 0, "heard {heard}, missed {missed}");
}
