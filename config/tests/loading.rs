//! Defaults, files and overrides: which wins, what merges, and that what is written reads back.

use folgore_config::{Config, PRESETS, load, load_text};
use proptest::prelude::*;
use serde_json::{Value, json};

const NO: [&str; 0] = [];
const RULE: &str = "reward: [{name: exact_match}]\n";

fn take(text: &str, overrides: &[&str]) -> Config {
    load_text("run.yaml", &format!("{text}{RULE}"), overrides).unwrap().config
}

#[test]
fn later_sources_win_and_sections_merge() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("more.yaml").display().to_string();
    std::fs::write(&path, "rollout:\n  temperature: 0.7\n  stop: [x]\nlog:\n").unwrap();
    let config = load(&["demo", &path], &["temperature=0.5", "temperature=0.6", "--lora.lora-r=4"]).unwrap().config;
    assert_eq!(config.rollout.temperature, 0.6);
    assert_eq!(config.rollout.stop, ["x"]);
    assert_eq!(config.rollout.num_generations, 8, "the preset's value stays");
    assert_eq!(config.lora.lora_r, 4);
    assert_eq!(config.log, Config::default().log, "an empty section changes nothing");
}

#[test]
fn lists_are_replaced_and_their_items_can_be_reached() {
    let text = "reward:\n  - {name: a}\n  - {name: b}\n";
    let loaded = load_text("run.yaml", text, &["reward.1.weight=0.25", "stop=[x, \"y z\"]"]).unwrap();
    assert_eq!(loaded.config.reward[1].weight, 0.25);
    assert_eq!(loaded.config.reward[0].weight, 1.0);
    assert_eq!(loaded.config.rollout.stop, ["x", "y z"]);
    let one = load_text("run.yaml", text, &["reward=[{name: c}]"]).unwrap();
    assert_eq!(one.config.reward.len(), 1);
}

#[test]
fn template_variables_are_free() {
    let config =
        take("rollout:\n  chat_template_kwargs: {enable_thinking: false}\n", &["chat_template_kwargs.depth=3"]);
    assert_eq!(Value::Object(config.rollout.chat_template_kwargs), json!({"enable_thinking": false, "depth": 3}));
}

#[test]
fn other_programs_names_are_taken_and_reported() {
    let text = "actor_rollout_ref:\n  rollout:\n    n: 4\nlora_r: 2\nrun_name: mine\n";
    let loaded = load_text("run.yaml", &format!("{text}{RULE}"), &["data.max_response_length=99"]).unwrap();
    assert_eq!(loaded.config.rollout.num_generations, 4);
    assert_eq!(loaded.config.rollout.max_completion_length, 99);
    assert_eq!(loaded.config.lora.lora_r, 2);
    assert_eq!(loaded.config.run.name.as_deref(), Some("mine"));
    assert_eq!(
        loaded.notes,
        [
            "run.yaml:3:5: `actor_rollout_ref.rollout.n` is called `rollout.num_generations` here",
            "run.yaml:5:1: `run_name` is called `run.name` here",
            "data.max_response_length=99: `data.max_response_length` is called `rollout.max_completion_length` here",
        ]
    );
}

#[test]
fn what_is_seldom_meant_is_said() {
    let loaded = load_text("run.yaml", RULE, &["top_p=0.9"]).unwrap();
    assert!(loaded.warnings.iter().any(|w| w.starts_with("rollout.top_p: ")), "{:?}", loaded.warnings);
    assert!(load(&["demo"], &NO).unwrap().warnings.is_empty());
}

#[test]
fn every_preset_is_valid_and_its_resolved_form_reads_back() {
    for (name, _) in PRESETS {
        let loaded = load(&[name], &NO).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(loaded.notes.is_empty(), "{name} uses another program's names: {:?}", loaded.notes);
        let yaml = loaded.config.resolved_yaml().unwrap();
        let again = load_text("config.yaml", &yaml, &NO).unwrap_or_else(|error| panic!("{name}: {error}\n{yaml}"));
        assert_eq!(again.config, loaded.config, "{name}");
    }
}

#[test]
fn passes_over_the_questions_take_the_place_of_steps() {
    let mut config = take("data:\n  dataset: rows.jsonl\n", &["num_train_epochs=1.5", "num_prompts=8"]);
    config.settle_steps(100);
    assert_eq!(config.optim.max_steps, 19);
    let mut config = take("", &["max_steps=7"]);
    config.settle_steps(100);
    assert_eq!(config.optim.max_steps, 7);
}

#[test]
fn the_environment_never_reaches_the_resolved_form() {
    let config = take("run:\n  name: x\ndata:\n  system_prompt: \"${HOME} $PATH {{ env }}\"\n", &[]);
    let yaml = config.resolved_yaml().unwrap();
    assert!(yaml.contains("${HOME} $PATH {{ env }}"), "{yaml}");
    assert_eq!(load_text("config.yaml", &yaml, &NO).unwrap().config, config);
}

proptest! {
    #[test]
    fn any_override_is_taken_or_refused_and_never_panics(text in ".{0,40}") {
        if let Err(error) = load_text("run.yaml", RULE, &[&text]) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_value_for_a_key_is_taken_or_refused_by_name(value in "[ -~]{0,24}") {
        for key in ["rollout.temperature", "rollout.stop", "lora_target_modules", "reward.0", "rollout", "run.name"] {
            let text = format!("{key}={value}");
            if let Err(error) = load_text("run.yaml", RULE, &[&text]) {
                prop_assert!(error.to_string().contains(&text), "{error}");
            }
        }
    }

    #[test]
    fn numbers_and_texts_arrive_as_they_were_typed(
        seed in any::<u64>(),
        rate in 1e-9..0.5f64,
        r in 1u32..1024,
        name in "[A-Za-z_][A-Za-z0-9_.-]{0,30}",
    ) {
        prop_assume!(!["true", "false", "null", "True", "False", "Null", "TRUE", "FALSE", "NULL"].contains(&name.as_str()));
        let overrides = [
            format!("run.seed={seed}"),
            format!("learning_rate={rate:e}"),
            format!("lora_r={r}"),
            format!("run.name={name}"),
        ];
        let config = load_text("run.yaml", RULE, &overrides).unwrap().config;
        prop_assert_eq!(config.run.seed, seed);
        prop_assert_eq!(config.optim.learning_rate, rate);
        prop_assert_eq!(config.lora.lora_r, r);
        prop_assert_eq!(config.run.name.as_deref(), Some(name.as_str()));
        let again = load_text("config.yaml", &config.resolved_yaml().unwrap(), &[""; 0]).unwrap().config;
        prop_assert_eq!(again, config);
    }

    #[test]
    fn any_file_is_taken_or_refused_and_never_panics(text in "[a-z:\\[\\]{}&*!#\"' \n\t-]{0,80}") {
        let _ = load_text("run.yaml", &text, &NO);
    }
}

#[test]
fn a_method_stands_for_its_section_under_what_else_is_written() {
    let load = |text: &str, overrides: &[&str]| {
        load_text("run", &format!("{text}reward: [{{name: math}}]\n"), overrides)
            .map(|l| l.config)
            .map_err(|e| e.to_string())
    };
    let config = load("traces:\n  per_group: 2\nalgo: hybrid\n", &["algo.epsilon=0.3"]).unwrap();
    assert_eq!((config.traces.per_group, config.replay.experience.enabled, config.algo.epsilon), (2, true, 0.3));
    let preset = folgore_config::AlgoSection::preset("hybrid").unwrap();
    assert_eq!(config.algo, folgore_config::AlgoSection { epsilon: 0.3, ..preset });

    // over a section of another file, all of it; in whatever order the overrides stand
    let config = load("algo:\n  beta: 0.1\n  num_iterations: 3\n", &["algo.epsilon=0.3", "algo=dapo"]).unwrap();
    assert_eq!((config.algo.beta, config.algo.num_iterations, config.algo.epsilon), (0.0, 1, 0.3));
    assert!(config.algo.dynamic_sampling && config.traces.per_group == 0 && !config.replay.experience.enabled);

    let error = load("algo: ppo2\n", &[]).unwrap_err();
    assert!(
        error.contains("run:1:1") && error.contains("algo") && error.contains("luffy") && error.contains("ppo2"),
        "{error}"
    );
}
