//! The learner: LoRA training on given tokens, and a whole GRPO step with its rollouts.

use std::{num::NonZeroUsize, sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use folgore_config::{algo::AlgoSection, optim::OptimSection};
use folgore_learner::{
    schedule::{NonFiniteGuard, Schedule},
    step::{StepReport, StepSettings, train_step},
    trainee::Trainee,
};
use folgore_model::{
    backend::Cpu,
    decoder::{Backprop, Ragged, Recall},
    lora::Adapter,
};
use folgore_protocol::{
    Batch, Draws, Generated, GroupId, GroupRecord, Outcome, Prompt, Purpose, Row, RunLength, SeatKey, Segment,
    SegmentKind, Source, Task, Trajectory, seed,
};
use serde_json::json;

use super::{
    cost::seen,
    generate::{self, BenchEngine, NEW, drain, publish, request, step_cost},
    meter::Meter,
    result::Measured,
    subject::{Subject, shape},
};

/// Sequences and their tokens, when training on given tokens.
const SEQUENCES: usize = 4;
const LENGTH: usize = 256;
/// Prompts of a step, and samples of each.
const PROMPTS: usize = 4;
const SAMPLES: usize = 8;

fn trainee(subject: &Subject) -> Result<Trainee<Cpu>> {
    Trainee::new(subject.decoder.clone(), subject.params()).context("adapter")
}

/// Tokens a second of supervised LoRA training: forward, backward, gradient norm, AdamW. With `recompute`, only the inputs of one
/// layer in so many are kept.
pub fn train(subject: &Subject, repeat: usize, recompute: Option<NonZeroUsize>) -> Result<Measured> {
    let length = subject.at_most(LENGTH, 0);
    let sequences: Vec<Vec<u32>> = (0..SEQUENCES).map(|i| subject.ids(200 + i as u64, length)).collect();
    let rows: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let mut input = Ragged::whole(&rows);
    input.wanted.retain(|row| !(*row as usize + 1).is_multiple_of(length));
    let targets: Vec<u32> = rows.iter().flat_map(|ids| ids[1..].iter().copied()).collect();
    let slopes = vec![-1.0 / targets.len() as f32; targets.len()];
    let (mut trainee, optim) = (trainee(subject)?, OptimSection::default());

    let meter = Meter::start();
    let name = if recompute.is_some() { "LoRA training, recomputed" } else { "LoRA training" };
    let mut result = Measured::new(name, json!({"sequences": SEQUENCES, "tokens": length, "rank": shape().r}));
    result.tokens = (SEQUENCES * length) as f64;
    let (mut forward, mut backward) = (f64::INFINITY, f64::INFINITY);
    for round in 0..=repeat {
        let begin = Instant::now();
        let pending =
            trainee.forward(input.clone(), targets.clone(), 1.0, Backprop { recompute, ..Backprop::default() });
        let middle = Instant::now();
        trainee.backward(pending, &slopes);
        let end = Instant::now();
        let norm = trainee.grad_norm();
        trainee.update(&optim, optim.learning_rate, norm);
        // the first warms up
        if round > 0 {
            result.seconds.push(begin.elapsed().as_secs_f64());
            forward = forward.min((middle - begin).as_secs_f64());
            backward = backward.min((end - middle).as_secs_f64());
        }
    }
    result.around = meter.stop();
    result.detail.insert("forward_s".into(), forward);
    result.detail.insert("backward_s".into(), backward);
    let (costs, n, scored) = (subject.costs(true), result.tokens, targets.len() as f64);
    let keys = SEQUENCES as f64 * seen(0, length);
    result.work = vec![costs.forward(n, keys, n, scored), costs.backward(n, keys, n, scored)];
    Ok(result)
}

/// What a step of the run knows of itself.
struct Run {
    engine: BenchEngine,
    trainee: Trainee<Cpu>,
    settings: StepSettings,
    schedule: Schedule,
    guard: NonFiniteGuard,
    prompt: usize,
}

/// A whole GRPO step: rollouts of 4 prompts of `prompt` tokens by 8 samples, rewards, training, the new policy in the engine.
pub fn step(subject: &Subject, repeat: usize, prompt: usize) -> Result<Measured> {
    let mut run = Run::new(subject, prompt)?;
    let meter = Meter::start();
    let sizes = json!({"prompts": PROMPTS, "samples": SAMPLES, "prompt": run.prompt, "new": NEW, "rank": shape().r});
    let mut result = Measured::new("GRPO step", sizes);
    result.tokens = (PROMPTS * SAMPLES * (run.prompt + NEW)) as f64;
    let mut best = f64::INFINITY;
    for round in 0..=repeat as u64 {
        let (seconds, detail) = run.step(subject, round + 1)?;
        // the first warms up
        if round == 0 {
            continue;
        }
        result.seconds.push(seconds);
        if seconds < best {
            best = seconds;
            result.detail = detail.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        }
    }
    result.around = meter.stop();
    result.work = run.work(subject);
    Ok(result)
}

impl Run {
    fn new(subject: &Subject, prompt: usize) -> Result<Self> {
        let prompt = subject.at_most(prompt, NEW);
        let optim = OptimSection::default();
        let recall = Arc::new(Recall::new(optim.max_tokens_per_micro_batch as usize, None));
        let mut engine = generate::engine(subject, PROMPTS * SAMPLES, prompt + NEW, Some(recall.clone()));
        let mut trainee = trainee(subject)?.with_recall(Some(recall));
        trainee.published(publish(&mut engine, 0, Some(device_adapter(subject, &trainee)?)));
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
        let schedule = Schedule::new(&settings.optim, 100);
        Ok(Self { engine, trainee, settings, schedule, guard: NonFiniteGuard::default(), prompt })
    }

    /// One step; its seconds, and what they went to.
    fn step(&mut self, subject: &Subject, step: u64) -> Result<(f64, Vec<(&'static str, f64)>)> {
        let prompts: Vec<Vec<u32>> = (0..PROMPTS as u64).map(|i| subject.ids(1000 * step + i, self.prompt)).collect();
        let begin = Instant::now();
        let batch = self.rollout(subject, step, &prompts)?;
        let rolled = Instant::now();
        let StepReport { metrics, tokens_trained } =
            train_step(&mut self.trainee, &batch, &self.settings, &self.schedule, &mut self.guard)?;
        let trained = Instant::now();
        let adapter = device_adapter(subject, &self.trainee)?;
        self.trainee.published(publish(&mut self.engine, step, Some(adapter)));
        let end = Instant::now();
        let (generate, learn) = ((rolled - begin).as_secs_f64(), (trained - rolled).as_secs_f64());
        let samples = (PROMPTS * SAMPLES) as f64;
        Ok((
            (end - begin).as_secs_f64(),
            vec![
                ("generate_s", generate),
                ("learn_s", learn),
                ("publish_s", (end - trained).as_secs_f64()),
                ("generate_tok_s", samples * NEW as f64 / generate),
                ("learn_tok_s", samples * (self.prompt + NEW) as f64 / learn),
                ("tokens_trained", tokens_trained as f64),
                ("grad_norm", metrics["grad_norm"]),
                ("mismatch/logp_abs_max", metrics["mismatch/logp_abs_max"]),
            ],
        ))
    }

    fn rollout(&mut self, subject: &Subject, step: u64, prompts: &[Vec<u32>]) -> Result<Batch> {
        let mut seats = Vec::new();
        for (g, ids) in prompts.iter().enumerate() {
            for sample in 0..SAMPLES as u32 {
                let seat = SeatKey { group: GroupId(g as u64), sample, draw: 0 };
                seats.push((self.engine.submit(request(ids.clone(), seed::seat(step, seat), NEW))?, seat));
            }
        }
        let mut ended: std::collections::BTreeMap<_, _> = drain(&mut self.engine)?.into_iter().collect();
        let mut groups: Vec<GroupRecord> = (0..prompts.len() as u64).map(group).collect();
        for (id, seat) in seats {
            let generated = ended.remove(&id).context("a sequence was lost")?;
            let prompt = prompts[seat.group.0 as usize].clone();
            groups[seat.group.0 as usize].members.push(trajectory(subject, seat, prompt, generated));
        }
        Ok(Batch { step, groups, filtered_groups: 0, unscored_groups: 0, passed_over: 0, draws: Draws::default() })
    }

    /// What the step has to compute: each prompt once and each new token but the last, forward and backward once: the
    /// learner takes the sampler's activations.
    fn work(&self, subject: &Subject) -> Vec<super::cost::Call> {
        let costs = subject.costs(true);
        let (groups, samples, prompt) = (PROMPTS as f64, (PROMPTS * SAMPLES) as f64, self.prompt);
        let mut calls =
            vec![costs.forward(groups * prompt as f64, groups * seen(0, prompt), groups * prompt as f64, samples)];
        calls.extend((0..NEW - 1).map(|i| step_cost(&costs, PROMPTS * SAMPLES, prompt + i)));
        let tokens = groups * prompt as f64 + samples * (NEW - 1) as f64;
        let keys = groups * seen(0, prompt) + samples * seen(prompt, prompt + NEW - 1);
        let scored = samples * NEW as f64;
        calls.push(costs.backward(tokens, keys, tokens, scored));
        calls
    }
}

/// The trainee's values as a policy of the engine.
fn device_adapter(subject: &Subject, trainee: &Trainee<Cpu>) -> Result<Arc<Adapter<Cpu>>> {
    Ok(Arc::new(Adapter::load(subject.backend(), subject.config(), &shape(), &trainee.values())?))
}

fn group(g: u64) -> GroupRecord {
    let task = Task { id: format!("bench-{g}"), prompt: Prompt::Text(String::new()), columns: serde_json::Map::new() };
    GroupRecord { id: GroupId(g), task, members: Vec::new() }
}

/// Rewards the mean id: meaningless, and different in every sample, so that every sample is trained on.
fn trajectory(subject: &Subject, seat: SeatKey, prompt: Vec<u32>, generated: Generated) -> Trajectory {
    let mean = generated.ids.iter().map(|id| f64::from(*id)).sum::<f64>() / generated.ids.len() as f64;
    let reward = mean / subject.config().vocab_size as f64;
    let Generated { ids, logprobs, policies, stop_reason } = generated;
    let segments = vec![
        Segment { kind: SegmentKind::Prompt, ids: prompt, logprobs: Vec::new(), policies: RunLength::default() },
        Segment { kind: SegmentKind::Sampled, ids, logprobs, policies },
    ];
    Trajectory {
        seat,
        task_id: format!("bench-{}", seat.group.0),
        purpose: Purpose::Train,
        rows: vec![Row { segments, source: Source::OnPolicy }],
        outcome: Outcome::scored("mean_id", reward),
        stop_reason,
        worker: "bench".into(),
        duration_ms: 0,
        token: String::new(),
    }
}
