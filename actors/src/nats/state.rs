//! Latest values in a key-value bucket. A watch outlives the connection, the server and the bucket.

use std::{sync::Arc, time::Duration};

use async_nats::{Message, Subscriber};
use folgore_protocol::Role;
use futures_util::StreamExt;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Nats,
    bucket::{Bucket, check_key},
};
use crate::{BoxFuture, LinkError, State, Versioned, Watch};

/// How often a watched key is read although nothing was heard of it: its hint may be lost.
const REREAD: Duration = Duration::from_secs(5);
/// Waits before the reads that follow a hint, until one finds what was heard: a write is heard as it passes, which may be
/// before it can be read.
const SOON: [Duration; 3] = [Duration::from_millis(5), Duration::from_millis(50), Duration::from_millis(300)];

pub(super) struct NatsState {
    nats: Nats,
    bucket: Bucket,
}

impl NatsState {
    pub(super) fn new(nats: &Nats) -> Self {
        let config = nats.config();
        Self { bucket: Bucket::new(nats, config.run.state_bucket(), config.request_timeout), nats: nats.clone() }
    }
}

impl State for NatsState {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, LinkError>> {
        Box::pin(async move {
            let found = self.bucket.get(key).await?;
            if let Some(found) = found.as_ref().filter(|_| self.nats.config().role == Role::Head) {
                // Also a write whose answer was lost has to be put back.
                self.nats.memory.wrote(key, found.value.clone());
            }
            Ok(found)
        })
    }

    fn put_if<'a>(&'a self, key: &'a str, expected: u64, value: Arc<[u8]>) -> BoxFuture<'a, Result<u64, LinkError>> {
        Box::pin(async move {
            let revision = self.bucket.put_if(key, expected, &value).await?;
            self.nats.memory.wrote(key, value);
            Ok(revision)
        })
    }

    fn watch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Box<dyn Watch>, LinkError>> {
        Box::pin(async move {
            check_key(key)?;
            let (values, latest) = watch::channel(None);
            let (nats, bucket, key) = (self.nats.clone(), self.bucket.clone(), key.to_owned());
            tokio::spawn(Follower { nats, bucket, key, values }.run());
            Ok(Box::new(Watching(latest)) as Box<dyn Watch>)
        })
    }
}

/// The reader's end; the follower ends when it is dropped.
struct Watching(watch::Receiver<Option<Versioned>>);

impl Watch for Watching {
    fn next(&mut self) -> BoxFuture<'_, Option<Versioned>> {
        Box::pin(async {
            self.0.changed().await.ok()?;
            self.0.borrow_and_update().clone()
        })
    }
}

/// Reads a key whenever the server hints that it changed, and now and then without a hint. What counts is what was read:
/// hints may be lost, and after a server lost its data they come with revisions that begin anew.
struct Follower {
    nats: Nats,
    bucket: Bucket,
    key: String,
    values: watch::Sender<Option<Versioned>>,
}

impl Follower {
    async fn run(self) {
        tokio::select! {
            () = self.values.closed() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        let (mut hints, mut soon, mut heard) = (None, [].iter(), None::<Message>);
        let mut connected = self.nats.connected();
        loop {
            if hints.is_none() {
                hints = self.hints().await;
            }
            // After an error too: the client subscribes again by itself when the server comes back.
            if let Ok(Some(found)) = self.bucket.get(&self.key).await {
                if heard.as_ref().is_some_and(|heard| heard.payload[..] == found.value[..]) {
                    // No more reads: of many who follow one key, each would be paid by the server at its busiest.
                    soon = [].iter();
                }
                self.show(found);
            }
            tokio::select! {
                hint = next(&mut hints) => (heard, soon) = (hint, SOON.iter()),
                // What was written meanwhile was not heard.
                _ = connected.changed() => {}
                () = sleep(soon.next().copied().unwrap_or(REREAD)) => {}
            }
        }
    }

    fn show(&self, found: Versioned) {
        self.values.send_if_modified(|seen| {
            let news = differs(seen.as_ref(), &found);
            // Kept also when it is no news: revisions begin anew in a bucket that was wiped and restored.
            *seen = Some(found);
            news
        });
    }

    /// Hears the writes themselves, as they pass; none if that does not work, and then reading must do. A consumer would
    /// hear no more that counts, and who may create one can send what it reads to anybody, past its own permissions.
    async fn hints(&self) -> Option<Subscriber> {
        let subscribed = self.nats.client.subscribe(self.bucket.subject(&self.key));
        timeout(self.nats.config().request_timeout, subscribed).await.ok()?.ok()
    }
}

/// Waits for a hint: the write as it was heard; for ever if there are no hints, none if they end.
async fn next(hints: &mut Option<Subscriber>) -> Option<Message> {
    let Some(messages) = hints else { return std::future::pending().await };
    let message = messages.next().await;
    if message.is_none() {
        *hints = None;
    }
    message
}

/// Whether `found` is news to who saw `seen`: written later, or other bytes at a revision of a bucket that was wiped.
fn differs(seen: Option<&Versioned>, found: &Versioned) -> bool {
    seen.is_none_or(|seen| found.revision > seen.revision || found.value != seen.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_a_later_write_or_other_bytes() {
        let at = |revision, value: &[u8]| Versioned { revision, value: value.into() };
        assert!(differs(None, &at(3, b"a")));
        assert!(!differs(Some(&at(3, b"a")), &at(3, b"a")));
        assert!(differs(Some(&at(3, b"a")), &at(4, b"a")), "written again");
        assert!(!differs(Some(&at(3, b"a")), &at(1, b"a")), "wiped and restored");
        assert!(differs(Some(&at(3, b"a")), &at(1, b"b")), "wiped and written");
        assert!(differs(Some(&at(3, b"a")), &at(3, b"b")), "wiped and written as often");
    }
}
