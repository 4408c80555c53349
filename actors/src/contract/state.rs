//! Latest values.

use std::sync::Arc;

use tokio::time::timeout;

use super::{LONG, SHORT};
use crate::{LinkError, Links, Versioned};

fn value(text: &str) -> Arc<[u8]> {
    text.as_bytes().into()
}

pub(super) async fn writes_are_compared(links: &Links) {
    let put = |expected, text| links.state.put_if("policy", expected, value(text));
    assert_eq!(links.state.get("policy").await, Ok(None));
    let conflict = |expected, found| Err(LinkError::Conflict { key: "policy".into(), expected, found });
    assert_eq!(put(3, "early").await, conflict(3, 0));
    let first = put(0, "one").await.expect("the first write");
    assert!(first >= 1, "0 stands for absent");
    assert_eq!(put(0, "again").await, conflict(0, first));
    let second = put(first, "two").await.expect("the second write");
    assert!(second > first, "revisions grow: {first}, {second}");
    assert_eq!(put(first, "stale").await, conflict(first, second));
    assert_eq!(links.state.get("policy").await, Ok(Some(Versioned { revision: second, value: value("two") })));
    assert_eq!(links.state.get("other").await, Ok(None), "keys are apart");
}

pub(super) async fn watchers_see_the_latest(links: &Links) {
    let mut early = links.state.watch("policy").await.expect("watch");
    assert!(timeout(SHORT, early.next()).await.is_err(), "nothing is there yet");
    let mut revision = 0;
    for text in ["one", "two"] {
        revision = links.state.put_if("policy", revision, value(text)).await.expect("write");
    }
    let mut late = links.state.watch("policy").await.expect("watch");
    for watch in [&mut early, &mut late] {
        loop {
            let seen = timeout(LONG, watch.next()).await.expect("in time").expect("open");
            if seen.revision == revision {
                assert_eq!(seen.value, value("two"));
                break;
            }
        }
        assert!(timeout(SHORT, watch.next()).await.is_err(), "the same value is not told twice");
    }
    revision = links.state.put_if("policy", revision, value("three")).await.expect("write");
    let seen = timeout(LONG, late.next()).await.expect("in time");
    assert_eq!(seen, Some(Versioned { revision, value: value("three") }));
}
