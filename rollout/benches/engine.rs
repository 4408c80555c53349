//! The engine on random weights of SmolLM2-135M's shape, two threads: a full batch that decodes, and a prompt.
//!
//! Time is per call, tokens a second under `thrpt`. `folgore bench` sets the same work against the machine's ceilings.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use folgore_model::{
    ModelConfig,
    backend::{BLOCK, Cpu},
    decoder::Decoder,
    params::RandomWeights,
};
use folgore_protocol::{Digest, Generate, PolicyId, SamplingParams, seed};
use folgore_rollout::{DecoderModel, Engine, EngineConfig, TextPiece};

const THREADS: usize = 2;
const PROMPT: usize = 64;
const NEW: usize = 64;
const LONG_PROMPT: usize = 512;

struct NoText;

impl TextPiece for NoText {
    fn piece(&self, _: &[u32]) -> String {
        String::new()
    }
}

fn decoder() -> Decoder<Cpu> {
    let config = ModelConfig::smollm2_135m();
    let weights = RandomWeights::new(config.clone(), 1);
    Decoder::load(Arc::new(Cpu::with_threads(THREADS)), config, &weights).expect("random weights have the right shapes")
}

/// An engine for `sequences` sequences of at most `tokens` tokens, with a policy that has computed nothing yet.
fn engine(decoder: &Decoder<Cpu>, sequences: usize, tokens: usize) -> Engine<DecoderModel<Cpu>> {
    let blocks = sequences * (tokens.div_ceil(BLOCK) + 1);
    let config = EngineConfig { max_concurrent_sequences: sequences, ..EngineConfig::default() };
    let mut engine = Engine::new(DecoderModel::new(decoder.clone(), blocks), Arc::new(NoText), config);
    engine.publish(PolicyId { epoch: 0, step: 0, digest: Digest::of(b"") }, None);
    engine
}

fn request(stream: u64, prompt: usize, new: usize) -> Generate {
    let ids = (0..prompt as u64).map(|i| seed::below(stream, i, 49_152) as u32).collect();
    let sampling = SamplingParams { max_new_tokens: new as u32, ignore_eos: true, ..SamplingParams::default() };
    Generate { ids, sampling, seed: stream, policy: None, at_least: None, for_training: false }
}

/// Time of `steps` engine steps in which `batch` sequences decode; prompts are not in it.
fn decode(decoder: &Decoder<Cpu>, batch: usize, mut steps: u64) -> Duration {
    let mut time = Duration::ZERO;
    while steps > 0 {
        let mut engine = engine(decoder, batch, PROMPT + NEW);
        for stream in 0..batch as u64 {
            engine.submit(request(stream, PROMPT, NEW)).expect("the request fits");
        }
        while engine.stats().prefill_tokens < (batch * PROMPT) as u64 {
            engine.step();
        }
        loop {
            let begin = Instant::now();
            let ended = engine.step();
            time += begin.elapsed();
            steps -= 1;
            if steps == 0 || !ended.is_empty() {
                break;
            }
        }
    }
    time
}

fn benches(c: &mut Criterion) {
    let decoder = decoder();
    let mut group = c.benchmark_group("engine");
    group.sample_size(10);
    for batch in [1, 8, 32] {
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("decode, batch {batch}"), |b| {
            b.iter_custom(|steps| decode(&decoder, batch, steps))
        });
    }
    group.throughput(Throughput::Elements(LONG_PROMPT as u64));
    group.bench_function(format!("prefill, {LONG_PROMPT} tokens"), |b| {
        b.iter_custom(|times| {
            let one = |stream| {
                let mut engine = engine(&decoder, 1, LONG_PROMPT + 1);
                engine.submit(request(stream, LONG_PROMPT, 1)).expect("the request fits");
                let begin = Instant::now();
                while !engine.is_idle() {
                    engine.step();
                }
                begin.elapsed()
            };
            (0..times).map(one).sum()
        });
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
