//! GGUF files: metadata to a [`ModelConfig`] (`metadata.rs`), tensors under Hugging Face names and in Hugging Face layout
//! (`names.rs`), blocks of numbers both ways (`blocks.rs`, `kquants.rs`, `quantise.rs`); [`write()`] writes a file.

mod blocks;
pub(crate) mod header;
mod kquants;
mod metadata;
mod names;
mod quantise;
mod writer;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

pub use blocks::Block;
pub(crate) use header::Header;
pub(crate) use metadata::{Architecture, config as shape, yarn_growth};
pub(crate) use names::{Layout, place};
pub use writer::{Field, Plan, write};

use header::TensorInfo;

use super::{
    Bytes, ModelFiles, family, fault,
    fingerprint::{Part, fingerprint},
};
use crate::{
    Footprint, HostTensor, ModelConfig, ModelError, TensorSource, decoder,
    quant::{Coded, Codes, Scales},
    tokenizer::Tokenizer,
};

/// What the frequencies of rotation are divided by (Llama 3): part of the shape rather than of the weights.
pub(crate) const FACTORS: &str = "rope_freqs.weight";

pub(crate) fn open(path: &Path) -> Result<ModelFiles, ModelError> {
    model(Bytes::open(path)?)
}

/// A model whose GGUF file is in memory; `name` is for errors.
pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<ModelFiles, ModelError> {
    model(Bytes::memory(name, bytes.into()))
}

fn model(bytes: Bytes) -> Result<ModelFiles, ModelError> {
    let header = Header::read(&bytes)?;
    let origin = header.place.clone();
    let mut config = metadata::config(&header, factors(&bytes, &header)?)?;
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

fn factors(bytes: &Bytes, header: &Header) -> Result<Option<Vec<f32>>, ModelError> {
    let Some(info) = header.tensors.get(FACTORS) else { return Ok(None) };
    let (block, len) = coded(bytes, FACTORS, info)?;
    let most = 1 << 12;
    if info.shape.len() != 1 || info.shape[0] > most {
        let expected = format!("one axis of at most {most}");
        return Err(fault::invalid(&bytes.name, format!("shape of {FACTORS}"), expected, format!("{:?}", info.shape)));
    }
    Ok(Some(block.decode(&bytes.read_at(info.start, len)?)))
}

/// The block of a tensor and its length in bytes, which is in the file.
fn coded(bytes: &Bytes, name: &str, info: &TensorInfo) -> Result<(Block, usize), ModelError> {
    let block = Block::from_number(info.kind).map_err(|kind| {
        let hint = format!("served are {}; requantise it, for example with llama-quantize", blocks::SERVED);
        fault::unsupported(&bytes.name, format!("tensor {name} of type {kind}"), &hint)
    })?;
    let whole = || {
        let expected = format!("rows of whole {} blocks", block.name());
        fault::invalid(&bytes.name, format!("shape of {name}"), expected, format!("{:?}", info.shape))
    };
    let len = block.bytes(&info.shape).ok_or_else(whole)?;
    match info.start.checked_add(len as u64) {
        Some(end) if end <= bytes.len => Ok((block, len)),
        _ => {
            let got = format!("{len} bytes at {}", info.start);
            Err(fault::invalid(&bytes.name, format!("end of {name}"), format!("at most {}", bytes.len), got))
        }
    }
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
        let known: HashMap<String, (String, Layout)> = decoder::tensors(config)
            .into_iter()
            .filter_map(|(name, _)| place(config, &name).map(|(stored, layout)| (stored, (name, layout))))
            .collect();
        let mut tensors = BTreeMap::new();
        let mut ranges = Vec::new();
        for (name, info) in &header.tensors {
            let (block, len) = coded(&bytes, name, info)?;
            ranges.push((info.start, info.start + len as u64, name));
            if name == FACTORS {
                continue;
            }
            // a name that the model does not have stays as it is, and is refused by it later
            let (hf, layout) = known.get(name).cloned().unwrap_or((name.clone(), Layout::AsIs));
            tensors.insert(hf, GgufTensor { info: info.clone(), block, len, layout });
        }
        ranges.sort();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            let (what, after) = (format!("place of {}", pair[1].2), format!("after {}", pair[0].2));
            return Err(fault::invalid(&bytes.name, what, after, "an overlap"));
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
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(fault::invalid(&self.bytes.name, format!("tensor {name}"), "finite numbers", value));
        }
        let values = t.layout.read(values, t.info.shape.first().copied().unwrap_or(0));
        Ok(HostTensor::f32(t.info.shape.clone(), values))
    }

    fn coded(&self, name: &str) -> Result<Option<Coded>, ModelError> {
        let Some(t) = self.tensors.get(name).filter(|t| t.info.shape.len() == 2) else { return Ok(None) };
        if t.block.is_plain() {
            return Ok(None);
        }
        let Some(coded) = t.block.coded(&self.bytes.read_at(t.info.start, t.len)?) else { return Ok(None) };
        let (Coded { codes, scales, least, block, len }, rows) = (coded, t.info.shape[0]);
        let Scales::Plain(scales) = scales else { return Ok(None) };
        if let Some(value) = scales.iter().chain(least.iter().flatten()).find(|value| !value.is_finite()) {
            return Err(fault::invalid(&self.bytes.name, format!("tensor {name}"), "finite numbers", value));
        }
        let codes = match codes {
            Codes::Four { packed, table } => Codes::Four { packed: t.layout.ordered(packed, rows), table },
            Codes::Eight(codes) => Codes::Eight(t.layout.ordered(codes, rows)),
        };
        let scales = Scales::Plain(t.layout.ordered(scales, rows));
        let least = least.map(|least| t.layout.ordered(least, rows));
        Ok(Some(Coded { codes, scales, least, block, len }))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|t| t.info.shape.clone())
    }

    fn footprint(&self, name: &str) -> Option<Footprint> {
        let t = self.tensors.get(name)?;
        let count: usize = t.info.shape.iter().product();
        let (numbers, bytes) = t.block.size();
        // what one block becomes
        let one = t.block.coded(&vec![0; bytes]).filter(|_| t.info.shape.len() == 2);
        Some(one.map_or_else(|| Footprint::f32(count), |one| Footprint::coded(count / numbers * one.bytes())))
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }
}
