//! Settings in both spellings, families, and refusals.

use serde_json::json;

use super::*;
use crate::{Local, NormForm, RopeScaling, decoder::Linear};

fn base() -> Value {
    json!({"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
           "num_attention_heads": 4, "torch_dtype": "bfloat16", "rope_theta": 5000.0, "eos_token_id": 2})
}

fn with(changes: Value) -> Result<ModelConfig, ModelError> {
    let mut value = base();
    value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    parse("config.json", &value.to_string(), None)
}

#[test]
fn both_spellings_mean_the_same() {
    let old = with(json!({"rope_scaling": null})).unwrap();
    let new =
        with(json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}})).unwrap();
    assert_eq!(old, new);
    assert_eq!((old.num_key_value_heads, old.head_dim, old.rms_norm_eps), (4, 8, 1e-6));
    assert!(!old.tie_word_embeddings && old.variant.is_llama());
    // a Llama's identity is what it was before there were other families
    assert!(!serde_json::to_string(&old).unwrap().contains("variant"));

    let numbers = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let mut v4 = numbers.clone();
    v4["type"] = "llama3".into();
    let mut v5 = numbers;
    v5.as_object_mut().unwrap().extend(json!({"rope_type": "llama3", "rope_theta": 5e5}).as_object().unwrap().clone());
    let old = with(json!({"rope_theta": 5e5, "rope_scaling": v4})).unwrap();
    assert_eq!(old, with(json!({"rope_theta": null, "rope_parameters": v5})).unwrap());
    let want = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!((old.variant.rope_scaling, old.rope_theta), (want, 5e5));
}

#[test]
fn end_ids_are_merged_from_both_files() {
    let generation = Some(("generation_config.json", r#"{"eos_token_id": [7, 2]}"#));
    let config = parse("config.json", &base().to_string(), generation).unwrap();
    assert_eq!(config.eos_token_ids, [7, 2]);
    assert_eq!(with(json!({"eos_token_id": [3, 4]})).unwrap().eos_token_ids, [3, 4]);
    assert!(with(json!({"eos_token_id": null})).unwrap().eos_token_ids.is_empty());
}

#[test]
fn angles_are_stretched_as_the_file_says() {
    let scaling = |value: Value| with(json!({"rope_scaling": value})).unwrap().variant.rope_scaling;
    assert_eq!(scaling(json!({"type": "linear", "factor": 2.0})), RopeScaling::Linear { factor: 2.0 });
    let yarn = |changes: Value| {
        let mut value = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512});
        value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        match scaling(value) {
            RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, truncate, .. } => {
                (factor, attention_factor, beta_fast, beta_slow, truncate)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(yarn(json!({})), (4.0, (0.1 * 4f64.ln() + 1.0) as f32, 32.0, 1.0, true));
    assert_eq!(
        yarn(json!({"attention_factor": 1.5, "beta_fast": 8, "beta_slow": 2, "truncate": false})),
        (4.0, 1.5, 8.0, 2.0, false)
    );
    let both = (0.1 * 0.7 * 4f64.ln() + 1.0) / (0.1 * 0.5 * 4f64.ln() + 1.0);
    assert_eq!(yarn(json!({"mscale": 0.7, "mscale_all_dim": 0.5})).1, both as f32);
    // without a factor it is the ratio of the contexts (2048 here)
    assert_eq!(yarn(json!({"factor": null})).0, 4.0);
}

#[test]
fn biases_are_those_of_the_family() {
    use Linear::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
    let biases = |changes: Value| with(changes).unwrap().variant.biases;
    assert_eq!(biases(json!({"attention_bias": true})), [QProj, KProj, VProj, OProj]);
    assert_eq!(biases(json!({"mlp_bias": true})), [GateProj, UpProj, DownProj]);
    assert_eq!(biases(json!({"model_type": "qwen2"})), [QProj, KProj, VProj]);
    assert_eq!(biases(json!({"model_type": "qwen3"})), []);
    assert_eq!(biases(json!({"model_type": "qwen3", "attention_bias": true})), [QProj, KProj, VProj, OProj]);
    assert_eq!(biases(json!({"model_type": "mistral"})), []);
}

#[test]
fn windows_are_those_of_the_family() {
    let windows = |changes: Value| {
        let config = with(changes).unwrap();
        (config.window(0), config.window(1))
    };
    assert_eq!(windows(json!({"sliding_window": 8})), (None, None), "Llama has none");
    let mistral = |window: Value| windows(json!({"model_type": "mistral", "sliding_window": window}));
    assert_eq!(mistral(json!(8)), (Some(8), Some(8)));
    assert_eq!(mistral(json!(null)), (None, None));
    assert_eq!(windows(json!({"model_type": "mistral"})), (Some(4096), Some(4096)));
    // what no sequence reaches is no window
    let short = json!({"model_type": "mistral", "sliding_window": 64, "max_position_embeddings": 64});
    assert_eq!(with(short).unwrap().variant.local, None);
    for family in ["qwen2", "qwen3"] {
        let on = |changes: Value| {
            let mut all = json!({"model_type": family, "use_sliding_window": true, "sliding_window": 8});
            all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            windows(all)
        };
        assert_eq!(on(json!({"max_window_layers": 1})), (None, Some(8)));
        assert_eq!(on(json!({"max_window_layers": 0})), (Some(8), Some(8)));
        assert_eq!(on(json!({})), (None, None), "from layer 28 on");
        assert_eq!(on(json!({"use_sliding_window": false, "max_window_layers": 0})), (None, None));
        let types = json!({"layer_types": ["sliding_attention", "full_attention"]});
        assert_eq!(on(types), (Some(8), None));
    }
}

#[test]
fn qwen3_has_heads_of_their_own_size_and_norms_on_them() {
    let config = with(json!({"model_type": "qwen3"})).unwrap();
    assert_eq!((config.head_dim, config.variant.qk_norm, config.variant.output_norms), (128, true, false));
    assert_eq!(with(json!({"model_type": "qwen3", "head_dim": 16})).unwrap().head_dim, 16);
}

fn gemma(changes: Value) -> Result<ModelConfig, ModelError> {
    let mut value = json!({"model_type": "gemma3_text", "vocab_size": 300, "hidden_size": 1152, "intermediate_size": 80,
        "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 512});
    value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    parse("config.json", &value.to_string(), None)
}

#[test]
fn gemma_3_in_both_spellings() {
    // as the hub has it, and as transformers 5 writes it
    let old = gemma(json!({"rope_theta": 1e6, "rope_local_base_freq": 2e4, "sliding_window_pattern": 3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "torch_dtype": "bfloat16"}));
    let kinds = [true, true, false, true, true, false, true, true];
    let types = kinds.map(|local| if local { "sliding_attention" } else { "full_attention" });
    let new = gemma(json!({"layer_types": types, "dtype": "bfloat16", "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}}));
    let config = new.unwrap();
    assert_eq!(old.unwrap(), config);
    assert_eq!((config.rope_theta, config.head_dim, config.tie_word_embeddings), (1e6, 256, true));
    let v = &config.variant;
    assert_eq!(v.local, Some(Local { window: 512, layers: kinds.to_vec(), rope_theta: Some(2e4) }));
    assert_eq!(v.rope_scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!((v.qk_norm, v.output_norms, v.norm_form), (true, true, NormForm::OnePlusWeight));
    assert_eq!((v.activation, v.attention_scale, v.final_softcap), (Activation::GeluTanh, Some(0.0625), None));
    // the root of 1152 is 33.94: bf16 has no number nearer than 34
    assert_eq!(v.embedding_scale, Some(34.0));
    let plain = gemma(json!({"dtype": "float32", "query_pre_attn_scalar": 64, "final_logit_softcapping": 30})).unwrap();
    assert_eq!(plain.variant.embedding_scale, Some(1152f32.sqrt()));
    assert_eq!((plain.attention_scale(), plain.variant.final_softcap), (0.125, Some(30.0)));
    let defaults = Local { window: 512, layers: (1..9).map(|i| i % 6 != 0).collect(), rope_theta: Some(1e4) };
    assert_eq!((plain.variant.local, plain.rope_theta), (Some(defaults), 1e6));
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    for (change, text) in [
        (json!({"model_type": "mamba"}), r#"model_type "mamba" is not supported: served are: llama, mistral, qwen2"#),
        (json!({"model_type": "gemma3"}), "save its text part alone"),
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}}), r#"rope_scaling "dynamic""#),
        (json!({"rope_parameters": {"rope_type": "longrope"}}), r#"rope_scaling "longrope""#),
        (json!({"rope_scaling": {"type": "linear"}}), "factor (in rope_scaling) is missing"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "factor: expected a number above 0, got 0"),
        (
            json!({"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}}),
            "high_freq_factor",
        ),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor: 0.5"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor: 0.5"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "gptq"),
        (json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}}), "in 4 bits"),
        (json!({"vocab_size": null}), "vocab_size is missing"),
        (json!({"hidden_size": -3}), "hidden_size: expected a whole number of at least 1, got -3"),
        (json!({"num_hidden_layers": 100000}), "num_hidden_layers: expected at most 4096, got 100000"),
        (
            json!({"model_type": "mistral", "num_hidden_layers": 1e15 as u64}),
            "num_hidden_layers: expected at most 4096",
        ),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"head_dim": 7}), "head_dim"),
        (json!({"eos_token_id": 300}), "eos_token_id"),
        (json!({"rope_theta": 0}), "rope_theta"),
        (json!({"model_type": "qwen2", "layer_types": ["chunked_attention", "full_attention"]}), "chunked_attention"),
        (json!({"model_type": "qwen2", "layer_types": ["sliding_attention", "full_attention"]}), "use_sliding_window"),
        (
            json!({"model_type": "gemma3_text", "layer_types": ["sliding_attention"]}),
            "one for each of the 2 layers, got 1",
        ),
        (json!({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}), "attn_logit_softcapping: 50.0"),
        (json!({"model_type": "gemma3_text", "use_bidirectional_attention": true}), "use_bidirectional_attention"),
        (json!({"model_type": "gemma3_text", "final_logit_softcapping": -1.0}), "final_logit_softcapping"),
    ] {
        let error = with(change).unwrap_err().to_string();
        assert!(error.starts_with("config.json: ") && error.contains(text), "{error}");
    }
}
