//! An adapter as GGUF, as llama.cpp's `convert_lora_to_gguf.py` writes it: `blk.0.attn_q.weight.lora_a` and `lora_b`, the scale as
//! `adapter.lora.alpha` over each pair's rank.

use std::{collections::BTreeMap, path::Path};

use super::shape::architecture;
use crate::{
    HostTensor, ModelConfig, ModelError, Tensors,
    decoder::Linear,
    files::{
        Bytes, fault,
        gguf::{self, Block, Field, Header, Layout, Plan, place},
        peft::{AdapterFile, InitLoraWeights, LoraConfig},
    },
};

/// Writes `adapter`, which belongs to a model of shape `config`, to `path`; `block` codes its matrices. llama.cpp knows one alpha
/// for all, so a pair whose scale differs has the difference in its B. DoRA has no form there.
pub fn write(
    path: &Path,
    adapter: &AdapterFile,
    config: &ModelConfig,
    name: &str,
    block: Block,
) -> Result<(), ModelError> {
    if adapter.config.use_dora {
        return Err(fault::unsupported("adapter", "use_dora in GGUF", "export it merged"));
    }
    let shape = adapter.config.shape();
    // an alpha of 0 there means a scale of 1
    let alpha = Some(shape.scale() * shape.r as f32).filter(|alpha| *alpha != 0.0).unwrap_or(shape.r as f32);
    let metadata: Vec<(String, Field)> = [
        ("general.architecture", Field::from(architecture(config)?)),
        ("general.type", Field::from("adapter")),
        ("general.name", Field::from(name)),
        ("general.quantization_version", Field::U32(2)),
        ("adapter.type", Field::from("lora")),
        ("adapter.lora.alpha", Field::F32(alpha)),
    ]
    .map(|(key, field)| (key.to_owned(), field))
    .into();
    let mut plans = Vec::new();
    let mut sources = BTreeMap::new();
    for (layer, linear, rank) in shape.modules(config.num_hidden_layers) {
        let (out, inner) = linear.shape(config);
        let module = linear.module(layer);
        let (base, layout) = stored(&module, config)?;
        let factor = rank.scale * rank.r as f32 / alpha;
        for (side, tensor, shape, factor, layout) in [
            ("lora_a", "lora_A", vec![rank.r, inner], 1.0, Layout::AsIs),
            ("lora_b", "lora_B", vec![out, rank.r], factor, layout),
        ] {
            let name = format!("{base}.{side}");
            let block = if shape[1].is_multiple_of(block.size().0) { block } else { Block::F32 };
            sources.insert(name.clone(), (format!("{module}.{tensor}"), factor, layout));
            plans.push(Plan { name, shape, block });
        }
    }
    gguf::write(path, &metadata, &plans, |plan| {
        let missing = |name: &str| fault::missing("adapter", format!("tensor {name}"));
        let (source, factor, layout) = sources.get(&plan.name).ok_or_else(|| missing(&plan.name))?;
        let mut values = adapter.tensors.get(source).ok_or_else(|| missing(source))?.to_f32();
        // by 1 it would be the same
        if *factor != 1.0 {
            values.iter_mut().for_each(|v| *v *= factor);
        }
        Ok(layout.write(values, plan.shape[0]))
    })
}

/// Reads what [`write()`] wrote, as an adapter of a model of shape `config`.
pub fn read(path: &Path, config: &ModelConfig) -> Result<AdapterFile, ModelError> {
    let bytes = Bytes::open(path)?;
    let header = Header::read(&bytes)?;
    let origin = header.place.clone();
    for (key, expected) in
        [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", architecture(config)?)]
    {
        let found = header.text(key)?.unwrap_or("nothing");
        if found != expected {
            return Err(fault::invalid(&origin, key, expected, found));
        }
    }
    let alpha =
        header.float("adapter.lora.alpha")?.ok_or_else(|| fault::missing(&origin, "adapter.lora.alpha"))? as f32;
    if alpha == 0.0 {
        return Err(fault::unsupported(&origin, "adapter.lora.alpha 0", "llama.cpp takes it for a scale of 1"));
    }
    let mut known = BTreeMap::new();
    for (layer, linear) in (0..config.num_hidden_layers).flat_map(|layer| Linear::ALL.map(|linear| (layer, linear))) {
        let module = linear.module(layer);
        let (base, layout) = stored(&module, config)?;
        known.insert(base, (module, layout));
    }
    let mut tensors = Tensors::new();
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for (name, info) in &header.tensors {
        let stranger = || fault::invalid(&origin, "name of a tensor", "blk.N.LINEAR.weight.lora_a or lora_b", name);
        let (base, side) = match name.strip_suffix(".lora_a") {
            Some(base) => (base, "lora_A"),
            None => (name.strip_suffix(".lora_b").ok_or_else(stranger)?, "lora_B"),
        };
        let (module, layout) = known.get(base).ok_or_else(stranger)?;
        let block = Block::from_number(info.kind)
            .map_err(|kind| fault::unsupported(&origin, format!("tensor {name} of type {kind}"), ""))?;
        let wrong = || {
            fault::invalid(&origin, format!("shape of {name}"), "two axes of whole blocks", format!("{:?}", info.shape))
        };
        let [rows, columns] = info.shape[..] else { return Err(wrong()) };
        let values = block.decode(&bytes.read_at(info.start, block.bytes(&info.shape).ok_or_else(wrong)?)?);
        let values = match layout {
            // a number of rows that is none of heads is refused with the shape, by who takes the adapter
            Layout::Interleaved { heads } if !rows.is_multiple_of(*heads) => values,
            layout if side == "lora_B" => layout.read(values, rows),
            _ => values,
        };
        let r = if side == "lora_A" { rows } else { columns };
        if *ranks.entry(module.clone()).or_insert(r) != r {
            return Err(fault::invalid(&origin, format!("rank of {module}"), ranks[module], r));
        }
        tensors.insert(format!("{module}.{side}"), HostTensor::f32([rows, columns], values));
    }
    let config = lora_config(&origin, alpha, &ranks)?;
    Ok(AdapterFile { config, base_model: None, tensors })
}

/// Where a file has the matrix of `module`, and in which layout.
fn stored(module: &str, config: &ModelConfig) -> Result<(String, Layout), ModelError> {
    place(config, &format!("{module}.weight")).ok_or_else(|| fault::unsupported("GGUF", format!("module {module}"), ""))
}

/// Every module by its own path, with the rank that its tensors have.
fn lora_config(place: &str, alpha: f32, ranks: &BTreeMap<String, usize>) -> Result<LoraConfig, ModelError> {
    let r = *ranks.values().max().ok_or_else(|| fault::missing(place, "a tensor"))?;
    let paths: Vec<&String> = ranks.keys().collect();
    let other: BTreeMap<String, usize> = ranks
        .iter()
        .filter(|(_, own)| **own != r)
        .map(|(module, own)| (format!("^{}", module.replace('.', "\\.")), *own))
        .collect();
    let text = serde_json::json!({"r": r, "lora_alpha": alpha, "target_modules": paths, "rank_pattern": other});
    let mut config = LoraConfig::from_json(place, &text.to_string())?;
    config.init_lora_weights = InitLoraWeights::Kaiming;
    Ok(config)
}
