//! Which layers have a sliding window, in the spellings that families share.

use serde_json::Value;

use crate::{
    Local, ModelConfig, ModelError,
    files::{config_json::Object, fault},
};

/// `layer_types`: true for each layer with a window. None without the key.
pub(super) fn layer_types(object: &Object<'_>) -> Result<Option<Vec<bool>>, ModelError> {
    let key = "layer_types";
    let Some(value) = object.get(key) else { return Ok(None) };
    let kind = |value: &Value| match value.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(fault::unsupported(
            object.place,
            format!("{key}: {value}"),
            "served are full_attention and sliding_attention",
        )),
    };
    let list = value.as_array().ok_or_else(|| object.wrong(key, "a list"))?;
    list.iter().map(kind).collect::<Result<_, _>>().map(Some)
}

/// Qwen's keys: `use_sliding_window`, `sliding_window`, `max_window_layers` (layers below it see everything) or `layer_types`.
pub(super) fn of_upper_layers(object: &Object<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let on = object.flag("use_sliding_window")?.unwrap_or(false);
    let first = object.get("max_window_layers").map_or(Ok(28), |_| object.count("max_window_layers"))?;
    let layers = match layer_types(object)? {
        Some(layers) => layers,
        None => (0..config.num_hidden_layers).map(|layer| on && layer >= first).collect(),
    };
    if !layers.contains(&true) {
        return Ok(());
    }
    if !on {
        return Err(fault::invalid(
            object.place,
            "use_sliding_window",
            "true beside layer_types with sliding_attention",
            on,
        ));
    }
    config.variant.local = Some(Local { window: object.size_or("sliding_window", 4096)?, layers, rope_theta: None });
    Ok(())
}
