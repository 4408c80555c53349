//! A model as one GGUF file, as llama.cpp's converter and quantiser make it: tensors under ggml's names, rows of q and k
//! interleaved for the architecture `llama`, tokenizer and chat template inside.

use std::{collections::BTreeMap, path::Path};

use super::{shape, vocabulary};
use crate::{
    ModelConfig, ModelError, RopeScaling, TensorSource,
    decoder::{rope_factors, tensors},
    files::{
        Bytes, fault,
        gguf::{self, Block, FACTORS, Field, Header, Plan, header::TensorInfo, place},
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

    /// The block of the tensor that the checkpoint calls `name`; none for one that the model does not have.
    pub fn block_of(self, name: &str, shape: &[usize], config: &ModelConfig) -> Option<Block> {
        place(config, name).map(|(name, _)| self.block(&name, shape, config))
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
        Some(base) => of_file(&Bytes::open(base)?)?,
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
    if base.is_none() {
        read_back(&metadata, &plans, factors.clone(), config, tokenizer)?;
    }
    gguf::write(path, &metadata, &plans, |plan| match places.get(&plan.name) {
        None => Ok(factors.clone().unwrap_or_default()),
        Some((hf, layout)) => Ok(layout.write(source.tensor(hf)?.to_f32(), plan.shape[0])),
    })
}

/// The metadata of another file, to the byte. What belongs to its own tensors stays behind.
fn of_file(bytes: &Bytes) -> Result<Vec<(String, Field)>, ModelError> {
    let own = |key: &str| key == "general.alignment" || key.starts_with("split.") || key.starts_with("quantize.");
    let header = Header::read(bytes)?;
    let mut list = Vec::new();
    for (key, (kind, place)) in header.places.into_iter().filter(|(key, _)| !own(key)) {
        let value = bytes.read_at(place.start, (place.end - place.start) as usize)?;
        list.push((key, Field::Copied { kind, bytes: value }));
    }
    // readers want to know it first
    list.sort_by_key(|(key, _)| key != "general.architecture");
    Ok(list)
}

/// Refuses a shape that a reader of the file would not find in it.
fn read_back(
    metadata: &[(String, Field)],
    plans: &[Plan],
    factors: Option<Vec<f32>>,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<(), ModelError> {
    let info = |plan: &Plan| TensorInfo { shape: plan.shape.clone(), kind: plan.block.number(), start: 0 };
    let tensors = plans.iter().map(|plan| (plan.name.clone(), info(plan))).collect();
    let header = Header { metadata: vocabulary::values(metadata), tensors, place: "GGUF".into(), ..Header::default() };
    let mut read = gguf::shape(&header, factors)?;
    let expected = shape::as_gguf(config, tokenizer);
    // more than one are found by way of the tokenizer
    read.eos_token_ids.clone_from(&expected.eos_token_ids);
    match shape::differences(&expected, &read).into_iter().next() {
        None => Ok(()),
        Some(first) => Err(fault::unsupported("GGUF", first, "llama.cpp has no other; export a merged folder instead")),
    }
}

/// The metadata of a model whose files had none.
fn of_model(config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Vec<(String, Field)>, ModelError> {
    let family = shape::architecture(config)?;
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
        RopeScaling::Yarn { factor, attention_factor, original_max_position_embeddings, .. } => {
            put("rope.scaling.type", "yarn".into());
            put("rope.scaling.factor", Field::F32(*factor));
            put("rope.scaling.original_context_length", size(*original_max_position_embeddings));
            if let Some(factor) = shape::yarn_attention(*factor, *attention_factor) {
                put("rope.scaling.attn_factor", Field::F32(factor));
            }
        }
    }
    // which layers have it, and what else Gemma has, goes without saying
    if let Some(local) = &config.variant.local {
        put("attention.sliding_window", size(local.window));
        if let Some(theta) = local.rope_theta {
            put("rope.freq_base_swa", Field::F32(theta));
        }
    }
    if let Some(cap) = config.variant.final_softcap {
        put("final_logit_softcapping", Field::F32(cap));
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
        assert_eq!(Quant::Q8_0.block_of("model.norm.weight", &[576], &config), Some(Block::F32));
        assert_eq!(Quant::Q8_0.block_of("model.layers.0.mlp.up_proj.weight", &square, &config), Some(Block::Q8_0));
    }

    #[test]
    fn metadata_of_another_file_is_copied_to_the_byte() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
        let fields: Vec<(String, Field)> = [
            ("a.flags", Field::List(vec![Field::Bool(true), Field::Bool(false)])),
            ("a.large", Field::List(vec![Field::U64(u64::MAX), Field::U64(1 << 40)])),
            ("a.small", Field::List(vec![Field::U8(7), Field::U8(255)])),
            ("a.precise", Field::List(vec![Field::F64(0.1)])),
            ("a.byte", Field::U8(3)),
            ("a.double", Field::F64(0.1)),
            ("general.architecture", Field::from("x")),
            ("split.count", Field::U16(1)),
        ]
        .map(|(key, field)| (key.to_owned(), field))
        .into();
        gguf::write(&first, &fields, &[], |_| Ok(Vec::new())).unwrap();
        let copied = of_file(&Bytes::open(&first).unwrap()).unwrap();
        assert_eq!(copied[0].0, "general.architecture");
        gguf::write(&second, &copied, &[], |_| Ok(Vec::new())).unwrap();
        let values = |path: &Path| {
            let bytes = Bytes::open(path).unwrap();
            let places = Header::read(&bytes).unwrap().places;
            let value = |(kind, place): (u32, std::ops::Range<u64>)| {
                (kind, bytes.read_at(place.start, (place.end - place.start) as usize).unwrap())
            };
            places.into_iter().map(|(key, place)| (key, value(place))).collect::<BTreeMap<_, _>>()
        };
        let mut expected = values(&first);
        // it is of the other file's own parts
        expected.remove("split.count").unwrap();
        assert_eq!(values(&second), expected);
    }
}
