//! `folgore loss`: an objective on given log-probs and rewards. One request a line, one reply: advantages, loss, gradient,
//! metrics; the form is that of [`folgore_learner::objective::LossRequest`].

use anyhow::Result;
use folgore_learner::objective::evaluate_json;
use serde_json::Value;

use crate::{cli::StreamArgs, stream};

/// Runs the command.
pub fn run(args: StreamArgs) -> Result<()> {
    stream::each(&args, |row| Ok(evaluate_json(Value::Object(row.fields))?))
}
