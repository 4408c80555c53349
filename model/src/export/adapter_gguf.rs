//! An adapter as GGUF, as llama.cpp's `convert_lora_to_gguf.py` writes it: `blk.0.attn_q.weight.lora_a` and `lora_b`, the scale as
//! `adapter.lora.alpha` over each pair's rank.

use std::{collections::BTreeMap, path::Path};

use super::gguf::{architecture, ggml_linear, interleaved, interleaved_heads};
use crate::{
    HostTensor, ModelConfig, ModelError, Tensors,
    decoder::Linear,
    files::{
        Bytes, fault,
        gguf::{self, Block, Field, Header, Plan, to_rotate_half},
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
    let alpha = shape.scale() * shape.r as f32;
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
        let (module, base) = (linear.module(layer), format!("blk.{layer}.{}.weight", ggml_linear(linear)));
        let factor = rank.scale * rank.r as f32 / alpha;
        for (side, tensor, shape, factor, heads) in [
            ("lora_a", "lora_A", vec![rank.r, inner], 1.0, None),
            ("lora_b", "lora_B", vec![out, rank.r], factor, interleaved_heads(linear, config)),
        ] {
            let name = format!("{base}.{side}");
            let block = if shape[1].is_multiple_of(block.size().0) { block } else { Block::F32 };
            sources.insert(name.clone(), (format!("{module}.{tensor}"), factor, heads));
            plans.push(Plan { name, shape, block });
        }
    }
    gguf::write(path, &metadata, &plans, |plan| {
        let missing = |name: &str| fault::missing("adapter", format!("tensor {name}"));
        let (source, factor, heads) = sources.get(&plan.name).ok_or_else(|| missing(&plan.name))?;
        let mut values = adapter.tensors.get(source).ok_or_else(|| missing(source))?.to_f32();
        // by 1 it would be the same
        if *factor != 1.0 {
            values.iter_mut().for_each(|v| *v *= factor);
        }
        Ok(heads.map_or_else(|| values.clone(), |heads| interleaved(&values, heads, plan.shape[0])))
    })
}

/// Reads what [`write()`] wrote, as an adapter of a model of shape `config`.
pub fn read(path: &Path, config: &ModelConfig) -> Result<AdapterFile, ModelError> {
    let bytes = Bytes::open(path)?;
    let header = Header::read(&bytes)?;
    let place = header.place.clone();
    for (key, expected) in
        [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", architecture(config)?)]
    {
        let found = header.text(key)?.unwrap_or("nothing");
        if found != expected {
            return Err(fault::invalid(&place, key, expected, found));
        }
    }
    let alpha = header.float("adapter.lora.alpha")?.ok_or_else(|| fault::missing(&place, "adapter.lora.alpha"))? as f32;
    let mut tensors = Tensors::new();
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for (name, info) in &header.tensors {
        let stranger = || fault::invalid(&place, "name of a tensor", "blk.N.LINEAR.weight.lora_a or lora_b", name);
        let (layer, linear, side) =
            parts(name).filter(|(layer, ..)| *layer < config.num_hidden_layers).ok_or_else(stranger)?;
        let block = Block::from_number(info.kind)
            .map_err(|kind| fault::unsupported(&place, format!("tensor {name} of type {kind}"), ""))?;
        let wrong = || {
            fault::invalid(&place, format!("shape of {name}"), "two axes of whole blocks", format!("{:?}", info.shape))
        };
        let [rows, columns] = info.shape[..] else { return Err(wrong()) };
        let values = block.decode(&bytes.read_at(info.start, block.bytes(&info.shape).ok_or_else(wrong)?)?);
        let module = linear.module(layer);
        let heads = interleaved_heads(linear, config).filter(|heads| side == "lora_B" && rows.is_multiple_of(*heads));
        let values = heads.map_or_else(|| values.clone(), |heads| to_rotate_half(&values, heads, rows));
        let r = if side == "lora_A" { rows } else { columns };
        if *ranks.entry(module.clone()).or_insert(r) != r {
            return Err(fault::invalid(&place, format!("rank of {module}"), ranks[&module], r));
        }
        tensors.insert(format!("{module}.{side}"), HostTensor::f32([rows, columns], values));
    }
    let config = lora_config(&place, alpha, &ranks)?;
    Ok(AdapterFile { config, base_model: None, tensors })
}

/// `blk.3.attn_q.weight.lora_a`: layer, map and side.
fn parts(name: &str) -> Option<(usize, Linear, &'static str)> {
    let (rest, side) = match name.strip_suffix(".weight.lora_a") {
        Some(rest) => (rest, "lora_A"),
        None => (name.strip_suffix(".weight.lora_b")?, "lora_B"),
    };
    let (layer, part) = rest.strip_prefix("blk.")?.split_once('.')?;
    let linear = Linear::ALL.into_iter().find(|linear| ggml_linear(*linear) == part)?;
    Some((layer.parse().ok()?, linear, side))
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
