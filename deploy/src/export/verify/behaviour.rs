//! What policy and export say: greedy continuations of fixed prompts, and the log-probs of those of the policy.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use folgore_model::{
    backend::Cpu,
    decoder::{Decoder, Ragged},
    export::Merged,
    files::{ModelFiles, peft::AdapterFile},
    lora::Adapter,
    tokenizer::Tokenizer,
};
use folgore_protocol::{Digest, Generate, Message, PolicyId, Prompt, SamplingParams};
use serde_json::{Map, Value};

use super::PROMPTS;
use crate::{
    agent::AgentConfig,
    commands::generate::engine,
    export::{Source, Verified, reopen::Reopened},
    policy::Policy,
};

/// Tokens of a greedy continuation.
const TOKENS: u32 = 64;

/// A model in memory with its adapter.
struct Loaded {
    policy: Policy,
    adapter: Option<Arc<Adapter<Cpu>>>,
}

impl Loaded {
    /// `adapter` on `files`; what cannot run beside its base is merged into it.
    fn of(files: ModelFiles, name: &str, adapter: Option<&AdapterFile>) -> Result<Self> {
        let backend: Arc<Cpu> = Cpu::new().into();
        if adapter.is_none_or(|adapter| !adapter.config.use_dora) {
            let policy = Policy::of(files, name, backend)?;
            let adapter = adapter.map(|adapter| policy.device_adapter(adapter)).transpose()?.map(Arc::new);
            return Ok(Self { policy, adapter });
        }
        let ModelFiles { config, tensors, tokenizer, digest, .. } = files;
        let decoder = Decoder::load(backend.clone(), config.clone(), &Merged::new(&*tensors, &config, adapter)?)?;
        let bytes = decoder.weights().bytes(&backend);
        Ok(Self { policy: Policy { decoder, tokenizer, name: name.to_owned(), digest, bytes }, adapter: None })
    }

    /// Greedy continuations.
    fn continued(&self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
        let sampling = SamplingParams { max_new_tokens: TOKENS, temperature: 0.0, ..SamplingParams::default() };
        let mut engine = engine(&self.policy, &sampling);
        engine.publish(PolicyId { epoch: 0, step: 0, digest: Digest::of(&[]) }, self.adapter.clone());
        let mut asked = Vec::new();
        for ids in prompts {
            let request = Generate {
                ids: ids.clone(),
                sampling: sampling.clone(),
                seed: 0,
                policy: None,
                at_least: None,
                for_training: false,
            };
            asked.push(engine.submit(request).context("a prompt of the verification")?);
        }
        let mut answers = vec![Vec::new(); prompts.len()];
        while !engine.is_idle() {
            for (id, generated) in engine.step() {
                if let Some(place) = asked.iter().position(|known| *known == id) {
                    answers[place] = generated.ids;
                }
            }
        }
        Ok(answers)
    }

    /// Log-probs of every token after the first of each sequence.
    fn logprobs(&self, sequences: &[Vec<u32>]) -> Vec<f32> {
        let decoder = &self.policy.decoder;
        let of = |ids: &Vec<u32>| {
            let targets: Vec<u32> = ids[1..].iter().copied().chain([0]).collect();
            let hidden = decoder.forward_only(&Ragged::whole(&[ids]), self.adapter.as_deref());
            decoder.logprobs(&hidden, &targets, 1.0).logprobs[..ids.len() - 1].to_vec()
        };
        sequences.iter().flat_map(of).collect()
    }
}

/// Compares them; the policy and the export are in memory one after the other, never both.
pub(super) fn compare(found: &mut Verified, source: &Source, base: ModelFiles, reopened: Reopened) -> Result<()> {
    let prompts = prompts(&base.tokenizer, &source.agent)?;
    let trained = Loaded::of(base, source.base.name(), Some(&source.adapter))?;
    let greedy = trained.continued(&prompts)?;
    let sequences: Vec<Vec<u32>> = prompts.iter().zip(&greedy).map(|(p, g)| [p.as_slice(), g].concat()).collect();
    let expected = trained.logprobs(&sequences);
    drop(trained);
    let untrained = Loaded::of(source.files()?, source.base.name(), None)?.logprobs(&sequences);
    let Reopened { model, adapter, .. } = reopened;
    let exported = Loaded::of(model, "the export", adapter.as_ref())?;
    let (again, got) = (exported.continued(&prompts)?, exported.logprobs(&sequences));

    let (largest, mean) = gap(&expected, &got);
    (found.logprob_gap_max, found.logprob_gap_mean) = (largest, mean);
    found.adapter_effect = gap(&expected, &untrained).0;
    found.tokens = expected.len();
    found.prompts = prompts.len();
    found.greedy_tokens = greedy.iter().map(Vec::len).sum();
    let parted = |(ours, theirs): (&Vec<u32>, &Vec<u32>)| {
        let shared = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
        (ours != theirs).then_some(shared)
    };
    let parts: Vec<Option<usize>> = greedy.iter().zip(&again).map(parted).collect();
    found.greedy_equal = parts.iter().filter(|part| part.is_none()).count();
    found.first_difference = parts.iter().enumerate().find_map(|(prompt, part)| Some((prompt, (*part)?)));
    Ok(())
}

/// Largest and mean difference; NaN if one is.
fn gap(ours: &[f32], theirs: &[f32]) -> (f64, f64) {
    let gaps = ours.iter().zip(theirs).map(|(a, b)| f64::from((a - b).abs()));
    let (mut largest, mut sum) = (0.0f64, 0.0);
    for gap in gaps {
        largest = if gap.is_nan() || largest.is_nan() { f64::NAN } else { largest.max(gap) };
        sum += gap;
    }
    (largest, sum / ours.len().max(1) as f64)
}

/// The fixed prompts as the policy is spoken to.
fn prompts(tokenizer: &Tokenizer, agent: &AgentConfig) -> Result<Vec<Vec<u32>>> {
    let variables: Map<String, Value> = agent.variables();
    let prompt = |text: &str| -> Result<Vec<u32>> {
        if tokenizer.chat_template().is_none() {
            return Ok(tokenizer.encode_prompt(&Prompt::Text(text.to_owned()), &Map::new())?);
        }
        let system = agent.system_prompt.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain([Message::new("user", text)]).collect();
        Ok(tokenizer.render_chat(&messages, &variables, true)?.ids)
    };
    PROMPTS.into_iter().map(prompt).collect()
}
