//! A message that was taken: read, held against a clock of our own, and settled.
//!
//! The server accepts an ack also when it has given the message to somebody else, so that the holder itself must know when
//! it no longer is one: a little before the redelivery time has passed on its own clock.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::{Message as NatsMessage, Subject};
use tokio::time::Instant;

use super::{
    super::{bodies, connection::late, headers},
    known::{Consumer, Known},
};
use crate::{BoxFuture, Delivery, LinkError, Message, Settle, lock};

/// Share of the redelivery time for which a message is held; the rest is for the way from the server and back.
const HELD_FOR: f32 = 0.9;
/// Before a body that could not be fetched is tried again.
const FETCH_AGAIN: Duration = Duration::from_secs(5);

/// A message as it came, and the right to settle it.
pub(super) struct Taken {
    message: NatsMessage,
    held: Held,
}

impl Taken {
    /// `message`, held from now on.
    pub(super) fn new(queue: &Arc<Known>, consumer: &Consumer, message: NatsMessage) -> Self {
        let reply = message.reply.clone().unwrap_or_else(|| Subject::from_static("none"));
        let until = Some(Instant::now() + consumer.ack_wait.mul_f32(HELD_FOR));
        let held = Held { queue: queue.clone(), reply, consumer: consumer.clone(), until: Mutex::new(until) };
        Self { message, held }
    }

    /// The delivery; none if its body cannot be fetched now, and the message was handed back. What cannot be read at all is
    /// delivered with an envelope or a body that no reader takes, so that it is refused where refusals are counted.
    pub(super) async fn open(self) -> Option<Delivery> {
        let Self { message, held } = self;
        let queue = held.queue.clone();
        let body = match bodies::unpack(&queue.nats, &message).await {
            Ok(body) => body,
            Err(error @ LinkError::Blob { .. }) => {
                tracing::warn!(queue = queue.name, %error, "message without its body");
                Arc::default()
            }
            Err(error) => {
                tracing::warn!(queue = queue.name, %error, "body not fetched; trying again later");
                if let Err(error) = held.nak(FETCH_AGAIN).await {
                    tracing::debug!(queue = queue.name, %error, "not handed back: it comes again in its time");
                }
                return None;
            }
        };
        let envelope = headers::read(message.headers.as_ref(), body.len()).unwrap_or_else(|reason| {
            tracing::warn!(queue = queue.name, from = %message.subject, reason, "message with odd headers");
            headers::unreadable(message.headers.as_ref())
        });
        let sender = queue.sender(&message.subject);
        let attempt = attempt(&held.reply);
        Some(Delivery { message: Message { envelope, body }, attempt, sender, settle: Box::new(held) })
    }
}

/// Number of the delivery, from 1, in an ack subject: `$JS.ACK.<stream>.<consumer>.<delivered>...`, or with a domain and an
/// account before the stream.
fn attempt(ack: &str) -> u32 {
    let tokens: Vec<&str> = ack.split('.').collect();
    let at = if tokens.len() > 9 { 6 } else { 4 };
    tokens.get(at).and_then(|token| token.parse().ok()).unwrap_or(1)
}

/// The right to settle one delivery.
struct Held {
    queue: Arc<Known>,
    reply: Subject,
    /// Whose delivery it is.
    consumer: Consumer,
    /// When the right ends; none when it was used.
    until: Mutex<Option<Instant>>,
}

impl Held {
    fn not_held(&self) -> LinkError {
        LinkError::NotHeld { subject: self.queue.name.clone() }
    }

    /// Tells the server `what` and waits for its word, while the message is held.
    async fn tell(&self, what: String, then: Option<Duration>) -> Result<(), LinkError> {
        let until = *lock(&self.until);
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(self.not_held());
        }
        let name = &self.queue.name;
        let within = self.queue.nats.config().request_timeout.min(left);
        self.queue.nats.ready(name, within).await?;
        self.check_consumer(within).await?;
        let sent = Instant::now();
        let told = self.queue.nats.request(self.reply.to_string(), None, what.into_bytes(), within).await;
        told.map_err(|error| {
            tracing::debug!(queue = name, ?error, "not settled");
            late(name, sent.elapsed())
        })?;
        *lock(&self.until) = then.map(|then| sent + then);
        Ok(())
    }

    /// After a reconnect the stream may be another one of the same name, where the same numbers mean other messages.
    async fn check_consumer(&self, within: Duration) -> Result<(), LinkError> {
        let now = self.queue.consumer(within).await.map_err(|error| {
            tracing::debug!(queue = self.queue.name, %error, "not settled");
            late(&self.queue.name, within)
        })?;
        if now.created != self.consumer.created {
            *lock(&self.until) = None;
            return Err(self.not_held());
        }
        Ok(())
    }
}

impl Settle for Held {
    fn ack(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(self.tell("+ACK".into(), None))
    }

    fn nak(&self, delay: Duration) -> BoxFuture<'_, Result<(), LinkError>> {
        let what = match delay.as_nanos() {
            0 => "-NAK".to_owned(),
            nanos => format!("-NAK {{\"delay\": {nanos}}}"),
        };
        Box::pin(self.tell(what, None))
    }

    fn term(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(self.tell("+TERM".into(), None))
    }

    fn progress(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(self.tell("+WPI".into(), Some(self.consumer.ack_wait.mul_f32(HELD_FOR))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attempt_is_read_from_both_forms_of_the_ack_subject() {
        assert_eq!(attempt("$JS.ACK.RL_demo_JOBS.rollout.3.10.12.1700000000.4"), 3);
        assert_eq!(attempt("$JS.ACK.hub.AbC.RL_demo_JOBS.rollout.2.10.12.1700000000.4.x"), 2);
        assert_eq!(attempt("none"), 1);
    }
}
