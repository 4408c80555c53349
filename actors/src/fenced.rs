//! Links that write only while their process may: how the head of a run that lost it is kept from doing harm.

use std::{sync::Arc, time::Duration};

use folgore_protocol::Digest;
use tokio::time::{Instant, sleep};

use crate::{Blob, BoxFuture, Delivery, LinkError, Links, Message, Queue, Settle, State, Versioned, Watch};

/// Between two questions whether the process may write again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Says whether the process may write now, and why not.
pub type MayWrite = Arc<dyn Fn() -> Result<(), LinkError> + Send + Sync>;

/// `links`, with every write of queues, states and blobs asked of `may` first. Taking from a queue and settling what was
/// taken are writes too: what a former head takes and acks is lost to the head that came after it. Reading, asking,
/// answering and topics, which nobody relies on, stay free.
pub fn fenced(links: Links, may: MayWrite) -> Links {
    let Links { run, ask, queue, topic, state, blob } = links;
    Links {
        run,
        ask,
        queue: Arc::new(Fenced { inner: queue, may: may.clone() }),
        topic,
        state: Arc::new(Fenced { inner: state, may: may.clone() }),
        blob: Arc::new(Fenced { inner: blob, may }),
    }
}

struct Fenced<T: ?Sized> {
    inner: Arc<T>,
    may: MayWrite,
}

impl<T: ?Sized> Fenced<T> {
    /// Does `work` if the process may write.
    fn write<'a, R: Send + 'a>(
        &'a self,
        work: impl FnOnce(&'a T) -> BoxFuture<'a, Result<R, LinkError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<R, LinkError>>
    where
        T: Send + Sync,
    {
        Box::pin(async move {
            (self.may)()?;
            work(&self.inner).await
        })
    }
}

impl Queue for Fenced<dyn Queue> {
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>> {
        self.write(move |inner| inner.publish(subject, message))
    }

    fn pull<'a>(
        &'a self,
        subject: &'a str,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Delivery>, LinkError>> {
        Box::pin(async move {
            let until = Instant::now() + wait;
            let left = || until.saturating_duration_since(Instant::now());
            loop {
                match (self.may)() {
                    Ok(()) => break,
                    // It may be allowed again: until then nothing comes.
                    Err(LinkError::Deadline { .. }) if left().is_zero() => return Ok(Vec::new()),
                    Err(LinkError::Deadline { .. }) => sleep(LOOK_AGAIN.min(left())).await,
                    Err(never) => return Err(never),
                }
            }
            let taken = self.inner.pull(subject, max, left()).await?;
            let fence = |d: Delivery| Delivery { settle: Box::new(FencedSettle(d.settle, self.may.clone())), ..d };
            Ok(taken.into_iter().map(fence).collect())
        })
    }

    fn depth<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<(usize, usize), LinkError>> {
        self.inner.depth(subject)
    }

    fn system(&self) -> &'static str {
        self.inner.system()
    }
}

/// Settles while its process may write.
struct FencedSettle(Box<dyn Settle>, MayWrite);

impl FencedSettle {
    fn settle<'a>(
        &'a self,
        work: impl FnOnce(&'a dyn Settle) -> BoxFuture<'a, Result<(), LinkError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            (self.1)()?;
            work(&*self.0).await
        })
    }
}

impl Settle for FencedSettle {
    fn ack(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        self.settle(|inner| inner.ack())
    }

    fn nak(&self, delay: Duration) -> BoxFuture<'_, Result<(), LinkError>> {
        self.settle(move |inner| inner.nak(delay))
    }

    fn term(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        self.settle(|inner| inner.term())
    }

    fn progress(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        self.settle(|inner| inner.progress())
    }
}

impl State for Fenced<dyn State> {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, LinkError>> {
        self.inner.get(key)
    }

    fn put_if<'a>(&'a self, key: &'a str, expected: u64, value: Arc<[u8]>) -> BoxFuture<'a, Result<u64, LinkError>> {
        self.write(move |inner| inner.put_if(key, expected, value))
    }

    fn watch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Box<dyn Watch>, LinkError>> {
        self.inner.watch(key)
    }
}

impl Blob for Fenced<dyn Blob> {
    fn put(&self, bytes: Arc<[u8]>) -> BoxFuture<'_, Result<Digest, LinkError>> {
        self.write(move |inner| inner.put(bytes))
    }

    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Arc<[u8]>, LinkError>> {
        self.inner.get(digest)
    }

    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), LinkError>> {
        self.write(move |inner| inner.delete(digest))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use folgore_protocol::Envelope;

    use super::*;
    use crate::{LocalConfig, local};

    #[tokio::test]
    async fn who_may_not_write_can_still_read() {
        let folder = tempfile::tempdir().unwrap();
        let open = Arc::new(AtomicBool::new(true));
        let refusal = || LinkError::Refused { subject: "lease".into(), reason: "lost to another head".into() };
        let may = open.clone();
        let links = fenced(
            local("run", LocalConfig::new(folder.path())),
            Arc::new(move || if may.load(Ordering::SeqCst) { Ok(()) } else { Err(refusal()) }),
        );
        let message = Message { envelope: Envelope::new("run", "k"), body: b"x"[..].into() };
        links.queue.publish("work", message.clone()).await.unwrap();
        let revision = links.state.put_if("policy", 0, b"1"[..].into()).await.unwrap();
        let digest = links.blob.put(b"adapter"[..].into()).await.unwrap();
        open.store(false, Ordering::SeqCst);
        assert_eq!(links.queue.publish("work", message).await, Err(refusal()));
        assert_eq!(links.state.put_if("policy", revision, b"2"[..].into()).await, Err(refusal()));
        assert_eq!(links.blob.put(b"other"[..].into()).await, Err(refusal()));
        assert_eq!(links.blob.delete(digest).await, Err(refusal()));
        assert_eq!(links.state.get("policy").await.unwrap().unwrap().value[..], b"1"[..]);
        assert_eq!(links.blob.get(digest).await.unwrap()[..], b"adapter"[..]);
        assert_eq!(links.queue.depth("work").await, Ok((1, 0)));
    }

    #[tokio::test]
    async fn who_may_not_write_takes_nothing_and_settles_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let standing = Arc::new(std::sync::Mutex::new(Ok(())));
        let may = standing.clone();
        let links =
            fenced(local("run", LocalConfig::new(folder.path())), Arc::new(move || may.lock().unwrap().clone()));
        let wait = Duration::from_millis(100);
        for key in ["a", "b"] {
            let message = Message { envelope: Envelope::new("run", key), body: b"x"[..].into() };
            links.queue.publish("work", message).await.unwrap();
        }
        let taken = links.queue.pull("work", 1, wait).await.unwrap();
        let stale = LinkError::Deadline { subject: "lease".into(), waited_ms: 9 };
        *standing.lock().unwrap() = Err(stale.clone());
        assert_eq!(taken[0].settle.ack().await, Err(stale));
        assert!(links.queue.pull("work", 1, wait).await.unwrap().is_empty(), "taken while it may not");
        assert_eq!(links.queue.depth("work").await, Ok((1, 1)));
        *standing.lock().unwrap() = Ok(());
        assert_eq!(taken[0].settle.ack().await, Ok(()), "it may again");
        let lost = LinkError::Refused { subject: "lease".into(), reason: "lost to another head".into() };
        *standing.lock().unwrap() = Err(lost.clone());
        assert_eq!(links.queue.pull("work", 1, wait).await.err(), Some(lost));
        assert_eq!(links.queue.depth("work").await, Ok((1, 0)));
    }
}
