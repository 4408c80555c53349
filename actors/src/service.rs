//! A service: what one actor does from its start to its end, written as one async function.
//!
//! A ractor actor hosts each service: its mailbox carries control only (stop, observe), the work runs in a task that the
//! actor owns and crosses [`Links`] that hold permits. Compute does not run on the async runtime: a service that computes
//! owns a thread ([`crate::compute`]) whose death ends the service.

use crate::{BoxFuture, Links, Shutdown, Status};

/// Why a service ended badly: an error from below with its causes in the text.
pub type ServiceError = Box<dyn std::error::Error + Send + Sync>;

/// What a service is given.
#[derive(Clone)]
pub struct Context {
    /// Name of the actor, unique in the process (`rollout-0`).
    pub name: String,
    /// The links of this process.
    pub links: Links,
    /// Tells when to stop; see [`Shutdown`].
    pub shutdown: Shutdown,
    /// What the service shows of itself.
    pub status: Status,
}

/// The work of one actor. Made anew by its factory for every restart.
pub trait Service: Send + 'static {
    /// Runs to the end. `Ok` is a wanted end (asked to stop, nothing left to do); `Err` and a panic are restarted with
    /// backoff, and escalated when they come too often.
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>>;
}
