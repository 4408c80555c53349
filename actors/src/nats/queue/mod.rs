//! Work queues in JetStream: one stream and one durable pull consumer each.
//!
//! A publish has an id of its own, so that its one retry is not a second message. A pull never asks for more than its caller
//! can begin now, because the redelivery clock runs from the delivery. Nothing here fails for what passes: while the server,
//! the stream or the consumer is gone, a pull waits its time out and a publish says [`LinkError::Deadline`].

mod held;
mod known;
mod pull;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::HeaderMap;
use folgore_protocol::names::check_name;
use futures_util::{StreamExt, stream};
use tokio::{runtime::Handle, sync::oneshot, time::Instant};

use self::{held::Taken, known::Known};
use super::{
    Nats, bodies,
    connection::{late, refused},
    headers,
    request::{ApiError, Unanswered, read_answer},
};
use crate::{BoxFuture, Delivery, LinkError, Message, Queue, lock};

/// What the server answers when a stream, or the disk under it, holds as much as it may.
const FULL: [u64; 3] = [10077, 10023, 10047];
/// Code of what passes: the server, its JetStream or the stream is not there now.
const UNAVAILABLE: u64 = 503;

/// Bodies of one pull that are fetched at once.
const FETCHES: usize = 8;

/// Queues by name.
pub(super) struct NatsQueue {
    nats: Nats,
    known: Mutex<HashMap<String, Arc<Known>>>,
}

impl NatsQueue {
    pub(super) fn new(nats: &Nats) -> Self {
        Self { nats: nats.clone(), known: Mutex::default() }
    }

    fn known(&self, queue: &str) -> Result<Arc<Known>, LinkError> {
        check_name("queue", queue).map_err(|reason| refused(queue, reason))?;
        let mut known = lock(&self.known);
        let make = || Arc::new(Known::new(&self.nats, queue));
        Ok(known.entry(queue.to_owned()).or_insert_with(make).clone())
    }
}

impl Queue for NatsQueue {
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            let queue = self.known(subject)?;
            let started = Instant::now();
            self.nats.ready(subject, self.nats.config().request_timeout).await?;
            queue.ensure().await;
            let (headers, body) = pack(&queue, message).await?;
            let mut sent = send(&queue, headers.clone(), body.clone()).await;
            if sent == Err(ApiError::Unanswered(Unanswered::Late)) {
                // The same id: if the first one was stored after all, this one is not.
                sent = send(&queue, headers, body).await;
            }
            sent.map_err(|error| match error {
                ApiError::Refused { err_code, .. } if FULL.contains(&err_code) => {
                    LinkError::Full { subject: subject.to_owned(), bound: self.nats.config().queue_bound }
                }
                ApiError::Refused { code, .. } if code != UNAVAILABLE => refused(subject, error.to_string()),
                ApiError::Unanswered(Unanswered::Unsent(_)) => refused(subject, error.to_string()),
                _ => {
                    queue.forget();
                    tracing::debug!(subject, %error, "not published");
                    late(subject, started.elapsed())
                }
            })
        })
    }

    fn pull<'a>(
        &'a self,
        subject: &'a str,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Delivery>, LinkError>> {
        Box::pin(async move {
            let queue = self.known(subject)?;
            let (give, take) = oneshot::channel();
            // A task of its own, which outlives a caller who leaves: the server knows of the request until it ends, and what
            // it sends goes back at once, not after the redelivery time.
            tokio::spawn(take_for(queue, max, wait, give));
            take.await.map(Given::take).map_err(|_| LinkError::Closed { subject: subject.to_owned() })
        })
    }

    fn depth<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<(usize, usize), LinkError>> {
        Box::pin(async move {
            let queue = self.known(subject)?;
            let within = self.nats.config().request_timeout;
            self.nats.ready(subject, within).await?;
            queue.ensure().await;
            let consumer = queue.look(within).await.map_err(|error| {
                tracing::debug!(subject, %error, "depth not known");
                late(subject, within)
            })?;
            Ok((consumer.waiting, consumer.held))
        })
    }

    fn system(&self) -> &'static str {
        "nats"
    }
}

async fn take_for(queue: Arc<Known>, max: usize, wait: Duration, give: oneshot::Sender<Given>) {
    let mut taken = Vec::new();
    pull::pull(&queue, max, wait, &mut taken).await;
    // Side by side: while one body cannot be had, the others must not wait past their redelivery time.
    let opening = stream::iter(taken).map(Taken::open).buffered(FETCHES);
    let deliveries = opening.filter_map(std::future::ready).collect().await;
    // Nobody takes them any more: dropped, and so handed back.
    drop(give.send(Given { queue, deliveries }));
}

/// Deliveries on their way to the caller. A caller may leave at any moment, also when they are already in the channel: what
/// is dropped goes back to the queue.
struct Given {
    queue: Arc<Known>,
    deliveries: Vec<Delivery>,
}

impl Given {
    fn take(mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        for unread in std::mem::take(&mut self.deliveries) {
            let queue = self.queue.clone();
            runtime.spawn(async move {
                if let Err(error) = unread.settle.nak(Duration::ZERO).await {
                    tracing::debug!(queue = queue.name, %error, "not given back: it comes again in its time");
                }
            });
        }
    }
}

async fn pack(queue: &Known, message: Message) -> Result<(HeaderMap, Vec<u8>), LinkError> {
    let (mut headers, body) = bodies::pack(&queue.nats, &queue.name, message, queue.inline_max).await?;
    let id = headers::insert(&mut headers, headers::MESSAGE_ID, &queue.nats.unique_id());
    id.map_err(|reason| refused(&queue.name, reason))?;
    Ok((headers, body))
}

async fn send(queue: &Known, headers: HeaderMap, body: Vec<u8>) -> Result<(), ApiError> {
    let within = queue.nats.config().request_timeout;
    let answer = queue.nats.request(queue.publish_to.clone(), Some(headers), body, within).await;
    read_answer(&answer.map_err(ApiError::Unanswered)?.payload).map(|_| ())
}
