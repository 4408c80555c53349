//! Pulling: what is there now, else wait for one, then take what came with it.

use std::{sync::Arc, time::Duration};

use async_nats::{StatusCode, Subscriber};
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    held::Taken,
    known::{Consumer, Known},
};

/// How long the server may take beyond the wait it was asked for. What it sends after that is lost until its redelivery, so
/// this is generous.
const GRACE: Duration = Duration::from_secs(5);
/// How long the server may take to describe the consumer, however short the wait.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
/// Between looks at a queue that cannot be pulled from.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Takes up to `max` messages of `queue` into `taken`, waiting at most `wait` for the first. What passes is waited out.
pub(super) async fn pull(queue: &Arc<Known>, max: usize, wait: Duration, taken: &mut Vec<Taken>) {
    let until = Instant::now() + wait;
    if max == 0 {
        return;
    }
    loop {
        match once(queue, max, until, taken).await {
            Ok(()) => queue.note(None),
            Err(trouble) => {
                queue.note(Some(trouble));
                queue.forget();
                sleep(LOOK_AGAIN.min(left(until))).await;
            }
        }
        if !taken.is_empty() || left(until).is_zero() {
            return;
        }
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// One try; `Err` says why nothing can be had at all.
async fn once(queue: &Arc<Known>, max: usize, until: Instant, taken: &mut Vec<Taken>) -> Result<(), String> {
    queue.nats.ready(&queue.name, left(until)).await.map_err(|_| "no connection to the server")?;
    queue.ensure().await;
    let patience = queue.nats.config().request_timeout.min(left(until).max(LEAST_PATIENCE));
    let consumer = queue.consumer(patience).await;
    let consumer = consumer.map_err(|e| format!("consumer {} of {}: {e}", queue.durable, queue.stream))?;
    request(queue, &consumer, max, None, taken).await?;
    let wait = left(until);
    if taken.is_empty() && !wait.is_zero() {
        request(queue, &consumer, 1, Some(wait), taken).await?;
        if !taken.is_empty() && max > 1 {
            // The first one is in hand, whatever comes of this.
            let _ = request(queue, &consumer, max - 1, None, taken).await;
        }
    }
    Ok(())
}

/// Asks for `batch` messages, waiting `wait` for the first, or not at all.
async fn request(
    queue: &Arc<Known>,
    consumer: &Consumer,
    batch: usize,
    wait: Option<Duration>,
    taken: &mut Vec<Taken>,
) -> Result<(), String> {
    let client = &queue.nats.client;
    let inbox = client.new_inbox();
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", queue.stream, queue.durable);
    let ask = match wait {
        None => json!({ "batch": batch, "no_wait": true }),
        Some(wait) => json!({ "batch": batch, "expires": wait.as_nanos() as u64 }),
    };
    let until = Instant::now() + wait.unwrap_or_default() + GRACE;
    let sent = async {
        let replies = client.subscribe(inbox.clone()).await.map_err(|e| e.to_string())?;
        let sent = client.publish_with_reply(subject, inbox, ask.to_string().into()).await;
        sent.map_err(|e| e.to_string()).map(|()| replies)
    };
    let replies = timeout_at(until, sent).await.map_err(|_| "the connection takes nothing")??;
    let mut connected = queue.nats.connected();
    let gone = async {
        // Both ends of this are the end of the connection.
        let _ = connected.wait_for(|up| !up).await;
    };
    tokio::select! {
        biased;
        ended = timeout_at(until, collect(queue, consumer, batch, replies, taken)) => {
            ended.unwrap_or_else(|_| Err("the server does not answer".to_owned()))
        }
        () = gone => Err("the connection was lost".to_owned()),
    }
}

/// Takes what comes until the server says that this was all.
async fn collect(
    queue: &Arc<Known>,
    consumer: &Consumer,
    batch: usize,
    mut replies: Subscriber,
    taken: &mut Vec<Taken>,
) -> Result<(), String> {
    let full = taken.len() + batch;
    while taken.len() < full {
        let message = replies.next().await.ok_or("the connection is closed")?;
        let said = || message.description.clone().unwrap_or_default();
        match message.status {
            None => taken.push(Taken::new(queue, consumer, message)),
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => return Ok(()),
            Some(StatusCode::IDLE_HEARTBEAT) => {}
            Some(StatusCode::NO_RESPONDERS) => return Err(format!("no stream {}", queue.stream)),
            Some(StatusCode::REQUEST_TERMINATED) if said().contains("Batch Completed") => return Ok(()),
            Some(status) => return Err(format!("{status} {}", said())),
        }
    }
    Ok(())
}
