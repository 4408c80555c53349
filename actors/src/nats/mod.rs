//! The links over a NATS server, and how a process gets connected to one.
//!
//! | file | what it is for |
//! |---|---|
//! | [`Nats`], `connection` | one connection: TLS, identity, reconnects, what the server complained about |
//! | `streams` | streams and consumers of a run, as the server is told about them |
//! | `headers` | an envelope as headers |
//! | `ask`, `queue`, `topic`, `state`, `blob` | the five links |
//! | [`admin`] | streams, consumers and buckets made, told of and removed |
//! | `bucket`, `objects`, `chunks`, `bodies` | a key-value bucket, an object bucket, bodies that do not fit into a message |
//! | `memory`, `restore` | what a writer remembers of its writes, and puts back when the server lost it |
//! | `lease` | one head at a time, and how it learns that it is not the one any more |
//! | [`server`] | a server of one's own, as a child process |
//!
//! NATS moves messages and is never the record: every stream may be lost and the run goes on.

pub mod admin;
mod ask;
mod blob;
mod bodies;
mod bucket;
mod chunks;
mod config;
mod connection;
mod headers;
mod lease;
mod memory;
mod objects;
mod queue;
mod request;
mod restore;
pub mod server;
mod state;
pub(crate) mod streams;
mod topic;

pub use admin::Limits;
pub use config::{Identity, NatsConfig};
pub use connection::{Faults, Nats, connect};
pub use lease::{Fence, Fenced, Holder, Lease, LeaseLost, acquire};
pub use restore::Restored;

use std::{path::PathBuf, sync::Arc};

use crate::{LinkError, Links};

/// Why a process could not connect, or was not told how.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// A name that cannot be part of a subject.
    #[error("{0}")]
    Name(String),
    /// A file of the identity is missing or damaged.
    #[error("identity file {}: {reason}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The server did not take the connection.
    #[error("NATS server {url}: {reason}")]
    Connect {
        /// Its address.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The server is too old.
    #[error("NATS server {url}: expected version {wanted} or later, got {got}")]
    Version {
        /// Its address.
        url: String,
        /// The oldest version that is taken.
        wanted: &'static str,
        /// What it is.
        got: String,
    },
    /// The server refused an administrative request.
    #[error("{what}: {reason}")]
    Admin {
        /// What was asked for.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// A store of the run did not do it.
    #[error("{what}: {source}")]
    Link {
        /// What was tried.
        what: String,
        /// What came of it.
        source: LinkError,
    },
}

impl Nats {
    /// The links of this process over the connection. Clones share it; the connection lives as long as one of them does.
    pub fn links(&self) -> Links {
        Links {
            run: self.config().run.run().to_owned(),
            ask: Arc::new(ask::NatsAsk::new(self)),
            queue: Arc::new(queue::NatsQueue::new(self)),
            topic: Arc::new(topic::NatsTopic::new(self)),
            state: Arc::new(state::NatsState::new(self)),
            blob: Arc::new(blob::NatsBlob::new(self)),
        }
    }
}
