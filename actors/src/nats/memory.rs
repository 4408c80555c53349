//! What the writer of a run remembers of its writes, and of the stores that it found, so that it can put them back when a server lost its data.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use async_nats::jetstream::stream;
use folgore_protocol::Digest;

use crate::lock;

/// Blobs that are kept in memory: the policy that is served, the one before and the one that is on its way.
const BLOBS: usize = 3;

/// The last writes of this process.
#[derive(Default)]
pub(super) struct Memory {
    values: Mutex<BTreeMap<String, Arc<[u8]>>>,
    blobs: Mutex<VecDeque<(Digest, Arc<[u8]>)>>,
    stores: Mutex<BTreeMap<String, stream::Config>>,
    /// Held by who puts a blob.
    pub(super) putting: tokio::sync::Mutex<()>,
}

impl Memory {
    /// Remembers how a stream was made.
    pub(super) fn made(&self, config: stream::Config) {
        lock(&self.stores).insert(config.name.clone(), config);
    }

    /// How stream `name` was made.
    pub(super) fn how(&self, name: &str) -> Option<stream::Config> {
        lock(&self.stores).get(name).cloned()
    }

    /// Remembers what is at `key`: written by this process, or seen by it.
    pub(super) fn wrote(&self, key: &str, value: Arc<[u8]>) {
        lock(&self.values).insert(key.to_owned(), value);
    }

    pub(super) fn stored(&self, digest: Digest, bytes: Arc<[u8]>) {
        let mut blobs = lock(&self.blobs);
        blobs.retain(|(other, _)| *other != digest);
        blobs.push_front((digest, bytes));
        blobs.truncate(BLOBS);
    }

    pub(super) fn deleted(&self, digest: Digest) {
        lock(&self.blobs).retain(|(other, _)| *other != digest);
    }

    pub(super) fn values(&self) -> Vec<(String, Arc<[u8]>)> {
        lock(&self.values).iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The oldest first.
    pub(super) fn blobs(&self) -> Vec<(Digest, Arc<[u8]>)> {
        lock(&self.blobs).iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_key_and_the_last_blobs_are_remembered() {
        let memory = Memory::default();
        memory.wrote("policy", b"1"[..].into());
        memory.wrote("policy", b"2"[..].into());
        assert_eq!(memory.values(), [("policy".to_owned(), b"2"[..].into())]);
        let digest = |n: u8| Digest::of(&[n]);
        for n in [1, 2, 3, 1, 4] {
            memory.stored(digest(n), vec![n].into());
        }
        let kept = || memory.blobs().into_iter().map(|(digest, _)| digest).collect::<Vec<_>>();
        assert_eq!(kept(), [digest(3), digest(1), digest(4)]);
        memory.deleted(digest(1));
        assert_eq!(kept(), [digest(3), digest(4)]);
    }
}
