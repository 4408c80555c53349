//! Latest values in memory: one watch channel per key.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use crate::{BoxFuture, LinkError, State, Versioned, Watch, lock};

/// Values by key; a key that was only watched so far holds none.
#[derive(Default)]
pub(super) struct LocalState {
    keys: Mutex<HashMap<String, watch::Sender<Option<Versioned>>>>,
}

impl State for LocalState {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, LinkError>> {
        Box::pin(async move { Ok(lock(&self.keys).get(key).and_then(|slot| slot.borrow().clone())) })
    }

    fn put_if<'a>(&'a self, key: &'a str, expected: u64, value: Arc<[u8]>) -> BoxFuture<'a, Result<u64, LinkError>> {
        Box::pin(async move {
            let mut keys = lock(&self.keys);
            let slot = keys.entry(key.to_owned()).or_default();
            let found = slot.borrow().as_ref().map_or(0, |current| current.revision);
            if found != expected {
                return Err(LinkError::Conflict { key: key.to_owned(), expected, found });
            }
            slot.send_replace(Some(Versioned { revision: found + 1, value }));
            Ok(found + 1)
        })
    }

    fn watch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Box<dyn Watch>, LinkError>> {
        Box::pin(async move {
            let mut reader = lock(&self.keys).entry(key.to_owned()).or_default().subscribe();
            reader.mark_changed();
            Ok(Box::new(Follower(reader)) as Box<dyn Watch>)
        })
    }
}

struct Follower(watch::Receiver<Option<Versioned>>);

impl Watch for Follower {
    fn next(&mut self) -> BoxFuture<'_, Option<Versioned>> {
        Box::pin(async {
            loop {
                self.0.changed().await.ok()?;
                if let Some(current) = self.0.borrow_and_update().clone() {
                    return Some(current);
                }
            }
        })
    }
}
