//! Latest values in a key-value bucket.

use std::sync::Arc;

use super::Nats;
use crate::{BoxFuture, LinkError, State, Versioned, Watch};

pub(super) struct NatsState {
    #[allow(dead_code)]
    nats: Nats,
}

impl NatsState {
    pub(super) fn new(nats: &Nats) -> Self {
        Self { nats: nats.clone() }
    }
}

fn closed(key: &str) -> LinkError {
    LinkError::Closed { subject: key.to_owned() }
}

impl State for NatsState {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, LinkError>> {
        Box::pin(async move { Err(closed(key)) })
    }

    fn put_if<'a>(&'a self, key: &'a str, _expected: u64, _value: Arc<[u8]>) -> BoxFuture<'a, Result<u64, LinkError>> {
        Box::pin(async move { Err(closed(key)) })
    }

    fn watch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Box<dyn Watch>, LinkError>> {
        Box::pin(async move { Err(closed(key)) })
    }
}
