//! Whether an export is the policy: text in and out, every tensor, log-probs and greedy tokens.
//!
//! The policy and the export are in memory one after the other, never both.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use folgore_model::{
    HostTensor, ModelConfig, ModelError, TensorSource,
    backend::Cpu,
    decoder::{Decoder, Ragged, tensors},
    export::Merged,
    files::{self, ModelFiles, peft::AdapterFile},
    lora::Adapter,
    tokenizer::Tokenizer,
};
use folgore_protocol::{Digest, Generate, Message, PolicyId, Prompt, SamplingParams};
use serde_json::{Map, Value};

use super::{
    Kind, Report, Source, Verified, ollama,
    reopen::{Reopened, reopen},
    report::Bounds,
};
use crate::{agent::AgentConfig, commands::generate::engine, policy::Policy};

/// Tokens of a greedy continuation.
const TOKENS: u32 = 64;

/// What both continue.
const PROMPTS: [&str; 8] = [
    "What is 48 + 7?",
    "Write one sentence about the sea.",
    "def add(a, b):",
    "The capital of France is",
    "1, 2, 3, 5, 8,",
    "Translate into Italian: good morning",
    "Once upon a time",
    "List three colours.",
];

/// Texts that tokenizers like to disagree about.
const TEXTS: [&str; 6] = [
    "What is 1234567 + 89?\n\n  Two  spaces\tand a tab ",
    "It's I'LL don't na\u{ef}ve cafe\u{301} \u{fb01}n",
    "\u{4f60}\u{597d} \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{0645}\u{0631}\u{062d}\u{0628}\u{0627} \u{1f642}",
    "fn main() { a_b[0] += 3.14e-10; } // <tag/>",
    "HTTPServer2XML 1,000.50 ...!!!",
    "391+566=",
];

/// Compares the export of `source` that lies in `folder` with the policy. An export that cannot be read is an error.
pub fn verify(source: &Source, report: &Report, folder: &Path) -> Result<Verified> {
    let bounds = report.kind.coding().bounds();
    let mut found = Verified {
        logprob_bound_max: bounds.max,
        logprob_bound_mean: bounds.mean,
        tensor_bound: bounds.tensor,
        ..Verified::default()
    };
    let reopened = reopen(report, folder, source)?;
    let base = source.files()?;
    found.faults = compare_text(source, report, folder, &base, &reopened)?;
    compare_tensors(&mut found, source, &base, &reopened)?;
    compare_behaviour(&mut found, source, base, reopened)?;
    found.judge(bounds);
    Ok(found)
}

impl Verified {
    fn judge(&mut self, bounds: Bounds) {
        let mut expect = |what: &str, got: f64, bound: f64| {
            // not a number is beyond every bound
            if got.is_nan() || got > bound {
                self.faults.push(format!("{what}: expected at most {bound:.1e}, got {got:.2e}"));
            }
        };
        expect(&format!("error of tensor {}", self.tensor_worst), self.tensor_error, bounds.tensor);
        expect("largest difference of a log-prob", self.logprob_gap_max, bounds.max);
        expect("mean difference of the log-probs", self.logprob_gap_mean, bounds.mean);
        self.passed = self.faults.is_empty();
    }
}

fn compare_text(
    source: &Source,
    report: &Report,
    folder: &Path,
    base: &ModelFiles,
    reopened: &Reopened,
) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let own = if report.kind == Kind::Peft { Some(files::open_tokenizer(folder)?) } else { None };
    let tokenizer = own.as_ref().or(reopened.own_model.then_some(&reopened.model.tokenizer));
    if let Some(tokenizer) = tokenizer {
        same_text(&base.tokenizer, tokenizer, &source.agent, &mut faults);
    }
    let ends = |files: &ModelFiles| {
        let mut ids = files.config.eos_token_ids.clone();
        ids.sort_unstable();
        ids
    };
    if reopened.own_model && ends(base) != ends(&reopened.model) {
        faults.push(format!("ids that end a generation: expected {:?}, got {:?}", ends(base), ends(&reopened.model)));
    }
    if let Some(text) = &reopened.modelfile {
        let expected = ollama::modelfile(&report.files, &base.tokenizer, &source.agent)?;
        if let Some(line) = expected.lines().zip(text.lines()).find(|(a, b)| a != b) {
            faults.push(format!("{}: expected {:?}, got {:?}", ollama::FILE, line.0, line.1));
        } else if expected != *text {
            faults.push(format!("{}: expected {} bytes, got {}", ollama::FILE, expected.len(), text.len()));
        }
    }
    Ok(faults)
}

/// Ids, texts, template and what it renders.
fn same_text(ours: &Tokenizer, theirs: &Tokenizer, agent: &AgentConfig, faults: &mut Vec<String>) {
    let ids =
        |tokenizer: &Tokenizer, text: &str| tokenizer.encode_prompt(&Prompt::Text(text.to_owned()), &Map::new()).ok();
    for text in TEXTS {
        let (a, b) = (ids(ours, text), ids(theirs, text));
        if a != b {
            faults.push(format!("ids of {text:?}: expected {a:?}, got {b:?}"));
        } else if a.is_some_and(|ids| ours.decode(&ids, false).ok() != theirs.decode(&ids, false).ok()) {
            faults.push(format!("decoding of the ids of {text:?}"));
        }
    }
    if ours.added_tokens() != theirs.added_tokens() {
        faults.push("added tokens".into());
    }
    if ours.chat_template() != theirs.chat_template() {
        faults.push("the chat template is another one".into());
    }
    if ours.chat_template().is_none() {
        return;
    }
    for conversation in conversations(agent) {
        let render = |tokenizer: &Tokenizer| {
            tokenizer.render_chat(&conversation, &agent.variables(), true).map_err(|e| e.to_string())
        };
        if render(ours) != render(theirs) {
            let last = conversation.last().map_or("", |message| message.content.as_str());
            faults.push(format!("what the chat template makes of a conversation that ends with {last:?}"));
        }
    }
}

fn conversations(agent: &AgentConfig) -> Vec<Vec<Message>> {
    let user = |text: &str| Message::new("user", text);
    let system = Message::new("system", agent.system_prompt.as_deref().unwrap_or("Be brief."));
    vec![
        vec![user(PROMPTS[0])],
        vec![system.clone(), user(PROMPTS[1])],
        vec![user("Hello."), Message::new("assistant", "Hello, what can I do?"), user(PROMPTS[3])],
    ]
}

/// The weights of a model as nothing: what an adapter adds to it is the adapter.
struct Nothing(ModelConfig);

impl TensorSource for Nothing {
    fn tensor(&self, name: &str) -> Result<HostTensor, ModelError> {
        let missing = || ModelError::Missing { what: format!("tensor {name}"), place: "the model".into() };
        let shape = self.shape(name).ok_or_else(missing)?;
        Ok(HostTensor::f32(shape.clone(), vec![0.0; shape.iter().product()]))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        tensors(&self.0).into_iter().find(|(known, _)| known == name).map(|(_, shape)| shape)
    }

    fn names(&self) -> Vec<String> {
        tensors(&self.0).into_iter().map(|(name, _)| name).collect()
    }
}

fn compare_tensors(found: &mut Verified, source: &Source, base: &ModelFiles, reopened: &Reopened) -> Result<()> {
    let (config, mut share) = (&base.config, Share::default());
    let mut compare = |ours: &dyn TensorSource, theirs: &dyn TensorSource| -> Result<()> {
        for (name, _) in tensors(config) {
            let error = relative_error(&ours.tensor(&name)?, &theirs.tensor(&name)?, &name)?;
            if error.is_nan() || error > found.tensor_error || found.tensor_worst.is_empty() {
                (found.tensor_error, found.tensor_worst) = (error, name);
            }
            if error.is_nan() {
                break;
            }
        }
        Ok(())
    };
    if reopened.own_model {
        let adapter = if reopened.adapter.is_some() { None } else { Some(&source.adapter) };
        let merged = Merged::new(&*base.tensors, config, adapter)?;
        compare(&merged, &*reopened.model.tensors)?;
        if adapter.is_some() {
            for (name, _) in tensors(config).into_iter().filter(|(name, _)| name.contains("_proj.")) {
                let read = |source: &dyn TensorSource| source.tensor(&name).map(|tensor| tensor.to_f32());
                share.add(&read(&*base.tensors)?, &read(&merged)?, &read(&*reopened.model.tensors)?);
            }
        }
    }
    if let Some(adapter) = &reopened.adapter {
        let nothing = Nothing(config.clone());
        compare(
            &Merged::new(&nothing, config, Some(&source.adapter))?,
            &Merged::new(&nothing, config, Some(adapter))?,
        )?;
    }
    found.adapter_kept = share.kept();
    found.faults.extend(share.fault());
    Ok(())
}

/// How much of what an adapter adds to the weights is in an export. Coding errors have nothing to do with the adapter, so that
/// they average out over its weights, also where each of them is larger than what the adapter adds.
#[derive(Default)]
struct Share {
    /// Of the export's change to the base and the adapter's: their product,
    along: f64,
    /// the square of the adapter's,
    adapter: f64,
    /// and that of their difference, which the coding makes.
    coding: f64,
    weights: f64,
}

impl Share {
    fn add(&mut self, base: &[f32], merged: &[f32], export: &[f32]) {
        for ((base, merged), export) in base.iter().zip(merged).zip(export) {
            let (adapter, change) = (f64::from(merged - base), f64::from(export - base));
            self.along += change * adapter;
            self.adapter += adapter * adapter;
            self.coding += (change - adapter) * (change - adapter);
        }
        self.weights += base.len() as f64;
    }

    /// 1 but for the coding's noise; none without an adapter.
    fn kept(&self) -> Option<f64> {
        (self.adapter > 0.0).then(|| self.along / self.adapter)
    }

    fn fault(&self) -> Option<String> {
        let kept = self.kept()?;
        let noise = (self.coding / self.weights / self.adapter).sqrt();
        // five deviations: where that is more than the whole adapter, nothing can be told
        let most = (5.0 * noise).max(0.2);
        let lost = kept.is_nan() || most < 1.0 && (kept - 1.0).abs() > most;
        lost.then(|| format!("share of the adapter in the weights: expected 1 ± {most:.2}, got {kept:.2}"))
    }
}

/// Root mean square of the difference, relative to `ours`.
fn relative_error(ours: &HostTensor, theirs: &HostTensor, name: &str) -> Result<f64> {
    anyhow::ensure!(
        ours.shape == theirs.shape,
        "tensor {name}: expected shape {:?}, got {:?}",
        ours.shape,
        theirs.shape
    );
    let square = |v: f32| f64::from(v) * f64::from(v);
    let (ours, theirs) = (ours.to_f32(), theirs.to_f32());
    let (off, all) =
        ours.iter().zip(&theirs).fold((0.0, 0.0), |(off, all), (a, b)| (off + square(a - b), all + square(*a)));
    Ok(match (off, all) {
        (0.0, _) => 0.0,
        (_, 0.0) => f64::INFINITY,
        _ => (off / all).sqrt(),
    })
}

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
            let request =
                Generate { ids: ids.clone(), sampling: sampling.clone(), seed: 0, policy: None, at_least: None };
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

fn compare_behaviour(found: &mut Verified, source: &Source, base: ModelFiles, reopened: Reopened) -> Result<()> {
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
