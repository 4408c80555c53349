//! Properties of the objective: gradients against finite differences, sums over micro-batches, silence off the mask.

use folgore_config::algo::{
    AlgoSection, ImportanceSamplingCorrection, ImportanceSamplingLevel, KlEstimator, LossAggMode, LossType,
};
use folgore_learner::objective::{Counts, Evaluation, Objective, RowInput, Stats};
use folgore_protocol::{seed, trajectory::Source};

const LOSSES: [LossType; 9] = [
    LossType::Grpo,
    LossType::Gspo,
    LossType::Bnpo,
    LossType::DrGrpo,
    LossType::Dapo,
    LossType::Cispo,
    LossType::Sapo,
    LossType::Reinforce,
    LossType::Dppo,
];

#[derive(Clone)]
struct RowData {
    lp: Vec<f64>,
    old: Vec<f64>,
    reference: Vec<f64>,
    rollout: Vec<f64>,
    mask: Vec<bool>,
    sources: Vec<Source>,
    advantage: f64,
}

/// Rows of 0 to 9 trained tokens among others; the values off the mask are garbage.
fn rows(seed: u64, n: usize) -> Vec<RowData> {
    let draw = |i: usize, j: usize| f64::from(seed::normal(seed::mix(&[seed, i as u64]), j as u64));
    (0..n)
        .map(|i| {
            let length = 1 + seed::below(seed, i as u64, 9) as usize;
            let mask: Vec<bool> = (0..length).map(|j| seed::uniform(seed ^ 7, (i * 16 + j) as u64) < 0.75).collect();
            let column = |k: usize, scale: f64, base: &[f64]| -> Vec<f64> {
                (0..length).map(|j| if mask[j] { base[j] + scale * draw(i, 32 * k + j) } else { f64::NAN }).collect()
            };
            let old = column(0, 0.5, &vec![-2.0; length]);
            RowData {
                lp: column(1, 0.2, &old),
                reference: column(2, 0.3, &old),
                rollout: column(3, 0.3, &old),
                mask: mask.clone(),
                sources: vec![Source::OnPolicy; length],
                advantage: draw(i, 999),
                old,
            }
        })
        .collect()
}

fn input(row: &RowData) -> RowInput<'_> {
    RowInput {
        sources: &row.sources,
        logprobs: &row.lp,
        old: Some(&row.old),
        reference: Some(&row.reference),
        rollout: Some(&row.rollout),
        mask: &row.mask,
        advantage: row.advantage,
        whole: None,
    }
}

fn counts(rows: &[RowData]) -> Counts {
    Counts::of(rows.iter().map(|r| r.mask.iter().filter(|on| **on).count()))
}

fn evaluate(objective: &Objective, rows: &[RowData]) -> Evaluation {
    let inputs: Vec<_> = rows.iter().map(input).collect();
    objective.evaluate(&inputs, &objective.normaliser(counts(rows))).unwrap()
}

fn algo(loss_type: LossType) -> AlgoSection {
    AlgoSection {
        loss_type,
        epsilon_high: (loss_type == LossType::Cispo).then_some(1.5),
        epsilon: if loss_type == LossType::Gspo { 0.05 } else { 0.2 },
        ..AlgoSection::default()
    }
}

/// Every loss type, with divergence and correction on and off, dual clip, delta, and ratios by row.
fn settings() -> Vec<AlgoSection> {
    use ImportanceSamplingCorrection as C;
    let mut all = Vec::new();
    for loss_type in LOSSES {
        for correction in [C::None, C::TokenTruncate, C::TokenMask, C::SequenceTruncate, C::SequenceMask] {
            for (beta, kl_estimator) in [(0.0, KlEstimator::K3), (0.1, KlEstimator::K3), (0.2, KlEstimator::K2)] {
                all.push(AlgoSection {
                    beta,
                    kl_estimator,
                    importance_sampling_correction: correction,
                    importance_sampling_clip_min: Some(0.5),
                    importance_sampling_clip_max: 2.0,
                    ..algo(loss_type)
                });
            }
        }
    }
    for base in [algo(LossType::Dapo), algo(LossType::Grpo)] {
        all.push(AlgoSection { dual_clip: Some(1.3), ..base.clone() });
        all.push(AlgoSection { delta: Some(1.25), ..base.clone() });
        all.push(AlgoSection { beta: 0.3, kl_estimator: KlEstimator::K1, ..base.clone() });
        all.push(AlgoSection { off_policy_mask_threshold: Some(0.05), ..base.clone() });
        for mode in [LossAggMode::SeqMeanTokenMean, LossAggMode::SeqMeanTokenSum, LossAggMode::SeqMeanTokenSumNorm] {
            all.push(AlgoSection { loss_agg_mode: Some(mode), ..base.clone() });
        }
    }
    for loss_type in [LossType::Sapo, LossType::Dapo, LossType::Cispo] {
        let importance_sampling_level = ImportanceSamplingLevel::Sequence;
        all.push(AlgoSection { importance_sampling_level, beta: 0.1, ..algo(loss_type) });
    }
    all
}

/// Weights that the objective holds constant do not move if everything they are made of moves along; for those losses
/// the difference is taken so, in each direction of its own.
fn holds_its_weight(algo: &AlgoSection) -> bool {
    algo.loss_type == LossType::Cispo
}

#[test]
fn gradients_equal_finite_differences() {
    let e = 1e-6;
    let mut checked = 0;
    for (k, algo) in settings().into_iter().enumerate() {
        let objective = Objective::new(&algo, 12).unwrap();
        let rows = rows(1000 + k as u64, 6);
        let exact = evaluate(&objective, &rows);
        for i in 0..rows.len() {
            for t in (0..rows[i].lp.len()).filter(|t| rows[i].mask[*t]) {
                let moved = |by: f64| {
                    let mut rows = rows.clone();
                    rows[i].lp[t] += by;
                    if holds_its_weight(&algo) {
                        rows[i].old[t] += by;
                        rows[i].rollout[t] += by;
                    }
                    evaluate(&objective, &rows).loss
                };
                let (up, down, here) = (moved(e), moved(-e), exact.loss);
                let difference = (up - down) / (2.0 * e);
                // At a corner of a clip both sides differ and there is no derivative to compare with.
                if ((up - here) - (here - down)).abs() > 1e-9 {
                    continue;
                }
                let got = exact.grads[i][t];
                assert!((got - difference).abs() < 1e-7, "{algo:?}: row {i} token {t}: {got} against {difference}");
                checked += 1;
            }
        }
    }
    assert!(checked > 3000, "only {checked} derivatives were compared");
}

#[test]
fn the_split_into_micro_batches_changes_nothing() {
    for (k, algo) in settings().into_iter().enumerate().filter(|(_, a)| a.loss_type != LossType::Bnpo) {
        let objective = Objective::new(&algo, 12).unwrap();
        let rows = rows(2000 + k as u64, 24);
        let whole = evaluate(&objective, &rows);
        let normaliser = objective.normaliser(counts(&rows));
        for split in 0..4u64 {
            let (mut loss, mut grads, mut stats, mut begin, mut parts) = (0.0, Vec::new(), Stats::default(), 0, 0);
            while begin < rows.len() {
                let end =
                    (begin + 1 + seed::below(seed::mix(&[k as u64, split]), begin as u64, 7) as usize).min(rows.len());
                let inputs: Vec<_> = rows[begin..end].iter().map(input).collect();
                let local = normaliser.for_micro_batch(counts(&rows[begin..end]), 9);
                let part = objective.evaluate(&inputs, &local).unwrap();
                loss += part.loss;
                grads.extend(part.grads);
                stats.merge(&part.stats);
                (begin, parts) = (end, parts + 1);
            }
            assert!(parts > 2);
            assert!((loss - whole.loss).abs() <= 1e-12 * whole.loss.abs().max(1.0), "{algo:?}");
            assert_eq!(grads, whole.grads, "{algo:?}");
            assert_eq!(stats.ratio.count, whole.stats.ratio.count);
            assert!((stats.ratio.sum - whole.stats.ratio.sum).abs() < 1e-9);
        }
    }
}

#[test]
fn bnpo_averages_within_a_micro_batch_and_over_them() {
    let objective = Objective::new(&algo(LossType::Bnpo), 12).unwrap();
    let token_mean = Objective::new(&algo(LossType::Dapo), 12).unwrap();
    let rows = rows(5, 8);
    let normaliser = objective.normaliser(counts(&rows));
    let parts = [&rows[..3], &rows[3..]];
    let loss: f64 = parts
        .iter()
        .map(|part| {
            let inputs: Vec<_> = part.iter().map(input).collect();
            objective.evaluate(&inputs, &normaliser.for_micro_batch(counts(part), 2)).unwrap().loss
        })
        .sum();
    let want = parts.iter().map(|part| evaluate(&token_mean, part).loss).sum::<f64>() / 2.0;
    assert!((loss - want).abs() < 1e-12);
    assert!((loss - evaluate(&token_mean, &rows).loss).abs() > 1e-6);
}

#[test]
fn rows_left_out_still_count_in_the_average() {
    let objective = Objective::new(&algo(LossType::Dapo), 12).unwrap();
    let mut rows = rows(11, 10);
    rows.iter_mut().step_by(2).for_each(|r| r.advantage = 0.0);
    let whole = evaluate(&objective, &rows);
    let moving: Vec<_> = rows.iter().filter(|r| r.advantage != 0.0).map(input).collect();
    let part = objective.evaluate(&moving, &objective.normaliser(counts(&rows))).unwrap();
    assert!((whole.loss - part.loss).abs() < 1e-15);
    assert!(!objective.moves_at_zero_advantage());
    let with_kl = AlgoSection { beta: 0.1, ..algo(LossType::Dapo) };
    assert!(Objective::new(&with_kl, 12).unwrap().moves_at_zero_advantage());
}

#[test]
fn nothing_is_read_off_the_mask_and_the_gradient_there_is_exactly_zero() {
    for algo in settings() {
        let objective = Objective::new(&algo, 12).unwrap();
        let mut rows = rows(3, 8);
        let before = evaluate(&objective, &rows);
        for row in &mut rows {
            for t in (0..row.lp.len()).filter(|t| !row.mask[*t]) {
                (row.lp[t], row.old[t], row.reference[t], row.rollout[t]) = (f64::INFINITY, -1e300, 1e300, 0.0);
            }
        }
        let after = evaluate(&objective, &rows);
        assert_eq!(before, after);
        for (row, grad) in rows.iter().zip(&after.grads) {
            assert!(row.mask.iter().zip(grad).all(|(on, g)| *on || *g == 0.0));
        }
    }
}

#[test]
fn on_policy_the_ratio_is_one_and_the_gradient_is_the_advantage() {
    for loss_type in [LossType::Dapo, LossType::Cispo, LossType::Sapo, LossType::Reinforce] {
        let by_token = AlgoSection { loss_agg_mode: Some(LossAggMode::TokenMean), ..algo(loss_type) };
        let objective = Objective::new(&by_token, 12).unwrap();
        let rows = rows(17, 5);
        let inputs: Vec<_> =
            rows.iter().map(|r| RowInput { old: None, reference: None, rollout: Some(&r.lp), ..input(r) }).collect();
        let counts = Counts { rows: 1, rows_with_tokens: 1, tokens: 1, imitated: 0 };
        let result = objective.evaluate(&inputs, &objective.normaliser(counts)).unwrap();
        for (row, grad) in rows.iter().zip(&result.grads) {
            for (g, on) in grad.iter().zip(&row.mask) {
                assert!((g - if *on { -row.advantage } else { 0.0 }).abs() < 1e-12, "{loss_type:?}");
            }
        }
        assert_eq!((result.stats.sampling_difference.max, result.stats.mismatch_kl.max), (0.0, 0.0));
    }
}

#[test]
fn what_is_missing_or_unusable_is_named() {
    let with_kl = Objective::new(&AlgoSection { beta: 0.1, ..algo(LossType::Dapo) }, 12).unwrap();
    let plain = Objective::new(&algo(LossType::Dapo), 12).unwrap();
    let dppo = Objective::new(&algo(LossType::Dppo), 12).unwrap();
    let row = RowInput {
        sources: &[Source::OnPolicy],
        logprobs: &[-1.0],
        old: None,
        reference: None,
        rollout: None,
        mask: &[true],
        advantage: 1.0,
        whole: None,
    };
    let counts = Counts::of([1]);
    for (objective, bad, want) in [
        (&with_kl, row, "needs ref"),
        (&dppo, row, "needs rollout"),
        (&plain, RowInput { old: Some(&[]), ..row }, "1 values of old"),
        (&plain, RowInput { logprobs: &[f64::NAN], ..row }, "finite logprobs"),
        (&plain, RowInput { advantage: f64::INFINITY, ..row }, "finite advantage"),
        (&plain, RowInput { sources: &[], ..row }, "1 values of sources"),
        (&plain, RowInput { sources: &[Source::Replay], ..row }, "experience needs rollout"),
        (&with_kl, RowInput { reference: Some(&[900.0]), ..row }, "finite loss"),
    ] {
        let error = objective.evaluate(&[bad], &objective.normaliser(counts)).unwrap_err().to_string();
        assert!(error.contains(want), "{error:?} does not say {want:?}");
    }
    assert!(Objective::new(&algo(LossType::DrGrpo), 0).unwrap_err().to_string().contains("loss_scale_factor"));
}
