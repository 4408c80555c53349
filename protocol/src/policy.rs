//! The announcement of new weights.

use serde::{Deserialize, Serialize};

use crate::ids::PolicyId;

/// A policy that may be served: the latest value of the `policy` state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyPublished {
    /// Which policy; its digest is that of the blob.
    pub policy: PolicyId,
    /// Name of the blob that holds the adapter as a safetensors file; none: the base as it is.
    pub blob: Option<String>,
    /// Bytes of the blob.
    pub bytes: u64,
    /// Log-probs of a fixed text under this policy, as the learner computes them: a sampler computes them again before it
    /// serves the policy. Empty: not said.
    #[serde(default)]
    pub fingerprint: Vec<f32>,
    /// Blobs of earlier policies that can still be fetched, the oldest first.
    #[serde(default)]
    pub kept: Vec<String>,
}
