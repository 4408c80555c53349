//! GGUF files of the Llama family: metadata to a [`ModelConfig`], tensors under Hugging Face names and in Hugging Face layout.

mod blocks;
mod header;
mod kquants;
mod quantise;
mod writer;

use std::{collections::BTreeMap, path::Path, sync::Arc};

pub use blocks::Block;
pub(crate) use header::Header;
pub use writer::{Field, Plan, write};

use header::TensorInfo;

use super::{
    Bytes, ModelFiles, config_json, family, fault,
    fingerprint::{Part, fingerprint},
};
use crate::{HostTensor, ModelConfig, ModelError, TensorSource, Variant, decoder::Linear, tokenizer::Tokenizer};

/// The architectures that are read, by `general.architecture`.
const SERVED: &[&str] = &["llama"];

pub(crate) fn open(path: &Path) -> Result<ModelFiles, ModelError> {
    let bytes = Bytes::open(path)?;
    let header = Header::read(&bytes)?;
    let origin = header.place.clone();
    let mut config = config(&header)?;
    let tokenizer = Arc::new(Tokenizer::from_gguf(&header)?);
    let tensors = GgufTensors::new(bytes, &header, &config)?;
    super::check_vocabulary(&origin, &config, &tokenizer)?;
    family::check(&origin, &config, &tensors)?;
    let names = tensors.names();
    let digest = fingerprint(&config, names.into_iter().filter_map(|name| Some((name.clone(), tensors.part(&name)?))))?;
    super::merge_end_ids(&mut config, &tokenizer);
    Ok(ModelFiles { config, tensors: Box::new(tensors), tokenizer, origin, digest })
}

pub(crate) fn open_tokenizer(path: &Path) -> Result<Tokenizer, ModelError> {
    Tokenizer::from_gguf(&Header::read(&Bytes::open(path)?)?)
}

/// The shape, from the metadata under `llama.` and the embedding's rows.
fn config(header: &Header) -> Result<ModelConfig, ModelError> {
    let place = &header.place;
    let family = header.text("general.architecture")?.ok_or_else(|| fault::missing(place, "general.architecture"))?;
    if !SERVED.contains(&family) {
        let hint = format!("served are: {}", SERVED.join(", "));
        return Err(fault::unsupported(place, format!("general.architecture {family:?}"), &hint));
    }
    refuse_what_changes_the_result(header)?;
    let maybe = |key: &str| header.unsigned(&format!("llama.{key}"));
    let size = |key: &str| -> Result<usize, ModelError> {
        let value = maybe(key)?.ok_or_else(|| fault::missing(place, format!("llama.{key}")))?;
        usize::try_from(value).map_err(|_| fault::invalid(place, format!("llama.{key}"), "a size", value))
    };
    let heads = size("attention.head_count")?;
    let hidden_size = size("embedding_length")?;
    let per_head = hidden_size.checked_div(heads).unwrap_or(0);
    let or = |key: &str, default: usize| Ok::<_, ModelError>(maybe(key)?.map_or(default, |v| v as usize));
    let head_dim = or("attention.key_length", per_head)?;
    for key in ["attention.value_length", "rope.dimension_count"] {
        let found = or(key, head_dim)?;
        if found != head_dim {
            return Err(fault::unsupported(place, format!("llama.{key} {found} beside heads of {head_dim}"), ""));
        }
    }
    let embedding =
        header.tensors.get("token_embd.weight").ok_or_else(|| fault::missing(place, "tensor token_embd.weight"))?;
    let vocab_size = embedding.shape.first().copied().unwrap_or(0);
    let id = |key: &str| Ok::<_, ModelError>(header.unsigned(key)?.and_then(|id| u32::try_from(id).ok()));
    let eps = header.float("llama.attention.layer_norm_rms_epsilon")?;
    let config = ModelConfig {
        model_type: family.into(),
        vocab_size,
        hidden_size,
        intermediate_size: size("feed_forward_length")?,
        num_hidden_layers: size("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: or("attention.head_count_kv", heads)?,
        head_dim,
        rms_norm_eps: eps.ok_or_else(|| fault::missing(place, "llama.attention.layer_norm_rms_epsilon"))? as f32,
        rope_theta: header.float("llama.rope.freq_base")?.unwrap_or(10000.0) as f32,
        tie_word_embeddings: !header.tensors.contains_key("output.weight"),
        max_position_embeddings: size("context_length")?,
        eos_token_ids: id("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
        bos_token_id: id("tokenizer.ggml.bos_token_id")?,
        variant: Variant::default(),
    };
    config_json::check(place, &config)?;
    Ok(config)
}

fn refuse_what_changes_the_result(header: &Header) -> Result<(), ModelError> {
    let place = &header.place;
    let scaling = header.text("llama.rope.scaling.type")?.unwrap_or("none");
    if scaling != "none" || header.tensors.contains_key("rope_freqs.weight") {
        let name = if scaling == "none" { "llama3 (rope_freqs.weight)" } else { scaling };
        let hint = "only unscaled rotary positions are served; use a model without it";
        return Err(fault::unsupported(place, format!("rope_scaling {name}"), hint));
    }
    if header.unsigned("llama.expert_count")?.unwrap_or(0) > 0 {
        return Err(fault::unsupported(place, "a mixture of experts (llama.expert_count)", ""));
    }
    if header.unsigned("split.count")?.unwrap_or(1) > 1 {
        return Err(fault::unsupported(
            place,
            "a GGUF in several files (split.count)",
            "join them with llama-gguf-split --merge",
        ));
    }
    Ok(())
}

/// How the file's values become those of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    AsIs,
    /// q and k rows lie interleaved, for rotation of neighbours: `heads` of them.
    Interleaved {
        heads: usize,
    },
}

struct GgufTensor {
    info: TensorInfo,
    block: Block,
    len: usize,
    layout: Layout,
}

/// The weights of a GGUF file.
struct GgufTensors {
    bytes: Bytes,
    tensors: BTreeMap<String, GgufTensor>,
}

impl GgufTensors {
    fn new(bytes: Bytes, header: &Header, config: &ModelConfig) -> Result<Self, ModelError> {
        let mut tensors = BTreeMap::new();
        let mut ranges = Vec::new();
        for (name, info) in &header.tensors {
            let block = Block::from_number(info.kind).map_err(|kind| {
                let hint = format!("served are {}; requantise it, for example with llama-quantize", blocks::SERVED);
                fault::unsupported(&bytes.name, format!("tensor {name} of type {kind}"), &hint)
            })?;
            let shape = format!("{:?}", info.shape);
            let whole = || {
                fault::invalid(
                    &bytes.name,
                    format!("shape of {name}"),
                    format!("rows of whole {block:?} blocks"),
                    &shape,
                )
            };
            let len = block.bytes(&info.shape).ok_or_else(whole)?;
            let end = info.start.checked_add(len as u64).filter(|end| *end <= bytes.len);
            let outside = || {
                fault::invalid(
                    &bytes.name,
                    format!("end of {name}"),
                    format!("at most {}", bytes.len),
                    format!("{len} bytes at {}", info.start),
                )
            };
            ranges.push((info.start, end.ok_or_else(outside)?, name));
            let (hf, layout) = hf_name(name, config).unwrap_or((name.clone(), Layout::AsIs));
            tensors.insert(hf, GgufTensor { info: info.clone(), block, len, layout });
        }
        ranges.sort();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return Err(fault::invalid(
                &bytes.name,
                format!("place of {}", pair[1].2),
                format!("after {}", pair[0].2),
                "an overlap",
            ));
        }
        Ok(Self { bytes, tensors })
    }

    fn part(&self, name: &str) -> Option<Part<'_>> {
        let t = self.tensors.get(name)?;
        let kind = format!("{:?}", t.block);
        Some(Part { kind, shape: t.info.shape.clone(), bytes: &self.bytes, start: t.info.start, len: t.len })
    }
}

impl TensorSource for GgufTensors {
    fn tensor(&self, name: &str) -> Result<HostTensor, ModelError> {
        let t = self.tensors.get(name).ok_or_else(|| fault::missing(&self.bytes.name, format!("tensor {name}")))?;
        let values = t.block.decode(&self.bytes.read_at(t.info.start, t.len)?);
        let values = match t.layout {
            Layout::AsIs => values,
            Layout::Interleaved { heads } => to_rotate_half(&values, heads, t.info.shape.first().copied().unwrap_or(0)),
        };
        Ok(HostTensor::f32(t.info.shape.clone(), values))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|t| t.info.shape.clone())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }
}

/// The checkpoint's name of a GGUF tensor, and its layout in the file. None for a name that the family does not have.
fn hf_name(name: &str, config: &ModelConfig) -> Option<(String, Layout)> {
    let plain = |name: &str| Some((name.to_owned(), Layout::AsIs));
    match name {
        "token_embd.weight" => return plain("model.embed_tokens.weight"),
        "output_norm.weight" => return plain("model.norm.weight"),
        "output.weight" => return plain("lm_head.weight"),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, kind) = part.rsplit_once('.')?;
    let linear = match part {
        "attn_norm" => return plain(&format!("model.layers.{layer}.input_layernorm.{kind}")),
        "ffn_norm" => return plain(&format!("model.layers.{layer}.post_attention_layernorm.{kind}")),
        "attn_q" => Linear::QProj,
        "attn_k" => Linear::KProj,
        "attn_v" => Linear::VProj,
        "attn_output" => Linear::OProj,
        "ffn_gate" => Linear::GateProj,
        "ffn_up" => Linear::UpProj,
        "ffn_down" => Linear::DownProj,
        _ => return None,
    };
    let layout = match linear {
        Linear::QProj => Layout::Interleaved { heads: config.num_attention_heads },
        Linear::KProj => Layout::Interleaved { heads: config.num_key_value_heads },
        _ => Layout::AsIs,
    };
    Some((format!("{}.{kind}", linear.module(layer)), layout))
}

/// Row `2 j + t` of a head in the file is row `t * half + j` of the checkpoint (t is 0 or 1).
fn to_rotate_half(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let width = values.len() / rows.max(1);
    let head_dim = rows / heads;
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for row in 0..head_dim {
            let source = head * head_dim + 2 * (row % half) + row / half;
            out.extend_from_slice(&values[source * width..(source + 1) * width]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_in_rotate_half_order() {
        // two heads of four rows, one number a row; the file holds rows 0 2 1 3 of each head
        let file = [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
        assert_eq!(to_rotate_half(&file, 2, 8), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }
}
