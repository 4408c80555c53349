//! What the policy was told during an episode: context for what follows, and nothing that is learnt from.
//!
//! `data/search_vectors.json` was computed apart from this crate, as `data/grpo_vectors.json` was.

use std::sync::Arc;

use folgore_config::{algo::AlgoSection, optim::OptimSection};
use folgore_learner::{
    objective::{LossReply, Objective, evaluate_json},
    packing::{Flat, pack},
    schedule::{NonFiniteGuard, Schedule},
    step::{StepReport, StepSettings, train_step},
    trainee::Trainee,
};
use folgore_model::{
    ModelConfig,
    backend::Cpu,
    decoder::{Decoder, Linear, Ragged},
    lora::{LoraInit, LoraShape},
    params::{Params, random_weights},
};
use folgore_protocol::{
    Batch, Digest, Draws, GroupId, GroupRecord, Outcome, PolicyId, Prompt, Purpose, Row, RunLength, SeatKey, Segment,
    SegmentKind, Source, StopReason, Task, Trajectory, seed,
};
use serde_json::{Value, json};

const VOCAB: u64 = 40;

fn vectors() -> Value {
    serde_json::from_str(include_str!("data/search_vectors.json")).unwrap()
}

fn kind(name: &str) -> SegmentKind {
    match name {
        "prompt" => SegmentKind::Prompt,
        "response" => SegmentKind::Sampled,
        "observation" => SegmentKind::Observed,
        other => panic!("no segment is called {other}"),
    }
}

/// A row of segments of these lengths; ids and log-probs follow from `stream`.
fn row(parts: &[(SegmentKind, u64)], stream: u64) -> Row {
    let policy = PolicyId { epoch: 0, step: 0, digest: Digest::of(b"") };
    let mut at = 0;
    let mut segment = |(kind, n): &(SegmentKind, u64)| {
        let ids: Vec<u32> = (at..at + n).map(|i| seed::below(stream, i, VOCAB) as u32).collect();
        at += n;
        let sampled = *kind == SegmentKind::Sampled;
        let logprobs = if sampled { vec![-0.5; ids.len()] } else { Vec::new() };
        let policies = if sampled { RunLength::of(policy, *n as u32) } else { RunLength::default() };
        Segment { kind: *kind, ids, logprobs, policies }
    };
    Row { segments: parts.iter().map(&mut segment).collect(), source: Source::OnPolicy }
}

fn batch(rows: Vec<Row>) -> Batch {
    let member = |(i, row): (usize, Row)| Trajectory {
        seat: SeatKey { group: GroupId(0), sample: i as u32, draw: 0 },
        task_id: "t".into(),
        purpose: Purpose::Train,
        rows: vec![row],
        outcome: Outcome::scored("toy", i as f64),
        stop_reason: StopReason::Eos,
        worker: "test".into(),
        duration_ms: 0,
        token: String::new(),
    };
    let task = Task { id: "t".into(), prompt: Prompt::Text("q".into()), columns: Default::default() };
    let members = rows.into_iter().enumerate().map(member).collect();
    let groups = vec![GroupRecord { id: GroupId(0), task, members }];
    Batch { step: 1, groups, filtered_groups: 0, unscored_groups: 0, passed_over: 0, draws: Draws::default() }
}

#[test]
fn the_mask_of_search_r1() {
    let case = &vectors()["loss_mask"];
    let parts: Vec<(SegmentKind, u64)> = case["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| (kind(pair[0].as_str().unwrap()), pair[1].as_u64().unwrap()))
        .collect();
    let flags = |key: &str| -> Vec<bool> { case[key].as_array().unwrap().iter().map(|x| x == 1).collect() };
    let b = batch(vec![row(&parts, 1)]);
    let places = |mask_observations| {
        let flat = Flat::of(&b, &[vec![1.0]], false, mask_observations).unwrap();
        let row = &flat.rows[0];
        let trained: Vec<bool> = (row.prompt..row.ids.len()).map(|at| row.sampled.contains(&at)).collect();
        let targets: Vec<u32> = pack(&flat, &[0], 1000)[0].targets.iter().map(|t| t.id).collect();
        assert_eq!(targets, row.sampled.iter().map(|at| row.ids[*at]).collect::<Vec<_>>(), "nothing else is scored");
        // attention sees it all
        assert_eq!(row.ids, b.groups[0].members[0].rows[0].ids());
        assert_eq!(
            flat.counts(&[0], &Objective::new(&AlgoSection::default(), 8).unwrap()).tokens,
            trained.iter().filter(|on| **on).count()
        );
        trained
    };
    assert_eq!(places(true), flags("response_part_loss_mask"));
    assert_eq!(places(false), flags("attention_mask"), "the wrong one");
}

fn masked_loss(case: &Value, mask: &str) -> LossReply {
    evaluate_json(json!({
        "config": {"loss_type": "dapo", "beta": case["kl_coef"]},
        "logprobs": case["logp_new"], "old": case["logp_old"], "ref": case["logp_ref"],
        "advantages": case["advantages"], "mask": case[mask],
    }))
    .unwrap()
}

#[test]
fn the_masked_loss_of_search_r1_and_the_wrong_one() {
    let case = &vectors()["masked_loss"];
    let reply = masked_loss(case, "loss_mask");
    let close = |got: f64, want: &Value| {
        let want = want.as_f64().unwrap();
        assert!((got - want).abs() < 1e-11, "expected {want}, got {got}");
    };
    close(reply.loss, &case["loss"]);
    for (got, want) in reply.grad.iter().zip(case["grad_logp_new"].as_array().unwrap()) {
        got.iter().zip(want.as_array().unwrap()).for_each(|(got, want)| close(*got, want));
    }
    let wrong = masked_loss(case, "attention_mask");
    close(wrong.loss, &case["loss_if_observation_not_masked_WRONG"]);
    assert!((wrong.loss - reply.loss).abs() > 0.1);
}

fn config() -> ModelConfig {
    ModelConfig {
        model_type: "llama".into(),
        vocab_size: VOCAB as usize,
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

fn trainee() -> Trainee<Cpu> {
    let decoder = Decoder::load(Arc::new(Cpu::new()), config(), &random_weights(&config(), 3)).unwrap();
    let targets = Linear::ALL.to_vec();
    let shape = LoraShape { r: 4, alpha: 8.0, use_rslora: false, dropout: 0.0, targets, rules: Default::default() };
    let params = Params::lora(&**decoder.backend(), &config(), shape, LoraInit::Kaiming, 1);
    Trainee::new(decoder, params).unwrap()
}

fn step(trainee: &mut Trainee<Cpu>, batch: &Batch, mask_observations: bool, learning_rate: f64) -> StepReport {
    let settings = StepSettings {
        algo: AlgoSection { beta: 0.5, mask_observations, ..AlgoSection::default() },
        optim: OptimSection { learning_rate, ..OptimSection::default() },
        max_completion_length: 32,
        temperature: 1.0,
        max_tokens_per_micro_batch: 40,
        recompute: None,
        lora_dropout: 0.0,
        seed: 7,
    };
    let schedule = Schedule::new(&settings.optim, 10);
    train_step(trainee, batch, &settings, &schedule, &mut NonFiniteGuard::default()).unwrap()
}

/// Puts the log-probs of `trainee` into `batch`, as its sampler would have reported them.
fn report(trainee: &Trainee<Cpu>, batch: &mut Batch) {
    for row in batch.groups[0].members.iter_mut().map(|m| &mut m.rows[0]) {
        let ids = row.ids();
        let all = trainee.logprobs(&Ragged::whole(&[&ids[..ids.len() - 1]]), &ids[1..], 1.0).logprobs;
        let mut at = 0;
        for segment in &mut row.segments {
            if segment.kind == SegmentKind::Sampled {
                segment.logprobs = all[at - 1..at - 1 + segment.ids.len()].to_vec();
            }
            at += segment.ids.len();
        }
    }
}

/// Loss, divergence and entropy of `batch` by hand, over what the policy said alone or over what it was told, too.
fn by_hand(trainee: &Trainee<Cpu>, batch: &Batch, told_too: bool) -> [f64; 3] {
    let (mut logprobs, mut reference, mut masks, mut entropies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for member in &batch.groups[0].members {
        let row = &member.rows[0];
        let ids = row.ids();
        let (input, next) = (Ragged::whole(&[&ids[..ids.len() - 1]]), &ids[1..]);
        let head = trainee.logprobs(&input, next, 1.0);
        let kinds = row.segments.iter().flat_map(|s| std::iter::repeat_n(s.kind, s.ids.len())).skip(1);
        let mask: Vec<bool> =
            kinds.map(|kind| kind == SegmentKind::Sampled || (told_too && kind == SegmentKind::Observed)).collect();
        entropies.extend(head.entropy.iter().zip(&mask).filter(|(_, on)| **on).map(|(e, _)| f64::from(*e)));
        logprobs.push(head.logprobs);
        reference.push(trainee.reference_logprobs(&input, next, 1.0).logprobs);
        masks.push(mask);
    }
    let rewards: Vec<Option<f64>> = batch.groups[0].rewards();
    let reply = evaluate_json(json!({
        "config": {"beta": 0.5}, "logprobs": logprobs, "ref": reference, "mask": masks, "rewards": rewards,
    }))
    .unwrap();
    [reply.loss, reply.metrics["kl"], entropies.iter().sum::<f64>() / entropies.len() as f64]
}

/// How far a number may be from `want`.
fn near(want: f64) -> f64 {
    1e-5 * want.abs().max(0.01)
}

#[test]
fn a_step_learns_nothing_from_what_the_policy_was_told() {
    use SegmentKind::{Observed, Prompt, Sampled};
    let mut trainee = trainee();
    let lengths = [(Prompt, 5), (Sampled, 4), (Observed, 9), (Sampled, 3), (Observed, 6), (Sampled, 2)];
    let mut batch = batch((0..4).map(|i| row(&lengths, 10 + i)).collect());
    // away from the reference, so that there is a divergence
    report(&trainee, &mut batch);
    step(&mut trainee, &batch, true, 0.02);
    report(&trainee, &mut batch);
    let (said, all) = (by_hand(&trainee, &batch, false), by_hand(&trainee, &batch, true));
    for (mask_observations, want) in [(true, said), (false, all)] {
        let report = step(&mut trainee, &batch, mask_observations, 0.0);
        let got = ["loss", "kl", "entropy"].map(|name| report.metrics[name]);
        for i in 0..3 {
            assert!((got[i] - want[i]).abs() < near(want[i]), "expected {want:?}, got {got:?}");
        }
        assert_eq!(report.metrics["mismatch/logp_abs_max"], 0.0);
    }
    for i in 0..3 {
        assert!((said[i] - all[i]).abs() > 2.0 * near(said[i]), "the mask makes a difference: {said:?} {all:?}");
    }
}

/// What was told may be anything: it has its say through attention alone.
#[test]
fn what_was_told_is_context() {
    use SegmentKind::{Observed, Prompt, Sampled};
    let trainee = trainee();
    let lengths = [(Prompt, 5), (Sampled, 4), (Observed, 9), (Sampled, 3)];
    let mut a = batch(vec![row(&lengths, 1)]);
    let mut b = a.clone();
    b.groups[0].members[0].rows[0].segments[2].ids.reverse();
    report(&trainee, &mut a);
    report(&trainee, &mut b);
    let logprobs =
        |batch: &Batch, segment: usize| batch.groups[0].members[0].rows[0].segments[segment].logprobs.clone();
    assert_eq!(logprobs(&a, 1), logprobs(&b, 1));
    assert_ne!(logprobs(&a, 3), logprobs(&b, 3));
}
