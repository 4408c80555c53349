//! `protocol` types on the links: what an actor calls instead of the bytes-level traits.
//!
//! Every message goes through the codec here, locally too, with its envelope filled (run, key, budget, digest, trace) and
//! checked on arrival. A reply is written in the format of its request.

mod ask;
mod queue;
mod state;
mod topic;

pub use ask::GaveUp;
pub use queue::{Job, Pulled, Rejected};
pub use state::{Stored, TypedWatch};
pub use topic::{TypedEvent, TypedSubscription};

use std::time::Duration;

use folgore_protocol::{CodecError, Digest, Envelope, Format, PROTOCOL_VERSION, decode, encode, encode_json};
use serde::{Serialize, de::DeserializeOwned};

use crate::{LinkError, Message, TraceContext};

/// Why a typed call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The link did not do it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The body is not what it should be.
    #[error("{subject}: {source}")]
    Body {
        /// The subject.
        subject: String,
        /// What is wrong with it.
        source: CodecError,
    },
    /// The envelope does not fit: another protocol, another run, or a body that is not the one that was sent.
    #[error("{subject}: message {key}: expected {what} {expected}, got {got}")]
    Envelope {
        /// The subject.
        subject: String,
        /// Key of the message.
        key: String,
        /// What does not fit.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// What came.
        got: String,
    },
}

impl CallError {
    /// What the link said, if it was the link.
    pub fn link(&self) -> Option<&LinkError> {
        match self {
            CallError::Link(error) => Some(error),
            _ => None,
        }
    }

    /// True if the same call may succeed later: nobody there, too late, or full.
    pub fn is_transient(&self) -> bool {
        let link = self.link();
        link.is_some_and(|e| {
            matches!(e, LinkError::NoResponder { .. } | LinkError::Deadline { .. } | LinkError::Full { .. })
        })
    }
}

/// Makes a message of run `run` for `key` from `value`, in `format`.
fn seal<T: Serialize>(
    run: &str,
    subject: &str,
    value: &T,
    key: &str,
    format: Format,
    budget: Option<Duration>,
) -> Result<Message, CallError> {
    let body = encode_as(value, format).map_err(|source| CallError::Body { subject: subject.to_owned(), source })?;
    let mut envelope = Envelope::new(run, key);
    envelope.budget_ms = budget.map(|b| b.as_millis() as u64);
    envelope.digest = Some(Digest::of(&body));
    envelope.traceparent = Some(TraceContext::outgoing(run, key).traceparent());
    Ok(Message { envelope, body: body.into() })
}

/// Checks the envelope of `message`, which should be of run `run`, and reads its body.
fn open<T: DeserializeOwned>(run: &str, subject: &str, message: &Message) -> Result<T, CallError> {
    let envelope = &message.envelope;
    let unfit = |what, expected: String, got: String| CallError::Envelope {
        subject: subject.to_owned(),
        key: envelope.key.clone(),
        what,
        expected,
        got,
    };
    if envelope.version != PROTOCOL_VERSION {
        return Err(unfit("protocol version", PROTOCOL_VERSION.to_string(), envelope.version.to_string()));
    }
    if envelope.run != run {
        return Err(unfit("run", run.to_owned(), envelope.run.clone()));
    }
    if let Some(expected) = envelope.digest {
        let got = Digest::of(&message.body);
        if got != expected {
            return Err(unfit("a body of digest", expected.short(), got.short()));
        }
    }
    decode(&message.body).map_err(|source| CallError::Body { subject: subject.to_owned(), source })
}

/// Writes `value` in `format`. A JSON body must be an object, because its first byte is what tells the formats apart.
fn encode_as<T: Serialize>(value: &T, format: Format) -> Result<Vec<u8>, CodecError> {
    let body = match format {
        Format::MessagePack => encode(value)?,
        Format::Json => encode_json(value)?,
    };
    if Format::of(&body) != format {
        let reason = format!("the body starts like {:?}; it must be a struct or a map", Format::of(&body));
        return Err(CodecError { what: std::any::type_name::<T>(), format, bytes: 0, reason });
    }
    Ok(body)
}
