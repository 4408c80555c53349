//! `folgore generate`: continues prompts through the same engine that samples in training.
//!
//! Rows are read as the engine has room and answered in the order of the input. A completion depends on its row, its place
//! in the input, its number and the seed, not on what else runs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use folgore_config::SopSection;
use folgore_model::{backend::BLOCK, backend::Cpu};
use folgore_protocol::{Digest, Generate, Generated, PolicyId, Prompt, SamplingParams, StopReason, seed};
use folgore_rollout::{DecoderModel, Engine, EngineConfig, ModelEncoder, engine::SequenceId};
use serde::Serialize;
use serde_json::Map;

use crate::{
    agent::{self, AgentConfig},
    cli::GenerateArgs,
    policy::Policy,
    sop::SopMemory,
    stream::{self, AtHand, Out, Row, Rows},
};

/// Completions that may be under way or wait for earlier ones to be written.
const WINDOW: usize = 256;
/// SopMemory for keys and values, unless one sequence needs more.
const CACHE_BYTES: usize = 1 << 30;

/// Runs the command.
pub fn run(args: GenerateArgs) -> Result<()> {
    let sampling = sampling(&args);
    sampling.validate().map_err(|why| anyhow::anyhow!("--{}", why.replacen('_', "-", 3)))?;
    ensure!(args.n >= 1, "-n: expected at least 1, got {}", args.n);
    let policy = Policy::under(&args.plumbing.model, args.plumbing.adapter.as_deref(), Cpu::new().into())?;
    let adapter = match &args.plumbing.adapter {
        None => None,
        Some(folder) => Some(Arc::new(policy.device_adapter(&policy.read_adapter(folder)?)?)),
    };
    let memory = memory(&args, &policy)?;
    let mut engine = engine(&policy, &sampling);
    engine.publish(PolicyId { epoch: 0, step: 0, digest: Digest::of(&[]) }, adapter);
    let (n, seed) = (args.n, args.seed);
    let mut session = Session {
        policy: &policy,
        memory,
        engine,
        sampling,
        n,
        seed,
        rows: 0,
        made: 0,
        written: 0,
        running: HashMap::new(),
        done: BTreeMap::new(),
    };
    stream::serve(&args.plumbing.stream, |rows, out| session.run(rows, out))
}

/// The procedures that `--sop` asks for.
fn memory(args: &GenerateArgs, policy: &Policy) -> Result<Option<SopMemory>> {
    let Some(path) = &args.sop else { return Ok(None) };
    if !path.is_empty() {
        let section = SopSection { path: path.clone(), ..SopSection::default() };
        return SopMemory::of(&section, &policy.tokenizer, None);
    }
    let agent = args.plumbing.adapter.as_deref().map(AgentConfig::read).transpose()?.flatten().unwrap_or_default();
    let kept = agent.procedures.with_context(|| {
        format!("--sop: expected a path, or an --adapter whose {} holds procedures, got neither", agent::FILE)
    })?;
    SopMemory::kept(kept, &policy.tokenizer).map(Some)
}

fn sampling(args: &GenerateArgs) -> SamplingParams {
    SamplingParams {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        stop: args.stop.clone(),
        stop_ids: Vec::new(),
        ignore_eos: args.ignore_eos,
    }
}

/// The engine of a policy.
pub type PolicyEngine = Engine<DecoderModel<Cpu>>;

/// An engine whose cache holds one sequence of any length, and more as far as memory goes.
pub fn engine(policy: &Policy, sampling: &SamplingParams) -> PolicyEngine {
    let config = EngineConfig::default();
    let context = policy.config().max_position_embeddings;
    let longest = context.div_ceil(BLOCK) + 1;
    // prompts are not known yet; beside the new tokens they are taken to be as long again, at least 512
    let usual = (2 * sampling.max_new_tokens as usize).max(512).min(context).div_ceil(BLOCK) + 1;
    let affordable = CACHE_BYTES / policy.decoder.cache_block_bytes().max(1);
    let blocks = (config.max_concurrent_sequences * usual).min(affordable).max(longest);
    let text = ModelEncoder::new(policy.tokenizer.clone(), policy.config(), Map::new());
    Engine::new(DecoderModel::new(policy.decoder.clone(), blocks), Arc::new(text), config)
}

/// Which completion of which row.
struct Asked {
    place: String,
    order: u64,
    index: u32,
}

#[derive(Serialize)]
struct Reply {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<f32>,
    stop_reason: StopReason,
}

struct Session<'a> {
    policy: &'a Policy,
    memory: Option<SopMemory>,
    engine: PolicyEngine,
    sampling: SamplingParams,
    n: u32,
    seed: u64,
    /// Rows read.
    rows: u64,
    /// Completions begun.
    made: u64,
    /// Completions written.
    written: u64,
    running: HashMap<SequenceId, Asked>,
    /// Completions that wait for earlier ones, by their order.
    done: BTreeMap<u64, Reply>,
}

impl Session<'_> {
    fn run(&mut self, rows: &mut Rows, out: &mut Out) -> Result<()> {
        let read = self.read(rows, out);
        // also after a bad row: those before it are answered
        while !self.engine.is_idle() {
            self.step(out)?;
        }
        read
    }

    /// Keeps the engine busy until the end of the input or a bad row.
    fn read(&mut self, rows: &mut Rows, out: &mut Out) -> Result<()> {
        loop {
            let next =
                if self.engine.is_idle() { rows.next()?.map_or(AtHand::End, AtHand::Row) } else { rows.at_hand()? };
            match next {
                AtHand::Row(row) => self.take(row, out)?,
                AtHand::Nothing => self.step(out)?,
                AtHand::End => return Ok(()),
            }
        }
    }

    /// Begins all completions of a row, each as soon as there is room.
    fn take(&mut self, mut row: Row, out: &mut Out) -> Result<()> {
        let place = row.place.clone();
        let ids = self.prompt(&mut row).context(place.clone())?;
        for index in 0..self.n {
            while self.made - self.written >= WINDOW as u64 {
                self.step(out)?;
            }
            let seed = seed::mix(&[self.seed, self.rows, u64::from(index)]);
            let request = Generate {
                ids: ids.clone(),
                sampling: self.sampling.clone(),
                seed,
                policy: None,
                at_least: None,
                for_training: false,
            };
            let id = self.engine.submit(request).context(place.clone())?;
            self.running.insert(id, Asked { place: place.clone(), order: self.made, index });
            self.made += 1;
        }
        self.rows += 1;
        Ok(())
    }

    fn prompt(&self, row: &mut Row) -> Result<Vec<u32>> {
        let tokenizer = &self.policy.tokenizer;
        match row.one_of(&["ids", "prompt", "messages"])? {
            "messages" => {
                let prompt = self.introduced(Prompt::Messages(row.messages("messages")?))?;
                Ok(tokenizer.encode_prompt(&prompt, &row.fields)?)
            }
            key => {
                let ids = match key {
                    "ids" => row.ids("ids")?,
                    _ => {
                        let prompt = self.introduced(Prompt::Text(row.text("prompt")?))?;
                        tokenizer.encode_prompt(&prompt, &Map::new())?
                    }
                };
                row.end()?;
                Ok(ids)
            }
        }
    }

    /// The prompt with the procedures that fit it.
    fn introduced(&self, prompt: Prompt) -> Result<Prompt> {
        match &self.memory {
            None => Ok(prompt),
            Some(memory) => Ok(memory.introduce(prompt)?.0),
        }
    }

    /// One step of the engine; what is complete, in order, is written.
    fn step(&mut self, out: &mut Out) -> Result<()> {
        for (id, generated) in self.engine.step() {
            let asked = self.running.remove(&id).context("the engine ended a sequence that nobody asked for")?;
            let reply = self.reply(&asked, generated).context(asked.place)?;
            self.done.insert(asked.order, reply);
        }
        let before = self.written;
        while let Some(reply) = self.done.remove(&self.written) {
            out.write(&reply)?;
            self.written += 1;
        }
        if self.written > before { out.flush() } else { Ok(()) }
    }

    fn reply(&self, asked: &Asked, generated: Generated) -> Result<Reply> {
        let Generated { ids, logprobs, stop_reason, .. } = generated;
        if let Some(bad) = logprobs.iter().find(|lp| !lp.is_finite()) {
            bail!("a sampled token has the log-prob {bad}: are the weights damaged?");
        }
        let text = self.policy.tokenizer.decode(&ids, true)?;
        let index = (self.n > 1).then_some(asked.index);
        Ok(Reply { index, ids, text, logprobs, stop_reason })
    }
}
