//! `folgore eval`: a policy on held-out questions, on the same path as in training.

use anyhow::Result;

use crate::cli::EvalArgs;

/// Runs the command.
pub fn run(_args: EvalArgs) -> Result<()> {
    Ok(())
}
