//! Metadata of a GGUF file to a [`ModelConfig`]. Keys and defaults are those of llama.cpp.

use super::{Header, names::linear_name};
use crate::{
    Activation, Local, ModelConfig, ModelError, NormForm, RopeScaling, Variant,
    decoder::Linear,
    files::{config_json, fault},
};

/// An architecture by GGUF's name for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Architecture {
    /// Llama, Mistral, SmolLM2.
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
}

/// (GGUF's name, Hugging Face's model types; the first is the one that is read).
const ARCHITECTURES: [(Architecture, &str, &[&str]); 4] = [
    (Architecture::Llama, "llama", &["llama", "mistral"]),
    (Architecture::Qwen2, "qwen2", &["qwen2"]),
    (Architecture::Qwen3, "qwen3", &["qwen3"]),
    (Architecture::Gemma3, "gemma3", &["gemma3_text"]),
];

/// Gemma 3: base of the local layers' angles, and which layers are not local.
const LOCAL_THETA: f32 = 10_000.0;
const PATTERN: usize = 6;
/// The one Gemma 3 whose scores are scaled by another number than the root of its head size.
const LARGEST_GEMMA_LAYERS: usize = 62;

impl Architecture {
    /// That of a model; none where no architecture of GGUF is like it.
    pub(crate) fn of(config: &ModelConfig) -> Option<Self> {
        let known = |types: &[&str]| types.contains(&config.model_type.as_str());
        ARCHITECTURES.iter().find(|(_, _, types)| known(types)).map(|(architecture, ..)| *architecture)
    }

    /// GGUF's name.
    pub(crate) fn name(self) -> &'static str {
        self.entry().0
    }

    /// The model type that is read.
    pub(crate) fn model_type(self) -> &'static str {
        self.entry().1
    }

    fn entry(self) -> (&'static str, &'static str) {
        let found = ARCHITECTURES.iter().find(|(architecture, ..)| *architecture == self);
        found.map_or(("llama", "llama"), |(_, name, types)| (*name, types[0]))
    }

    fn read(header: &Header) -> Result<Self, ModelError> {
        let key = "general.architecture";
        let name = header.text(key)?.ok_or_else(|| fault::missing(&header.place, key))?;
        let found = ARCHITECTURES.iter().find(|(_, known, _)| *known == name).map(|(architecture, ..)| *architecture);
        found.ok_or_else(|| {
            let hint = format!("served are: {}", ARCHITECTURES.map(|(_, name, _)| name).join(", "));
            fault::unsupported(&header.place, format!("{key} {name:?}"), &hint)
        })
    }
}

/// The keys of one architecture.
struct Keys<'a> {
    header: &'a Header,
    name: &'static str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn unsigned(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let key = self.key(key);
        let wrong = |value| fault::invalid(&self.header.place, &key, "a size", value);
        self.header.unsigned(&key)?.map(|value| usize::try_from(value).map_err(|_| wrong(value))).transpose()
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.unsigned(key)?.ok_or_else(|| fault::missing(&self.header.place, self.key(key)))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        Ok(self.header.float(&self.key(key))?.map(|value| value as f32))
    }

    fn refuse(&self, what: String, hint: &str) -> ModelError {
        fault::unsupported(&self.header.place, what, hint)
    }
}

/// The shape that `header` describes; `factors` are the values of its tensor `rope_freqs.weight`, where it has one.
pub(crate) fn config(header: &Header, factors: Option<Vec<f32>>) -> Result<ModelConfig, ModelError> {
    let place = &header.place;
    let architecture = Architecture::read(header)?;
    let (name, model_type) = architecture.entry();
    let keys = Keys { header, name };
    refuse_what_changes_the_result(&keys)?;
    let heads = keys.size("attention.head_count")?;
    let hidden_size = keys.size("embedding_length")?;
    let head_dim = keys.unsigned("attention.key_length")?.unwrap_or(hidden_size.checked_div(heads).unwrap_or(0));
    for key in ["attention.value_length", "rope.dimension_count"] {
        let found = keys.unsigned(key)?.unwrap_or(head_dim);
        if found != head_dim {
            return Err(keys.refuse(format!("{} {found} beside heads of {head_dim}", keys.key(key)), ""));
        }
    }
    let embedding = "token_embd.weight";
    let embedding =
        header.tensors.get(embedding).ok_or_else(|| fault::missing(place, format!("tensor {embedding}")))?;
    let id = |key: &str| Ok::<_, ModelError>(header.unsigned(key)?.and_then(|id| u32::try_from(id).ok()));
    let eps = "attention.layer_norm_rms_epsilon";
    let mut config = ModelConfig {
        model_type: model_type.into(),
        vocab_size: embedding.shape.first().copied().unwrap_or(0),
        hidden_size,
        intermediate_size: keys.size("feed_forward_length")?,
        num_hidden_layers: keys.size("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: keys.unsigned("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        rms_norm_eps: keys.float(eps)?.ok_or_else(|| fault::missing(place, keys.key(eps)))?,
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        tie_word_embeddings: !header.tensors.contains_key("output.weight"),
        max_position_embeddings: keys.size("context_length")?,
        eos_token_ids: id("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
        bos_token_id: id("tokenizer.ggml.bos_token_id")?,
        variant: Variant::default(),
    };
    // before anything is made layer by layer
    config_json::check(place, &config)?;
    let biased = |linear: &Linear| header.tensors.contains_key(&format!("blk.0.{}.bias", linear_name(*linear)));
    config.variant.biases = Linear::ALL.into_iter().filter(biased).collect();
    config.variant.rope_scaling = match factors {
        Some(factors) => RopeScaling::Factors(factors),
        None => rope_scaling(&keys, config.max_position_embeddings)?,
    };
    match architecture {
        Architecture::Llama => config.variant.local = everywhere(&keys, config.num_hidden_layers)?,
        Architecture::Qwen2 => {}
        Architecture::Qwen3 => config.variant.qk_norm = true,
        Architecture::Gemma3 => gemma3(&keys, &mut config)?,
    }
    config.variant.forget_idle_window(config.max_position_embeddings);
    config_json::check(place, &config)?;
    Ok(config)
}

fn refuse_what_changes_the_result(keys: &Keys<'_>) -> Result<(), ModelError> {
    if keys.unsigned("expert_count")?.unwrap_or(0) > 0 {
        return Err(keys.refuse(format!("a mixture of experts ({})", keys.key("expert_count")), ""));
    }
    if keys.float("attn_logit_softcapping")?.is_some() {
        return Err(keys.refuse(keys.key("attn_logit_softcapping"), "scores are served without a cap"));
    }
    if keys.header.unsigned("split.count")?.unwrap_or(1) > 1 {
        let hint = "join them with llama-gguf-split --merge";
        return Err(keys.refuse("a GGUF in several files (split.count)".into(), hint));
    }
    Ok(())
}

/// A window in every layer, as Mistral has it.
fn everywhere(keys: &Keys<'_>, layers: usize) -> Result<Option<Local>, ModelError> {
    let window = keys.unsigned("attention.sliding_window")?.filter(|window| *window > 0);
    Ok(window.map(|window| Local { window, layers: vec![true; layers], rope_theta: None }))
}

fn gemma3(keys: &Keys<'_>, config: &mut ModelConfig) -> Result<(), ModelError> {
    let window = keys.size("attention.sliding_window")?;
    let rope_theta = Some(keys.float("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA));
    let layers = (1..=config.num_hidden_layers).map(|layer| !layer.is_multiple_of(PATTERN)).collect();
    config.variant.local = Some(Local { window, layers, rope_theta });
    let largest = config.num_hidden_layers == LARGEST_GEMMA_LAYERS;
    let scalar = if largest { config.hidden_size / config.num_attention_heads } else { config.head_dim };
    let variant = &mut config.variant;
    variant.attention_scale = Some((scalar as f64).powf(-0.5) as f32);
    variant.embedding_scale = Some((config.hidden_size as f64).sqrt() as f32);
    variant.final_softcap = keys.float("final_logit_softcapping")?;
    variant.activation = Activation::GeluTanh;
    variant.norm_form = NormForm::OnePlusWeight;
    (variant.qk_norm, variant.output_norms) = (true, true);
    Ok(())
}

fn rope_scaling(keys: &Keys<'_>, context: usize) -> Result<RopeScaling, ModelError> {
    let key = keys.key("rope.scaling.type");
    let factor = || {
        let factor = keys.float("rope.scaling.factor")?;
        factor.ok_or_else(|| fault::missing(&keys.header.place, keys.key("rope.scaling.factor")))
    };
    match keys.header.text(&key)?.unwrap_or("none") {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "yarn" => {
            let factor = factor()?;
            let attention = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
            Ok(RopeScaling::Yarn {
                factor,
                attention_factor: (f64::from(attention) * yarn_growth(factor)) as f32,
                beta_fast: keys.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                original_max_position_embeddings: keys
                    .unsigned("rope.scaling.original_context_length")?
                    .unwrap_or(context),
                truncate: true,
            })
        }
        other => Err(keys.refuse(format!("rope_scaling {other:?} ({key})"), "served are none, linear and yarn")),
    }
}

/// How much YaRN makes cosines and sines grow where nothing else is said.
pub(crate) fn yarn_growth(factor: f32) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * f64::from(factor).ln() + 1.0 }
}
