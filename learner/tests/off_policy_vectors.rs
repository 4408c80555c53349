//! Every vector of LUFFY and ExGRPO that is about losses and advantages, and those of Agent Lightning that are: values with
//! their whole gradients, through the door that other tools use (`folgore loss`).
//!
//! `data/off_policy_vectors.json` was computed apart from this crate, in f64, with gradients by the complex-step method, and
//! printed to 12 digits. What is about the store of experience is in `experience.rs`.

use folgore_config::algo::AlgoSection;
use folgore_learner::objective::{Point, Surrogate, evaluate_json};
use serde_json::{Value, json};

fn vectors() -> Value {
    serde_json::from_str(include_str!("data/off_policy_vectors.json")).unwrap()
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn close(name: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-11 * w.abs().max(1.0), "{name}[{i}]: expected {w}, got {g}");
    }
}

#[track_caller]
fn same_loss(name: &str, request: Value, want: &Value) {
    let reply = evaluate_json(request).unwrap();
    close(name, &[reply.loss], &[want["loss"].as_f64().unwrap()]);
    for (got, want) in reply.grad.iter().zip(want["grad_logp_new"].as_array().unwrap()) {
        close(name, got, &floats(want));
    }
}

/// Rewards minus their mean, summed as `agg` says.
fn config(agg: &str, clip: bool, length: &Value) -> Value {
    let average = match agg {
        "luffy-repo" => json!({"loss_agg_mode": "sum-norm"}),
        "trl-dr_grpo" => json!({"loss_type": "dr_grpo"}),
        "token-mean" => json!({"loss_agg_mode": "token-mean"}),
        other => panic!("no aggregation {other}"),
    };
    let mut config = json!({"scale_rewards": "none", "loss_remove_clip": !clip, "max_completion_length": length});
    config.as_object_mut().unwrap().extend(average.as_object().unwrap().clone());
    config
}

#[test]
fn losses_of_luffy() {
    let all = &vectors()["luffy"];
    let inputs = &all["inputs"];
    let sources: Vec<&str> = inputs["is_off_policy"]
        .as_array()
        .unwrap()
        .iter()
        .map(|off| if off == true { "teacher" } else { "on_policy" })
        .collect();
    for (name, case) in all["losses"].as_object().unwrap() {
        let agg = case["agg"].as_str().unwrap();
        let mut config = config(agg, case["on_policy_clip"] == true, &inputs["max_response_length"]);
        let gamma = if case["shape"] == true { inputs["gamma"].clone() } else { Value::Null };
        config["off_policy"] = json!({ "teacher_gamma": gamma });
        let request = json!({
            "config": config, "logprobs": inputs["logp_new"], "old": inputs["logp_old"], "mask": inputs["mask"],
            "rewards": inputs["rewards"], "sources": sources,
        });
        same_loss(name, request, case);
    }
}

#[test]
fn the_sft_term_of_luffys_baseline() {
    let all = &vectors()["luffy"];
    let inputs = &all["inputs"];
    // advantages of 0 leave the imitation alone
    let config = json!({"off_policy": {"teacher_loss": "sft", "baseline": "on_policy"}});
    let request = json!({
        "config": config, "logprobs": inputs["logp_new"], "mask": inputs["mask"], "advantages": [0, 0, 0, 0],
        "sources": ["teacher", "on_policy", "on_policy", "on_policy"],
    });
    same_loss("sft", request, &all["rl_plus_sft_baseline_sft_term"]);
}

#[test]
fn advantages_of_luffy() {
    let all = &vectors()["luffy"];
    let rewards = &all["inputs"]["rewards"];
    let advantages = |config: Value, rewards: &Value| {
        let request = json!({
            "config": config, "logprobs": [[-1.0], [-1.0], [-1.0], [-1.0]], "rewards": rewards,
            "sources": ["teacher", "on_policy", "on_policy", "on_policy"],
        });
        evaluate_json(request).unwrap().advantages
    };
    let none = json!({"scale_rewards": "none"});
    let want = &all["advantages"];
    close("no std", &advantages(none.clone(), rewards), &floats(&want["script_no_std_over_mixed_group"]));
    let std = json!({"advantage_eps": 1e-6});
    close("std", &advantages(std, rewards), &floats(&want["with_std_verl"]));
    let split = json!({"advantage_eps": 1e-6, "off_policy": {"baseline": "on_policy"}});
    close("split", &advantages(split, rewards), &floats(&want["grpo_split_on_policy_statistics"]));
    for case in ["all_on_policy_fail", "all_correct"] {
        let case = &all[case];
        close("mixed", &advantages(none.clone(), &case["rewards"]), &floats(&case["advantages_no_std"]));
    }
}

#[test]
fn weights_of_experts_and_of_experience() {
    let all = vectors();
    let at = |log_ratio: f64, logprob: f64| Point { log_ratio, logprob, rollout: None, advantage: -1.0 };
    let algo = AlgoSection::default();
    let (teacher, experience) = (Surrogate::of_teacher(&algo), Surrogate::of_experience(&algo));

    let table = &all["luffy"]["shaping_table"];
    let terms: Vec<_> = floats(&table["p"]).iter().map(|p| teacher.term(at(0.0, p.ln()))).collect();
    close("f(p)", &terms.iter().map(|t| t.value).collect::<Vec<_>>(), &floats(&table["f"]));
    close("f'(p)", &terms.iter().map(|t| t.by_logprob).collect::<Vec<_>>(), &floats(&table["df_dlogp"]));

    let table = &all["exgrpo"]["shaping_table"];
    let terms: Vec<_> = floats(&table["w"]).iter().map(|w| experience.term(at(w.ln(), -1.0))).collect();
    close("f(w)", &terms.iter().map(|t| t.value).collect::<Vec<_>>(), &floats(&table["f"]));
    close("f'(w)", &terms.iter().map(|t| t.by_log_ratio).collect::<Vec<_>>(), &floats(&table["df_dlogp"]));

    let (new, want) = (&all["luffy"]["inputs"]["logp_new"][0], &all["luffy"]["off_policy_shaped"][0]);
    let shaped: Vec<f64> = floats(new).iter().map(|lp| teacher.term(at(0.0, *lp)).value).collect();
    close("off_policy_shaped", &shaped, &floats(want));
}

#[test]
fn losses_of_exgrpo() {
    let all = vectors();
    let (inputs, own) = (&all["grpo_inputs"], &all["exgrpo"]["losses"]["inputs"]);
    let recorded = &own["logp_recorded_for_replay_row"];
    for (name, case) in all["exgrpo"]["losses"]["cases"].as_object().unwrap() {
        let replayed = name != "before_start_on_policy_only";
        let clip = !replayed || name.contains("with_on_policy_clip");
        let mut config = config(case["agg"].as_str().unwrap(), clip, &own["max_response_length"]);
        let beta = if name == "no_shaping" { Value::Null } else { own["beta"].clone() };
        config["off_policy"] = json!({ "experience_beta": beta });
        let mut request = json!({
            "config": config, "logprobs": inputs["logp_new"], "old": inputs["logp_old"], "mask": inputs["mask"],
            "rewards": own["rewards"],
        });
        if replayed {
            request["sources"] = json!(["replay", "on_policy", "on_policy", "on_policy"]);
            request["rollout"] = json!([recorded, [], [], []]);
        }
        same_loss(name, request, case);
    }
}

#[test]
fn agent_lightning_counts_a_rollout_once_in_its_group() {
    let case = &vectors()["agent_lightning"]["advantage_level"];
    let rows = case["row_rollout"].as_array().unwrap();
    let reward = |id: &Value| {
        let rollouts = case["rollouts"].as_array().unwrap();
        rollouts.iter().find(|rollout| rollout["id"] == *id).unwrap()["reward"].clone()
    };
    let rewards: Vec<Value> = rows.iter().map(reward).collect();
    let mut request = json!({
        "config": {"advantage_eps": 1e-6}, "logprobs": vec![[-1.0]; rows.len()], "rewards": rewards,
        "rollout_ids": rows,
    });
    close("rollouts", &evaluate_json(request.clone()).unwrap().advantages, &floats(&case["rollout_level"]));
    // each row for itself: whoever takes more turns weighs more, in the mean too
    request.as_object_mut().unwrap().remove("rollout_ids");
    close("rows", &evaluate_json(request).unwrap().advantages, &floats(&case["transition_level"]));
}

#[test]
fn agent_lightnings_mean_over_the_tokens_of_a_rollout() {
    let case = &vectors()["agent_lightning"]["per_rollout_mean"];
    let (mut ids, mut advantages, mut logprobs, mut want) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for id in ["r0", "r1"] {
        let normalised = floats(&case["normalised_row_advantage"][id]);
        for (tokens, normalised) in floats(&case["row_tokens"][id]).into_iter().zip(normalised) {
            ids.push(id);
            advantages.push(case["advantage"][id].clone());
            logprobs.push(vec![-1.0; tokens as usize]);
            want.push(normalised);
        }
    }
    assert_eq!(ids.len() as u64, case["num_trained_rows"].as_u64().unwrap());
    for name in ["per-rollout-mean", "per_rollout_mean"] {
        let request = json!({
            "config": {"loss_agg_mode": name}, "logprobs": logprobs, "advantages": advantages, "rollout_ids": ids,
        });
        let reply = evaluate_json(request).unwrap();
        // at a ratio of 1 the gradient of a token is minus what its advantage is multiplied to
        for (row, want) in reply.grad.iter().zip(&want) {
            close(name, row, &vec![-want; row.len()]);
        }
        let sum: f64 = want.iter().zip(&logprobs).map(|(want, row)| -want * row.len() as f64).sum();
        close(name, &[reply.loss], &[sum]);
    }
}

/// The nearest bfloat16, ties to even.
fn bfloat16(value: f64) -> f64 {
    let bits = (value as f32).to_bits();
    let rounded = bits + 0x7fff + (bits >> 16 & 1);
    f64::from(f32::from_bits(rounded & 0xffff_0000))
}

/// Agent Lightning keeps rewards in bfloat16; here they stay what the reward said, which is another advantage.
#[test]
fn rewards_are_not_rounded() {
    let case = &vectors()["agent_lightning"]["reward_in_bfloat16"];
    let (rewards, stored) = (floats(&case["reward"]), floats(&case["stored"]));
    assert_eq!(rewards.iter().map(|r| bfloat16(*r)).collect::<Vec<_>>(), stored);
    let advantages = |rewards: &[f64]| {
        let config = json!({"scale_rewards": "none"});
        let request = json!({"config": config, "logprobs": [[-1.0], [-1.0], [-1.0]], "rewards": rewards});
        evaluate_json(request).unwrap().advantages
    };
    let mean = (0.1 + 0.3 + 1.0) / 3.0;
    close("exact", &advantages(&rewards), &[0.1 - mean, 0.3 - mean, 1.0 - mean]);
    assert!((advantages(&stored)[0] - advantages(&rewards)[0]).abs() > 1e-4, "the rounding is no noise");
}
