//! One object bucket: bytes by their digest, put once, never overwritten.
//!
//! An object is a row of chunks and a record that names them. Reading one that is overwritten or deleted meanwhile would
//! wait for ever, and so would reading without a server; hence each chunk has a deadline, and the whole has one that grows
//! with its size.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use async_nats::jetstream::object_store::{DeleteErrorKind, GetErrorKind, InfoErrorKind, ObjectStore};
use folgore_protocol::Digest;
use futures_util::StreamExt;
use tokio::{
    io::AsyncReadExt,
    time::{Instant, timeout},
};

use super::{Nats, bucket::passing};
use crate::LinkError;

/// Bytes a second that a link must carry; slower is an outage.
const SLOWEST: u64 = 256 << 10;
/// Read at once.
const BUFFER: usize = 128 << 10;
/// Age at which chunks that no object names are left over from a put that failed, and not part of one under way.
const LEFT_OVER: Duration = Duration::from_secs(600);

/// An object bucket.
#[derive(Clone)]
pub(super) struct Objects {
    nats: Nats,
    bucket: String,
    /// Largest object that is read.
    limit: u64,
}

impl Objects {
    pub(super) fn new(nats: &Nats, bucket: String, limit: u64) -> Self {
        Self { nats: nats.clone(), bucket, limit }
    }

    /// Stores `bytes`, unless an object of their digest and size is there.
    pub(super) async fn put(&self, digest: Digest, bytes: &[u8]) -> Result<(), LinkError> {
        let (name, store) = (digest.hex(), self.open(digest).await?);
        let put = async {
            let there = store.info(&name).await.is_ok_and(|info| !info.deleted && info.size == bytes.len());
            if there {
                return Ok(());
            }
            store.put(name.as_str(), &mut &*bytes).await.map(|_| ())
        };
        let begun = Instant::now();
        match timeout(self.patience(bytes.len() as u64), put).await {
            Ok(Ok(())) => Ok(()),
            failed => {
                let reason = failed
                    .map_or_else(|_| "no answer".into(), |put| put.map_or_else(|e| e.to_string(), |()| String::new()));
                tracing::warn!(bucket = self.bucket, blob = name, reason, "an object cannot be stored");
                self.sweep(&store).await;
                Err(passing(&blob(digest), begun, &reason))
            }
        }
    }

    /// Fetches and checks.
    pub(super) async fn get(&self, digest: Digest) -> Result<Arc<[u8]>, LinkError> {
        let (name, store, begun) = (digest.hex(), self.open(digest).await?, Instant::now());
        let late = |reason: &dyn std::fmt::Display| passing(&blob(digest), begun, reason);
        let wrong = |reason: String| LinkError::Blob { name: name.clone(), reason };
        let mut object = match timeout(self.chunk(), store.get(&name)).await {
            Ok(Ok(object)) => object,
            Ok(Err(error)) if error.kind() == GetErrorKind::NotFound => return Err(wrong("it is not there".into())),
            Ok(Err(error)) => return Err(late(&error)),
            Err(_) => return Err(late(&"no answer")),
        };
        let size = object.info.size as u64;
        if size > self.limit {
            return Err(wrong(format!("expected at most {} bytes, got {size}", self.limit)));
        }
        let (mut bytes, mut buffer, until) = (Vec::new(), vec![0; BUFFER], begun + self.patience(size));
        loop {
            let chunk = self.chunk().min(until.saturating_duration_since(Instant::now()));
            match timeout(chunk, object.read(&mut buffer)).await {
                Ok(Ok(0)) => break,
                Ok(Ok(read)) if (bytes.len() + read) as u64 <= size => bytes.extend_from_slice(&buffer[..read]),
                Ok(Ok(_)) => return Err(wrong(format!("more than its {size} bytes"))),
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => return Err(wrong(error.to_string())),
                Ok(Err(error)) => return Err(late(&error)),
                Err(_) => return Err(late(&format!("{} of {size} bytes", bytes.len()))),
            }
        }
        let found = Digest::of(&bytes);
        if bytes.len() as u64 != size || found != digest {
            return Err(wrong(format!("its {} of {size} bytes have digest {}", bytes.len(), found.short())));
        }
        Ok(bytes.into())
    }

    /// Whether an object of that digest is there.
    pub(super) async fn has(&self, digest: Digest) -> Result<bool, LinkError> {
        let (store, begun) = (self.open(digest).await?, Instant::now());
        match timeout(self.chunk(), store.info(digest.hex())).await {
            Ok(Ok(info)) => Ok(!info.deleted),
            Ok(Err(error)) if error.kind() == InfoErrorKind::NotFound => Ok(false),
            Ok(Err(error)) => Err(passing(&blob(digest), begun, &error)),
            Err(_) => Err(passing(&blob(digest), begun, &"no answer")),
        }
    }

    /// Deletes; what is not there is deleted.
    pub(super) async fn delete(&self, digest: Digest) -> Result<(), LinkError> {
        if !self.has(digest).await? {
            return Ok(());
        }
        let (store, begun) = (self.open(digest).await?, Instant::now());
        match timeout(self.chunk(), store.delete(digest.hex())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.kind() == DeleteErrorKind::NotFound => Ok(()),
            Ok(Err(error)) => Err(passing(&blob(digest), begun, &error)),
            Err(_) => Err(passing(&blob(digest), begun, &"no answer")),
        }
    }

    /// Best effort: removes the chunks of puts that failed long ago; they would fill the bucket.
    async fn sweep(&self, store: &ObjectStore) {
        match timeout(self.chunk() * 4, self.try_sweep(store)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(swept)) => {
                tracing::info!(bucket = self.bucket, swept, "objects that were never finished are removed")
            }
            Ok(Err(error)) => tracing::debug!(bucket = self.bucket, %error, "cannot sweep"),
            Err(_) => tracing::debug!(bucket = self.bucket, "cannot sweep: no answer"),
        }
    }

    async fn try_sweep(&self, store: &ObjectStore) -> Result<usize, async_nats::Error> {
        let stream = self.nats.jetstream.get_stream(format!("OBJ_{}", self.bucket)).await?;
        let prefix = format!("$O.{}.C.", self.bucket);
        let mut chunks = stream.info_with_subjects(format!("{prefix}>")).await?;
        let mut rows = HashSet::new();
        while let Some(row) = chunks.next().await {
            rows.insert(row?.0);
        }
        let mut objects = store.list().await?;
        while let Some(object) = objects.next().await {
            rows.remove(&format!("{prefix}{}", object?.nuid));
        }
        let mut swept = 0;
        for row in rows {
            let last = stream.get_last_raw_message_by_subject(&row).await?;
            let age = std::time::SystemTime::now().duration_since(last.time.into());
            if age.is_ok_and(|age| age > LEFT_OVER) {
                stream.purge().filter(row).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    async fn open(&self, digest: Digest) -> Result<ObjectStore, LinkError> {
        let begun = Instant::now();
        self.nats.ready(&blob(digest), self.chunk()).await?;
        match timeout(self.chunk(), self.nats.jetstream.get_object_store(&self.bucket)).await {
            Ok(Ok(store)) => Ok(store),
            Ok(Err(error)) => Err(passing(&blob(digest), begun, &error)),
            Err(_) => Err(passing(&blob(digest), begun, &"no answer")),
        }
    }

    /// Longest wait for one chunk.
    fn chunk(&self) -> Duration {
        self.nats.config().request_timeout
    }

    /// Longest wait for `bytes`.
    fn patience(&self, bytes: u64) -> Duration {
        self.chunk() + Duration::from_secs(bytes / SLOWEST)
    }
}

/// How errors name a blob.
fn blob(digest: Digest) -> String {
    format!("blob {}", digest.short())
}
