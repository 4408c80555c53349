//! Puts back what a server lost.

use folgore_protocol::Digest;

use super::{Nats, NatsError, admin, objects::Objects};
use crate::{LinkError, State};

/// What was missing and is there again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Streams, consumers and buckets.
    pub stores: Vec<String>,
    /// Keys of the state.
    pub values: Vec<String>,
    /// Blobs.
    pub blobs: Vec<Digest>,
}

impl Restored {
    /// Whether nothing was missing.
    pub fn is_empty(&self) -> bool {
        self.stores.is_empty() && self.values.is_empty() && self.blobs.is_empty()
    }
}

impl Nats {
    /// The first part of [`Nats::restore`]: streams and buckets, empty. It overwrites nothing, hence it needs no lease; and
    /// where the bucket of the lease is gone, no lease can be had before.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn restore_stores(&self) -> Result<Restored, NatsError> {
        Ok(Restored { stores: admin::make_missing(self).await?, ..Restored::default() })
    }

    /// Puts back what a server lost: streams and buckets as this process saw them last, here or in [`admin::ensure`] (else
    /// with the usual limits), and the last blobs and values that it wrote. What is there stays as it is, and doing it again does nothing. Only for
    /// who writes: check the [`super::Fence`] before.
    ///
    /// # Errors
    /// If the server does not answer; what was done before stays.
    pub async fn restore(&self) -> Result<Restored, NatsError> {
        let mut restored = self.restore_stores().await?;
        let failed = |what: String| move |source: LinkError| NatsError::Link { what, source };
        // Blobs first: values name them.
        let objects = Objects::new(self, self.config().run.adapters_bucket(), u64::MAX);
        for (digest, bytes) in self.memory.blobs() {
            if !objects.has(digest).await.map_err(failed(format!("restore blob {}", digest.short())))? {
                objects.put(digest, &bytes).await.map_err(failed(format!("restore blob {}", digest.short())))?;
                restored.blobs.push(digest);
            }
        }
        let state = super::state::NatsState::new(self);
        for (key, value) in self.memory.values() {
            let what = || failed(format!("restore {key}"));
            if state.get(&key).await.map_err(what())?.is_some() {
                continue;
            }
            match state.put_if(&key, 0, value).await {
                Ok(_) => restored.values.push(key.clone()),
                // Somebody wrote it meanwhile, and knows better.
                Err(LinkError::Conflict { .. }) => {}
                Err(error) => return Err(what()(error)),
            }
        }
        Ok(restored)
    }
}
