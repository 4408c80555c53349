//! Typed events.

use std::marker::PhantomData;

use folgore_protocol::{Envelope, Format};
use serde::{Serialize, de::DeserializeOwned};

use super::{CallError, open, seal};
use crate::{Event, LinkError, Links, Subscription};

/// What a typed subscription yields.
#[derive(Clone, Debug, PartialEq)]
pub enum TypedEvent<T> {
    /// Something happened.
    Happened {
        /// The facts beside it.
        envelope: Envelope,
        /// What happened.
        body: T,
    },
    /// This many events were missed, because the reader was slow.
    Missed(u64),
}

/// Reads a topic.
pub struct TypedSubscription<T> {
    run: String,
    subject: String,
    subscription: Box<dyn Subscription>,
    types: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> TypedSubscription<T> {
    /// The next event; an error is one event that could not be read, and the next call goes on after it. None when the
    /// topic is closed.
    pub async fn next(&mut self) -> Option<Result<TypedEvent<T>, CallError>> {
        let message = match self.subscription.next().await? {
            Event::Missed(missed) => return Some(Ok(TypedEvent::Missed(missed))),
            Event::Message(message) => message,
        };
        let body = open(&self.run, &self.subject, &message);
        Some(body.map(|body| TypedEvent::Happened { envelope: message.envelope, body }))
    }
}

impl Links {
    /// Tells whoever listens to `subject` now.
    pub async fn publish_event<T: Serialize>(&self, subject: &str, event: &T, key: &str) -> Result<(), CallError> {
        let message = seal(&self.run, subject, event, key, Format::MessagePack, None)?;
        Ok(self.topic.publish(subject, message).await?)
    }

    /// Listens to `subject` from now on.
    pub async fn subscribe_events<T: DeserializeOwned>(
        &self,
        subject: &str,
    ) -> Result<TypedSubscription<T>, LinkError> {
        let subscription = self.topic.subscribe(subject).await?;
        Ok(TypedSubscription { run: self.run.clone(), subject: subject.to_owned(), subscription, types: PhantomData })
    }
}
