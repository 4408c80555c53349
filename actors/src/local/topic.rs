//! Publish and subscribe in memory: a ring per subject; who is slower than the ring is told how much it missed.

use std::{collections::HashMap, sync::Mutex};

use tokio::sync::broadcast::{Receiver, Sender, channel, error::RecvError};

use crate::{BoxFuture, Event, LinkError, Message, Subscription, Topic, lock};

/// Rings by subject; a ring without readers is dropped at the next message.
pub(super) struct LocalTopic {
    bound: usize,
    rings: Mutex<HashMap<String, Sender<Message>>>,
}

impl LocalTopic {
    pub(super) fn new(bound: usize) -> Self {
        Self { bound: bound.max(1), rings: Mutex::default() }
    }
}

impl Topic for LocalTopic {
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            let mut rings = lock(&self.rings);
            if rings.get(subject).is_some_and(|ring| ring.send(message).is_err()) {
                rings.remove(subject);
            }
            Ok(())
        })
    }

    fn subscribe<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Box<dyn Subscription>, LinkError>> {
        Box::pin(async move {
            let mut rings = lock(&self.rings);
            let ring = rings.entry(subject.to_owned()).or_insert_with(|| channel(self.bound).0);
            Ok(Box::new(Reader(ring.subscribe())) as Box<dyn Subscription>)
        })
    }
}

struct Reader(Receiver<Message>);

impl Subscription for Reader {
    fn next(&mut self) -> BoxFuture<'_, Option<Event>> {
        Box::pin(async {
            match self.0.recv().await {
                Ok(message) => Some(Event::Message(message)),
                Err(RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
                Err(RecvError::Closed) => None,
            }
        })
    }
}
