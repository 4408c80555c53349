//! Scores trajectories: one rule per file, and the worker that hosts them.
//!
//! A [`Reward`] is asked for many completions at once and gives one [`folgore_protocol::Outcome`] for each: a score, "cannot
//! be judged" or "failed". Only a score is ever trained on; nothing is scored 0 because something went wrong.
//! Built-in rules ([`rules`]) are pure functions of one completion ([`Rule`]); [`build`] makes a weighted sum of them from
//! the configuration, [`external`] reaches rewards that run elsewhere, [`host::score`] runs any reward under its deadline, and [`RewardWorker`] serves it on the links.
//! [`math_answer`] holds what decides whether two answers to a mathematical question are the same.

mod columns;
mod error;
pub mod external;
mod extract;
pub mod host;
mod judge;
pub mod math_answer;
mod qa;
mod registry;
mod reward;
pub mod rules;
mod text;
mod weighted;
mod worker;

pub use error::RewardError;
pub use folgore_protocol::Scope;
pub use registry::{Rewards, build, rule_names};
pub use reward::{PerItem, Reward, Rule};
pub use weighted::Weighted;
pub use worker::RewardWorker;

#[cfg(test)]
mod samples;
