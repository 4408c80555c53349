//! Packing: what is scored by what, what is shared, what fits, and that nothing is lost.

use std::collections::HashMap;

use folgore_config::algo::{AlgoSection, LossAggMode};
use folgore_learner::{
    metrics,
    objective::{Evaluation, Objective, Stats},
    packing::{Columns, Flat, PackError, PackedBatch, pack, split_groups},
};
use folgore_protocol::{
    batch::{Batch, Draws, GroupRecord},
    generate::StopReason,
    ids::{Digest, GroupId, PolicyId, SeatKey},
    job::Purpose,
    runlength::RunLength,
    score::Outcome,
    seed,
    task::{Prompt, Task},
    trajectory::{Row, Segment, SegmentKind, Source, Trajectory},
};
use proptest::prelude::*;

fn segment(kind: SegmentKind, ids: &[u32]) -> Segment {
    let sampled = kind == SegmentKind::Sampled;
    let policy = PolicyId { epoch: 0, step: 2, digest: Digest::of(b"") };
    Segment {
        kind,
        ids: ids.to_vec(),
        logprobs: if sampled { ids.iter().map(|id| -(*id as f32) / 64.0).collect() } else { Vec::new() },
        policies: if sampled { RunLength::of(policy, ids.len() as u32) } else { RunLength::default() },
    }
}

fn row(segments: &[(SegmentKind, &[u32])]) -> Row {
    Row { segments: segments.iter().map(|(kind, ids)| segment(*kind, ids)).collect(), source: Source::OnPolicy }
}

fn trajectory(group: u64, sample: u32, rows: Vec<Row>, reward: f64) -> Trajectory {
    Trajectory {
        seat: SeatKey { group: GroupId(group), sample, draw: 0 },
        task_id: "t".into(),
        purpose: Purpose::Train,
        rows,
        outcome: Outcome::scored("exact", reward),
        stop_reason: StopReason::Eos,
        worker: "w".into(),
        duration_ms: 1,
        token: String::new(),
    }
}

fn batch(groups: Vec<Vec<Trajectory>>) -> Batch {
    let task = Task { id: "t".into(), prompt: Prompt::Text("q".into()), columns: Default::default() };
    let group = |(g, members): (usize, _)| GroupRecord { id: GroupId(g as u64), task: task.clone(), members };
    Batch {
        step: 4,
        groups: groups.into_iter().enumerate().map(group).collect(),
        filtered_groups: 1,
        unscored_groups: 0,
        passed_over: 0,
        draws: Draws::default(),
    }
}

fn ones(batch: &Batch) -> Vec<Vec<f64>> {
    batch.groups.iter().map(|g| vec![1.0; g.members.len()]).collect()
}

fn flat(batch: &Batch) -> Flat {
    Flat::of(batch, &ones(batch), false, true).unwrap()
}

use SegmentKind::{Observed, Prompt as Question, Sampled};

/// The ids that row `at` of a call sees, itself included, by walking its span and the prefix.
fn context(call: &PackedBatch, at: usize) -> Vec<u32> {
    let span = call.spans.iter().find(|s| s.rows.contains(&at)).unwrap();
    let mut seen: Vec<usize> = span.prefix.iter().cloned().flatten().collect();
    seen.extend(span.rows.start..=at);
    let positions: Vec<u32> = seen.iter().map(|r| call.positions[*r]).collect();
    assert_eq!(positions, (0..seen.len() as u32).collect::<Vec<_>>(), "positions of a sequence have a gap");
    seen.iter().map(|r| call.tokens[*r]).collect()
}

#[test]
fn two_answers_share_their_prompt_and_its_last_row_scores_both_first_tokens() {
    let prompt: &[u32] = &[1, 2, 3];
    let b = batch(vec![vec![
        trajectory(0, 0, vec![row(&[(Question, prompt), (Sampled, &[10, 11])])], 1.0),
        trajectory(0, 1, vec![row(&[(Question, prompt), (Sampled, &[20])])], 0.0),
    ]]);
    let flat = flat(&b);
    let calls = pack(&flat, &[0, 1], 64);
    assert_eq!(calls.len(), 1);
    let call = &calls[0];
    // The last id of an answer scores nothing, so it is not computed; the one-token answer needs no row of its own.
    assert_eq!(call.tokens, [1, 2, 3, 10]);
    assert_eq!(call.positions, [0, 1, 2, 3]);
    assert_eq!(call.spans.len(), 2);
    assert_eq!(call.spans[1].rows, 3..4);
    assert_eq!(call.spans[1].prefix.iter().cloned().flatten().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(call.wanted, [2, 3, 2]);
    let targets: Vec<(u32, usize)> = call.targets.iter().map(|t| (t.id, t.token)).collect();
    assert_eq!(targets, [(10, 0), (11, 1), (20, 2)]);
    assert_eq!(flat.rollout, [-10.0 / 64.0, -11.0 / 64.0, -20.0 / 64.0]);
}

#[test]
fn only_sampled_tokens_of_a_conversation_are_targets() {
    let talk = row(&[(Question, &[1, 2]), (Sampled, &[5, 6]), (Observed, &[7, 8]), (Sampled, &[9]), (Observed, &[3])]);
    let b = batch(vec![vec![trajectory(0, 0, vec![talk], 1.0)]]);
    let flat = flat(&b);
    let call = &pack(&flat, &[0], 64)[0];
    assert_eq!(call.tokens, [1, 2, 5, 6, 7, 8]);
    let scored: Vec<(Vec<u32>, u32)> =
        call.wanted.iter().zip(&call.targets).map(|(w, t)| (context(call, *w as usize), t.id)).collect();
    assert_eq!(scored, [(vec![1, 2], 5), (vec![1, 2, 5], 6), (vec![1, 2, 5, 6, 7, 8], 9)]);
}

#[test]
fn a_group_stays_together_if_it_fits_and_is_divided_if_it_cannot() {
    let member = |g: u64, m: u32, prompt: &[u32]| {
        trajectory(g, m, vec![row(&[(Question, prompt), (Sampled, &[m + 40, m + 41, m + 42])])], 1.0)
    };
    let group = |g: u64, n: u32| (0..n).map(|m| member(g, m, &[g as u32 + 1; 4])).collect::<Vec<_>>();
    // A group of n costs 4 for the prompt and 2 for each answer.
    let b = batch(vec![group(0, 2), group(1, 2), group(2, 6)]);
    let flat = flat(&b);
    let all: Vec<usize> = (0..10).collect();
    let calls = pack(&flat, &all, 12);
    let rows: Vec<&[usize]> = calls.iter().map(|c| c.rows.as_slice()).collect();
    assert_eq!(rows, [&[0, 1][..], &[2, 3], &[4, 5, 6, 7], &[8, 9]]);
    assert_eq!(calls.iter().map(|c| c.tokens.len()).collect::<Vec<_>>(), [8, 8, 12, 8]);
    assert_eq!(pack(&flat, &all, 16).iter().map(|c| c.rows.len()).collect::<Vec<_>>(), [4, 6]);
    // A row that is over the budget by itself is not cut.
    assert_eq!(pack(&flat, &all, 3).iter().map(|c| c.rows.len()).collect::<Vec<_>>(), [1; 10]);
    assert!(pack(&flat, &[], 12).is_empty());
}

#[test]
fn rows_without_gradient_are_left_out_but_counted() {
    let member = |m: u32, n: usize| trajectory(0, m, vec![row(&[(Question, &[1]), (Sampled, &vec![4; n])])], 1.0);
    let mut members = vec![member(0, 2), member(1, 3), member(2, 5)];
    members[2].stop_reason = StopReason::Length;
    let b = batch(vec![members]);
    let flat = Flat::of(&b, &[vec![0.0, 1.0, 1.0]], true, true).unwrap();
    assert_eq!(flat.with_gradient(&[0, 1, 2], false, false), [1]);
    assert_eq!(flat.with_gradient(&[0, 1, 2], true, false), [0, 1]);
    let counts = flat.counts(&[0, 1, 2], &Objective::new(&AlgoSection::default(), 8).unwrap());
    assert_eq!((counts.rows, counts.rows_with_tokens, counts.tokens), (3, 2, 5));
}

#[test]
fn a_batch_that_cannot_be_laid_out_is_named() {
    let b = batch(vec![vec![trajectory(
        0,
        3,
        vec![row(&[(Question, &[1]), (Sampled, &[2])]), row(&[(Sampled, &[2])])],
        1.0,
    )]]);
    let error = Flat::of(&b, &[vec![1.0]], false, true).unwrap_err();
    assert_eq!(error.to_string(), "trajectory g0.3.0, row 1: expected a token before the first sampled one, got none");
    let error = Flat::of(&b, &[vec![1.0, 2.0]], false, true).unwrap_err();
    assert_eq!(error, PackError::Advantages { group: 0, expected: 1, got: 2 });
    assert_eq!(split_groups(5, 2).unwrap(), [0..2, 2..5]);
    assert_eq!(split_groups(2, 3).unwrap_err(), PackError::TooManyParts { groups: 2, parts: 3 });
}

#[test]
fn log_probs_go_out_and_gradients_come_back_by_flat_token() {
    let member = |m: u32, n: usize| trajectory(0, m, vec![row(&[(Question, &[1]), (Sampled, &vec![4; n])])], 1.0);
    let flat = flat(&batch(vec![vec![member(0, 2), member(1, 1)]]));
    let lp = [-0.1, -0.2, -0.3];
    let columns = Columns { logprobs: &lp, old: None, reference: None, rollout: Some(&flat.rollout) };
    let objective = Objective::new(&AlgoSection::default(), 8).unwrap();
    let inputs = flat.inputs(&[1, 0], columns, &objective);
    assert_eq!(inputs[0].logprobs, [-0.3]);
    assert_eq!(inputs[1].logprobs, [-0.1, -0.2]);
    let evaluation = Evaluation { loss: 0.0, grads: vec![vec![3.0], vec![1.0, 2.0]], stats: Stats::default() };
    let mut by_token = [0.0; 3];
    flat.scatter(&[1, 0], &evaluation, &mut by_token);
    assert_eq!(by_token, [1.0, 2.0, 3.0]);
}

#[test]
fn the_rows_of_a_trajectory_know_how_much_it_is_all_together() {
    let one = |n: usize| row(&[(Question, &[1]), (Sampled, &vec![4; n])]);
    let turns = trajectory(0, 0, vec![one(2), one(3), one(5)], 1.0);
    let flat = flat(&batch(vec![vec![turns, trajectory(0, 1, vec![one(4)], 0.0)]]));
    let lp = [-0.1; 14];
    let columns = Columns { logprobs: &lp, old: None, reference: None, rollout: Some(&flat.rollout) };
    let algo = AlgoSection { loss_agg_mode: Some(LossAggMode::PerRolloutMean), ..AlgoSection::default() };
    let objective = Objective::new(&algo, 8).unwrap();
    let inputs = flat.inputs(&[3, 1, 0], columns, &objective);
    assert_eq!(inputs.iter().map(|input| input.whole).collect::<Vec<_>>(), [Some(4), Some(10), Some(10)]);
    let normaliser = objective.normaliser(flat.counts(&[0, 1, 2, 3], &objective));
    assert_eq!(normaliser.coefficient(3, 10), 1.0 / 40.0, "by the rollout's tokens and all rows");
}

/// A batch of groups whose members have one to three rows; some prompts are shared across rows, some are not.
fn random_batch(seed: u64, groups: usize) -> Batch {
    let below = |a: u64, bound: u64| seed::below(seed, a, bound);
    let ids = |key: u64, n: u64| (0..n).map(|i| seed::below(seed ^ key, i, 50) as u32).collect::<Vec<u32>>();
    let group = |g: usize| {
        let g = g as u64;
        let prompt = ids(g + 1, 1 + below(g, 12));
        (0..1 + below(g + 100, 5))
            .map(|m| {
                let key = seed::mix(&[g, m]);
                let mut rows = Vec::new();
                for r in 0..1 + below(key, 3) {
                    let key = seed::mix(&[key, r]);
                    let own = if below(key, 4) == 0 { ids(key, 3) } else { prompt.clone() };
                    let mut segments =
                        vec![segment(Question, &own), segment(Sampled, &ids(key ^ 1, 1 + below(key ^ 2, 6)))];
                    if below(key ^ 3, 2) == 0 {
                        segments.push(segment(Observed, &ids(key ^ 4, 2)));
                        segments.push(segment(Sampled, &ids(key ^ 5, below(key ^ 6, 4))));
                    }
                    rows.push(Row { segments, source: Source::OnPolicy });
                }
                trajectory(g, m as u32, rows, 1.0)
            })
            .collect()
    };
    batch((0..groups).map(group).collect())
}

proptest! {
    #[test]
    fn every_sampled_token_is_scored_once_by_what_comes_before_it(seed: u64, groups in 1usize..6, budget in 1usize..80) {
        let b = random_batch(seed, groups);
        let flat = flat(&b);
        let all: Vec<usize> = (0..flat.rows.len()).collect();
        let calls = pack(&flat, &all, budget);

        // By flat token: the row's ids before it, and its id.
        let mut want: HashMap<usize, (Vec<u32>, u32)> = HashMap::new();
        for (flat_row, source) in flat.rows.iter().zip(b.groups.iter().flat_map(|g| &g.members).flat_map(|m| &m.rows)) {
            let (ids, mut at, mut token) = (source.ids(), 0, flat_row.tokens.start);
            for s in &source.segments {
                for i in at..at + s.ids.len() {
                    if s.kind == Sampled {
                        want.insert(token, (ids[..i].to_vec(), ids[i]));
                        token += 1;
                    }
                }
                at += s.ids.len();
            }
            prop_assert_eq!(token, flat_row.tokens.end);
        }
        prop_assert_eq!(want.len(), flat.mask.len());

        let mut packed_rows: Vec<usize> = Vec::new();
        for call in &calls {
            prop_assert_eq!(call.wanted.len(), call.targets.len());
            let covered: Vec<usize> = call.spans.iter().flat_map(|s| s.rows.clone()).collect();
            prop_assert_eq!(covered, (0..call.tokens.len()).collect::<Vec<_>>());
            for span in &call.spans {
                prop_assert!(!span.rows.is_empty() && span.prefix.iter().all(|p| p.end <= span.rows.start));
            }
            prop_assert!(call.tokens.len() <= budget || call.rows.len() == 1);
            // No prompt twice in one call.
            let mut prompts: Vec<&[u32]> = call.spans.iter().filter(|s| s.prefix.is_empty()).map(|s| &call.tokens[s.rows.clone()]).collect();
            let n = prompts.len();
            prompts.sort();
            prompts.dedup();
            prop_assert_eq!(prompts.len(), n);
            for (wanted, target) in call.wanted.iter().zip(&call.targets) {
                let (before, id) = want.remove(&target.token).expect("a token is scored twice");
                prop_assert_eq!((context(call, *wanted as usize), target.id), (before, id));
            }
            packed_rows.extend(&call.rows);
        }
        prop_assert!(want.is_empty(), "{} tokens are scored by nothing", want.len());
        prop_assert_eq!(&packed_rows, &all);
        // A group that fits is never divided.
        for call in calls.windows(2) {
            let (last, next) = (&flat.rows[*call[0].rows.last().unwrap()], &flat.rows[call[1].rows[0]]);
            if last.group == next.group {
                let whole: Vec<usize> = all.iter().copied().filter(|r| flat.rows[*r].group == last.group).collect();
                prop_assert!(pack(&flat, &whole, usize::MAX)[0].tokens.len() > budget);
            }
        }
    }
}

#[test]
fn metrics_of_a_batch_have_trl_names() {
    let member = |g: u64, m: u32, n: usize, reward: f64| {
        trajectory(g, m, vec![row(&[(Question, &[1]), (Sampled, &vec![4; n])])], reward)
    };
    let mut groups = vec![
        vec![member(0, 0, 2, 1.0), member(0, 1, 4, 0.0)],
        vec![member(1, 0, 6, 1.0), member(1, 1, 8, 1.0), member(1, 2, 5, 0.0)],
    ];
    groups[1][1].stop_reason = StopReason::Length;
    groups[1][2].outcome = Outcome::Unscorable { reason: "gold".into() };
    let mut batch = batch(groups);
    for (group, source) in batch.groups.iter_mut().zip(["sums", "openai/gsm8k"]) {
        group.task.columns.insert("data_source".into(), source.into());
    }
    let m = metrics::of_step(&batch, &Stats::default(), Some(0.5));
    let half_std = 0.5f64.sqrt() / 2.0;
    for (name, want) in [
        ("reward", 0.75),
        ("reward_std", half_std),
        ("frac_reward_zero_std", 0.5),
        ("rewards/exact/mean", 0.75),
        ("rewards/exact/std", 0.5),
        ("reward/unscorable", 1.0),
        ("reward/error", 0.0),
        ("completions/mean_length", 5.0),
        ("completions/min_length", 2.0),
        ("completions/max_length", 8.0),
        ("completions/clipped_ratio", 0.2),
        ("completions/mean_terminated_length", 4.25),
        ("sources/sums/groups", 1.0),
        ("sources/sums/reward", 0.5),
        ("sources/openai/gsm8k/reward", 1.0),
        ("sources/openai/gsm8k/reward_std", 0.0),
        ("sources/sums/mean_length", 3.0),
        ("staleness/mean", 1.0),
        ("staleness/max", 1.0),
        ("filtered_groups", 1.0),
        ("entropy", 0.5),
    ] {
        assert!((m[name] - want).abs() < 1e-12, "{name}: expected {want}, got {}", m[name]);
    }
    assert!(!m.contains_key("kl"), "what was not measured is left out");
}
