//! Whether the shape that an export says is that of the model, and what a GGUF file says in other words.

use serde_json::{Map, Value};

use crate::{
    ModelConfig, ModelError, RopeScaling,
    decoder::{Linear, rope_factors},
    files::{
        fault,
        gguf::{Architecture, yarn_growth},
    },
    tokenizer::Tokenizer,
};

/// Largest relative error of a number that was rounded to one of the half types.
const HALF: f32 = 1.0 / 256.0;

/// YaRN's ramp in llama.cpp, which reads no other for these families: `beta_fast` and `beta_slow`.
const RAMP: (f32, f32) = (32.0, 1.0);

/// What differs between two shapes, in words; the order of the end ids does not count.
pub fn differences(expected: &ModelConfig, got: &ModelConfig) -> Vec<String> {
    let mut found = Vec::new();
    compare("", &fields(expected), &fields(got), &mut found);
    found
}

fn fields(config: &ModelConfig) -> Value {
    let mut config = config.clone();
    config.eos_token_ids.sort_unstable();
    // by way of the text: an f32 has the digits there that it needs
    let read = |text: serde_json::Result<String>| text.and_then(|text| serde_json::from_str(&text)).unwrap_or_default();
    let mut value: Value = read(serde_json::to_string(&config));
    // left out where it is Llama's
    value["variant"] = read(serde_json::to_string(&config.variant));
    value
}

fn compare(path: &str, expected: &Value, got: &Value, found: &mut Vec<String>) {
    match (expected, got) {
        (Value::Object(expected), Value::Object(got)) => {
            let keys: Map<String, Value> = expected.clone().into_iter().chain(got.clone()).collect();
            for key in keys.keys() {
                let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                let name = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&name, &of(expected), &of(got), found);
            }
        }
        _ if expected == got => {}
        _ => found.push(format!("{path}: expected {expected}, got {got}")),
    }
}

/// The shape of `config` as a GGUF file says it: one name for Llama and Mistral, divisors for Llama 3's frequencies, the begin
/// token of the tokenizer, Gemma's scale of embeddings without the rounding to the type of its weights, and the growth of YaRN
/// as a factor of the usual one.
pub fn as_gguf(config: &ModelConfig, tokenizer: &Tokenizer) -> ModelConfig {
    let mut config = config.clone();
    let Some(architecture) = Architecture::of(&config) else { return config };
    config.model_type = architecture.model_type().into();
    config.bos_token_id = tokenizer.bos().or(config.bos_token_id);
    if let Some(factors) = rope_factors(&config) {
        config.variant.rope_scaling = RopeScaling::Factors(factors);
    }
    let root = (config.hidden_size as f64).sqrt() as f32;
    if let Some(scale) = &mut config.variant.embedding_scale
        && (*scale / root - 1.0).abs() < HALF
    {
        *scale = root;
    }
    if let RopeScaling::Yarn { factor, attention_factor, .. } = &mut config.variant.rope_scaling {
        let said = yarn_attention(*factor, *attention_factor).unwrap_or(1.0);
        *attention_factor = (f64::from(said) * yarn_growth(*factor)) as f32;
    }
    config
}

/// What a file says beside YaRN's usual growth; nothing where there is no more.
pub(super) fn yarn_attention(factor: f32, attention_factor: f32) -> Option<f32> {
    let said = f64::from(attention_factor) / yarn_growth(factor);
    ((said - 1.0).abs() > 1e-6).then_some(said as f32)
}

/// ggml's name of the family of `config`. Refuses by name what llama.cpp does not compute for it, whatever a file says.
pub(super) fn architecture(config: &ModelConfig) -> Result<&'static str, ModelError> {
    let refuse =
        |what: String, why: &str| fault::unsupported("GGUF", what, &format!("{why}; export a merged folder instead"));
    let known = Architecture::of(config);
    let Some(known) = known else {
        let why = "written are llama, mistral, qwen2, qwen3 and gemma3_text";
        return Err(refuse(format!("family {:?}", config.model_type), why));
    };
    let name = known.name();
    let variant = &config.variant;
    if variant.local.is_some() && known != Architecture::Gemma3 {
        let why = format!("llama.cpp's {name} sees everything in every layer");
        return Err(refuse(format!("a sliding window in {:?}", config.model_type), &why));
    }
    if rope_factors(config).is_some() && known != Architecture::Llama {
        let why = format!("llama.cpp's {name} has no divisors of its frequencies");
        return Err(refuse("rope_scaling llama3".into(), &why));
    }
    let biases: &[Linear] = match known {
        Architecture::Llama => &variant.biases,
        Architecture::Qwen2 => &[Linear::QProj, Linear::KProj, Linear::VProj],
        Architecture::Qwen3 | Architecture::Gemma3 => &[],
    };
    if variant.biases != biases {
        let named: Vec<&str> = variant.biases.iter().map(|linear| linear.name()).collect();
        let why =
            format!("llama.cpp's {name} has biases on {}", if biases.is_empty() { "nothing" } else { "q, k and v" });
        return Err(refuse(format!("biases on {}", named.join(", ")), &why));
    }
    match &variant.rope_scaling {
        RopeScaling::Yarn { truncate, beta_fast, beta_slow, .. } if !truncate || (*beta_fast, *beta_slow) != RAMP => {
            let what = format!("rope_scaling yarn of {beta_fast} to {beta_slow} turns, truncate: {truncate}");
            Err(refuse(what, "llama.cpp's ramp is that of 32 to 1 turns, truncated, whatever a file says"))
        }
        RopeScaling::Yarn { .. } if known == Architecture::Gemma3 => {
            Err(refuse("rope_scaling yarn in gemma3_text".into(), "llama.cpp has it without"))
        }
        _ => Ok(name),
    }
}
