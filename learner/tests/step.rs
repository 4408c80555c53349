//! One step on a tiny decoder: independent of micro-batching, log-probs of sampler and learner equal, and it learns.

use std::sync::Arc;

use folgore_config::{
    algo::{AlgoSection, LossType},
    optim::OptimSection,
};
use folgore_learner::{
    schedule::{NonFiniteGuard, Schedule},
    step::{StepSettings, train_step},
    trainee::Trainee,
};
use folgore_model::{
    ModelConfig,
    backend::{BLOCK, Cpu, Sampled},
    decoder::{Decoder, Lineage, Linear, Ragged, Recall, Span},
    lora::{LoraInit, LoraShape},
    params::{Params, random_weights},
};
use folgore_protocol::{
    Batch, Digest, Draws, GroupId, GroupRecord, Outcome, PolicyId, Prompt, Purpose, Row, RunLength, SeatKey, Segment,
    SegmentKind, Source, StopReason, Task, Trajectory, seed,
};

fn config() -> ModelConfig {
    ModelConfig {
        model_type: "llama".into(),
        vocab_size: 40,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        max_position_embeddings: 128,
        eos_token_ids: vec![0],
        bos_token_id: None,
        variant: Default::default(),
    }
}

fn decoder(seed: u64) -> Decoder<Cpu> {
    let config = config();
    // wider than an initial model, so that log-probs differ
    let weights = random_weights(&config, seed)
        .into_iter()
        .map(|(n, t)| {
            let values = if t.shape.len() == 1 { t.to_f32() } else { t.to_f32().iter().map(|v| 6.0 * v).collect() };
            (n, folgore_model::HostTensor::f32(t.shape, values))
        })
        .collect::<folgore_model::Tensors>();
    Decoder::load(Arc::new(Cpu::new()), config, &weights).unwrap()
}

fn trainee(seed: u64) -> Trainee<Cpu> {
    let decoder = decoder(3);
    let shape = LoraShape {
        r: 4,
        alpha: 8.0,
        use_rslora: false,
        dropout: 0.0,
        targets: Linear::ALL.to_vec(),
        rules: Default::default(),
    };
    let params = Params::lora(&**decoder.backend(), &config(), shape, LoraInit::Kaiming, seed);
    Trainee::new(decoder, params).unwrap()
}

/// Groups of four on prompts of uneven length; rewards by the first sampled id. Log-probs are those that sampling alone,
/// sequence by sequence, would have reported.
fn batch(trainee: &Trainee<Cpu>, groups: u64) -> Batch {
    let policy = PolicyId { epoch: 0, step: 0, digest: Digest::of(b"") };
    let member = |g: u64, m: u32| {
        let stream = seed::mix(&[g, u64::from(m)]);
        let prompt: Vec<u32> = (0..11 + 9 * g).map(|i| seed::below(g, i, 40) as u32).collect();
        let sampled: Vec<u32> =
            (0..3 + seed::below(stream, 99, 20)).map(|i| seed::below(stream, i, 40) as u32).collect();
        let ids = [prompt.clone(), sampled.clone()].concat();
        let all = trainee.logprobs(&Ragged::whole(&[&ids[..ids.len() - 1]]), &ids[1..], 1.0).logprobs;
        let n = sampled.len() as u32;
        let reward = f64::from(sampled[0] % 3);
        let segments = vec![
            Segment {
                kind: SegmentKind::Prompt,
                ids: prompt.clone(),
                logprobs: vec![],
                policies: RunLength::default(),
            },
            Segment {
                kind: SegmentKind::Sampled,
                ids: sampled,
                logprobs: all[prompt.len() - 1..].to_vec(),
                policies: RunLength::of(policy, n),
            },
        ];
        Trajectory {
            seat: SeatKey { group: GroupId(g), sample: m, draw: 0 },
            task_id: format!("t{g}"),
            purpose: Purpose::Train,
            rows: vec![Row { segments, source: Source::OnPolicy }],
            outcome: Outcome::scored("toy", reward),
            stop_reason: StopReason::Eos,
            worker: "test".into(),
            duration_ms: 0,
            token: String::new(),
        }
    };
    let group = |g: u64| GroupRecord {
        id: GroupId(g),
        task: Task { id: format!("t{g}"), prompt: Prompt::Text("q".into()), columns: Default::default() },
        members: (0..4).map(|m| member(g, m)).collect(),
    };
    Batch {
        step: 1,
        groups: (0..groups).map(group).collect(),
        filtered_groups: 0,
        unscored_groups: 0,
        passed_over: 0,
        draws: Draws::default(),
    }
}

fn settings(loss_type: LossType, tokens: usize) -> StepSettings {
    let algo = AlgoSection { loss_type, beta: 0.1, epsilon_high: Some(0.3), ..AlgoSection::default() };
    StepSettings {
        algo,
        optim: OptimSection { learning_rate: 1e-3, ..OptimSection::default() },
        max_completion_length: 32,
        temperature: 1.0,
        max_tokens_per_micro_batch: tokens,
        recompute: None,
        lora_dropout: 0.0,
        seed: 7,
    }
}

#[test]
fn micro_batching_changes_nothing_and_sampler_equals_learner() {
    for loss_type in [LossType::Dapo, LossType::Grpo, LossType::DrGrpo, LossType::Gspo, LossType::Cispo, LossType::Sapo]
    {
        let mut results = Vec::new();
        for tokens in [10_000, 60, 1] {
            let mut trainee = trainee(1);
            let batch = batch(&trainee, 5);
            let settings = settings(loss_type, tokens);
            let schedule = Schedule::new(&settings.optim, 10);
            let report =
                train_step(&mut trainee, &batch, &settings, &schedule, &mut NonFiniteGuard::default()).unwrap();
            assert_eq!(report.metrics["mismatch/logp_abs_max"], 0.0, "{loss_type:?}");
            results.push((report.metrics["loss"], report.metrics["grad_norm"]));
        }
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1e-3);
        assert!(results[0].1 > 1e-4, "{loss_type:?}: no gradient");
        for other in &results[1..] {
            assert!(close(results[0].0, other.0) && close(results[0].1, other.1), "{loss_type:?}: {results:?}");
        }
    }
}

/// The same batch, trained on again and again, makes what was rewarded likelier than what was not.
#[test]
fn updates_move_probability_to_what_was_rewarded() {
    let mut trainee = trainee(2);
    let batch = batch(&trainee, 4);
    let margin = |trainee: &Trainee<Cpu>| -> f64 {
        let mut sum = 0.0;
        for group in &batch.groups {
            let rewards: Vec<f64> = group.rewards().into_iter().flatten().collect();
            let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
            for (member, reward) in group.members.iter().zip(&rewards) {
                let ids = member.rows[0].ids();
                let prompt = member.rows[0].segments[0].ids.len();
                let logprobs = trainee.logprobs(&Ragged::whole(&[&ids[..ids.len() - 1]]), &ids[1..], 1.0).logprobs;
                let own: f64 =
                    logprobs[prompt - 1..].iter().map(|l| f64::from(*l)).sum::<f64>() / (ids.len() - prompt) as f64;
                sum += (reward - mean) * own;
            }
        }
        sum
    };
    let before = margin(&trainee);
    let settings = StepSettings { algo: AlgoSection::default(), ..settings(LossType::Dapo, 500) };
    let schedule = Schedule::new(&settings.optim, 10);
    for _ in 0..10 {
        train_step(&mut trainee, &batch, &settings, &schedule, &mut NonFiniteGuard::default()).unwrap();
    }
    let after = margin(&trainee);
    assert!(after > before + 0.05, "before {before}, after {after}");
}

#[test]
fn learning_rate_zero_changes_no_bit() {
    let mut trainee = trainee(3);
    let batch = batch(&trainee, 2);
    let mut settings = settings(LossType::Dapo, 500);
    settings.optim.learning_rate = 0.0;
    let before = trainee.values();
    train_step(&mut trainee, &batch, &settings, &Schedule::new(&settings.optim, 1), &mut NonFiniteGuard::default())
        .unwrap();
    assert_eq!(before, trainee.values());
}

/// What a sampler with the weights of `decoder` keeps of `batch`, whose log-probs become its own.
fn kept(decoder: &Decoder<Cpu>, batch: &mut Batch, policy: PolicyId) -> Arc<Recall<Cpu>> {
    let recall = Recall::new(10_000, None);
    for row in batch.groups.iter_mut().flat_map(|group| &mut group.members).map(|member| &mut member.rows[0]) {
        let ids = row.ids();
        let mut input = Ragged::whole(&[&ids[..ids.len() - 1]]);
        let blocks = ids.len().div_ceil(BLOCK);
        input.spans = vec![Span { table: (0..blocks as u32).collect(), ..input.spans[0].clone() }];
        let lineages: Vec<_> = Lineage::of_rows(&policy, &input).into_iter().map(Some).collect();
        let mut cache = decoder.cache(blocks);
        let hidden = recall.forward(decoder, &input, &[None], &mut cache, policy, &lineages);
        let head = decoder.logprobs(&hidden, &ids[1..], 1.0);
        let prompt = row.segments[0].ids.len();
        row.segments[1].logprobs = head.logprobs[prompt - 1..].to_vec();
        for before in prompt - 1..ids.len() - 1 {
            let (id, logprob) = (ids[before + 1], head.logprobs[before]);
            let sampled = Sampled { id, logprob, lse: head.lse[before], entropy: head.entropy[before] };
            recall.keep_score(policy, lineages[before].unwrap().then(id), 1.0, sampled);
        }
    }
    Arc::new(recall)
}

#[test]
fn what_the_sampler_kept_changes_no_number_and_is_compared() {
    let settings = settings(LossType::Dapo, 10_000);
    let schedule = Schedule::new(&settings.optim, 10);
    let policy = PolicyId { epoch: 0, step: 0, digest: Digest::of(b"") };
    let mut results = Vec::new();
    for sampler in [None, Some(decoder(3)), Some(decoder(4))] {
        let trainee = trainee(1);
        let mut batch = batch(&trainee, 5);
        let recall = sampler.map(|decoder| kept(&decoder, &mut batch, policy));
        let mut trainee = trainee.with_recall(recall);
        trainee.published(policy);
        let report = train_step(&mut trainee, &batch, &settings, &schedule, &mut NonFiniteGuard::default()).unwrap();
        results.push((report.metrics, trainee.values()));
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(results[1].0["mismatch/logp_abs_max"], 0.0);
    // a sampler that computes something else is found out, though its numbers were taken
    assert!(results[2].0["mismatch/logp_abs_max"] > 0.1, "{:?}", results[2].0);
}
