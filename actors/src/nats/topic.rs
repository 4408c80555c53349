//! Publish and subscribe over core NATS: no stream, no ack; who is not there does not hear.

use async_nats::Subscriber;
use folgore_protocol::{
    names::{Role, check_name},
    subjects,
};
use futures_util::StreamExt;
use tokio::{
    sync::broadcast::{Receiver, Sender, channel, error::RecvError},
    task::AbortHandle,
};

use super::{
    Nats,
    connection::{refused, taken},
    headers,
};
use crate::{BoxFuture, Event, LinkError, Message, Subscription, Topic};

pub(super) struct NatsTopic {
    nats: Nats,
}

impl NatsTopic {
    pub(super) fn new(nats: &Nats) -> Self {
        Self { nats: nats.clone() }
    }

    /// Subjects of topic `topic`: where this process speaks, and where it listens.
    fn subjects(&self, topic: &str) -> Result<(String, String), LinkError> {
        let config = self.nats.config();
        let run = &config.run;
        check_name("topic", topic).map_err(|reason| refused(topic, reason))?;
        Ok(match topic {
            subjects::EVENTS => (run.events_of(config.role), run.events()),
            subjects::HEARTBEATS => (run.heartbeat(config.role, &config.name), run.heartbeats()),
            subjects::DEAD_LETTERS => {
                let what = if config.role == Role::Head { "traj" } else { "job" };
                (run.dead_letters(what), run.dead_letters("*"))
            }
            other => {
                let subject = format!("{}.t.{other}", run.prefix());
                (subject.clone(), subject)
            }
        })
    }
}

impl Topic for NatsTopic {
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            let (to, _) = self.subjects(subject)?;
            let headers = headers::write(&message.envelope, message.body.len()).map_err(|e| refused(subject, e))?;
            if !*self.nats.connected().borrow() {
                // Kept in the client it would arrive late, and what it says is of now.
                tracing::debug!(subject, key = message.envelope.key, "no connection: nobody hears");
                return Ok(());
            }
            let sending = self.nats.client.publish_with_headers(to, headers, message.body.to_vec().into());
            match taken(subject, self.nats.config().request_timeout, sending).await {
                Err(LinkError::Deadline { .. }) => {
                    tracing::debug!(subject, key = message.envelope.key, "the connection takes nothing: nobody hears");
                    Ok(())
                }
                sent => sent,
            }
        })
    }

    fn subscribe<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Box<dyn Subscription>, LinkError>> {
        Box::pin(async move {
            let (_, from) = self.subjects(subject)?;
            let subscribing = self.nats.client.subscribe(from);
            let subscriber = taken(subject, self.nats.config().request_timeout, subscribing).await?;
            let (ring, reader) = channel(self.nats.config().topic_bound.max(1));
            let pump = tokio::spawn(pump(subscriber, ring, subject.to_owned())).abort_handle();
            Ok(Box::new(Reader { ring: reader, pump }) as Box<dyn Subscription>)
        })
    }
}

/// Takes messages off the connection as they come, so that a slow reader costs nobody else anything. The client subscribes
/// again by itself after a reconnect.
async fn pump(mut subscriber: Subscriber, ring: Sender<Message>, subject: String) {
    while let Some(message) = subscriber.next().await {
        let envelope = headers::read(message.headers.as_ref(), message.payload.len());
        let envelope = envelope.unwrap_or_else(|reason| {
            tracing::warn!(subject, from = %message.subject, reason, "message with odd headers");
            headers::unreadable(message.headers.as_ref())
        });
        if ring.send(Message { envelope, body: message.payload.as_ref().into() }).is_err() {
            return;
        }
    }
}

struct Reader {
    ring: Receiver<Message>,
    pump: AbortHandle,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Subscription for Reader {
    fn next(&mut self) -> BoxFuture<'_, Option<Event>> {
        Box::pin(async {
            match self.ring.recv().await {
                Ok(message) => Some(Event::Message(message)),
                Err(RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
                Err(RecvError::Closed) => None,
            }
        })
    }
}
