//! Blobs in an object bucket.

use std::sync::Arc;

use folgore_protocol::Digest;

use super::Nats;
use crate::{Blob, BoxFuture, LinkError};

pub(super) struct NatsBlob {
    #[allow(dead_code)]
    nats: Nats,
}

impl NatsBlob {
    pub(super) fn new(nats: &Nats) -> Self {
        Self { nats: nats.clone() }
    }
}

fn closed() -> LinkError {
    LinkError::Closed { subject: "blob".into() }
}

impl Blob for NatsBlob {
    fn put(&self, _bytes: Arc<[u8]>) -> BoxFuture<'_, Result<Digest, LinkError>> {
        Box::pin(async { Err(closed()) })
    }

    fn get(&self, _digest: Digest) -> BoxFuture<'_, Result<Arc<[u8]>, LinkError>> {
        Box::pin(async { Err(closed()) })
    }

    fn delete(&self, _digest: Digest) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async { Err(closed()) })
    }
}
