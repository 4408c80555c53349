//! One object bucket: bytes by their digest, put once, never overwritten.
//!
//! An object is a row of chunks and a record that names them. Chunks are read by direct gets, a window of them at a time,
//! and not by a consumer: who may create consumers may read every stream, and have anybody get what they read. Each chunk
//! has a deadline, and the whole has one that grows with its size.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::object_store::{DeleteErrorKind, InfoErrorKind, ObjectStore};
use folgore_protocol::Digest;
use futures_util::StreamExt;
use tokio::time::{Instant, timeout};

use super::{Nats, bucket::passing, chunks::Chunks};
use crate::LinkError;

/// Bytes a second that a link must carry; slower is an outage.
const SLOWEST: u64 = 256 << 10;

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
        let reason = match timeout(self.patience(bytes.len() as u64), put).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        tracing::warn!(bucket = self.bucket, blob = name, reason, "an object cannot be stored");
        Err(passing(&blob(digest), begun, &reason))
    }

    /// Fetches and checks.
    pub(super) async fn get(&self, digest: Digest) -> Result<Arc<[u8]>, LinkError> {
        let (name, store, begun) = (digest.hex(), self.open(digest).await?, Instant::now());
        let late = |reason: &dyn std::fmt::Display| passing(&blob(digest), begun, reason);
        let wrong = |reason: String| LinkError::Blob { name: name.clone(), reason };
        let info = match timeout(self.chunk(), store.info(&name)).await {
            Ok(Ok(info)) if !info.deleted => info,
            Ok(Ok(_)) => return Err(wrong("it is not there".into())),
            Ok(Err(error)) if error.kind() == InfoErrorKind::NotFound => return Err(wrong("it is not there".into())),
            Ok(Err(error)) => return Err(late(&error)),
            Err(_) => return Err(late(&"no answer")),
        };
        let size = info.size as u64;
        if size > self.limit {
            return Err(wrong(format!("expected at most {} bytes, got {size}", self.limit)));
        }
        let mut chunks = Chunks::of(&self.nats, &self.bucket, &info.nuid);
        let (mut bytes, until) = (Vec::new(), begun + self.patience(size));
        while (bytes.len() as u64) < size {
            let chunk = self.chunk().min(until.saturating_duration_since(Instant::now()));
            match timeout(chunk, chunks.next()).await {
                Ok(Ok(Some(read))) if (bytes.len() + read.payload.len()) as u64 <= size => {
                    bytes.extend_from_slice(&read.payload);
                }
                Ok(Ok(Some(_))) => return Err(wrong(format!("more than its {size} bytes"))),
                Ok(Ok(None)) => return Err(wrong(format!("{} of its {size} bytes are there", bytes.len()))),
                Ok(Err(error)) => return Err(late(&error)),
                Err(_) => return Err(late(&format!("{} of {size} bytes", bytes.len()))),
            }
        }
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(wrong(format!("its {size} bytes have digest {}", found.short())));
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

    /// Best effort: removes chunks that no object names and that are older than `age`; after puts that failed they would
    /// fill the bucket. Gives how many objects' worth. For the head only: others may not purge.
    pub(super) async fn sweep(&self, age: Duration) -> usize {
        match timeout(self.chunk() * 4, self.try_sweep(age)).await {
            Ok(Ok(swept)) => {
                tracing::info!(bucket = self.bucket, swept, "unfinished objects were looked for");
                swept
            }
            Ok(Err(error)) => {
                tracing::warn!(bucket = self.bucket, %error, "unfinished objects cannot be removed");
                0
            }
            Err(_) => 0,
        }
    }

    async fn try_sweep(&self, age: Duration) -> Result<usize, async_nats::Error> {
        let stream = self.nats.jetstream.get_stream(format!("OBJ_{}", self.bucket)).await?;
        let store = self.nats.jetstream.get_object_store(&self.bucket).await?;
        let prefix = format!("$O.{}.C.", self.bucket);
        let mut chunks = stream.info_with_subjects(format!("{prefix}>")).await?;
        let mut rows = HashSet::new();
        while let Some(row) = chunks.next().await {
            rows.insert(row?.0);
        }
        // After the rows: an object that is finished meanwhile is found.
        let mut objects = store.list().await?;
        while let Some(object) = objects.next().await {
            rows.remove(&format!("{prefix}{}", object?.nuid));
        }
        let mut swept = 0;
        for row in rows {
            let last = stream.get_last_raw_message_by_subject(&row).await?;
            let old = SystemTime::now().duration_since(last.time.into()).is_ok_and(|since| since >= age);
            if old {
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

#[cfg(test)]
mod tests {
    use folgore_protocol::{
        RunName,
        names::{Names, Role},
    };

    use super::*;
    use crate::nats::{
        Limits, NatsConfig, admin, connect,
        server::{LocalServer, ServerOptions, nats_server_for_tests},
    };

    #[tokio::test]
    async fn what_no_object_names_is_swept_when_it_is_old_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let executable = nats_server_for_tests().unwrap();
        let server = LocalServer::start_with(executable, ServerOptions::new(dir.path())).unwrap();
        let names = Names::new(&RunName::new("sweep").unwrap()).unwrap();
        let nats = connect(NatsConfig::new(server.url(), names, Role::Head, "head").unwrap()).await.unwrap();
        admin::ensure(&nats, &Limits::within(0)).await.unwrap();
        let objects = Objects::new(&nats, nats.config().run.adapters_bucket(), u64::MAX);
        let whole = Digest::of(b"whole");
        objects.put(whole, b"whole").await.unwrap();
        for part in 0..3_u8 {
            let chunk = nats.jetstream.publish("$O.rl_sweep_adapters.C.unfinished", vec![part].into()).await.unwrap();
            chunk.await.unwrap();
        }
        assert_eq!(objects.sweep(Duration::from_secs(3600)).await, 0, "it may be under way");
        assert_eq!(objects.sweep(Duration::ZERO).await, 1);
        assert_eq!(objects.sweep(Duration::ZERO).await, 0);
        assert_eq!(&objects.get(whole).await.unwrap()[..], b"whole");
        let stream = nats.jetstream.get_stream("OBJ_rl_sweep_adapters").await.unwrap();
        assert_eq!(stream.cached_info().state.messages, 2, "a chunk and a record");
    }
}
