//! `config.json` and `generation_config.json` of a Hugging Face folder, in the spellings of transformers 4 and 5.

use serde_json::{Map, Value};

use super::fault;
use crate::{ModelConfig, ModelError};

/// The families that the decoder serves, by `model_type`.
pub(crate) const SERVED: &[&str] = &["llama"];

/// A JSON object with its place, for errors that name both.
struct Object<'a> {
    place: &'a str,
    map: &'a Map<String, Value>,
}

/// Reads `config` (the text of `config.json`) and, where there is one, `generation` (`generation_config.json`, whose end ids
/// come first, as `generate` uses them).
pub(crate) fn parse(place: &str, config: &str, generation: Option<(&str, &str)>) -> Result<ModelConfig, ModelError> {
    let map = parse_object(place, config)?;
    let object = Object { place, map: &map };
    let model_type = object.text("model_type")?.ok_or_else(|| fault::missing(place, "model_type"))?;
    if !SERVED.contains(&model_type) {
        let hint = format!("served are: {}", SERVED.join(", "));
        return Err(fault::unsupported(place, format!("model_type {model_type:?}"), &hint));
    }
    object.refuse_what_changes_the_result()?;
    let hidden_size = object.size("hidden_size")?;
    let num_attention_heads = object.size("num_attention_heads")?;
    let per_head = hidden_size / num_attention_heads;
    let mut eos_token_ids = Vec::new();
    if let Some((place, text)) = generation {
        let map = parse_object(place, text)?;
        Object { place, map: &map }.end_ids(&mut eos_token_ids)?;
    }
    object.end_ids(&mut eos_token_ids)?;
    let config = ModelConfig {
        model_type: model_type.into(),
        vocab_size: object.size("vocab_size")?,
        hidden_size,
        intermediate_size: object.size("intermediate_size")?,
        num_hidden_layers: object.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: object.size_or("num_key_value_heads", num_attention_heads)?,
        head_dim: object.size_or("head_dim", per_head)?,
        rms_norm_eps: object.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope_theta: object.rope_theta()? as f32,
        tie_word_embeddings: object.flag("tie_word_embeddings")?.unwrap_or(false),
        max_position_embeddings: object.size_or("max_position_embeddings", 2048)?,
        eos_token_ids,
        bos_token_id: object.ids("bos_token_id")?.first().copied(),
    };
    check(place, &config)?;
    Ok(config)
}

/// Refuses shapes that no decoder has: what would otherwise divide by zero or allocate without bound.
pub(crate) fn check(place: &str, config: &ModelConfig) -> Result<(), ModelError> {
    let bounded = |what: &str, value: usize, most: usize| match value {
        0 => Err(fault::invalid(place, what, "at least 1", 0)),
        v if v > most => Err(fault::invalid(place, what, format!("at most {most}"), v)),
        _ => Ok(()),
    };
    bounded("vocab_size", config.vocab_size, 1 << 22)?;
    bounded("hidden_size", config.hidden_size, 1 << 18)?;
    bounded("intermediate_size", config.intermediate_size, 1 << 20)?;
    bounded("num_hidden_layers", config.num_hidden_layers, 1 << 12)?;
    bounded("num_attention_heads", config.num_attention_heads, 1 << 12)?;
    bounded("num_key_value_heads", config.num_key_value_heads, 1 << 12)?;
    bounded("head_dim", config.head_dim, 1 << 12)?;
    bounded("max_position_embeddings", config.max_position_embeddings, 1 << 24)?;
    if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
        let expected = format!("a divisor of the {} query heads", config.num_attention_heads);
        return Err(fault::invalid(place, "num_key_value_heads", expected, config.num_key_value_heads));
    }
    if !config.head_dim.is_multiple_of(2) {
        return Err(fault::invalid(place, "head_dim", "an even number", config.head_dim));
    }
    if !(config.rope_theta.is_finite() && config.rope_theta > 0.0) {
        return Err(fault::invalid(place, "rope_theta", "a number above 0", config.rope_theta));
    }
    if !(config.rms_norm_eps.is_finite() && config.rms_norm_eps >= 0.0) {
        return Err(fault::invalid(place, "rms_norm_eps", "a number of 0 or more", config.rms_norm_eps));
    }
    let outside = |id: &&u32| **id as usize >= config.vocab_size;
    if let Some(id) = config.eos_token_ids.iter().chain(&config.bos_token_id).find(outside) {
        let expected = format!("ids below vocab_size {}", config.vocab_size);
        return Err(fault::invalid(place, "bos_token_id or eos_token_id", expected, id));
    }
    Ok(())
}

pub(crate) fn parse_object(place: &str, text: &str) -> Result<Map<String, Value>, ModelError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(fault::invalid(place, "content", "a JSON object", "another JSON value")),
        Err(e) => Err(fault::invalid(place, "content", "a JSON object", e)),
    }
}

impl Object<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> ModelError {
        fault::invalid(self.place, key, expected, self.map.get(key).unwrap_or(&Value::Null))
    }

    fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, "a text"))).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false"))).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| self.wrong(key, "a number"))).transpose()
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        let value = self.get(key).ok_or_else(|| fault::missing(self.place, key))?;
        let size = value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| *v > 0);
        size.ok_or_else(|| self.wrong(key, "a whole number of at least 1"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        if self.get(key).is_some() { self.size(key) } else { Ok(default) }
    }

    /// An id, a list of ids or nothing.
    fn ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let id = |v: &Value| {
            let id = v.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.wrong(key, "a token id or a list of them"))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }

    fn end_ids(&self, into: &mut Vec<u32>) -> Result<(), ModelError> {
        for id in self.ids("eos_token_id")? {
            if !into.contains(&id) {
                into.push(id);
            }
        }
        Ok(())
    }

    /// Transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`; any scaling but the default is refused.
    fn rope_theta(&self) -> Result<f64, ModelError> {
        let mut theta = self.number("rope_theta")?;
        for key in ["rope_parameters", "rope_scaling"] {
            let Some(value) = self.get(key) else { continue };
            let map = value.as_object().ok_or_else(|| self.wrong(key, "an object"))?;
            let inner = Object { place: self.place, map };
            let kind = inner.text("rope_type")?.or(inner.text("type")?).unwrap_or("default");
            if kind != "default" {
                let hint = "only unscaled rotary positions are served; use a model without it";
                return Err(fault::unsupported(self.place, format!("rope_scaling {kind:?} (in {key})"), hint));
            }
            if inner.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
                return Err(fault::unsupported(self.place, "partial_rotary_factor other than 1", ""));
            }
            theta = inner.number("rope_theta")?.or(theta);
        }
        Ok(theta.unwrap_or(10000.0))
    }

    /// Names every setting that would make the decoder compute something else than the model's author did.
    fn refuse_what_changes_the_result(&self) -> Result<(), ModelError> {
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key)? == Some(true) {
                return Err(fault::unsupported(
                    self.place,
                    format!("{key}: true"),
                    "only models without biases are served",
                ));
            }
        }
        let act = self.text("hidden_act")?.unwrap_or("silu");
        if !matches!(act, "silu" | "swish") {
            return Err(fault::unsupported(self.place, format!("hidden_act {act:?}"), "served is silu"));
        }
        if let Some(value) = self.get("quantization_config") {
            let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            let hint = "use the unquantised folder or a GGUF file";
            return Err(fault::unsupported(self.place, format!("quantization_config {method:?}"), hint));
        }
        if self.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
            return Err(fault::unsupported(self.place, "partial_rotary_factor other than 1", ""));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
        let new = with(json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}))
            .unwrap();
        assert_eq!(old, new);
        assert_eq!((old.num_key_value_heads, old.head_dim, old.rms_norm_eps), (4, 8, 1e-6));
        assert!(!old.tie_word_embeddings);
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
    fn what_is_not_served_is_refused_by_name() {
        for (change, text) in [
            (json!({"model_type": "mamba"}), r#"model_type "mamba" is not supported: served are: llama"#),
            (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}), r#"rope_scaling "llama3""#),
            (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), r#"rope_scaling "linear""#),
            (json!({"rope_parameters": {"rope_type": "yarn"}}), r#"rope_scaling "yarn""#),
            (json!({"attention_bias": true}), "attention_bias: true"),
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "gptq"),
            (json!({"vocab_size": null}), "vocab_size is missing"),
            (json!({"hidden_size": -3}), "hidden_size: expected a whole number of at least 1, got -3"),
            (json!({"num_hidden_layers": 100000}), "num_hidden_layers: expected at most 4096, got 100000"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
            (json!({"head_dim": 7}), "head_dim"),
            (json!({"eos_token_id": 300}), "eos_token_id"),
            (json!({"rope_theta": 0}), "rope_theta"),
        ] {
            let error = with(change).unwrap_err().to_string();
            assert!(error.starts_with("config.json: ") && error.contains(text), "{error}");
        }
    }
}
