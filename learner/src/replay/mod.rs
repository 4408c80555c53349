//! Replay: the one writer of what a run knows. It opens groups, takes trajectories in, and hands out batches.
//!
//! [`ledger`] decides and knows no disk; [`store`] makes each decision durable before it is told; [`service`] connects both
//! to the links. `line` holds the line of checkpoints, `defence` says whom is believed. `given` is about members of groups
//! that the policy does not sample itself, [`experience`] about what it did right before. [`tasks`] says what is asked in
//! which order, [`ingest`] what is believed, `judging` what becomes of groups that are judged as a whole, for which `judge` asks, [`evals`] how held-out questions travel the same path; `spans` is what
//! OpenTelemetry is told.

pub mod curriculum;
mod defence;
pub mod evals;
pub mod events;
pub mod experience;
mod given;
pub mod identity;
pub mod ingest;
mod issue;
mod judge;
mod judging;
pub mod ledger;
mod line;
pub mod service;
pub mod settings;
mod spans;
pub mod store;
pub mod tasks;

pub use events::ReplayEvent;
pub use identity::{Difference, RunIdentity};
pub use ledger::Ledger;
pub use service::ReplayService;
pub use settings::ReplaySettings;
pub use store::{ReplayError, ReplaySetup, Store};
pub use tasks::{TaskSource, task_index};
