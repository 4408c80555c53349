//! The engine: decoding at several batch sizes, and prompts.

use std::{sync::Arc, time::Instant};

use anyhow::{Result, bail};
use folgore_model::{
    backend::{BLOCK, Cpu},
    decoder::Recall,
    lora::Adapter,
};
use folgore_protocol::{Digest, Generate, Generated, PolicyId, SamplingParams};
use folgore_rollout::{DecoderModel, Engine, EngineConfig, TextPiece};
use serde_json::json;

use super::{
    cost::{Call, seen},
    meter::Meter,
    result::Measured,
    subject::Subject,
};

/// Tokens of a prompt when decoding is measured.
const PROMPT: usize = 64;
/// New tokens of a sequence.
pub const NEW: usize = 64;
/// Prompts of a rollout, samples of each, and tokens of a prompt.
const ROLLOUT: [usize; 3] = [8, 8, 128];
/// Tokens of the prompt when prompts are measured.
const LONG_PROMPT: usize = 512;

/// The engine as training runs it.
pub type BenchEngine = Engine<DecoderModel<Cpu>>;

/// No stop string is asked for, hence no text.
struct NoText;

impl TextPiece for NoText {
    fn piece(&self, _: &[u32]) -> String {
        String::new()
    }
}

/// An engine with room for `sequences` sequences of `tokens` tokens, which keeps activations in `recall`.
pub fn engine(subject: &Subject, sequences: usize, tokens: usize, recall: Option<Arc<Recall<Cpu>>>) -> BenchEngine {
    let blocks = sequences * (tokens.div_ceil(BLOCK) + 1);
    let config = EngineConfig { max_concurrent_sequences: sequences, ..EngineConfig::default() };
    Engine::new(DecoderModel::new(subject.decoder.clone(), blocks).with_recall(recall), Arc::new(NoText), config)
}

/// Serves `adapter` under the name of policy `step`.
pub fn publish(engine: &mut BenchEngine, step: u64, adapter: Option<Arc<Adapter<Cpu>>>) -> PolicyId {
    let policy = PolicyId { epoch: 0, step, digest: Digest::of(&step.to_le_bytes()) };
    engine.publish(policy, adapter);
    policy
}

/// Continues `ids` by exactly `new` tokens at temperature 1.
pub fn request(ids: Vec<u32>, seed: u64, new: usize) -> Generate {
    let sampling = SamplingParams { max_new_tokens: new as u32, ignore_eos: true, ..SamplingParams::default() };
    Generate { ids, sampling, seed, policy: None, at_least: None, for_training: true }
}

/// Steps until nothing is left.
pub fn drain(engine: &mut BenchEngine) -> Result<Vec<(folgore_rollout::engine::SequenceId, Generated)>> {
    let mut ended = Vec::new();
    let before = engine.stats().decode_tokens;
    while !engine.is_idle() {
        ended.extend(engine.step());
    }
    if engine.stats().preemptions > 0 {
        bail!(
            "the cache is too small: sequences were preempted after {} tokens",
            engine.stats().decode_tokens - before
        );
    }
    Ok(ended)
}

/// Tokens a second of `batch` sequences that decode together, each with a prompt of its own; prompts are not in the time.
pub fn decode(subject: &Subject, batch: usize, repeat: usize) -> Result<Measured> {
    let prompt = subject.at_most(PROMPT, NEW);
    let mut engine = engine(subject, batch, prompt + NEW, None);
    let meter = Meter::start();
    let mut result =
        Measured::new(format!("decode, batch {batch}"), json!({"batch": batch, "prompt": prompt, "new": NEW}));
    let mut fast = f64::INFINITY;
    for round in 0..repeat as u64 {
        // another policy each time, so that no prompt is known yet
        publish(&mut engine, round, None);
        for i in 0..batch as u64 {
            engine.submit(request(subject.ids(1 + i, prompt), i, NEW))?;
        }
        let asked = engine.stats().prefill_tokens + (batch * prompt) as u64;
        while engine.stats().prefill_tokens < asked {
            engine.step();
        }
        // all decode from here to the first that ends: the batch is full throughout
        let (begin, before) = (Instant::now(), engine.stats().decode_tokens);
        let mut steps = Vec::new();
        loop {
            let step = Instant::now();
            let ended = engine.step();
            steps.push(step.elapsed().as_secs_f64());
            if !ended.is_empty() {
                break;
            }
        }
        result.tokens = (engine.stats().decode_tokens - before) as f64;
        result.seconds.push(begin.elapsed().as_secs_f64());
        steps.sort_by(f64::total_cmp);
        fast = fast.min(steps[steps.len() / 10]);
        drain(&mut engine)?;
    }
    result.around = meter.stop();
    let costs = subject.costs(false);
    let steps = result.tokens as usize / batch;
    result.work = (0..steps).map(|i| step_cost(&costs, batch, prompt + NEW - steps + i)).collect();
    // what the peers call so: the fastest tenth of the steps, near the speed of an idle machine
    result.detail.insert("tok_s_fast_step".into(), batch as f64 / fast);
    Ok(result)
}

/// One step of `batch` sequences, each of which holds `held` tokens before it.
pub fn step_cost(costs: &super::cost::Costs, batch: usize, held: usize) -> Call {
    let b = batch as f64;
    costs.forward(b, b * (held + 1) as f64, b * (held + 1) as f64, b)
}

/// New tokens a second of 8 prompts by 8 samples, from the first token of the prompts on.
pub fn rollout(subject: &Subject, repeat: usize) -> Result<Measured> {
    let [prompts, samples, wanted] = ROLLOUT;
    let prompt = subject.at_most(wanted, NEW);
    let mut engine = engine(subject, prompts * samples, prompt + NEW, None);
    let meter = Meter::start();
    let sizes = json!({"prompts": prompts, "samples": samples, "prompt": prompt, "new": NEW});
    let mut result = Measured::new(format!("rollout, {prompts} x {samples}"), sizes);
    result.tokens = (prompts * samples * NEW) as f64;
    for round in 0..=repeat as u64 {
        publish(&mut engine, round, None);
        let begin = Instant::now();
        for p in 0..prompts as u64 {
            for seed in p * samples as u64..(p + 1) * samples as u64 {
                engine.submit(request(subject.ids(300 + p, prompt), seed, NEW))?;
            }
        }
        drain(&mut engine)?;
        // the first warms up
        if round > 0 {
            result.seconds.push(begin.elapsed().as_secs_f64());
        }
    }
    result.around = meter.stop();
    let (costs, p, all) = (subject.costs(false), prompts as f64, prompts * samples);
    result.work = vec![costs.forward(p * prompt as f64, p * seen(0, prompt), p * prompt as f64, all as f64)];
    result.work.extend((0..NEW - 1).map(|i| step_cost(&costs, all, prompt + i)));
    Ok(result)
}

/// Tokens a second of one long prompt, up to and with its first new token.
pub fn prefill(subject: &Subject, repeat: usize) -> Result<Measured> {
    let prompt = subject.at_most(LONG_PROMPT, 1);
    let mut engine = engine(subject, 1, prompt + 1, None);
    let meter = Meter::start();
    let mut result = Measured::new(format!("prefill, {prompt} tokens"), json!({"prompt": prompt}));
    result.tokens = prompt as f64;
    for round in 0..=repeat as u64 {
        publish(&mut engine, round, None);
        let ids = subject.ids(100, prompt);
        let begin = Instant::now();
        engine.submit(request(ids, round, 1))?;
        drain(&mut engine)?;
        // the first warms up
        if round > 0 {
            result.seconds.push(begin.elapsed().as_secs_f64());
        }
    }
    result.around = meter.stop();
    result.work = vec![subject.costs(false).forward(prompt as f64, seen(0, prompt), prompt as f64, 1.0)];
    Ok(result)
}
