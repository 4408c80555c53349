//! Rewards outside of the executable: programs, addresses, and whatever else carries a request somewhere.
//!
//! A [`Carrier`] makes one attempt at one request. [`Guarded`] is the reward around it: deadline, repeated attempts, limit of
//! requests at once, and a pause after failures in a row, the same for all. [`wire`] is what is said: a JSON object each way,
//! `reward/schema/` in the repository.

mod breaker;
mod child;
mod command;
mod guarded;
pub mod http;
mod python;
pub mod wire;

use std::sync::Arc;

use folgore_actors::link::BoxFuture;
use folgore_config::{RewardSpec, RewardWay};
use folgore_protocol::{Outcome, ScoreRequest};

pub use command::Command;
pub use guarded::{Guarded, Limits};
pub use http::Http;

use crate::{Reward, judge::Judge, reward::scope_of};

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// What happened.
    pub reason: String,
    /// What another attempt is worth.
    pub kind: FailureKind,
}

/// What a failure says of the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The reward may be well again in a moment.
    Passing,
    /// The reward will not be well until somebody mends it.
    Lasting,
    /// The reward is well and says that it cannot score this request.
    Said,
}

impl Failure {
    /// A failure that may pass.
    pub fn passing(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), kind: FailureKind::Passing }
    }

    /// A failure that stays.
    pub fn lasting(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), kind: FailureKind::Lasting }
    }

    /// What the reward itself gave as its reason.
    pub fn said(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), kind: FailureKind::Said }
    }
}

/// Carries a request to where it is scored, once, and brings the outcomes back.
pub trait Carrier: Send + Sync {
    /// Gives one outcome for each item, in order. The future may be dropped at any time, by a deadline for one, and has to
    /// take with it what it started.
    fn carry<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Result<Vec<Outcome>, Failure>>;
}

/// The reward that `spec` describes, unless the executable holds it (none).
///
/// # Errors
/// If it cannot be reached as described, with the reason.
pub(crate) fn build(spec: &RewardSpec) -> Result<Option<Arc<dyn Reward>>, String> {
    let name = spec.name.as_str();
    let carrier: Arc<dyn Carrier> = match spec.way() {
        RewardWay::Held => return Ok(None),
        RewardWay::Command(argv) => Arc::new(Command::new(name, argv)?),
        RewardWay::Python(file, function) => Arc::new(Command::new(name, &python::command(file, function))?),
        RewardWay::Url(url) => Arc::new(Http::new(name, url)?),
        RewardWay::Judge(judge) => Arc::new(Judge::new(name, judge)?),
    };
    let scope = scope_of(spec.scope);
    Ok(Some(Arc::new(Guarded::new(name, scope, Limits::from(spec), carrier))))
}

/// Looks whether what `spec` describes is on this machine, as far as can be told without running it.
///
/// # Errors
/// What is missing.
pub(crate) fn look(spec: &RewardSpec) -> Result<(), String> {
    match spec.way() {
        RewardWay::Python(file, function) => python::look(file, function),
        _ => Ok(()),
    }
}

/// `text` as an error shows it: one line, not long.
pub(crate) fn shown(text: &[u8]) -> String {
    const SHOWN: usize = 120;
    let cut = &text[..text.len().min(SHOWN)];
    let line = String::from_utf8_lossy(cut).replace(char::is_control, " ");
    if text.len() > SHOWN { format!("{line}...") } else { line }
}
