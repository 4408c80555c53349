//! Blobs in the object bucket of policies, and what their writer remembers of them.

use std::{sync::Arc, time::Duration};

use folgore_protocol::Digest;

use super::{Nats, objects::Objects};
use crate::{Blob, BoxFuture, LinkError};

/// Largest blob that is read: a record of an object that claims more is damaged.
const LARGEST: u64 = 4 << 30;
/// Age at which chunks that no object names are left over from a put that failed, and not part of one under way.
const LEFT_OVER: Duration = Duration::from_secs(600);

pub(super) struct NatsBlob {
    nats: Nats,
    objects: Objects,
}

impl NatsBlob {
    pub(super) fn new(nats: &Nats) -> Self {
        let objects = Objects::new(nats, nats.config().run.adapters_bucket(), LARGEST);
        Self { nats: nats.clone(), objects }
    }
}

impl Blob for NatsBlob {
    fn put(&self, bytes: Arc<[u8]>) -> BoxFuture<'_, Result<Digest, LinkError>> {
        Box::pin(async move {
            let digest = Digest::of(&bytes);
            // Two puts of the same bytes at once would store their chunks twice, one of them for nobody.
            let _putting = self.nats.memory.putting.lock().await;
            if let Err(error) = self.objects.put(digest, &bytes).await {
                self.objects.sweep(LEFT_OVER).await;
                return Err(error);
            }
            self.nats.memory.stored(digest, bytes);
            Ok(digest)
        })
    }

    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Arc<[u8]>, LinkError>> {
        Box::pin(self.objects.get(digest))
    }

    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async move {
            self.nats.memory.deleted(digest);
            self.objects.delete(digest).await
        })
    }
}
