//! A model as one GGUF file, as llama.cpp's converter and quantiser make it: tensors under ggml's names, rows of q and k
//! interleaved for the architecture `llama`, tokenizer and chat template inside.

use std::{collections::BTreeMap, path::Path};

use super::vocabulary;
use crate::{
    ModelConfig, ModelError, RopeScaling, TensorSource,
    decoder::{Linear, tensors},
    files::{
        Bytes, fault,
        gguf::{self, Block, Field, Header, Plan, header::Value},
    },
    tokenizer::Tokenizer,
};

/// How the matrices of a file are coded; vectors stay in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// f32.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// 8.5 bits.
    Q8_0,
    /// 4.5 bits, the head 6.6.
    Q4_0,
    /// 4.8 bits on the whole: a mixture of Q4_K and Q6_K.
    Q4KM,
}

impl Quant {
    /// As llama.cpp names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4KM => "Q4_K_M",
        }
    }

    /// ggml's number, for `general.file_type`.
    fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Bf16 => 32,
        }
    }

    /// The block of the tensor `name` (as in the file) of `shape`: the choices of llama-quantize.
    fn block(self, name: &str, shape: &[usize], config: &ModelConfig) -> Block {
        if shape.len() < 2 {
            return Block::F32;
        }
        let head = name == "output.weight" || (config.tie_word_embeddings && name == "token_embd.weight");
        let wanted = match self {
            Self::F32 => Block::F32,
            Self::F16 => Block::F16,
            Self::Bf16 => Block::Bf16,
            Self::Q8_0 => Block::Q8_0,
            Self::Q4_0 | Self::Q4KM if head => Block::Q6K,
            Self::Q4_0 => Block::Q4_0,
            Self::Q4KM if sensitive(name, config.num_hidden_layers) => Block::Q6K,
            Self::Q4KM => Block::Q4K,
        };
        fitting(wanted, shape[shape.len() - 1])
    }
}

/// Values and down projections of the outer layers and of every third one between are worth more bits.
fn sensitive(name: &str, layers: usize) -> bool {
    let mut parts = name.split('.');
    let (Some("blk"), Some(layer), Some("attn_v" | "ffn_down")) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let layer: usize = layer.parse().unwrap_or(0);
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// `block`, or the nearest one that rows of `width` numbers fill.
fn fitting(block: Block, width: usize) -> Block {
    let fits = |block: Block| width.is_multiple_of(block.size().0);
    let next = match block {
        Block::Q4K => Block::Q5_0,
        Block::Q6K => Block::Q8_0,
        other => other,
    };
    [block, next].into_iter().find(|b| fits(*b)).unwrap_or(Block::F16)
}

/// Writes the weights of `source`, a model of shape `config`, to `path`. `base` is the GGUF file that the model came from, if it
/// did: its metadata is kept. `name` is for people.
pub fn write(
    path: &Path,
    source: &dyn TensorSource,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    base: Option<&Path>,
    name: &str,
    quant: Quant,
) -> Result<(), ModelError> {
    let mut metadata = match base {
        Some(base) => of_file(&Header::read(&Bytes::open(base)?)?),
        None => of_model(config, tokenizer)?,
    };
    let own = [
        ("general.name", Field::from(name)),
        ("general.file_type", Field::U32(quant.number())),
        ("general.quantization_version", Field::U32(2)),
    ];
    for (key, field) in own {
        metadata.retain(|(known, _)| known != key);
        metadata.insert(1, (key.to_owned(), field));
    }
    let mut plans = Vec::new();
    let mut places = BTreeMap::new();
    for (hf, shape) in tensors(config) {
        let (name, heads) =
            ggml_name(&hf, config).ok_or_else(|| fault::unsupported("GGUF", format!("tensor {hf}"), ""))?;
        let block = quant.block(&name, &shape, config);
        places.insert(name.clone(), (hf, heads));
        plans.push(Plan { name, shape, block });
    }
    let factors = rope_factors(config);
    if let Some(factors) = &factors {
        plans.push(Plan { name: ROPE_FACTORS.into(), shape: vec![factors.len()], block: Block::F32 });
    }
    gguf::write(path, &metadata, &plans, |plan| match places.get(&plan.name) {
        None => Ok(factors.clone().unwrap_or_default()),
        Some((hf, heads)) => {
            let values = source.tensor(hf)?.to_f32();
            Ok(heads.map_or_else(|| values.clone(), |heads| interleaved(&values, heads, plan.shape[0])))
        }
    })
}

const ROPE_FACTORS: &str = "rope_freqs.weight";

/// ggml's name of the family.
pub(super) fn architecture(config: &ModelConfig) -> Result<&'static str, ModelError> {
    match config.model_type.as_str() {
        "llama" => Ok("llama"),
        "mistral" if config.variant.local.is_none() => Ok("llama"),
        "qwen2" if config.variant.local.is_none() => Ok("qwen2"),
        "qwen3" if config.variant.local.is_none() => Ok("qwen3"),
        other => {
            let hint =
                "written are llama, mistral, qwen2 and qwen3 without a sliding window; export a merged folder instead";
            Err(fault::unsupported("GGUF", format!("family {other:?}"), hint))
        }
    }
}

/// ggml's name of a tensor and, where its rows are interleaved, the number of heads.
fn ggml_name(hf: &str, config: &ModelConfig) -> Option<(String, Option<usize>)> {
    match hf {
        "model.embed_tokens.weight" => return Some(("token_embd.weight".into(), None)),
        "model.norm.weight" => return Some(("output_norm.weight".into(), None)),
        "lm_head.weight" => return Some(("output.weight".into(), None)),
        _ => {}
    }
    let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    if let Some(linear) = Linear::ALL.into_iter().find(|linear| linear.path() == part) {
        return Some((format!("blk.{layer}.{}.{kind}", ggml_linear(linear)), interleaved_heads(linear, config)));
    }
    let norm = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        _ => return None,
    };
    Some((format!("blk.{layer}.{norm}.{kind}"), None))
}

/// ggml's name of a linear map within its layer.
pub(super) fn ggml_linear(linear: Linear) -> &'static str {
    match linear {
        Linear::QProj => "attn_q",
        Linear::KProj => "attn_k",
        Linear::VProj => "attn_v",
        Linear::OProj => "attn_output",
        Linear::GateProj => "ffn_gate",
        Linear::UpProj => "ffn_up",
        Linear::DownProj => "ffn_down",
    }
}

/// The number of heads whose rows lie interleaved in a file of the architecture `llama`.
pub(super) fn interleaved_heads(linear: Linear, config: &ModelConfig) -> Option<usize> {
    let llama = matches!(architecture(config), Ok("llama"));
    match linear {
        Linear::QProj if llama => Some(config.num_attention_heads),
        Linear::KProj if llama => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// Rows of each head in the order that a file of the architecture `llama` has: row `2 j + t` is row `t * half + j` here.
pub(super) fn interleaved(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let (width, head_dim) = (values.len() / rows.max(1), rows / heads.max(1));
    let half = head_dim / 2;
    let order = (0..rows).map(|row| row / head_dim * head_dim + row % 2 * half + row % head_dim / 2);
    order.flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect()
}

/// The metadata of another file, in the types that readers look for. What belongs to its own tensors stays behind.
fn of_file(header: &Header) -> Vec<(String, Field)> {
    let own = |key: &str| key == "general.alignment" || key.starts_with("split.") || key.starts_with("quantize.");
    let field = |value: &Value| {
        Some(match value {
            Value::Unsigned(value) => u32::try_from(*value).map_or(Field::U64(*value), Field::U32),
            Value::Signed(value) => i32::try_from(*value).map_or(Field::I64(*value), Field::I32),
            Value::Float(value) => Field::F32(*value as f32),
            Value::Bool(value) => Field::Bool(*value),
            Value::Text(text) => Field::Text(text.clone()),
            Value::Texts(list) => Field::List(list.iter().map(|text| Field::Text(text.clone())).collect()),
            Value::Integers(list) => {
                Field::List(list.iter().map(|v| Field::I32(i32::try_from(*v).unwrap_or(i32::MAX))).collect())
            }
            Value::Floats(list) => Field::List(list.iter().map(|v| Field::F32(*v)).collect()),
            Value::Skipped => return None,
        })
    };
    let architecture = "general.architecture".to_owned();
    let mut first: Vec<(String, Field)> = Vec::new();
    let mut rest = Vec::new();
    for (key, value) in header.metadata.iter().filter(|(key, _)| !own(key)) {
        let Some(field) = field(value) else { continue };
        if *key == architecture { first.push((key.clone(), field)) } else { rest.push((key.clone(), field)) }
    }
    first.extend(rest);
    first
}

/// The metadata of a model whose files had none.
fn of_model(config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Vec<(String, Field)>, ModelError> {
    let family = architecture(config)?;
    let mut list =
        vec![("general.architecture".to_owned(), Field::from(family)), ("general.type".to_owned(), "model".into())];
    let mut put = |key: &str, field: Field| list.push((format!("{family}.{key}"), field));
    let size = |value: usize| Field::U32(u32::try_from(value).unwrap_or(u32::MAX));
    put("vocab_size", size(config.vocab_size));
    put("context_length", size(config.max_position_embeddings));
    put("embedding_length", size(config.hidden_size));
    put("block_count", size(config.num_hidden_layers));
    put("feed_forward_length", size(config.intermediate_size));
    put("attention.head_count", size(config.num_attention_heads));
    put("attention.head_count_kv", size(config.num_key_value_heads));
    put("attention.key_length", size(config.head_dim));
    put("attention.value_length", size(config.head_dim));
    put("attention.layer_norm_rms_epsilon", Field::F32(config.rms_norm_eps));
    put("rope.dimension_count", size(config.head_dim));
    put("rope.freq_base", Field::F32(config.rope_theta));
    match &config.variant.rope_scaling {
        // these two are a tensor
        RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) | RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", "linear".into());
            put("rope.scaling.factor", Field::F32(*factor));
        }
        RopeScaling::Yarn { .. } => {
            return Err(fault::unsupported("GGUF", "rope_scaling yarn", "export a merged folder instead"));
        }
    }
    list.extend(vocabulary::fields(config, tokenizer)?);
    Ok(list)
}

/// What each rotary frequency is divided by, where that differs between them.
fn rope_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    match &config.variant.rope_scaling {
        RopeScaling::Factors(factors) => Some(factors.clone()),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
            let (context, divisor) = (*original_max_position_embeddings as f64, f64::from(*factor));
            let of = |i: usize| {
                let frequency = f64::from(config.rope_theta).powf(-2.0 * i as f64 / config.head_dim as f64);
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                let smooth = (context / wavelength - low) / (high - low);
                match () {
                    () if wavelength < context / high => 1.0,
                    () if wavelength > context / low => divisor as f32,
                    () => (1.0 / ((1.0 - smooth) / divisor + smooth)) as f32,
                }
            };
            Some((0..config.head_dim / 2).map(of).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_llama_quantize() {
        let config = ModelConfig::smollm2_135m();
        let block = |quant: Quant, name: &str, shape: [usize; 2]| quant.block(name, &shape, &config);
        let square = [576, 576];
        // 576 is no multiple of 256: the fallbacks of llama.cpp
        assert_eq!(block(Quant::Q4KM, "blk.5.attn_q.weight", square), Block::Q5_0);
        assert_eq!(block(Quant::Q4KM, "blk.0.attn_v.weight", square), Block::Q8_0);
        assert_eq!(block(Quant::Q4KM, "blk.0.ffn_down.weight", [576, 1536]), Block::Q6K);
        assert_eq!(block(Quant::Q4KM, "blk.3.ffn_down.weight", [576, 1536]), Block::Q4K);
        assert_eq!(block(Quant::Q4KM, "blk.5.ffn_down.weight", [576, 1536]), Block::Q6K);
        assert_eq!(block(Quant::Q4KM, "token_embd.weight", square), Block::Q8_0);
        assert_eq!(block(Quant::Q4_0, "blk.0.ffn_down.weight", [576, 1536]), Block::Q4_0);
        assert_eq!(block(Quant::Q8_0, "blk.0.attn_q.weight", [8, 20]), Block::F16);
        assert_eq!(Quant::F16.block("blk.0.attn_norm.weight", &[576], &config), Block::F32);
    }

    #[test]
    fn interleaving_is_undone_by_the_reader() {
        // two heads of four rows, one number a row
        assert_eq!(
            interleaved(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 2, 8),
            [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
        );
    }
}
