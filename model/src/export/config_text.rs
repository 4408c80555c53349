//! The texts of `config.json` and `generation_config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{
    folder::{Precision, pretty},
    shape::differences,
};
use crate::{
    Activation, ModelConfig, ModelError, NormForm, RopeScaling, Variant,
    decoder::Linear,
    files::{config_json, fault, read_text},
    tokenizer::Tokenizer,
};

const CONFIG_LIMIT: u64 = 1 << 20;

/// The text of the base's own `config.json`, which says how its weights are held now.
pub(super) fn with_precision(place: &str, text: &str, precision: Precision) -> Result<String, ModelError> {
    let mut map = config_json::parse_object(place, text)?;
    // what is written are numbers, not codes
    let coded = map.remove("quantization_config").is_some();
    // transformers 4 and 5 spell it differently
    let key = if map.contains_key("torch_dtype") && !map.contains_key("dtype") { "torch_dtype" } else { "dtype" };
    if !coded && map.get(key).and_then(Value::as_str) == Some(precision.name()) {
        return Ok(text.to_owned());
    }
    map.insert(key.into(), json!(precision.name()));
    let written = pretty(map);
    // Gemma takes the type of its weights for its own
    let read = |text: &str| config_json::parse(place, text, None);
    match differences(&read(text)?, &read(&written)?).into_iter().next() {
        None => Ok(written),
        Some(first) => {
            let what = format!("{key} {} beside {first}", precision.name());
            Err(fault::unsupported(place, what, "export the type that the base has"))
        }
    }
}

/// The text of `config.json` for weights in `precision`: that of the folder `base`, or a new one.
pub(super) fn of_base(
    base: Option<&Path>,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    precision: Precision,
) -> Result<String, ModelError> {
    let Some(path) = base.map(|base| base.join("config.json")) else { return of(config, tokenizer, precision) };
    with_precision(&path.display().to_string(), &read_text(&path, CONFIG_LIMIT)?, precision)
}

/// The text of a `config.json` for linear maps in NF4, as transformers writes it.
pub(super) fn in_nf4(text: &str, precision: Precision, nested: bool) -> Result<String, ModelError> {
    let mut map = config_json::parse_object("config.json", text)?;
    let how = json!({
        "quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": nested, "bnb_4bit_compute_dtype": precision.name(), "bnb_4bit_quant_storage": "uint8",
    });
    map.insert("quantization_config".into(), how);
    Ok(pretty(map))
}

/// A `config.json` for a model whose files had none. It is read back: a shape that it cannot tell is an error.
pub(super) fn of(config: &ModelConfig, tokenizer: &Tokenizer, precision: Precision) -> Result<String, ModelError> {
    let place = config.model_type.as_str();
    let refuse = || fault::unsupported(place, "config.json from a GGUF file", "begin from the model's folder");
    let architecture = match place {
        "llama" => "LlamaForCausalLM",
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        _ => return Err(refuse()),
    };
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| drop(map.insert(key.to_owned(), value));
    put("architectures", json!([architecture]));
    put("model_type", json!(place));
    put("attention_bias", json!(config.variant.biases == [Linear::QProj, Linear::KProj, Linear::VProj, Linear::OProj]));
    put("mlp_bias", json!(false));
    put("bos_token_id", json!(config.bos_token_id));
    put("eos_token_id", ends(config));
    put("pad_token_id", json!(tokenizer.pad()));
    put("hidden_act", json!("silu"));
    put("vocab_size", json!(config.vocab_size));
    put("hidden_size", json!(config.hidden_size));
    put("intermediate_size", json!(config.intermediate_size));
    put("num_hidden_layers", json!(config.num_hidden_layers));
    put("num_attention_heads", json!(config.num_attention_heads));
    put("num_key_value_heads", json!(config.num_key_value_heads));
    put("head_dim", json!(config.head_dim));
    put("max_position_embeddings", json!(config.max_position_embeddings));
    put("rms_norm_eps", digits(config.rms_norm_eps));
    put("rope_theta", digits(config.rope_theta));
    put("rope_scaling", rope_scaling(&config.variant.rope_scaling).ok_or_else(refuse)?);
    put("tie_word_embeddings", json!(config.tie_word_embeddings));
    put("torch_dtype", json!(precision.name()));
    let text = pretty(map);
    let again = config_json::parse(place, &text, None)?;
    let mut asked = config.clone();
    asked.eos_token_ids.clone_from(&again.eos_token_ids);
    if again == asked && plain(&config.variant) { Ok(text) } else { Err(refuse()) }
}

/// True if a variant is one of those that the text above can tell.
fn plain(variant: &Variant) -> bool {
    variant.activation == Activation::Silu && variant.norm_form == NormForm::Weight && variant.local.is_none()
}

fn rope_scaling(scaling: &RopeScaling) -> Option<Value> {
    Some(match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": digits(*factor)}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "rope_type": "llama3", "factor": digits(*factor), "low_freq_factor": digits(*low_freq_factor),
            "high_freq_factor": digits(*high_freq_factor),
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        _ => return None,
    })
}

/// `generation_config.json` with the ids that begin and end a sequence.
pub(super) fn generation(config: &ModelConfig, tokenizer: &Tokenizer) -> String {
    let mut map = Map::new();
    map.insert("bos_token_id".into(), json!(config.bos_token_id));
    map.insert("eos_token_id".into(), ends(config));
    map.insert("pad_token_id".into(), json!(tokenizer.pad()));
    pretty(map)
}

fn ends(config: &ModelConfig) -> Value {
    match config.eos_token_ids[..] {
        [] => Value::Null,
        [id] => json!(id),
        ref ids => json!(ids),
    }
}

/// `value` with the digits that an f32 needs, not those of its f64 neighbour.
fn digits(value: f32) -> Value {
    json!(format!("{value:e}").parse::<f64>().unwrap_or(f64::from(value)))
}
