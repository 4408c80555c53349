//! Loads and checks everything that a run is made of. Rows are encoded before any weight is read: what cannot be learnt is told at once.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use folgore_config::{Config, DataSection, data::OnBadRow};
use folgore_dataset::Mixed;
use folgore_learner::sft::{Encoder, Lessons, Order, Sequence, SftPlan, SftSettings, Tally};
use folgore_model::{
    backend::Cpu,
    files::{ModelFiles, peft::AdapterFile},
};
use folgore_protocol::{Digest, Example};

use super::{
    judged,
    rows::{self, Rows},
};
use crate::{
    agent::{self, AgentConfig},
    base::{self, Base},
    capacity::{self, Memory},
    policy::{Policy, fresh_lora},
};

/// What a run is made of.
pub struct Prepared {
    /// The configuration, settled: names pinned, steps counted.
    pub config: Config,
    /// The base.
    pub policy: Policy,
    /// The adapter that it begins with; none: a fresh one.
    pub adapter: Option<AdapterFile>,
    /// What is learnt.
    pub train: Drawn,
    /// What is looked at.
    pub held_out: Vec<Sequence>,
    /// What became of the rows, of both sides.
    pub tallies: [Tally; 2],
    /// What was read, for people.
    pub report: String,
    /// What became of rows that were judged, where they were.
    pub judged: Option<String>,
    /// What is to be done.
    pub plan: SftPlan,
}

/// Rows in the proportions of their sources, each source in another order in each pass through it.
pub struct Drawn {
    mixed: Mixed<Vec<Sequence>>,
    seed: u64,
}

impl Lessons for Drawn {
    fn rows(&self) -> u64 {
        self.mixed.len()
    }

    fn at(&self, position: u64) -> &[Sequence] {
        self.mixed.drawn(self.seed, position)
    }
}

/// The memory of the run is shown to `look`, which may refuse it before weights are loaded.
pub fn prepare(mut config: Config, from: Option<&Path>, look: impl FnOnce(&Memory) -> Result<()>) -> Result<Prepared> {
    let base = Base::of(&config.model)?;
    base.pin(&mut config.model);
    let from = from.map(base::adapter).transpose()?;
    let files = base.files()?;
    let data = match config.sft.from_run {
        None => crate::rows::here(&mut config.data)?,
        Some(_) => config.data.clone(),
    };
    let Found { sides, digest, report, judged } = sequences(&config, &data, &files)?;
    let (mut mixed, held_out, [first, second]) = sides;
    if let Err(error) = mixed.retain(|row| !row.is_empty()) {
        bail!("{report}: {error}: {}", told(&first));
    }
    let train = Drawn { mixed, seed: config.run.seed };
    let order = Order::new(train.rows(), config.sft.batch_size.into());
    if let Some(epochs) = config.optim.num_train_epochs {
        config.optim.max_steps = order.updates_of(epochs);
    }
    let longest = train.mixed.rows().flatten().chain(&held_out).map(|s| s.ids.len()).max().unwrap_or(2);
    look(&capacity::memory(&as_samples(&config, longest), &files, from.as_ref().map(|found| &*found.path), false)?)?;
    let policy = Policy::of(files, base.name(), Arc::new(Cpu::new()))?;
    if let Some(name) = from.as_ref().and_then(|found| found.hub.as_ref()) {
        config.model.adapter = Some(name.to_string().into());
    }
    let adapter = from.map(|found| policy.read_adapter(&found.path)).transpose()?;
    let lora = match &adapter {
        Some(file) => file.config.clone(),
        None => fresh_lora(&config.lora)?,
    };
    let c = &config;
    let identity = identity(c, &policy, digest, &lora)?;
    let plan = SftPlan {
        settings: SftSettings {
            optim: c.optim.clone(),
            max_tokens_per_micro_batch: if c.sft.packing { c.optim.max_tokens_per_micro_batch as usize } else { 0 },
            recompute: c.model.recompute(),
            lora_dropout: c.lora.lora_dropout as f32,
            seed: c.run.seed,
        },
        order,
        max_steps: c.optim.max_steps,
        save_steps: c.checkpoint.save_steps,
        eval_steps: c.eval.eval_steps.into(),
        eval_before: c.eval.before,
        eval_after: c.eval.after,
        patience: c.sft.early_stopping_patience,
        threshold: c.sft.early_stopping_threshold,
        base_model: policy.name.clone(),
        lora,
        beside: [(agent::FILE.to_owned(), AgentConfig::new(c, &policy, None)?.to_yaml()?)].into(),
        identity,
    };
    Ok(Prepared { policy, adapter, train, held_out, tallies: [first, second], report, judged, plan, config })
}

/// What was found to learn.
struct Found {
    sides: Both,
    digest: Digest,
    report: String,
    judged: Option<String>,
}

/// What is learnt, what is looked at, and what became of the rows of both.
type Both = (Mixed<Vec<Sequence>>, Vec<Sequence>, [Tally; 2]);

/// The same with the digest of its rows, and what was read.
pub type Sides = (Both, Digest, String);

/// What a run is to learn, of the rows that `data` names.
fn sequences(config: &Config, data: &DataSection, files: &ModelFiles) -> Result<Found> {
    if let Some(run) = &config.sft.from_run {
        let (sides, digest, report) = super::saved::sequences(config, files, run)?;
        return Ok(Found { sides, digest, report, judged: None });
    }
    let rows = rows::rows(data, &config.eval, config.run.seed)?;
    let Rows { train, eval, digest, report, judged } = judged::retain(rows, config, &files.tokenizer)?;
    let encoding = Encoding { config, files, encoder: encoder(config, files) };
    let (mut tallies, mut left_out) = ([Tally::default(), Tally::default()], LeftOut::default());
    let mut fault = None;
    let train = train.map(|example| match encoding.row(&example, &mut tallies[0], &mut left_out) {
        Ok(sequences) => sequences,
        Err(error) => {
            fault.get_or_insert(error);
            Vec::new()
        }
    });
    if let Some(error) = fault {
        return Err(error);
    }
    let mut held_out = Vec::new();
    for example in &eval {
        held_out.extend(encoding.row(example, &mut tallies[1], &mut left_out)?);
    }
    if let Some(error) = left_out.first {
        eprintln!("warning: {} rows are left out; the first: {error}", left_out.rows);
    }
    Ok(Found { sides: (train, held_out, tallies), digest, report, judged })
}

/// Most tokens of a sequence.
pub fn longest_allowed(config: &Config, files: &ModelFiles) -> usize {
    let context = files.config.max_position_embeddings;
    config.model.max_seq_length.map_or(context, |most| (most as usize).min(context))
}

fn encoder<'a>(config: &'a Config, files: &'a ModelFiles) -> Encoder<'a> {
    let ends = &files.config.eos_token_ids;
    Encoder {
        tokenizer: &files.tokenizer,
        ends: if ends.is_empty() { files.tokenizer.eos_ids() } else { ends },
        variables: &config.rollout.chat_template_kwargs,
        completion_only_loss: config.sft.completion_only_loss,
        max_length: longest_allowed(config, files),
        truncation: config.sft.truncation_mode,
    }
}

/// Rows that cannot be learnt from.
#[derive(Default)]
struct LeftOut {
    rows: u64,
    first: Option<String>,
}

struct Encoding<'a> {
    config: &'a Config,
    files: &'a ModelFiles,
    encoder: Encoder<'a>,
}

impl Encoding<'_> {
    fn row(&self, example: &Example, tally: &mut Tally, left_out: &mut LeftOut) -> Result<Vec<Sequence>> {
        let sequences = match self.encoder.encode(example, tally) {
            Ok(sequences) => sequences,
            Err(error) if self.config.data.on_bad_row == OnBadRow::Skip => {
                left_out.rows += 1;
                left_out.first.get_or_insert(error.to_string());
                return Ok(Vec::new());
            }
            Err(error) => bail!("{error}; data.on_bad_row=skip leaves such rows out"),
        };
        let vocab = self.files.config.vocab_size;
        match sequences.iter().flat_map(|s| &s.ids).find(|id| **id as usize >= vocab) {
            None => Ok(sequences),
            Some(id) => bail!(
                "row {}: token id {id} is outside the model's vocabulary of {vocab}: are model and tokenizer of one kind?",
                example.id
            ),
        }
    }
}

/// What became of rows, in words.
pub fn told(tally: &Tally) -> String {
    let Tally { examples, sequences, tokens, learnt, dropped, truncated, nothing_learnt, endless, split } = tally;
    let mut said = format!("{examples} rows, {sequences} sequences of {tokens} tokens, {learnt} of them learnt");
    for (count, what) in [
        (dropped, "left out because they are too long"),
        (truncated, "cut to the longest that fits"),
        (nothing_learnt, "left out because nothing of them is learnt"),
        (split, "more because the chat template rewrites history"),
        (endless, "learnt turns that end without a token that ends a generation"),
    ] {
        if *count > 0 {
            said = format!("{said}; {count} {what}");
        }
    }
    said
}

/// The run in the terms of one that samples, for the prediction of memory: batches of sequences as long as the longest.
fn as_samples(config: &Config, longest: usize) -> Config {
    let mut config = config.clone();
    let rollout = &mut config.rollout;
    (rollout.num_prompts, rollout.num_generations) = (config.sft.batch_size, 1);
    (rollout.max_prompt_length, rollout.max_completion_length) = (1, longest.saturating_sub(1).max(1) as u32);
    rollout.environment = folgore_config::RolloutSection::default().environment;
    config
}

/// What may not change while the run lives.
fn identity(
    c: &Config,
    policy: &Policy,
    digest: Digest,
    lora: &folgore_model::files::peft::LoraConfig,
) -> Result<BTreeMap<String, String>> {
    let facts = [
        ("kind", KIND.to_owned()),
        ("base model", policy.digest.short()),
        ("tokenizer", policy.tokenizer.digest().short()),
        ("dataset", digest.short()),
        ("run.seed", c.run.seed.to_string()),
        ("sft.batch_size", c.sft.batch_size.to_string()),
        ("sft.completion_only_loss", c.sft.completion_only_loss.to_string()),
        ("lora", Digest::of(&serde_json::to_vec(lora)?).short()),
    ];
    Ok(facts.map(|(name, fact)| (name.to_owned(), fact)).into())
}

/// What the fact `kind` of a run that imitates is.
pub const KIND: &str = "sft";

/// Refuses to go on where `then`, what a checkpoint says of the run, is not what it is `now`.
pub fn expect_same(then: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Result<()> {
    let none = String::from("nothing");
    let of = |facts: &BTreeMap<String, String>, name: &str| facts.get(name).unwrap_or(&none).clone();
    let changed = now.keys().find(|name| of(then, name) != of(now, name));
    let changed = changed.map(|name| format!("{name} was {} and is {} now", of(then, name), of(now, name)));
    changed
        .map_or(Ok(()), |changed| bail!("the run cannot go on: {changed}; begin another one with --adapter"))
        .context("--resume")
}
