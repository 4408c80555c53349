//! `config.json` and `generation_config.json` of a Hugging Face folder, in the spellings of transformers 4 and 5.
//!
//! What all families share is read here, rotary settings in `rope.rs`; what one family alone has is said by its file in
//! `decoder/families/`.

mod check;
mod object;
mod rope;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use super::fault;
use crate::{
    Activation, ModelConfig, ModelError, Variant,
    decoder::families::{self, Family},
};
pub(crate) use check::check;
pub(crate) use object::Object;

/// Reads `config` (the text of `config.json`) and, where there is one, `generation` (`generation_config.json`, whose end ids
/// come first, as `generate` uses them).
pub(crate) fn parse(place: &str, config: &str, generation: Option<(&str, &str)>) -> Result<ModelConfig, ModelError> {
    let map = parse_object(place, config)?;
    let object = Object { place, map: &map };
    let family = family(&object)?;
    refuse_what_changes_the_result(&object)?;
    let hidden_size = object.size("hidden_size")?;
    let num_attention_heads = object.size("num_attention_heads")?;
    let mut eos_token_ids = Vec::new();
    if let Some((place, text)) = generation {
        let map = parse_object(place, text)?;
        Object { place, map: &map }.end_ids(&mut eos_token_ids)?;
    }
    object.end_ids(&mut eos_token_ids)?;
    let max_position_embeddings = object.size_or("max_position_embeddings", family.context)?;
    let rope = rope::read(&object, family.rope_theta, max_position_embeddings)?;
    let mut config = ModelConfig {
        model_type: family.model_type.into(),
        vocab_size: object.size("vocab_size")?,
        hidden_size,
        intermediate_size: object.size("intermediate_size")?,
        num_hidden_layers: object.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: object.size_or("num_key_value_heads", family.kv_heads.unwrap_or(num_attention_heads))?,
        head_dim: object.size_or("head_dim", family.head_dim.unwrap_or(hidden_size / num_attention_heads))?,
        rms_norm_eps: object.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope_theta: rope.theta as f32,
        tie_word_embeddings: object.flag("tie_word_embeddings")?.unwrap_or(family.tied),
        max_position_embeddings,
        eos_token_ids,
        bos_token_id: object.ids("bos_token_id")?.first().copied(),
        variant: Variant { rope_scaling: rope.scaling, activation: activation(&object)?, ..Variant::default() },
    };
    // before anything is made layer by layer
    check::sizes(place, &config)?;
    (family.refine)(&object, &mut config)?;
    if let Some(local) = &mut config.variant.local
        && rope.local_theta.is_some()
    {
        local.rope_theta = rope.local_theta.map(|theta| theta as f32);
    }
    config.variant.forget_idle_window(config.max_position_embeddings);
    check(place, &config)?;
    Ok(config)
}

fn family(object: &Object<'_>) -> Result<&'static Family, ModelError> {
    let place = object.place;
    let model_type = object.text("model_type")?.ok_or_else(|| fault::missing(place, "model_type"))?;
    families::find(model_type).ok_or_else(|| {
        let hint = match model_type {
            "gemma3" => {
                "it reads pictures too; save its text part alone (Gemma3ForCausalLM, model_type gemma3_text)".into()
            }
            _ => format!("served are: {}", families::names()),
        };
        fault::unsupported(place, format!("model_type {model_type:?}"), &hint)
    })
}

fn activation(object: &Object<'_>) -> Result<Activation, ModelError> {
    // Gemma has a key of its own
    let (key, name) = match object.text("hidden_activation")? {
        Some(name) => ("hidden_activation", name),
        None => ("hidden_act", object.text("hidden_act")?.unwrap_or("silu")),
    };
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        _ => Err(fault::unsupported(object.place, format!("{key} {name:?}"), "served are silu and gelu_pytorch_tanh")),
    }
}

pub(crate) fn parse_object(place: &str, text: &str) -> Result<Map<String, Value>, ModelError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(fault::invalid(place, "content", "a JSON object", "another JSON value")),
        Err(e) => Err(fault::invalid(place, "content", "a JSON object", e)),
    }
}

/// Names the settings that would make the decoder compute something else than the model's author did.
fn refuse_what_changes_the_result(object: &Object<'_>) -> Result<(), ModelError> {
    if let Some(value) = object.get("quantization_config") {
        let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        if method != "bitsandbytes" || value.get("load_in_4bit") != Some(&Value::Bool(true)) {
            let hint = "served is bitsandbytes in 4 bits; use the unquantised folder or a GGUF file";
            return Err(fault::unsupported(object.place, format!("quantization_config {method:?}"), hint));
        }
    }
    object.refuse_unless("partial_rotary_factor", |v| v.as_f64() == Some(1.0), "")
}
