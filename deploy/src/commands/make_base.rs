//! `folgore make-base`: the embedded policy, again.

use anyhow::Result;

use crate::{cli::MakeBaseArgs, embedded};

/// Runs the command.
pub fn run(args: MakeBaseArgs) -> Result<()> {
    let mut settings = embedded::recipe();
    settings.steps = args.steps.unwrap_or(settings.steps);
    embedded::make(&args.out, &settings, |line| println!("{line}"))?;
    println!("wrote {}: build again to compile it in", args.out.display());
    Ok(())
}
