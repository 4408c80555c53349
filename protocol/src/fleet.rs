//! How processes of one run meet: what the run is, who wants to join, and who is still there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ids::PolicyId, names::Role};

/// What a run is made of, as the head says: the latest value of the `config` state. A worker takes its configuration from
/// here and proves with [`Hello`] that it holds the same things.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunCard {
    /// Name of the run.
    pub run: String,
    /// `PROTOCOL_VERSION` of the head.
    pub protocol: u16,
    /// Version of the head's executable.
    pub build: String,
    /// The resolved configuration, as YAML.
    pub config: String,
    /// Facts that every worker must share, by name (`base model`, `tokenizer`, `chat template`, ...); digests as text.
    pub facts: BTreeMap<String, String>,
}

/// A worker asks to join: subject [`crate::subjects::HELLO`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// `PROTOCOL_VERSION` of the worker.
    pub protocol: u16,
    /// Version of its executable.
    pub build: String,
    /// What it wants to do.
    pub role: Role,
    /// Its name.
    pub worker: String,
    /// What it holds of [`RunCard::facts`]; what its role does not need may be missing.
    pub facts: BTreeMap<String, String>,
}

/// The head's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HelloReply {
    /// Come in.
    Accept {
        /// Epoch of the head: policies of a lower one are not served any more.
        epoch: u32,
    },
    /// Something differs.
    Reject {
        /// What (`protocol`, or the name of a fact).
        field: String,
        /// What the run has.
        want: String,
        /// What the worker has.
        got: String,
    },
}

/// A worker is there: topic [`crate::subjects::HEARTBEATS`], every few seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// What it does.
    pub role: Role,
    /// Its name.
    pub worker: String,
    /// The machine it runs on.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// Version of its executable.
    pub build: String,
    /// What it is at (`working`, `idle`, `waiting for ...`, `leaving`), for people.
    pub state: String,
    /// Episodes (or requests) that it can have in hand at once.
    pub slots: u32,
    /// How many it has in hand.
    pub active: u32,
    /// The policy that it serves.
    pub policy: Option<PolicyId>,
    /// What its actors show of themselves.
    pub status: Value,
}

/// A message that could not be read and was ended: topic [`crate::subjects::DEAD_LETTERS`], for whoever runs the fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The queue that it was in.
    pub queue: String,
    /// Its key, as it says.
    pub key: String,
    /// Who sent it, where the server proves that.
    pub sender: Option<String>,
    /// What is wrong with it.
    pub reason: String,
    /// Bytes of its body.
    pub bytes: u64,
}
