//! A model as one GGUF file, as llama.cpp's converter and quantiser make it: tensors under ggml's names, rows of q and k
//! interleaved for the architecture `llama`, tokenizer and chat template inside.

use std::{collections::BTreeMap, path::Path};

use super::vocabulary;
use crate::{
    ModelConfig, ModelError, RopeScaling, TensorSource,
    decoder::{rope_factors, tensors},
    files::{
        Bytes, fault,
        gguf::{self, Architecture, Block, FACTORS, Field, Header, Plan, header::Value, place},
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
        let (name, layout) =
            place(config, &hf).ok_or_else(|| fault::unsupported("GGUF", format!("tensor {hf}"), ""))?;
        let block = quant.block(&name, &shape, config);
        places.insert(name.clone(), (hf, layout));
        plans.push(Plan { name, shape, block });
    }
    let factors = rope_factors(config);
    if let Some(factors) = &factors {
        plans.push(Plan { name: FACTORS.into(), shape: vec![factors.len()], block: Block::F32 });
    }
    gguf::write(path, &metadata, &plans, |plan| match places.get(&plan.name) {
        None => Ok(factors.clone().unwrap_or_default()),
        Some((hf, layout)) => Ok(layout.write(source.tensor(hf)?.to_f32(), plan.shape[0])),
    })
}

/// ggml's name of the family.
pub(super) fn architecture(config: &ModelConfig) -> Result<&'static str, ModelError> {
    let known = Architecture::of(config).filter(|a| *a != Architecture::Gemma3 && config.variant.local.is_none());
    known.map(Architecture::name).ok_or_else(|| {
        let hint =
            "written are llama, mistral, qwen2 and qwen3 without a sliding window; export a merged folder instead";
        fault::unsupported("GGUF", format!("family {:?}", config.model_type), hint)
    })
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
}
