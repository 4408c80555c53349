//! The memory that a run takes: what is predicted before anything is loaded, and what was.

#![cfg(target_os = "linux")]

mod support;

use serde_json::Value;
use support::{folgore, refused, run};

/// Predicted and measured peak of one step on random weights of SmolLM2-135M's shape.
fn peaks(settings: &[&str]) -> (f64, f64) {
    let args = ["bench", "memory", "--json", "--shape", "smollm2"];
    let ended = run(folgore(args.iter().chain(settings))).well();
    let lines: Vec<Value> = serde_json::from_str(&ended.stdout).unwrap();
    let number = |key: &str| lines[0][key].as_f64().unwrap();
    assert!(number("peak_bytes") >= number("base_bytes") && lines[0]["step"]["tokens_trained"] == 700, "{lines:?}");
    (number("predicted_bytes"), number("peak_bytes"))
}

#[test]
fn the_predicted_peak_is_within_a_tenth_of_the_measured_one() {
    let coarse = ["model.load_in_4bit=false", "model.use_bnb_nested_quant=false", "model.dtype=float32"];
    let whole = ["model.gradient_checkpointing=false", "model.gradient_checkpointing_every=1"];
    // a second step holds the activations of its samples beside those it learns from
    let shared = ["model.reuse_activations=true", "optim.max_steps=2"];
    for settings in [&[][..], &coarse, &whole, &shared] {
        let (predicted, measured) = peaks(settings);
        let ratio = predicted / measured;
        assert!((0.9..=1.1).contains(&ratio), "{settings:?}: predicted {predicted}, measured {measured}: {ratio:.3}");
    }
}

#[test]
fn what_cannot_fit_is_refused_before_it_is_loaded() {
    let folder = support::folder();
    let runs = folder.path().display().to_string();
    let large = ["train", "arithmetic", "--output-dir", &runs, "rollout.kv_tokens=4000000000"];
    refused(folgore(large), &["at its peak", "available", "key-value cache", "rollout.kv_tokens", "--ignore-memory"]);
    assert_eq!(std::fs::read_dir(&runs).unwrap().count(), 0, "the run has no folder");
    let dry = ["train", "arithmetic", "--output-dir", &runs, "rollout.kv_tokens=4000000000", "--dry-run"];
    refused(folgore(dry), &["at its peak", "rollout.kv_tokens"]);
    let parts = run(folgore(dry)).stdout;
    assert!(parts.contains("predicted peak memory") && parts.contains("key-value cache   "), "{parts}");
    run(folgore(dry.iter().chain(&["--ignore-memory"]))).well();
}
