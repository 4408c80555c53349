//! How a worker joins a run.

use std::time::Duration;

use folgore_actors::{Backoff, CallError, Links, Shutdown};
use folgore_protocol::{Hello, HelloReply, Role, subjects};
use tokio::time::sleep;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Why a worker did not get in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It does not hold what the run is made of.
    #[error("refused: {field}: the run has {want}, this worker has {got}")]
    Refused {
        /// What differs.
        field: String,
        /// What the run has.
        want: String,
        /// What the worker has.
        got: String,
    },
    /// The answer could not be had.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Asks the head to let this worker in, waiting for a head as long as it takes; `waiting` is told so. None if the process was
/// asked to stop first.
pub async fn join(
    links: &Links,
    shutdown: &Shutdown,
    hello: &Hello,
    waiting: impl Fn(&str),
) -> Result<Option<u32>, JoinError> {
    let Hello { role, worker, .. } = hello;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5), seed_of(*role, worker));
    loop {
        let asked = links.call::<_, HelloReply>(subjects::HELLO, hello, worker, ANSWER);
        match shutdown.unless_stopping(asked).await {
            None => return Ok(None),
            Some(Ok(HelloReply::Accept { epoch })) => return Ok(Some(epoch)),
            Some(Ok(HelloReply::Reject { field, want, got })) => return Err(JoinError::Refused { field, want, got }),
            Some(Err(error)) if error.is_transient() => {
                waiting(&format!("the head of run {} does not answer: {error}", links.run));
                if shutdown.unless_stopping(sleep(backoff.next_wait())).await.is_none() {
                    return Ok(None);
                }
            }
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

fn seed_of(role: Role, worker: &str) -> u64 {
    worker.bytes().fold(role as u64, |state, byte| folgore_protocol::seed::mix(&[state, u64::from(byte)]))
}
