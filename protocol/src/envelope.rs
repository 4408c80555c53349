//! What accompanies every body, locally too: who, which run, which key, how long, and whose trace.

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, PolicyId};

/// Version of the bodies in this crate. A peer with another major number is refused at the handshake.
pub const PROTOCOL_VERSION: u16 = 1;

/// The facts beside a body. On NATS they travel as headers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// `PROTOCOL_VERSION` of the sender.
    pub version: u16,
    /// Name of the run.
    pub run: String,
    /// Idempotency key: the same for every attempt at the same thing.
    pub key: String,
    /// The policy that the body is about.
    pub policy: Option<PolicyId>,
    /// Milliseconds that the sender waits for an answer; a relative budget, so that clocks need not agree.
    pub budget_ms: Option<u64>,
    /// Digest of the body.
    pub digest: Option<Digest>,
    /// W3C trace context (`traceparent`).
    pub traceparent: Option<String>,
}

impl Envelope {
    /// An envelope of this version for `run` and `key`, and nothing else.
    pub fn new(run: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            run: run.into(),
            key: key.into(),
            policy: None,
            budget_ms: None,
            digest: None,
            traceparent: None,
        }
    }
}
