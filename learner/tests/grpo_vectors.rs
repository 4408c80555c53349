//! Every vector of the GRPO family: advantages, losses with their whole gradients, divergences, corrections, filters.
//!
//! `data/grpo_vectors.json` was computed apart from this crate, in f64, with gradients by the complex-step method, and
//! printed to 12 digits. Its part `dapo_overlong` belongs to the rewards.

use folgore_config::algo::{AdvantageEstimator, AlgoSection, ImportanceSamplingCorrection, KlEstimator, ScaleRewards};
use folgore_learner::{
    advantage,
    objective::{Correction, Divergence, evaluate_json},
};
use serde_json::{Value, json};

fn vectors() -> Value {
    serde_json::from_str(include_str!("data/grpo_vectors.json")).unwrap()
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn matrix(v: &Value) -> Vec<Vec<f64>> {
    v.as_array().unwrap().iter().map(floats).collect()
}

#[track_caller]
fn close(name: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-11 * w.abs().max(1.0), "{name}[{i}]: expected {w}, got {g}");
    }
}

fn estimator(kind: &str) -> AlgoSection {
    let base = AlgoSection::default();
    let eps = |advantage_eps| AlgoSection { advantage_eps, ..AlgoSection::default() };
    match kind {
        "verl_grpo" => eps(1e-6),
        "trl_group" => eps(1e-4),
        "oat_grpo" => eps(1e-8),
        "no_std" => AlgoSection { scale_rewards: ScaleRewards::None, ..base },
        "rloo" => AlgoSection { advantage_estimator: AdvantageEstimator::Rloo, ..base },
        "max_rl" => AlgoSection { advantage_estimator: AdvantageEstimator::MaxRl, ..base },
        other => panic!("no estimator for {other}"),
    }
}

fn group(rewards: &Value) -> Vec<Option<f64>> {
    rewards.as_array().unwrap().iter().map(Value::as_f64).collect()
}

#[test]
fn advantages_of_one_group() {
    let all = vectors();
    let reference = json!({ "rewards": all["inputs"]["rewards"] });
    for case in ["advantages", "advantages_zero_variance", "advantages_graded", "advantages_group_of_one"] {
        let rewards = group(if case == "advantages" { &reference["rewards"] } else { &all[case]["rewards"] });
        for (kind, want) in all[case].as_object().unwrap() {
            if kind == "rewards" {
                continue;
            }
            let want = floats(want);
            if kind == "population_std_WRONG" {
                let got = advantage::of_rewards(&estimator("verl_grpo"), std::slice::from_ref(&rewards)).unwrap();
                assert!((got[0][0] - want[0]).abs() > 0.1, "a population deviation was used");
                continue;
            }
            let got = advantage::of_rewards(&estimator(kind), std::slice::from_ref(&rewards)).unwrap();
            close(&format!("{case}/{kind}"), &got[0], &want);
        }
    }
}

#[test]
fn advantages_over_a_batch_and_with_an_unscored_member() {
    let all = vectors();
    let case = &all["advantages_trl_batch_std"];
    let rewards: Vec<_> = case["rewards"].as_array().unwrap().iter().map(group).collect();
    let algo = AlgoSection { scale_rewards: ScaleRewards::Batch, ..AlgoSection::default() };
    let got = advantage::of_rewards(&algo, &rewards).unwrap();
    close("batch std", &got.concat(), &matrix(&case["advantages"]).concat());

    let case = &all["advantages_trl_unscorable"];
    let got = advantage::of_rewards(&AlgoSection::default(), &[group(&case["rewards"])]).unwrap();
    close("unscorable", &got[0], &floats(&case["advantages"]));
}

/// The settings of a loss vector, and whether it has an old policy, a reference and a sampler.
fn settings(name: &str) -> (Value, bool, bool, bool) {
    let verl = |extra: Value| {
        let mut config = json!({"advantage_eps": 1e-6, "dual_clip": 3.0, "importance_sampling_correction": "none"});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config
    };
    let plain = |config: Value| (config, true, false, false);
    let corrected = |mode: &str, min: Option<f64>, max: f64| {
        let config = verl(json!({"importance_sampling_correction": mode, "importance_sampling_clip_min": min,
            "importance_sampling_clip_max": max}));
        (config, true, false, true)
    };
    match name {
        "verl_vanilla/token-mean" => plain(verl(json!({"loss_agg_mode": "token-mean"}))),
        "verl_vanilla/seq-mean-token-mean" => plain(verl(json!({"loss_agg_mode": "seq-mean-token-mean"}))),
        "verl_vanilla/seq-mean-token-sum" => plain(verl(json!({"loss_agg_mode": "seq-mean-token-sum"}))),
        "verl_vanilla/seq-mean-token-sum-norm" => {
            plain(verl(json!({"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 8})))
        }
        "trl_grpo" => plain(json!({"loss_type": "grpo"})),
        "trl_dapo_default" => plain(json!({})),
        "dr_grpo" => plain(json!({"loss_type": "dr_grpo", "max_completion_length": 8, "scale_rewards": "none"})),
        "dapo" => plain(json!({"preset": "dapo"})),
        "trl_grpo_with_k3_beta_0.04" => (json!({"preset": "grpo"}), true, true, false),
        "gspo_verl" => plain(verl(json!({"loss_type": "gspo", "dual_clip": null, "epsilon": 0.05,
            "epsilon_high": 0.08, "loss_agg_mode": "seq_mean_token_mean"}))),
        "gspo_sequence_form" => {
            plain(json!({"loss_type": "grpo", "importance_sampling_level": "sequence", "advantage_eps": 1e-6,
            "epsilon": 0.05, "epsilon_high": 0.08}))
        }
        "cispo_verl" => plain(json!({"loss_type": "cispo", "advantage_eps": 1e-6, "cispo_floor": 0.8,
            "epsilon_high": 1.28})),
        "cispo_trl" => plain(json!({"loss_type": "cispo", "epsilon_high": 2.0})),
        "sapo_verl" => {
            plain(json!({"loss_type": "sapo", "advantage_eps": 1e-6, "loss_agg_mode": "seq_mean_token_mean"}))
        }
        "verl_vanilla_token-mean+token_tis_cap2" => corrected("token_truncate", None, 2.0),
        "verl_vanilla_token-mean+sequence_tis_cap2" => corrected("sequence_truncate", None, 2.0),
        "verl_vanilla_token-mean+token_icepop_0.5_5" => corrected("token_mask", Some(0.5), 5.0),
        "verl_vanilla_token-mean+trl_sequence_mask_cap3" => corrected("sequence_mask", None, 3.0),
        "verl_vanilla_token-mean+trl_token_truncate_cap3" => corrected("token_truncate", None, 3.0),
        "bypass_reinforce_token_tis_cap2" => (
            json!({"loss_type": "reinforce", "advantage_eps": 1e-6,
                "importance_sampling_correction": "token_truncate", "importance_sampling_clip_max": 2.0}),
            false,
            false,
            true,
        ),
        "prime_rl_default_dppo_kl" => (
            json!({"loss_type": "dppo", "scale_rewards": "none", "importance_sampling_correction": "none"}),
            false,
            false,
            true,
        ),
        other => panic!("no settings for {other}"),
    }
}

#[test]
fn losses_and_whole_gradients() {
    let all = vectors();
    let inputs = &all["inputs"];
    let losses = all["losses"].as_object().unwrap();
    assert_eq!(losses.len(), 21);
    for (name, want) in losses {
        let (config, old, reference, rollout) = settings(name);
        let mut request = json!({"config": config, "logprobs": inputs["logp_new"], "mask": inputs["mask"],
            "rewards": inputs["rewards"]});
        for (used, key, column) in
            [(old, "old", "logp_old"), (reference, "ref", "logp_ref"), (rollout, "rollout", "logp_rollout")]
        {
            if used {
                request[key] = inputs[column].clone();
            }
        }
        let got = evaluate_json(request).unwrap();
        close(&format!("{name} advantages"), &got.advantages, &floats(&want["advantages"]));
        close(&format!("{name} loss"), &[got.loss], &[want["loss"].as_f64().unwrap()]);
        close(&format!("{name} gradient"), &got.grad.concat(), &matrix(&want["grad_logp_new"]).concat());
        let off = matrix(&inputs["mask"]).concat().into_iter().zip(got.grad.concat()).filter(|(m, _)| *m == 0.0);
        assert!(off.clone().count() == 6 && off.into_iter().all(|(_, g)| g == 0.0), "{name}: gradient off the mask");
        if let Some(ratios) = want.get("sequence_ratio").map(floats) {
            let extreme = [ratios.iter().copied().fold(9.0, f64::min), ratios.iter().copied().fold(0.0, f64::max)];
            close("sequence ratio", &[got.metrics["ratio/min"], got.metrics["ratio/max"]], &extreme);
        }
    }
}

#[test]
fn weights_of_the_sampler_correction() {
    let all = vectors();
    let mask = matrix(&all["inputs"]["mask"]);
    let logs = matrix(&all["rollout_correction"]["log_ratio_old_minus_rollout"]);
    let weights = all["rollout_correction"]["weights"].as_object().unwrap();
    assert_eq!(weights.len(), 5);
    for (name, want) in weights {
        use ImportanceSamplingCorrection as C;
        let (mode, min, max) = match name.as_str() {
            "token_tis_cap2" => (C::TokenTruncate, None, 2.0),
            "sequence_tis_cap2" => (C::SequenceTruncate, None, 2.0),
            "token_icepop_0.5_5" => (C::TokenMask, Some(0.5), 5.0),
            "trl_sequence_mask_cap3" => (C::SequenceMask, None, 3.0),
            "trl_token_truncate_cap3" => (C::TokenTruncate, None, 3.0),
            other => panic!("no correction for {other}"),
        };
        let algo = AlgoSection {
            importance_sampling_correction: mode,
            importance_sampling_clip_min: min,
            importance_sampling_clip_max: max,
            ..AlgoSection::default()
        };
        let correction = Correction::of(&algo).unwrap();
        for ((logs, mask), want) in logs.iter().zip(&mask).zip(matrix(want)) {
            // The vectors write 0 where the mask is off.
            let weight = |log: &f64| correction.weight(if correction.by_row { logs.iter().sum() } else { *log });
            let got: Vec<f64> =
                logs.iter().zip(mask).map(|(log, m)| if *m == 0.0 { 0.0 } else { weight(log) }).collect();
            close(name, &got, &want);
        }
    }
}

#[test]
fn divergence_estimators() {
    let all = &vectors()["kl_estimators"];
    let (new, reference) = (floats(&all["logp_new"]), floats(&all["logp_ref"]));
    for (name, estimator) in [
        ("k1", KlEstimator::K1),
        ("abs", KlEstimator::Abs),
        ("k2", KlEstimator::K2),
        ("k3", KlEstimator::K3),
        ("k3+", KlEstimator::K3Plus),
    ] {
        let divergence = Divergence { beta: 1.0, estimator, clamp: None };
        let got: Vec<(f64, f64)> =
            new.iter().zip(&reference).map(|(n, r)| divergence.value_and_slope(*n, *r)).collect();
        close(name, &got.iter().map(|x| x.0).collect::<Vec<_>>(), &floats(&all[name]["value"]));
        close(name, &got.iter().map(|x| x.1).collect::<Vec<_>>(), &floats(&all[name]["grad_logp_new"]));
    }
    let case = &all["k3_clamped_example"];
    let at = |clamp| {
        let d = Divergence { beta: 1.0, estimator: KlEstimator::K3, clamp };
        d.value_and_slope(case["logp_new"].as_f64().unwrap(), case["logp_ref"].as_f64().unwrap())
    };
    close("unclamped", &[at(None).0 / 1e3], &[case["unclamped"].as_f64().unwrap() / 1e3]);
    assert_eq!(at(Some(10.0)), (case["verl_value"].as_f64().unwrap(), 0.0));
}

#[test]
fn dynamic_sampling_keeps_the_groups_that_differ() {
    let case = &vectors()["dapo_dynamic_sampling"];
    let groups = case["group_metric"].as_object().unwrap();
    let kept: Vec<&String> =
        groups.iter().filter(|(_, rewards)| advantage::has_signal(&group(rewards))).map(|(name, _)| name).collect();
    assert_eq!(json!(kept), case["kept"]);
}

#[test]
fn the_off_policy_mask_drops_rows() {
    let case = &vectors()["off_policy_sequence_mask"];
    let config = json!({"off_policy_mask_threshold": case["threshold"], "importance_sampling_correction": "none"});
    let reply = evaluate_json(json!({"config": config, "logprobs": case["logp_new"], "old": case["logp_new"],
        "rollout": case["logp_sampling"], "advantages": case["advantages"]}))
    .unwrap();
    let kept: Vec<bool> = reply.grad.iter().map(|row| row.iter().any(|g| *g != 0.0)).collect();
    assert_eq!(json!(kept), case["keep"]);
    assert!((reply.metrics["off_policy_masked"] - 1.0 / 3.0).abs() < 1e-12);
    // A dropped row stays in the denominator.
    assert!((reply.grad[0][0] + 0.5 / 6.0).abs() < 1e-12);
}
