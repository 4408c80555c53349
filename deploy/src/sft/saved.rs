//! The samples of a run, to be imitated as they were sampled: the best of them by reward (rejection sampling).

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use folgore_config::Config;
use folgore_learner::sft::{Sequence, Tally, rollouts};
use folgore_model::files::ModelFiles;
use folgore_protocol::Digest;

use super::{
    prepare::{Sides, longest_allowed},
    rows::{evenly, one_source},
};
use crate::{commands::inspect::with_copy, run_dir};

/// The sequences of the run `run`.
pub fn sequences(config: &Config, files: &ModelFiles, run: &Path) -> Result<Sides> {
    let name = run.to_str().with_context(|| format!("sft.from_run: {} is no name", run.display()))?;
    let path = run_dir::find(&config.run.output_dir, name).context("sft.from_run")?;
    let tokenizer = files.tokenizer.digest().short();
    let read = |record: &folgore_learner::record::Record| {
        let steps = record.load()?.steps.into_keys().collect::<Vec<_>>();
        let identity = record.identity()?.unwrap_or_default();
        let batches = steps.into_iter().map(|step| record.batch(step)).collect::<Result<Vec<_>, _>>()?;
        Ok((identity, batches.into_iter().flatten().collect::<Vec<_>>()))
    };
    let (identity, batches) = with_copy(&path.join("record.redb"), read).map_err(anyhow::Error::msg)?;
    let theirs = identity.get("tokenizer").map(String::as_str).unwrap_or_default();
    if theirs != tokenizer {
        bail!(
            "sft.from_run: {}: its ids are those of the tokenizer {theirs}, not of {tokenizer}: name the same model",
            path.display()
        );
    }
    let samples = batches.iter().flat_map(|batch| &batch.groups);
    let chosen = rollouts::best(samples, config.sft.top);
    if chosen.is_empty() {
        bail!("sft.from_run: {}: its record holds no sample with a reward", path.display());
    }
    let shown = format!(
        "{}: the best {} of {} samples with a reward that its record holds, {} and more",
        path.display(),
        chosen.samples,
        chosen.of,
        chosen.least
    );
    let (mut tally, mut digest) = (Tally::default(), String::new());
    let all = chosen.sequences(longest_allowed(config, files), config.sft.truncation_mode, &mut tally);
    for sequence in &all {
        digest.push_str(&format!("{} {:?}\n", sequence.example, sequence.ids));
    }
    // whole questions are held out, so that no answer to one of them is learnt
    let fraction = config.data.eval_fraction;
    let held = |s: &Sequence| {
        let place =
            Digest::of(s.source.as_bytes()).0.iter().take(7).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        (place as f64 / (1u64 << 56) as f64) < fraction
    };
    let (eval, train): (Vec<_>, Vec<_>) = all.into_iter().partition(held);
    let mut eval = evenly(eval, config.eval.eval_items as usize);
    let name_all = |list: &mut Vec<Sequence>| list.iter_mut().for_each(|s| s.source = "rollouts".into());
    let (mut train, mut second) = (train, Tally::default());
    name_all(&mut train);
    name_all(&mut eval);
    second.examples = eval.len() as u64;
    second.sequences = eval.len() as u64;
    second.tokens = eval.iter().map(|s| s.ids.len() as u64).sum();
    second.learnt = eval.iter().map(|s| s.learnt_tokens() as u64).sum();
    tally.sequences -= second.sequences;
    tally.tokens -= second.tokens;
    tally.learnt -= second.learnt;
    let train = one_source("rollouts", train.into_iter().map(|sequence| vec![sequence]).collect())?;
    Ok(((train, eval, [tally, second]), Digest::of(digest.as_bytes()), shown))
}
