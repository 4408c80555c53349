//! Latest values in a key-value bucket. A watch outlives the connection, the server and the bucket.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, push};
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

/// How often a watched key is read although nothing was heard of it.
const REREAD: Duration = Duration::from_secs(2);
/// How often the server says that it has nothing to say.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After which time without a reader the server forgets the consumer of a watch.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

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
        Box::pin(self.bucket.get(key))
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
        let mut hints = None;
        loop {
            if hints.is_none() {
                hints = self.hints().await;
            }
            match self.bucket.get(&self.key).await {
                Ok(Some(found)) => self.show(found),
                Ok(None) => {}
                // The server may have come back without the consumer.
                Err(_) => hints = None,
            }
            tokio::select! {
                () = heard(&mut hints) => {}
                () = sleep(REREAD) => {}
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

    /// Asks the server to tell of writes to the key from now on; none if it does not answer, and then reading must do.
    async fn hints(&self) -> Option<push::Messages> {
        let config = push::Config {
            deliver_subject: self.nats.client.new_inbox(),
            description: Some("state watch".to_owned()),
            deliver_policy: DeliverPolicy::New,
            ack_policy: AckPolicy::None,
            filter_subject: self.bucket.subject(&self.key),
            headers_only: true,
            idle_heartbeat: HEARTBEAT,
            inactive_threshold: FORGOTTEN_AFTER,
            memory_storage: true,
            num_replicas: 1,
            ..push::Config::default()
        };
        let create =
            async { Some(self.bucket.stream().await.ok()?.create_consumer(config).await.ok()?.messages().await) };
        timeout(self.nats.config().request_timeout, create).await.ok().flatten()?.ok()
    }
}

/// Waits for a hint; for ever if there are none. Missed heartbeats are an end of the hints.
async fn heard(hints: &mut Option<push::Messages>) {
    let Some(messages) = hints else { return std::future::pending().await };
    if !matches!(messages.next().await, Some(Ok(_))) {
        *hints = None;
    }
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
