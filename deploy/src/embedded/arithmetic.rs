//! The policies that add: decoders of a third of a million weights.
//!
//! One was taught three habits on purpose: mostly guess, often work in columns and forget the carries, seldom work with care. The
//! other, `embedded:carries`, knows single columns and takes a carry along one time in twenty-five: what it cannot do by itself
//! is to be learnt from others.

use anyhow::Result;
use folgore_dataset::{TraceMixture, arithmetic_traces, carries_traces};
use folgore_learner::pretrain::{Lesson, PretrainSettings};
use folgore_model::ModelConfig;
use serde_json::{Map, Value, json};

use super::{NAME, Recipe, files::EOS};

/// Tokens before the characters: padding, end, unknown, and the four tags of a worked sum.
const TOKENS: [&str; 7] = ["<pad>", "<eos>", "<unk>", "<think>", "</think>", "<answer>", "</answer>"];
const CHARACTERS: &str = "0123456789+-*/=;(),.?:%!'\"_<>\n abcdefghijklmnopqrstuvwxyz";
const VOCABULARY: usize = 64;

/// How the first is made: to the end of what the habits have to teach. An under-taught base has nothing that reinforcement
/// could select.
pub fn recipe() -> Result<Recipe> {
    let settings = PretrainSettings { steps: 1200, batch: 64, learning_rate: 4e-3, warmup_steps: 50, seed: 20 };
    let (mixture, seed) = (TraceMixture::default(), settings.seed);
    taught(settings, move |index| arithmetic_traces(seed, index, &mixture))
}

/// How the second is made.
pub fn recipe_of_carries() -> Result<Recipe> {
    let settings = PretrainSettings { steps: 1500, batch: 64, learning_rate: 4e-3, warmup_steps: 50, seed: 21 };
    let seed = settings.seed;
    taught(settings, move |index| carries_traces(seed, index))
}

/// Taught what to respond, by prompts and responses of which the responses count.
fn taught(settings: PretrainSettings, trace: impl Fn(u64) -> (String, String) + 'static) -> Result<Recipe> {
    let (tokenizer_json, tokenizer_config) = (tokenizer_json(), tokenizer_config());
    let tokenizer = Recipe::tokenizer(NAME, &tokenizer_json, &tokenizer_config)?;
    let lesson = move |index: u64| {
        let (prompt, response) = trace(index);
        let ids = |text: &str| tokenizer.encode_trusted(text).expect("the recipe's traces are in the vocabulary");
        let mut lesson = Lesson::default();
        lesson.add(&ids(&prompt), 0.0);
        lesson.add(&ids(&response), 1.0);
        lesson.add(&[EOS], 1.0);
        lesson
    };
    Ok(Recipe {
        config: config(),
        tokenizer_json,
        tokenizer_config,
        settings,
        lessons: Box::new(move |_| Box::new(lesson)),
        skill: Box::new(|_| None),
    })
}

fn config() -> ModelConfig {
    ModelConfig {
        model_type: "llama".into(),
        vocab_size: VOCABULARY,
        hidden_size: 96,
        intermediate_size: 256,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        max_position_embeddings: 256,
        eos_token_ids: vec![EOS],
        bos_token_id: None,
        variant: Default::default(),
    }
}

/// One token per character: a byte-pair model without merges.
fn tokenizer_json() -> Value {
    let characters = CHARACTERS.chars().map(|c| c.to_string());
    let names: Vec<String> = TOKENS.iter().map(|t| (*t).to_owned()).chain(characters).collect();
    assert!(names.len() <= VOCABULARY, "the embedded vocabulary is too large: {}", names.len());
    let vocab: Map<String, Value> = names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
    let added = |(id, name): (usize, &&str)| {
        // the tags are content: kept by decoding, and seen by rewards
        let special = id < 3;
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": TOKENS.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    })
}

fn tokenizer_config() -> Value {
    json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
           "clean_up_tokenization_spaces": false, "model_max_length": 256})
}
