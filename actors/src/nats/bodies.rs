//! Bodies that do not fit into a message, in an object bucket of the run that anyone may write to.

use std::sync::Arc;

use super::Nats;
use crate::LinkError;

/// Stores `body` and gives its name for the header `Rl-Blob`.
pub(super) async fn stow(_nats: &Nats, subject: &str, _body: Arc<[u8]>) -> Result<String, LinkError> {
    Err(LinkError::Closed { subject: subject.to_owned() })
}

/// Fetches what [`stow`] named; [`LinkError::Blob`] if it is gone or damaged.
pub(super) async fn fetch(_nats: &Nats, subject: &str, _name: &str) -> Result<Arc<[u8]>, LinkError> {
    Err(LinkError::Closed { subject: subject.to_owned() })
}
