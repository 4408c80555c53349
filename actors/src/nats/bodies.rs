//! Bodies that do not fit into a message, in an object bucket that those who may send them may write to. The server forgets
//! them after a day, as it does the messages.

use std::sync::Arc;

use async_nats::HeaderMap;
use folgore_protocol::Digest;

use super::{Nats, connection::refused, headers, objects::Objects};
use crate::{LinkError, Message};

/// Largest body.
pub(super) const BODY_MAX: usize = 16 << 20;

/// Bytes that are kept free beside a body for its headers, and as much again for those that the server adds.
pub(super) const BESIDE: usize = 2 * headers::MOST_BYTES;

fn objects(nats: &Nats) -> Objects {
    Objects::new(nats, nats.config().run.bodies_bucket(), BODY_MAX as u64)
}

/// The headers of `message` and the body that travels with them: nothing where it has more than `most` bytes, and is stored
/// instead. [`LinkError::Refused`] above [`BODY_MAX`].
pub(super) async fn pack(
    nats: &Nats,
    subject: &str,
    message: Message,
    most: usize,
) -> Result<(HeaderMap, Vec<u8>), LinkError> {
    let Message { mut envelope, body } = message;
    let odd = |reason| refused(subject, reason);
    let stored = body.len() > most;
    if stored {
        // The receiver must know a body that is not there from an empty one.
        envelope.digest.get_or_insert_with(|| Digest::of(&body));
    }
    let mut headers = headers::write(&envelope, body.len()).map_err(odd)?;
    if !stored {
        return Ok((headers, body.to_vec()));
    }
    if body.len() > BODY_MAX {
        return Err(odd(format!("expected a body of at most {BODY_MAX} bytes, got {}", body.len())));
    }
    let digest = Digest::of(&body);
    objects(nats).put(digest, &body).await?;
    headers::insert(&mut headers, headers::BLOB, &digest.hex()).map_err(odd)?;
    Ok((headers, Vec::new()))
}

/// The body of what [`pack`] made; [`LinkError::Blob`] if it is gone or damaged.
pub(super) async fn unpack(nats: &Nats, message: &async_nats::Message) -> Result<Arc<[u8]>, LinkError> {
    let Some(name) = message.headers.as_ref().and_then(|h| headers::text(h, headers::BLOB)) else {
        return Ok(message.payload.as_ref().into());
    };
    let digest = Digest::try_from(name.to_owned())
        .map_err(|reason| LinkError::Blob { name: name.chars().take(80).collect(), reason })?;
    objects(nats).get(digest).await
}
