//! Request and reply over core NATS. Those who serve a subject are one queue group: each request goes to one of them.
//!
//! A server is known to the NATS server a moment after [`Ask::serve`] has returned; until then an asker elsewhere is told that
//! nobody answers. A request that arrives is taken off the connection at once and waits for a place with its own budget running: who asked
//! and has left is not answered.

use std::{sync::Arc, time::Duration};

use async_nats::{HeaderMap, Subscriber};
use folgore_protocol::names::check_name;
use futures_util::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Nats, bodies,
    connection::{late, refused, taken},
    headers,
    request::Unanswered,
    streams,
};
use crate::{Ask, BoxFuture, Handler, LinkError, Message, Served, compute::panic_text};

/// Largest body of a request that travels in its message.
const INLINE_MAX: usize = streams::MESSAGE_MAX - bodies::BESIDE;
/// Requests that may wait for a place at one server; more stay on the connection.
const WAITING: usize = 1024;
/// How long a server that leaves still takes what the NATS server had sent it before it knew.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct NatsAsk {
    nats: Nats,
}

impl NatsAsk {
    pub(super) fn new(nats: &Nats) -> Self {
        Self { nats: nats.clone() }
    }

    fn subject(&self, kind: &str) -> Result<String, LinkError> {
        check_name("request", kind).map_err(|reason| refused(kind, reason))?;
        Ok(self.nats.config().run.request(kind))
    }

    async fn answer(&self, kind: &str, request: Message, deadline: Duration) -> Result<Message, LinkError> {
        let until = Instant::now() + deadline;
        let subject = self.subject(kind)?;
        self.nats.ready(kind, deadline).await?;
        let packed = timeout_at(until, bodies::pack(&self.nats, kind, request, INLINE_MAX)).await;
        let (headers, body) = packed.map_err(|_| late(kind, deadline))??;
        let left = until.saturating_duration_since(Instant::now());
        let reply = self.nats.request(subject, Some(headers), body, left).await;
        let reply = reply.map_err(|error| match error {
            Unanswered::Nobody => LinkError::NoResponder { subject: kind.to_owned() },
            Unanswered::Late => late(kind, deadline),
            Unanswered::Unsent(reason) => refused(kind, reason),
        })?;
        if let Some(reason) = reply.headers.as_ref().and_then(|h| headers::text(h, headers::ERROR)) {
            return Err(refused(kind, reason.to_owned()));
        }
        let envelope = headers::read(reply.headers.as_ref(), reply.payload.len());
        let envelope = envelope.map_err(|reason| refused(kind, format!("an unreadable reply: {reason}")))?;
        Ok(Message { envelope, body: reply.payload.as_ref().into() })
    }
}

impl Ask for NatsAsk {
    fn ask<'a>(
        &'a self,
        subject: &'a str,
        request: Message,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Message, LinkError>> {
        Box::pin(self.answer(subject, request, deadline))
    }

    fn serve<'a>(
        &'a self,
        subject: &'a str,
        concurrency: usize,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'a, Result<Served, LinkError>> {
        Box::pin(async move {
            let subscribing = self.nats.client.queue_subscribe(self.subject(subject)?, subject.to_owned());
            let subscriber = taken(subject, self.nats.config().request_timeout, subscribing).await?;
            let (leave, left) = oneshot::channel::<()>();
            let server = Server {
                nats: self.nats.clone(),
                kind: subject.into(),
                handler,
                waiting: Arc::new(Semaphore::new(WAITING)),
                places: Arc::new(Semaphore::new(concurrency.max(1))),
            };
            tokio::spawn(server.run(subscriber, left));
            // Dropping the sender is what tells the server to leave.
            Ok(Served(Box::new(leave)))
        })
    }
}

/// Serves one subject in one process.
#[derive(Clone)]
struct Server {
    nats: Nats,
    kind: Arc<str>,
    handler: Arc<dyn Handler>,
    waiting: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Server {
    async fn run(self, mut subscriber: Subscriber, mut left: oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                biased;
                _ = &mut left => break,
                next = self.next(&mut subscriber) => match next {
                    Some((turn, request)) => drop(tokio::spawn(self.clone().serve(turn, request))),
                    None => return,
                },
            }
        }
        // What is here is answered; what is still on its way when the NATS server hears of the leaving may not be, and its
        // asker is told so by the deadline.
        if subscriber.drain().await.is_err() {
            return;
        }
        let until = Instant::now() + LEAVE_WITHIN;
        while let Ok(Some((turn, request))) = timeout_at(until, self.next(&mut subscriber)).await {
            tokio::spawn(self.clone().serve(turn, request));
        }
    }

    async fn next(&self, subscriber: &mut Subscriber) -> Option<(OwnedSemaphorePermit, async_nats::Message)> {
        let turn = self.waiting.clone().acquire_owned().await.ok()?;
        Some((turn, subscriber.next().await?))
    }

    /// Waits for a place, does the work and replies.
    async fn serve(self, turn: OwnedSemaphorePermit, message: async_nats::Message) {
        let kind = &*self.kind;
        // Replies go to inboxes: a reply subject is the asker's word, and could name somebody else's queue.
        let Some(reply) = message.reply.clone().filter(|reply| reply.starts_with("_INBOX.")) else {
            tracing::warn!(kind, reply = ?message.reply, "request without an inbox for its reply");
            return;
        };
        let budget = headers::budget(message.headers.as_ref()).unwrap_or(Duration::MAX);
        let begin = Instant::now();
        let Ok(Ok(place)) = timeout(budget, self.places.clone().acquire_owned()).await else {
            tracing::debug!(kind, "no place in time: the asker has left");
            return;
        };
        drop(turn);
        let unpacked = timeout(budget.saturating_sub(begin.elapsed()), bodies::unpack(&self.nats, &message)).await;
        let request = match unpacked {
            Ok(Ok(body)) => {
                let envelope = headers::read(message.headers.as_ref(), body.len());
                envelope.map(|envelope| Message { envelope, body })
            }
            Ok(Err(error @ LinkError::Blob { .. })) => Err(error.to_string()),
            // It may be there the next time: whoever asks hears nothing, and asks again.
            Ok(Err(error)) => return tracing::warn!(kind, %error, "the body of a request cannot be had now"),
            Err(_) => return tracing::debug!(kind, "no body in time: the asker has left"),
        };
        let request = match request {
            Ok(request) => request,
            Err(reason) => {
                tracing::warn!(kind, reason, "unreadable request");
                let reason = format!("an unreadable request: {reason}");
                return self.reply(reply, headers::refusal(&reason), Vec::new()).await;
            }
        };
        let answer = self.work(request).await;
        drop(place);
        let answer = answer.and_then(|answer| {
            let headers = headers::write(&answer.envelope, answer.body.len())?;
            Ok((headers, answer.body.to_vec()))
        });
        match answer {
            Ok((headers, body)) => self.reply(reply, headers, body).await,
            Err(reason) => self.reply(reply, headers::refusal(&reason), Vec::new()).await,
        }
    }

    /// Runs the handler as a task of its own, so that its panic is an answer.
    async fn work(&self, request: Message) -> Result<Message, String> {
        let handler = self.handler.clone();
        let work = tokio::spawn(async move { handler.handle(request).await });
        work.await.unwrap_or_else(|e| match e.try_into_panic() {
            Ok(panic) => Err(format!("the handler panicked: {}", panic_text(&*panic))),
            Err(_) => Err("the process is shutting down".to_owned()),
        })
    }

    async fn reply(&self, to: async_nats::Subject, headers: HeaderMap, body: Vec<u8>) {
        let sent = self.nats.client.publish_with_headers(to.clone(), headers, body.into()).await;
        let Err(error) = sent else { return };
        tracing::warn!(kind = &*self.kind, %error, "reply not sent");
        // Perhaps it was too large: the asker is told rather than left waiting.
        let reason = headers::refusal(&format!("the reply could not be sent: {error}"));
        if let Err(error) = self.nats.client.publish_with_headers(to, reason, Vec::new().into()).await {
            tracing::warn!(kind = &*self.kind, %error, "refusal not sent");
        }
    }
}
