//! LoRA training on random weights of SmolLM2-135M's shape, two threads: rank 16 on all seven linear maps.
//!
//! `supervised` is forward, backward, gradient norm and AdamW on 4 sequences of 256 tokens; `grpo` is a whole `train_step`
//! on 4 groups of 8 samples, 64 prompt and 64 sampled tokens each. Tokens a second under `thrpt` count every token of every
//! sequence, although a group's prompt is computed once.

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use folgore_config::{algo::AlgoSection, optim::OptimSection};
use folgore_learner::{
    schedule::{NonFiniteGuard, Schedule},
    step::{StepSettings, train_step},
    trainee::Trainee,
};
use folgore_model::{
    ModelConfig,
    backend::Cpu,
    decoder::{Backprop, Decoder, Linear, Ragged},
    lora::{LoraInit, LoraShape},
    params::{Params, RandomWeights},
};
use folgore_protocol::{
    Batch, Digest, Draws, GroupId, GroupRecord, Outcome, PolicyId, Prompt, Purpose, Row, RunLength, SeatKey, Segment,
    SegmentKind, Source, StopReason, Task, Trajectory, seed,
};

const THREADS: usize = 2;
const SEQUENCES: u64 = 4;
const LENGTH: usize = 256;
const GROUPS: u64 = 4;
const SAMPLES: u32 = 8;
const PROMPT: usize = 64;
const NEW: usize = 64;

fn ids(stream: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|i| seed::below(stream, i, 49_152) as u32).collect()
}

fn trainee() -> Trainee<Cpu> {
    let (backend, config) = (Arc::new(Cpu::with_threads(THREADS)), ModelConfig::smollm2_135m());
    let decoder = Decoder::load(backend.clone(), config.clone(), &RandomWeights::new(config.clone(), 1));
    let shape = LoraShape {
        r: 16,
        alpha: 32.0,
        use_rslora: false,
        dropout: 0.0,
        targets: Linear::ALL.to_vec(),
        rules: Default::default(),
    };
    let params = Params::lora(&*backend, &config, shape, LoraInit::Kaiming, 1);
    Trainee::new(decoder.expect("random weights have the right shapes"), params).expect("a fresh adapter fits")
}

fn supervised(trainee: &mut Trainee<Cpu>, optim: &OptimSection) {
    let sequences: Vec<Vec<u32>> = (0..SEQUENCES).map(|stream| ids(stream, LENGTH)).collect();
    let rows: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let mut input = Ragged::whole(&rows);
    input.wanted.retain(|row| !(*row as usize + 1).is_multiple_of(LENGTH));
    let targets: Vec<u32> = rows.iter().flat_map(|ids| ids[1..].iter().copied()).collect();
    let slopes = vec![-1.0 / targets.len() as f32; targets.len()];
    let pending = trainee.forward(input, targets, 1.0, Backprop::default());
    trainee.backward(pending, &slopes);
    let norm = trainee.grad_norm();
    trainee.update(optim, optim.learning_rate, norm);
}

/// A batch whose rewards differ in every sample.
fn batch() -> Batch {
    let policy = PolicyId { epoch: 0, step: 0, digest: Digest::of(b"") };
    let member = |g: u64, sample: u32| {
        let sampled = Segment {
            kind: SegmentKind::Sampled,
            ids: ids(seed::mix(&[g, u64::from(sample)]), NEW),
            logprobs: vec![-10.8; NEW],
            policies: RunLength::of(policy, NEW as u32),
        };
        let prompt = Segment {
            kind: SegmentKind::Prompt,
            ids: ids(g, PROMPT),
            logprobs: vec![],
            policies: RunLength::default(),
        };
        Trajectory {
            seat: SeatKey { group: GroupId(g), sample, draw: 0 },
            task_id: format!("bench-{g}"),
            purpose: Purpose::Train,
            rows: vec![Row { segments: vec![prompt, sampled], source: Source::OnPolicy }],
            outcome: Outcome::scored("place", f64::from(sample * sample)),
            stop_reason: StopReason::Length,
            worker: "bench".into(),
            duration_ms: 0,
            token: String::new(),
        }
    };
    let group = |g: u64| GroupRecord {
        id: GroupId(g),
        task: Task { id: format!("bench-{g}"), prompt: Prompt::Text(String::new()), columns: Default::default() },
        members: (0..SAMPLES).map(|sample| member(g, sample)).collect(),
    };
    Batch {
        step: 1,
        groups: (0..GROUPS).map(group).collect(),
        filtered_groups: 0,
        unscored_groups: 0,
        passed_over: 0,
        draws: Draws::default(),
    }
}

fn benches(c: &mut Criterion) {
    let mut trainee = trainee();
    let optim = OptimSection::default();
    let mut group = c.benchmark_group("learner");
    group.sample_size(10);
    group.throughput(Throughput::Elements(SEQUENCES * LENGTH as u64));
    group.bench_function("supervised", |b| b.iter(|| supervised(&mut trainee, &optim)));

    let settings = StepSettings {
        algo: AlgoSection::default(),
        max_completion_length: NEW as u32,
        temperature: 1.0,
        max_tokens_per_micro_batch: optim.max_tokens_per_micro_batch as usize,
        recompute: None,
        lora_dropout: 0.0,
        seed: 0,
        optim,
    };
    let (batch, schedule, mut guard) = (batch(), Schedule::new(&settings.optim, 100), NonFiniteGuard::default());
    group.throughput(Throughput::Elements(GROUPS * u64::from(SAMPLES) * (PROMPT + NEW) as u64));
    group.bench_function("grpo", |b| {
        b.iter(|| train_step(&mut trainee, &batch, &settings, &schedule, &mut guard).expect("the batch is trained on"));
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
