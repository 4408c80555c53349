//! Rotary settings: transformers 5 writes `rope_parameters`, for each kind of layer by itself where they differ; 4 wrote
//! `rope_theta` with `rope_scaling`, and `rope_local_base_freq` for Gemma's local layers.

use super::Object;
use crate::{ModelError, RopeScaling, files::fault};

/// What a configuration says of its angles.
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    /// Base of the layers with a window, where it is their own.
    pub(super) local_theta: Option<f64>,
}

/// Reads the settings; `theta` is the family's base, `context` the longest sequence.
pub(super) fn read(object: &Object<'_>, theta: f64, context: usize) -> Result<Rope, ModelError> {
    let mut rope = Rope {
        theta: object.positive("rope_theta")?.unwrap_or(theta),
        scaling: RopeScaling::None,
        local_theta: object.positive("rope_local_base_freq")?,
    };
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = object.object(key)? else { continue };
        let nested = value.object("full_attention").ok().flatten();
        let local = value.object("sliding_attention").ok().flatten();
        if let Some(local) = &local {
            if scaling(local, key, context)? != RopeScaling::None {
                return Err(fault::unsupported(object.place, format!("scaled angles of local layers (in {key})"), ""));
            }
            rope.local_theta = local.positive("rope_theta")?.or(rope.local_theta);
        }
        let flat = if local.is_none() { Some(value) } else { None };
        if let Some(full) = nested.or(flat) {
            rope.scaling = scaling(&full, key, context)?;
            rope.theta = full.positive("rope_theta")?.unwrap_or(rope.theta);
        }
    }
    Ok(rope)
}

fn scaling(object: &Object<'_>, key: &str, context: usize) -> Result<RopeScaling, ModelError> {
    object.refuse_unless("partial_rotary_factor", |v| v.as_f64() == Some(1.0), "")?;
    let kind = object.text("rope_type")?.or(object.text("type")?).unwrap_or("default");
    let needed = |name: &str| -> Result<f32, ModelError> {
        let missing = || fault::missing(object.place, format!("{name} (in {key})"));
        Ok(object.positive(name)?.ok_or_else(missing)? as f32)
    };
    let original_max_position_embeddings = object.size_or("original_max_position_embeddings", context)?;
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: needed("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_position_embeddings,
        }),
        "yarn" => yarn(object, context, original_max_position_embeddings),
        _ => {
            let hint = "served are default, linear, llama3 and yarn; use a model without it";
            Err(fault::unsupported(object.place, format!("rope_scaling {kind:?} (in {key})"), hint))
        }
    }
}

fn yarn(object: &Object<'_>, context: usize, original: usize) -> Result<RopeScaling, ModelError> {
    let factor = object.positive("factor")?.unwrap_or(context as f64 / original as f64);
    let grown = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let inferred = match (object.number("mscale")?, object.number("mscale_all_dim")?) {
        (Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => grown(scale) / grown(all),
        _ => grown(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor: factor as f32,
        attention_factor: object.positive("attention_factor")?.unwrap_or(inferred) as f32,
        beta_fast: object.positive("beta_fast")?.unwrap_or(32.0) as f32,
        beta_slow: object.positive("beta_slow")?.unwrap_or(1.0) as f32,
        original_max_position_embeddings: original,
        truncate: object.flag("truncate")?.unwrap_or(true),
    })
}
