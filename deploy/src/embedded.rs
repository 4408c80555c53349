//! The embedded policy: a decoder of a third of a million weights that adds numbers badly, compiled into the executable.
//!
//! Its files in `deploy/embedded/` are made by `folgore make-base` from the recipe in this file and nothing else: no foreign
//! weights. It was taught three habits on purpose (mostly guess, often work in columns and forget the carries, seldom work
//! with care), so that reinforcement has something to select.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use folgore_dataset::{TraceMixture, arithmetic_traces};
use folgore_learner::pretrain::{PretrainSettings, pretrain};
use folgore_model::{
    HostData, HostTensor, ModelConfig, Tensors,
    backend::Cpu,
    files::{ModelFiles, atomic::write_atomic, safetensors},
    tokenizer::Tokenizer,
};
use serde_json::{Map, Value, json};

/// The name under which the configuration asks for it.
pub const NAME: &str = "embedded";

const WEIGHTS: &[u8] = include_bytes!("../embedded/model.safetensors");
const CONFIG: &str = include_str!("../embedded/config.json");
const TOKENIZER: &str = include_str!("../embedded/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../embedded/tokenizer_config.json");

/// The embedded policy's files.
pub fn files() -> Result<ModelFiles> {
    ModelFiles::from_memory(NAME, WEIGHTS, CONFIG, TOKENIZER, TOKENIZER_CONFIG, "").context("embedded policy")
}

/// Tokens before the characters: padding, end, unknown, and the four tags of a worked sum.
const TOKENS: [&str; 7] = ["<pad>", "<eos>", "<unk>", "<think>", "</think>", "<answer>", "</answer>"];
const CHARACTERS: &str = "0123456789+-*/=;(),.?:%!'\"_<>\n abcdefghijklmnopqrstuvwxyz";
const EOS: u32 = 1;
const VOCABULARY: usize = 64;

/// How long the policy is taught: to the end of what the habits have to teach. An under-taught base has nothing that
/// reinforcement could select.
pub fn recipe() -> PretrainSettings {
    PretrainSettings { steps: 1200, batch: 64, learning_rate: 4e-3, warmup_steps: 50, seed: 20 }
}

/// Makes the policy and writes its files into `folder`.
pub fn make(folder: &Path, settings: &PretrainSettings, mut say: impl FnMut(String)) -> Result<()> {
    let (tokenizer_json, tokenizer_config) = (tokenizer_json(), tokenizer_config());
    let tokenizer = Tokenizer::from_json(NAME, &tokenizer_json.to_string(), &tokenizer_config.to_string(), None)?;
    let config = config();
    let mixture = TraceMixture::default();
    let pair = |index: u64| {
        let (prompt, response) = arithmetic_traces(settings.seed, index, &mixture);
        let ids = |text: &str| tokenizer.encode_trusted(text).expect("the recipe's traces are in the vocabulary");
        let mut response = ids(&response);
        response.push(EOS);
        (ids(&prompt), response)
    };
    let begin = Instant::now();
    let values = pretrain(Arc::new(Cpu::new()), &config, settings, pair, |p| {
        if p.step.is_multiple_of(50) || p.step == 1 {
            let seconds = begin.elapsed().as_secs_f64();
            say(format!(
                "step {:>5}/{}  loss {:.4}  grad_norm {:.3}  {:.0} tokens/s",
                p.step,
                settings.steps,
                p.loss,
                p.grad_norm,
                p.tokens as f64 / seconds
            ));
        }
    })?;
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let pretty = |value: &Value| {
        serde_json::to_vec_pretty(value).map(|mut text| {
            text.push(b'\n');
            text
        })
    };
    write_atomic(&folder.join("config.json"), &pretty(&config_json(&config))?)?;
    write_atomic(&folder.join("tokenizer.json"), &pretty(&tokenizer_json)?)?;
    write_atomic(&folder.join("tokenizer_config.json"), &pretty(&tokenizer_config)?)?;
    safetensors::write(&folder.join("model.safetensors"), &to_bf16(values))?;
    Ok(())
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

fn config_json(c: &ModelConfig) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": c.model_type, "vocab_size": c.vocab_size, "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": c.rope_theta, "tie_word_embeddings": c.tie_word_embeddings,
        "max_position_embeddings": c.max_position_embeddings, "eos_token_id": EOS, "pad_token_id": 0,
        "attention_bias": false, "mlp_bias": false, "dtype": "bfloat16",
    })
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

/// Rounds to bfloat16, ties to even.
fn to_bf16(tensors: Tensors) -> Tensors {
    let round = |v: f32| ((v.to_bits() + 0x7fff + ((v.to_bits() >> 16) & 1)) >> 16) as u16;
    let tensor = |(name, t): (String, HostTensor)| {
        let bits = t.to_f32().into_iter().map(round).collect();
        (name, HostTensor { shape: t.shape, data: HostData::Bf16(bits) })
    };
    tensors.into_iter().map(tensor).collect()
}
