//! What a shape has to keep, whichever file said it.

use crate::{ModelConfig, ModelError, RopeScaling, files::fault};

/// Refuses shapes that no decoder has: what would otherwise divide by zero or allocate without bound.
pub(crate) fn check(place: &str, config: &ModelConfig) -> Result<(), ModelError> {
    sizes(place, config)?;
    constants(place, config)?;
    variant(place, config)?;
    let outside = |id: &&u32| **id as usize >= config.vocab_size;
    if let Some(id) = config.eos_token_ids.iter().chain(&config.bos_token_id).find(outside) {
        let expected = format!("ids below vocab_size {}", config.vocab_size);
        return Err(fault::invalid(place, "bos_token_id or eos_token_id", expected, id));
    }
    Ok(())
}

/// The part of [`check`] about counts and widths.
pub(super) fn sizes(place: &str, config: &ModelConfig) -> Result<(), ModelError> {
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
    Ok(())
}

fn constants(place: &str, config: &ModelConfig) -> Result<(), ModelError> {
    positive(place, "rope_theta", config.rope_theta)?;
    if !(config.rms_norm_eps.is_finite() && config.rms_norm_eps >= 0.0) {
        return Err(fault::invalid(place, "rms_norm_eps", "a number of 0 or more", config.rms_norm_eps));
    }
    Ok(())
}

fn variant(place: &str, config: &ModelConfig) -> Result<(), ModelError> {
    let v = &config.variant;
    for (name, value) in [
        ("embedding scale", v.embedding_scale),
        ("query_pre_attn_scalar", v.attention_scale),
        ("final_logit_softcapping", v.final_softcap),
    ] {
        value.map_or(Ok(()), |value| positive(place, name, value))?;
    }
    if let Some(local) = &v.local {
        local.rope_theta.map_or(Ok(()), |theta| positive(place, "rope_theta of the local layers", theta))?;
        if local.window == 0 {
            return Err(fault::invalid(place, "sliding_window", "at least 1", 0));
        }
        if local.layers.len() != config.num_hidden_layers {
            let expected = format!("one for each of the {} layers", config.num_hidden_layers);
            return Err(fault::invalid(place, "layer_types", expected, local.layers.len()));
        }
    }
    scaling(place, config)
}

fn scaling(place: &str, config: &ModelConfig) -> Result<(), ModelError> {
    match &config.variant.rope_scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor } => positive(place, "rope factor", *factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => {
            positive(place, "rope factor", *factor)?;
            positive(place, "low_freq_factor", *low_freq_factor)?;
            if high_freq_factor.is_finite() && high_freq_factor > low_freq_factor {
                return Ok(());
            }
            let expected = format!("more than low_freq_factor {low_freq_factor}");
            Err(fault::invalid(place, "high_freq_factor", expected, high_freq_factor))
        }
        RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, .. } => {
            positive(place, "rope factor", *factor)?;
            positive(place, "attention_factor", *attention_factor)?;
            positive(place, "beta_fast", *beta_fast)?;
            positive(place, "beta_slow", *beta_slow)
        }
        RopeScaling::Factors(factors) => {
            if factors.len() != config.head_dim / 2 {
                let expected = format!("one for each of {} frequencies", config.head_dim / 2);
                return Err(fault::invalid(place, "rope factors", expected, factors.len()));
            }
            factors.iter().try_for_each(|factor| positive(place, "rope factors", *factor))
        }
    }
}

fn positive(place: &str, what: &str, value: f32) -> Result<(), ModelError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(fault::invalid(place, what, "a number above 0", value))
}
