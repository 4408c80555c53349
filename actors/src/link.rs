//! The five links: everything that crosses between actors is one of these.
//!
//! | link | for | promise (the weaker of the local and the NATS form) |
//! |---|---|---|
//! | [`Ask`] | search, score, next batch | one answer or an error within the deadline |
//! | [`Queue`] | jobs, trajectories | at least once, unordered, may vanish whole; bounded |
//! | [`Topic`] | progress, closed seats | losable; a slow reader is told how much it missed |
//! | [`State`] | policy, configuration, lease | latest value, watch, compare-and-set |
//! | [`Blob`] | adapters, large bodies | content-addressed, immutable |
//!
//! The traits speak bytes; [`crate::typed`] puts `protocol` types on them.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use folgore_protocol::{Digest, Envelope};

/// A boxed future that may cross threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One body with the facts beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who, which run, which key, how long, whose trace.
    pub envelope: Envelope,
    /// The encoded body.
    pub body: Arc<[u8]>,
}

/// Why a link did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nobody serves the subject: known at once.
    #[error("{subject}: nobody answers there")]
    NoResponder {
        /// The subject.
        subject: String,
    },
    /// The deadline passed.
    #[error("{subject}: no answer within {waited_ms} ms")]
    Deadline {
        /// The subject.
        subject: String,
        /// How long was waited.
        waited_ms: u64,
    },
    /// The queue holds as much as it may: slow down and try again.
    #[error("{subject}: the queue is full ({bound} messages)")]
    Full {
        /// The subject.
        subject: String,
        /// Its bound.
        bound: usize,
    },
    /// The delivery is no longer the caller's: it was handed to somebody else, or settled before.
    #[error("{subject}: the delivery is not held any more")]
    NotHeld {
        /// The subject.
        subject: String,
    },
    /// Compare-and-set lost: somebody else wrote first.
    #[error("{key}: expected revision {expected}, found {found}")]
    Conflict {
        /// The key.
        key: String,
        /// Revision that the caller had seen (0: none).
        expected: u64,
        /// Revision that is there (0: none).
        found: u64,
    },
    /// The blob is not there, or its bytes are not those of its name.
    #[error("blob {name}: {reason}")]
    Blob {
        /// Digest asked for.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The handler failed; its reason, as text.
    #[error("{subject}: {reason}")]
    Refused {
        /// The subject.
        subject: String,
        /// What the other side said.
        reason: String,
    },
    /// The link is closed: the process is shutting down, or the connection is gone for good.
    #[error("{subject}: the link is closed")]
    Closed {
        /// The subject.
        subject: String,
    },
}

/// Answers requests: one call each, `concurrency` at once at most. A call that has begun runs to its end, also when the
/// asker has left: a handler is never stopped in the middle, and one whose work is worth stopping looks at the budget in
/// the envelope. A panic is answered as an error.
pub trait Handler: Send + Sync + 'static {
    /// Answers `request`; an `Err` reaches the caller as [`LinkError::Refused`].
    fn handle(&self, request: Message) -> BoxFuture<'_, Result<Message, String>>;
}

/// Keeps something served or subscribed for as long as it lives.
pub struct Served(#[allow(dead_code, reason = "held for its Drop")] pub(crate) Box<dyn std::any::Any + Send + Sync>);

/// Request and reply. Several servers of one subject share its requests.
pub trait Ask: Send + Sync {
    /// Asks `subject` and waits at most `deadline`.
    fn ask<'a>(
        &'a self,
        subject: &'a str,
        request: Message,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Message, LinkError>>;
    /// Serves `subject` until the result is dropped.
    fn serve<'a>(
        &'a self,
        subject: &'a str,
        concurrency: usize,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'a, Result<Served, LinkError>>;
}

/// Settles one delivery. What is never settled is delivered again after the queue's redelivery time.
pub trait Settle: Send + Sync {
    /// Done: never deliver again. Refused with [`LinkError::NotHeld`] if it was redelivered meanwhile.
    fn ack(&self) -> BoxFuture<'_, Result<(), LinkError>>;
    /// Not done: deliver again after `delay`.
    fn nak(&self, delay: Duration) -> BoxFuture<'_, Result<(), LinkError>>;
    /// Never deliver again, and not done either.
    fn term(&self) -> BoxFuture<'_, Result<(), LinkError>>;
    /// Still at it: restarts the redelivery clock.
    fn progress(&self) -> BoxFuture<'_, Result<(), LinkError>>;
}

/// One message taken from a queue.
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// From 1; above 1, somebody may have done the work already.
    pub attempt: u32,
    /// Who sent it, where the server vouches for that; none in the local form.
    pub sender: Option<String>,
    /// Settles it.
    pub settle: Box<dyn Settle>,
}

/// A bounded work queue: each message goes to one puller at a time.
pub trait Queue: Send + Sync {
    /// Appends; [`LinkError::Full`] at the bound.
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>>;
    /// Takes up to `max` messages, waiting at most `wait` for the first; an empty list when none came.
    fn pull<'a>(
        &'a self,
        subject: &'a str,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Delivery>, LinkError>>;
    /// Messages waiting and messages held, for back-pressure and status.
    fn depth<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<(usize, usize), LinkError>>;
    /// What carries the messages, as OpenTelemetry calls it.
    fn system(&self) -> &'static str {
        "local"
    }
}

/// What a subscription yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A message.
    Message(Message),
    /// This many messages were missed, because the reader was slow.
    Missed(u64),
}

/// Reads a topic.
pub trait Subscription: Send {
    /// The next event; none when the topic is closed.
    fn next(&mut self) -> BoxFuture<'_, Option<Event>>;
}

/// Publish and subscribe; losable.
pub trait Topic: Send + Sync {
    /// Tells whoever listens now.
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>>;
    /// Listens from now on.
    fn subscribe<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Box<dyn Subscription>, LinkError>>;
}

/// A value with its revision; revisions of one key only grow, from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned {
    /// Revision of this write.
    pub revision: u64,
    /// The value.
    pub value: Arc<[u8]>,
}

/// Follows one key.
pub trait Watch: Send {
    /// The next value that differs from the last one seen; the first call gives the current value, if any. Skips what was
    /// overwritten meanwhile. None when the link is closed.
    fn next(&mut self) -> BoxFuture<'_, Option<Versioned>>;
}

/// Latest values by key.
pub trait State: Send + Sync {
    /// The current value.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, LinkError>>;
    /// Writes if the key is at revision `expected` (0: absent); gives the new revision.
    fn put_if<'a>(&'a self, key: &'a str, expected: u64, value: Arc<[u8]>) -> BoxFuture<'a, Result<u64, LinkError>>;
    /// Follows `key`.
    fn watch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Box<dyn Watch>, LinkError>>;
}

/// Immutable bytes by their digest.
pub trait Blob: Send + Sync {
    /// Stores; storing the same bytes twice is one blob.
    fn put(&self, bytes: Arc<[u8]>) -> BoxFuture<'_, Result<Digest, LinkError>>;
    /// Fetches and checks against the digest.
    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Arc<[u8]>, LinkError>>;
    /// Forgets; a reader in flight still gets whole bytes or an error.
    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), LinkError>>;
}

/// The links of one process, all of one form.
#[derive(Clone)]
pub struct Links {
    /// Name of the run, put into every envelope.
    pub run: String,
    /// Request and reply.
    pub ask: Arc<dyn Ask>,
    /// Work queues.
    pub queue: Arc<dyn Queue>,
    /// Publish and subscribe.
    pub topic: Arc<dyn Topic>,
    /// Latest values.
    pub state: Arc<dyn State>,
    /// Content-addressed bytes.
    pub blob: Arc<dyn Blob>,
}
