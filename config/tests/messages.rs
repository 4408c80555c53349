//! What a user reads when a configuration is wrong: one line that names the place, the key, expected and got.

use folgore_config::{ConfigError, load, load_text};

const NO: [&str; 0] = [];
const RULE: &str = "reward: [{name: exact_match}]\n";

fn refused(text: &str, overrides: &[&str]) -> String {
    match load_text("run.yaml", &format!("{text}{RULE}"), overrides) {
        Ok(loaded) => panic!("{text:?} {overrides:?} was taken: {loaded:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_file_is_refused_with_line_and_column() {
    for (text, want) in [
        (
            "rollout:\n  num_generation: 4\n",
            "run.yaml:2:3: unknown key `rollout.num_generation`; did you mean `rollout.num_generations`?",
        ),
        ("rolout:\n  num_generations: 4\n", "run.yaml:1:1: unknown key `rolout`; did you mean `rollout`?"),
        ("rollout:\n  lora_r: 4\n", "run.yaml:2:3: unknown key `rollout.lora_r`; did you mean `lora.lora_r`?"),
        ("rollout:\n  use_vllm: true\n", "run.yaml:2:3: unknown key `rollout.use_vllm`: the engine is built in"),
        ("rollout:\n  temperature: hot\n", "run.yaml:2:3: rollout.temperature: expected a number, got \"hot\""),
        ("rollout:\n  stop: [a, 7]\n", "run.yaml:2:3: rollout.stop: expected a text, got integer `7`"),
        (
            "rollout:\n  num_prompts: 2.5\n",
            "run.yaml:2:3: rollout.num_prompts: expected a whole number of 0 to 4294967295, got 2.5",
        ),
        ("rollout: 4\n", "run.yaml:1:1: rollout: expected keys and their values, got 4"),
        ("run:\n  name: 12\n", "run.yaml:2:3: run.name: expected a text; for the text 12 write '\"12\"', got 12"),
        (
            "model:\n  dtype: float31\n",
            "run.yaml:2:3: model.dtype: expected one of `auto`, `f32`, `float32`, `fp32`, `bf16`, `bfloat16`, got `float31`; \
             did you mean `float32`?",
        ),
        (
            "lora:\n  lora_target_modules: 7\n",
            "run.yaml:2:3: lora.lora_target_modules: expected a value like \"all-linear\", got 7",
        ),
        ("run:\n  seed: 1\n  seed: 2\n", "run.yaml:3:3: run: the key `seed` occurs twice"),
        (
            "rollout:\n  max_completion_length: 9\ndata:\n  max_response_length: 7\n",
            "run.yaml:4:3: `rollout.max_completion_length` is already set, at run.yaml:2:3",
        ),
        ("lora_r: 4\nlora:\n  lora_r: 5\n", "run.yaml:3:3: `lora.lora_r` is already set, at run.yaml:1:1"),
        (
            "rollout:\n  temperature: -1\n  top_p: 2\n",
            "run.yaml:2:3: rollout.temperature: expected above 0 and at most 10, got -1\n\
             run.yaml:3:3: rollout.top_p: expected above 0 and at most 1, got 2",
        ),
        (
            "lora:\n  lora_target_modules: [q_proj, qq_proj]\n",
            "run.yaml:2:3: lora.lora_target_modules: expected all-linear or any of q_proj, k_proj, v_proj, o_proj, \
             gate_proj, up_proj, down_proj, got \"qq_proj\"",
        ),
    ] {
        assert_eq!(refused(text, &[]), want);
    }
    let tabs = refused("run:\n\tseed: 1\n", &[]);
    assert!(tabs.starts_with("run.yaml:2:1: "), "{tabs}");
}

#[test]
fn an_override_is_refused_as_it_was_typed() {
    for (text, want) in [
        ("temperature", "temperature: expected key=value, as in rollout.temperature=0.8"),
        ("=5", "=5: expected key=value, as in rollout.temperature=0.8"),
        ("a..b=5", "a..b=5: expected key=value, as in rollout.temperature=0.8"),
        ("temprature=1", "temprature=1: unknown key `temprature`; did you mean `rollout.temperature`?"),
        ("lora_r=[1", "lora_r=[1: the value is not YAML: "),
        ("lora_r=big", "lora_r=big: lora.lora_r: expected a whole number of 0 to 4294967295, got \"big\""),
        (
            "reward.3.weight=2",
            "reward.3.weight=2: reward: expected a list with a place 3 (places count from 0), got \"1 of them\"",
        ),
        ("reward.0.wieght=2", "reward.0.wieght=2: reward.0.wieght: expected a key, "),
        ("lora_r=0", "lora_r=0: lora.lora_r: expected 1 to 1024, got 0"),
    ] {
        let error = refused("", &[text]);
        assert!(error.starts_with(want), "{error:?} does not begin with {want:?}");
    }
}

#[test]
fn contradictions_are_refused_before_anything_starts() {
    for (overrides, want) in [
        (
            &["num_generations=1"][..],
            "num_generations=1: rollout.num_generations: expected at least 2 with algo.advantage",
        ),
        (&["num_prompts=6", "steps_per_generation=4"], "num_prompts=6: rollout.num_prompts: expected a multiple of"),
        (
            &["use_peft=false", "max_staleness=1"],
            "max_staleness=1: rollout.max_staleness: expected 0 with lora.use_peft",
        ),
        (&["loss_type=cispo"], "algo.epsilon_high: expected the largest weight"),
        (
            &["max_seq_length=100"],
            "max_seq_length=100: model.max_seq_length: expected at least rollout.max_prompt_length",
        ),
        (
            &["curriculum.mode=difficulty"],
            "data.max_rows: expected a number with data.curriculum, which is about questions",
        ),
        (
            &["curriculum.unseen_success_rate=1"],
            "curriculum.unseen_success_rate=1: data.curriculum.unseen_success_rate: expected above min_success_rate = 0",
        ),
        (&["reward=[]"], "reward=[]: reward: expected a list of at least one rule"),
        (&["data.chat=true"], "data.chat=true: data.chat: expected false with model embedded"),
        (&["dataset=rows.jsonl", "eval_fraction=0"], "eval_fraction=0: data.eval_fraction: expected above 0, or a"),
        (
            &["eval_dataset=rows.jsonl"],
            "eval_dataset=rows.jsonl: data.eval_dataset: expected none with data.dataset arith",
        ),
        (
            &["num_train_epochs=2"],
            "num_train_epochs=2: optim.num_train_epochs: expected none with data.dataset arithmetic",
        ),
        (&["kv_tokens=10"], "kv_tokens=10: rollout.kv_tokens: expected at least max_prompt_length + max_completion"),
    ] {
        let error = refused("", overrides);
        assert!(error.starts_with(want), "{error:?} does not begin with {want:?}");
    }
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let missing = load(&[path("none.yaml")], &NO).unwrap_err().to_string();
    assert!(
        missing.contains("none.yaml: cannot be read") && missing.contains("demo, sft-smollm2, smollm2"),
        "{missing}"
    );

    std::fs::write(path("large.yaml"), vec![b' '; 300 << 10]).unwrap();
    assert!(matches!(load(&[path("large.yaml")], &NO), Err(ConfigError::TooLarge { bytes: 307_200, .. })));

    std::fs::write(path("latin.yaml"), b"run:\n  name: caf\xe9\n").unwrap();
    let latin = load(&[path("latin.yaml")], &NO).unwrap_err().to_string();
    assert!(latin.ends_with("latin.yaml:2:12: expected UTF-8 text"), "{latin}");

    assert_eq!(
        load_text("run.yaml", "[1, 2]", &NO).unwrap_err().to_string(),
        "run.yaml: expected sections (`rollout:` and so on), got a list of 2"
    );
    assert_eq!(
        load_text("run.yaml", "", &NO).unwrap_err().to_string(),
        "reward: expected a list of at least one rule, each with a name, got an empty list (the default)"
    );
}

#[test]
fn sources_that_cannot_be_mixed_are_refused() {
    let refused = |text: &str| folgore_config::load_text("run.yaml", text, &[] as &[&str]).unwrap_err().to_string();
    for (data, want) in [
        (
            "sources: [{ path: a, weight: 0.5 }, { path: b }]",
            "data.sources: expected a weight for all or for none, got 1 of 2",
        ),
        (
            "sources: [{ path: a/x.csv }, { path: b/x.json }]",
            "data.sources: expected another name for each source, got \"x\" twice",
        ),
        ("sources: [{ path: a, weight: -1 }]", "data.sources.0.weight: expected a number above 0, got -1"),
        (
            "{ dataset: x.jsonl, sources: [{ path: a }] }",
            "data.dataset: expected nothing beside data.sources, got \"x.jsonl\"",
        ),
        ("rag_share: 2", "data.rag_share: expected 0 to 1, got 2"),
        ("memory: { since: yesterday }", "data.memory.since: expected a date such as 2026-01-31"),
    ] {
        let data = if data.starts_with('{') { data.to_owned() } else { format!("{{ {data} }}") };
        let told = refused(&format!("data: {data}\n"));
        assert!(told.contains(want), "{data}: {told}");
    }
    let taken = "data: { sources: [{ path: a, formatter: coding, max_samples: 9 }], memory: { since: 2026-01-01 } }\nreward: [ { name: exact_match } ]\n";
    let config = folgore_config::load_text("run.yaml", taken, &[] as &[&str]).unwrap().config;
    assert!(!config.data.is_procedural() && config.data.memory.since.as_deref() == Some("2026-01-01"));
}
