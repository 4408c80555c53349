//! The runtime: supervision and the five links in their local, NATS and faulty forms. Knows no reinforcement learning.
//!
//! | file | what it is for |
//! |---|---|
//! | [`link`] | the five links as traits over bytes |
//! | [`typed`] | `protocol` types on the links: calls, jobs, state, events |
//! | [`mod@local`] | the links inside one process |
//! | [`nats`] | the links over a NATS server |
//! | [`mod@cached`] | blobs with a folder of this machine before them |
//! | [`mod@routed`] | links of two reaches: some asks stay in the process |
//! | [`mod@fenced`] | any links, writing only while the process may |
//! | [`mod@faulty`] | any links, with seeded faults, for tests |
//! | [`contract`] | what every form of the links must do, as tests |
//! | [`service`], [`supervisor`] | an actor's work, and who restarts it |
//! | [`shutdown`], [`status`], [`compute`] | how a service stops, what it shows, where it computes |
//! | [`mod@http`] | requests to addresses that are no actors |
//! | [`mod@telemetry`] | spans and where they go: OpenTelemetry |
//! | [`metrics`] | numbers that a process shows to others |
//! | [`trace`], [`backoff`] | whose work a message belongs to; how long to wait before trying again |

pub mod backoff;
pub mod cached;
pub mod compute;
pub mod contract;
pub mod faulty;
pub mod fenced;
pub mod http;
pub mod link;
pub mod local;
pub mod metrics;
pub mod nats;
pub mod routed;
pub mod service;
pub mod shutdown;
pub mod status;
pub mod supervisor;
pub mod telemetry;
pub mod trace;
pub mod typed;

pub use backoff::Backoff;
pub use cached::cached;
pub use compute::{Compute, Lane};
pub use faulty::{FaultPlan, faulty};
pub use fenced::{MayWrite, fenced};
pub use link::{
    Ask, Blob, BoxFuture, Delivery, Event, Handler, LinkError, Links, Message, Queue, Served, Settle, State,
    Subscription, Topic, Versioned, Watch,
};
pub use local::{LocalConfig, local};
pub use routed::routed;
pub use service::{Context, Service, ServiceError};
pub use shutdown::{Level, Shutdown, on_ctrl_c};
pub use status::{Status, StatusWatch};
pub use supervisor::{ChildPolicy, ChildState, Observed, RestartPolicy, Supervisor, SupervisorError, SupervisorHandle};
pub use telemetry::{Span, SpanKind, Telemetry};
pub use trace::TraceContext;
pub use typed::{CallError, GaveUp, Job, Pulled, Rejected, Stored, TypedEvent, TypedSubscription, TypedWatch};

/// Locks `mutex`, also after a panic elsewhere: every critical section in this crate leaves its value whole.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A 64-bit hash of `parts`, the same in every process: where a seed is needed and a name is at hand.
pub(crate) fn hash(parts: &[&str]) -> u64 {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    let digest = folgore_protocol::Digest::of(&bytes).0;
    u64::from_le_bytes([digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]])
}
