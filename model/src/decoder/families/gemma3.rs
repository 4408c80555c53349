//! Gemma 3, text: four norms a layer that multiply by one plus their weight, norms on the heads of q and k, scaled
//! embeddings, GELU in the gate, and five layers with a window and angles of their own for each that sees everything.

use super::{Family, llama, windows};
use crate::{Activation, ModelConfig, ModelError, NormForm, files::config_json::Object};

pub(super) const FAMILY: Family = Family {
    model_type: "gemma3_text",
    context: 131_072,
    rope_theta: 1_000_000.0,
    head_dim: Some(256),
    kv_heads: Some(4),
    tied: true,
    refine,
};

/// Base of the local layers' angles where the file has none.
const LOCAL_THETA: f32 = 10_000.0;

fn refine(object: &Object<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    object.refuse_unless("use_bidirectional_attention", |v| v.as_bool() == Some(false), "a decoder looks back only")?;
    object.refuse_unless("attn_logit_softcapping", |_| false, "scores are served without a cap")?;
    llama::attention_bias(object, config)?;
    let variant = &mut config.variant;
    variant.qk_norm = true;
    variant.output_norms = true;
    variant.norm_form = NormForm::OnePlusWeight;
    if object.get("hidden_activation").is_none() && object.get("hidden_act").is_none() {
        variant.activation = Activation::GeluTanh;
    }
    variant.embedding_scale = Some(embedding_scale(object, config.hidden_size)?);
    let scalar = object.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    variant.attention_scale = Some(scalar.powf(-0.5) as f32);
    variant.final_softcap = object.positive("final_logit_softcapping")?.map(|cap| cap as f32);
    let window = object.size_or("sliding_window", 4096)?;
    let layers = match windows::layer_types(object)? {
        Some(layers) => layers,
        None => {
            let pattern = object.size_or("sliding_window_pattern", 6)?;
            (0..config.num_hidden_layers).map(|layer| !(layer + 1).is_multiple_of(pattern)).collect()
        }
    };
    config.variant.local = Some(crate::Local { window, layers, rope_theta: Some(LOCAL_THETA) });
    Ok(())
}

/// The root of the hidden size in the type of the weights: a model that was trained in bf16 was trained with the rounded one.
fn embedding_scale(object: &Object<'_>, hidden: usize) -> Result<f32, ModelError> {
    let root = (hidden as f64).sqrt() as f32;
    Ok(match object.text("dtype")?.or(object.text("torch_dtype")?) {
        Some("bfloat16") => half::bf16::from_f32(root).to_f32(),
        Some("float16") => half::f16::from_f32(root).to_f32(),
        _ => root,
    })
}
