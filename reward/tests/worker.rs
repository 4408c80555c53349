//! The worker on local links, asked as a rollout worker asks it.

use std::{
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use folgore_actors::{CallError, Context, Level, LinkError, Links, LocalConfig, Service, Shutdown, Status, local};
use folgore_protocol::{
    Format, GroupId, Outcome, Prompt, Scope, ScoreItem, ScoreReply, ScoreRequest, SeatKey, StopReason, subjects,
};
use folgore_reward::{PerItem, Reward, RewardWorker, Rule};
use serde_json::{Map, json};

const DEADLINE: Duration = Duration::from_secs(20);

/// Scores the number of bytes; panics on "panic", waits for the test on "wait".
struct Bytes(Mutex<Receiver<()>>);

impl Rule for Bytes {
    fn name(&self) -> &str {
        "bytes"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        match item.completion.as_str() {
            "panic" => panic!("asked to"),
            "wait" => self.0.lock().unwrap().recv().unwrap(),
            _ => {}
        }
        Outcome::scored("bytes", item.completion.len() as f64)
    }
}

fn request(completions: &[&str], budget_ms: u64) -> ScoreRequest {
    let item = |(i, text): (usize, &&str)| ScoreItem {
        id: SeatKey { group: GroupId(7), sample: i as u32, draw: 0 },
        columns: Map::from_iter([("answer".to_owned(), json!("1"))]),
        prompt: Prompt::Text("q".into()),
        completion: (*text).to_owned(),
        completion_ids: vec![1, 2],
        stop_reason: StopReason::Eos,
        said: Vec::new(),
    };
    ScoreRequest { items: completions.iter().enumerate().map(item).collect(), budget_ms, scope: Scope::Sample }
}

/// Runs a worker for [`Bytes`] while `test` runs, and sees that it ends well when asked to. What the test sends lets a
/// waiting rule go on.
async fn with_worker<F: Future<Output = ()>>(test: impl FnOnce(Links, Status, Sender<()>) -> F) {
    let (go_on, waiting) = channel();
    let reward: Arc<dyn Reward> = Arc::new(PerItem::new(Bytes(Mutex::new(waiting))));
    // Local links make their blob folder with the first blob; these tests store none.
    let links = local("test", LocalConfig::new("unused-blobs"));
    let (shutdown, status) = (Shutdown::new(), Status::new());
    let context =
        Context { name: "reward-0".into(), links: links.clone(), shutdown: shutdown.clone(), status: status.clone() };
    let worker = tokio::spawn(Box::new(RewardWorker::new(reward, 2)).run(context));
    test(links.clone(), status, go_on).await;
    shutdown.request(Level::Stopping);
    worker.await.expect("the worker does not panic").expect("the worker ends well");
    let after: Result<ScoreReply, _> = links.call(subjects::REWARD, &request(&["a"], 100), "k", DEADLINE).await;
    let gone = matches!(&after, Err(CallError::Link(LinkError::NoResponder { .. })));
    assert!(gone, "expected nobody to answer, got {after:?}");
}

async fn ask(links: &Links, request: ScoreRequest) -> Vec<Outcome> {
    let ids: Vec<_> = request.items.iter().map(|i| i.id).collect();
    let reply: ScoreReply = links.call_when_served(subjects::REWARD, &request, "k", DEADLINE).await.expect("a reply");
    assert_eq!(reply.outcomes.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
    reply.outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_answers_in_order_and_counts_outcomes() {
    with_worker(|links, status, _| async move {
        let totals: Vec<_> =
            ask(&links, request(&["a", "panic", "abc"], 10_000)).await.iter().map(Outcome::total).collect();
        assert_eq!(totals, [Some(1.0), None, Some(3.0)]);
        let mut shown = status.get();
        let seconds = shown.as_object_mut().unwrap().remove("seconds").unwrap();
        assert!(seconds.as_f64().unwrap() >= 0.0, "{seconds}");
        assert_eq!(shown, json!({"reward": "bytes", "scored": 2, "unscorable": 0, "errors": 1, "requests": 1}));
        assert_eq!(ask(&links, request(&[], 10_000)).await, []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_over_its_budget_gets_errors_and_the_worker_goes_on() {
    with_worker(|links, _, go_on| async move {
        let late = ask(&links, request(&["wait", "a"], 5)).await;
        for outcome in late {
            let Outcome::Error { reason } = outcome else { panic!("expected an error, got {outcome:?}") };
            assert!(reason.contains("no score within 5 ms"), "{reason}");
        }
        go_on.send(()).expect("the rule still waits");
        assert_eq!(ask(&links, request(&["ab"], 10_000)).await[0].total(), Some(2.0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_answered_and_garbage_is_refused() {
    with_worker(|links, _, _| async move {
        ask(&links, request(&["a"], 10_000)).await;
        let reply: ScoreReply = links
            .call_as(Format::Json, subjects::REWARD, &request(&["abcd"], 10_000), "k", DEADLINE)
            .await
            .expect("a reply");
        assert_eq!(reply.outcomes[0].1.total(), Some(4.0));
        let refused: Result<ScoreReply, _> =
            links.call(subjects::REWARD, &json!({"items": "none"}), "k", DEADLINE).await;
        assert!(matches!(refused, Err(CallError::Link(LinkError::Refused { .. }))), "{refused:?}");
    })
    .await;
}
