//! Bodies that do not fit into a message, in an object bucket that anyone may write to. The server forgets them after a
//! day, as it does the messages.

use std::sync::Arc;

use folgore_protocol::Digest;

use super::{Nats, connection::refused, objects::Objects};
use crate::LinkError;

/// Largest body.
pub(super) const BODY_MAX: usize = 16 << 20;

fn objects(nats: &Nats) -> Objects {
    Objects::new(nats, nats.config().run.bodies_bucket(), BODY_MAX as u64)
}

/// Stores `body` and gives its name for the header `Rl-Blob`; [`LinkError::Refused`] above [`BODY_MAX`].
pub(super) async fn stow(nats: &Nats, subject: &str, body: Arc<[u8]>) -> Result<String, LinkError> {
    if body.len() > BODY_MAX {
        return Err(refused(subject, format!("expected a body of at most {BODY_MAX} bytes, got {}", body.len())));
    }
    let digest = Digest::of(&body);
    objects(nats).put(digest, &body).await?;
    Ok(digest.hex())
}

/// Fetches what [`stow`] named; [`LinkError::Blob`] if it is gone or damaged.
pub(super) async fn fetch(nats: &Nats, name: &str) -> Result<Arc<[u8]>, LinkError> {
    let digest = Digest::try_from(name.to_owned())
        .map_err(|reason| LinkError::Blob { name: name.chars().take(80).collect(), reason })?;
    objects(nats).get(digest).await
}
