//! `folgore make-base`: the embedded policies, again.

use std::path::PathBuf;

use anyhow::Result;

use crate::cli::MakeBaseArgs;

/// Runs the command.
pub fn run(args: MakeBaseArgs) -> Result<()> {
    let out = args.out.unwrap_or_else(|| PathBuf::from(args.policy.folder()));
    args.policy.make(&out, args.steps, |line| println!("{line}"))?;
    println!("wrote {}: build again to compile it in", out.display());
    Ok(())
}
