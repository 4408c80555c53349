//! The links inside one process: no server, no network, and the same promises as over one.

mod ask;
mod blob;
mod queue;
mod state;
mod topic;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use crate::Links;

/// Bounds and times of the local links.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Folder of the blobs; made when the first one is stored.
    pub blob_dir: PathBuf,
    /// Most messages in one queue, waiting and held together.
    pub queue_bound: usize,
    /// Bounds of single queues, by subject, in place of `queue_bound`.
    pub queue_bounds: BTreeMap<String, usize>,
    /// A delivery without ack or progress for this long is delivered again.
    pub redeliver_after: Duration,
    /// Most messages of one topic that a slow reader may be behind before it misses some, rounded up to a power of two.
    pub topic_bound: usize,
}

impl LocalConfig {
    /// The usual bounds: 1024 messages per queue and topic, redelivery after a minute.
    pub fn new(blob_dir: impl Into<PathBuf>) -> Self {
        Self {
            blob_dir: blob_dir.into(),
            queue_bound: 1024,
            queue_bounds: BTreeMap::new(),
            redeliver_after: Duration::from_secs(60),
            topic_bound: 1024,
        }
    }
}

/// The links of run `run`, all in this process. Clones share them; two calls do not.
pub fn local(run: &str, config: LocalConfig) -> Links {
    Links {
        run: run.to_owned(),
        ask: Arc::new(ask::LocalAsk::default()),
        queue: Arc::new(queue::LocalQueue::new(&config)),
        topic: Arc::new(topic::LocalTopic::new(config.topic_bound)),
        state: Arc::new(state::LocalState::default()),
        blob: Arc::new(blob::LocalBlob::new(config.blob_dir)),
    }
}
