//! `folgore data traces`: what agents did and were rewarded for, as rows to imitate.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use folgore_dataset::{
    agent,
    convert::{self, Target},
};

use super::configured;
use crate::{
    cli::{StreamArgs, data::TracesArgs},
    stream::Out,
};

/// Runs the command.
pub fn run(args: &TracesArgs) -> Result<()> {
    if !(args.top > 0.0 && args.top <= 1.0) {
        bail!("--top: expected above 0 and at most 1, got {}", args.top);
    }
    let (input, name) = (args.input.display(), args.output.display());
    let config = configured(&[], &args.settings, None)?;
    let traced = agent::read(&args.input, &config.data)?;
    let (rollouts, turns, unjudged, all) = (traced.rollouts, traced.turns, traced.unjudged, traced.rows.len());
    let found =
        format!("{rollouts} rollouts, {turns} turns, {unjudged} of them without a reward after them, {all} rows");
    let worth = |(reward, _): &(f64, _)| args.min_reward.is_none_or(|least| *reward >= least);
    let rows = agent::best(traced.rows.into_iter().filter(worth).collect(), args.top);
    if rows.is_empty() {
        bail!("{input}: {found}, none with a reward that is high enough");
    }
    eprintln!("{input}: {found}");
    let output = (args.output != Path::new("-")).then(|| args.output.clone());
    let mut out = Out::open(&StreamArgs { input: None, output })?;
    for (_, row) in &rows {
        let row =
            convert::example(row, Target::Messages).map_err(anyhow::Error::msg).with_context(|| row.id.clone())?;
        out.write(&row)?;
    }
    out.finish()?;
    eprintln!("{name}: {} rows, rewards {} to {}", rows.len(), rows[rows.len() - 1].0, rows[0].0);
    Ok(())
}
