//! The typed helpers over the links.

use folgore_protocol::{
    DeadLetter, Envelope, Format, Passage, Passages, Search, decode, encode, encode_json, subjects,
};
use tokio::time::timeout;

use super::LONG;
use crate::{CallError, LinkError, Links, Message, TraceContext, TypedEvent};

fn search(query: &str) -> Search {
    Search { query: query.into(), top_k: 2 }
}

/// Says its question and its trace.
async fn answer(envelope: Envelope, request: Search) -> Result<Passages, String> {
    if request.query.is_empty() {
        return Err("an empty question".into());
    }
    let trace = TraceContext::current().map(|context| context.trace_id()).ok_or("no trace")?;
    let passage = |text: String| Passage { id: envelope.key.clone(), title: String::new(), text, score: 1.0 };
    Ok(Passages { passages: vec![passage(request.query), passage(trace)] })
}

pub(super) async fn replies_keep_the_format_and_the_trace(links: &Links) {
    let chad = search("Chad");
    let waiting = links.call_when_served::<_, Passages>("search", &chad, "g1.0.0", LONG);
    let serving = async {
        tokio::time::sleep(super::SHORT).await;
        links.serve_enveloped("search", 2, answer).await.expect("serve")
    };
    let (reply, _served) = tokio::join!(waiting, serving);
    let texts = reply.expect("a reply").passages;
    assert_eq!((texts[0].text.as_str(), texts[0].id.as_str()), ("Chad", "g1.0.0"));
    assert_eq!(texts[1].text, TraceContext::root(&links.run, "g1.0.0").trace_id(), "a trace begins with its key");

    let parent = TraceContext::root(&links.run, "another sample");
    let reply: Passages = parent.scope(links.call("search", &search("Chad"), "k", LONG)).await.expect("a reply");
    assert_eq!(reply.passages[1].text, parent.trace_id(), "what is sent on the way belongs to the same trace");

    let body = encode_json(&search("Chad")).expect("JSON");
    let bare = Message { envelope: Envelope::new(&links.run, "k"), body: body.into() };
    let reply = links.ask.ask("search", bare, LONG).await.expect("a reply");
    assert_eq!(Format::of(&reply.body), Format::Json, "JSON is answered in JSON");
    assert_eq!(decode::<Passages>(&reply.body).expect("passages").passages[0].text, "Chad");
    let packed: Passages = links.call_as(Format::Json, "search", &search("Lake"), "k", LONG).await.expect("a reply");
    assert_eq!(packed.passages[0].text, "Lake");

    let refused = links.call::<_, Passages>("search", &search(""), "k", LONG).await.expect_err("a refusal");
    assert!(refused.to_string().contains("an empty question") && !refused.is_transient(), "{refused}");
    let unread = links.call::<_, Passages>("search", &1.5, "k", LONG).await.expect_err("a refusal");
    assert!(matches!(unread.link(), Some(LinkError::Refused { .. })), "{unread}");
}

pub(super) async fn what_cannot_be_read_is_refused(links: &Links) {
    let mut letters = links.subscribe_events::<DeadLetter>(subjects::DEAD_LETTERS).await.expect("subscribe");
    let good = encode(&search("Chad")).expect("body");
    let message = |key: &str, body: &[u8]| Message { envelope: Envelope::new(&links.run, key), body: body.into() };
    let mut newer = message("newer", &good);
    newer.envelope.version += 1;
    let mut stranger = message("stranger", &good);
    stranger.envelope.run = "another".into();
    let mut damaged = message("damaged", &good);
    damaged.envelope.digest = Some(folgore_protocol::Digest::of(b"something else"));
    for bad in [message("short", &good[..3]), newer, stranger, damaged] {
        links.queue.publish("work", bad).await.expect("publish");
    }
    links.publish_job("work", &search("Chad"), "good").await.expect("publish");
    let (mut jobs, mut rejected) = (Vec::new(), Vec::new());
    while jobs.len() + rejected.len() < 5 {
        let pulled = links.pull_jobs::<Search>("work", 10, LONG).await.expect("pull");
        jobs.extend(pulled.jobs);
        rejected.extend(pulled.rejected);
    }
    rejected.sort_by(|a, b| a.key.cmp(&b.key));
    let keys: Vec<&str> = rejected.iter().map(|r| r.key.as_str()).collect();
    assert_eq!(keys, ["damaged", "newer", "short", "stranger"]);
    for (rejected, why) in rejected.iter().zip(["digest", "protocol version 1, got 2", "Search", "got another"]) {
        assert!(rejected.reason.contains(why), "{:?} does not say {why:?}", rejected.reason);
    }
    let mut told = Vec::new();
    while told.len() < 4 {
        match timeout(LONG, letters.next()).await.expect("in time").expect("open").expect("readable") {
            TypedEvent::Happened { body, .. } => told.push((body.queue, body.key)),
            TypedEvent::Missed(missed) => panic!("{missed} dead letters missed"),
        }
    }
    told.sort();
    let expected: Vec<(String, String)> = keys.iter().map(|key| ("work".to_owned(), (*key).to_owned())).collect();
    assert_eq!(told, expected, "each is told");
    assert_eq!((jobs[0].body.query.as_str(), jobs[0].attempt), ("Chad", 1));
    let kept = jobs[0].keep_while(super::REDELIVER / 3, async {
        tokio::time::sleep(3 * super::REDELIVER).await;
        TraceContext::current().map(|context| context.trace_id())
    });
    assert_eq!(kept.await, Ok(Some(TraceContext::root(&links.run, "good").trace_id())));
    assert_eq!(jobs[0].attempt, 1);
    jobs[0].ack().await.expect("still held after three redelivery times");
    assert_eq!(links.queue.depth("work").await.expect("depth"), (0, 0), "what was rejected does not come back");
}

pub(super) async fn values_and_events_read_back(links: &Links) {
    let mut watch = links.watch_state::<Search>("policy").await.expect("watch");
    let revision = links.put_state_if("policy", 0, &search("one")).await.expect("write");
    let stored = links.get_state::<Search>("policy").await.expect("read").expect("there");
    assert_eq!((stored.revision, &stored.value), (revision, &search("one")));
    assert_eq!(timeout(LONG, watch.next()).await.expect("in time").expect("open").expect("read"), stored);
    let stale = links.put_state_if("policy", 0, &search("two")).await.expect_err("a conflict");
    assert!(matches!(stale, CallError::Link(LinkError::Conflict { .. })), "{stale}");
    let other = links.get_state::<Passages>("policy").await.expect_err("another type");
    assert!(matches!(other, CallError::Body { .. }), "{other}");

    let mut events = links.subscribe_events::<Search>("events").await.expect("subscribe");
    links.publish_event("events", &1.5, "odd").await.expect("publish");
    links.publish_event("events", &search("three"), "k").await.expect("publish");
    let unread = timeout(LONG, events.next()).await.expect("in time").expect("open");
    assert!(matches!(unread, Err(CallError::Body { .. })), "{unread:?}");
    let read = timeout(LONG, events.next()).await.expect("in time").expect("open").expect("read");
    assert!(matches!(read, TypedEvent::Happened { body, .. } if body == search("three")));
}
