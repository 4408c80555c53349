//! A Hugging Face folder: weights in safetensors, in shards where they are large, `config.json`, `generation_config.json` and
//! the tokenizer's files. What the base's own folder has is copied to the byte.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::config_text;
use crate::{
    ModelConfig, ModelError, TensorSource,
    decoder::tensors,
    files::{
        ModelFiles,
        atomic::write_atomic,
        bitsandbytes, fault, is_linear, nf4_block,
        safetensors::{self, Entry},
    },
    quant::{Coded, nf4},
    tokenizer::Tokenizer,
};

pub use crate::files::safetensors::Precision;

/// Files of a folder that say how text becomes ids and back.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// Writes the weights of `source`, a model of shape `config`, into `folder`, in files of at most `max_shard` bytes (a larger
/// tensor has a file of its own); gives the names of the files. `base` is the folder that the model came from, if it did.
pub fn write(
    folder: &Path,
    source: &dyn TensorSource,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    base: Option<&Path>,
    precision: Precision,
    max_shard: u64,
) -> Result<Vec<String>, ModelError> {
    fs::create_dir_all(folder).map_err(|e| fault::io(folder, e))?;
    let files = weights(folder, source, config, precision, max_shard)?;
    beside(folder, config, tokenizer, base, config_text::of_base(base, config, tokenizer, precision)?, files)
}

/// Writes the weights of `model`, the linear maps of its layers in NF4 as bitsandbytes stores them (`nested`: with double
/// quantisation), the others in `precision`, and all else as [`write()`] does.
pub fn write_nf4(
    folder: &Path,
    model: &ModelFiles,
    base: Option<&Path>,
    precision: Precision,
    nested: bool,
    max_shard: u64,
) -> Result<Vec<String>, ModelError> {
    fs::create_dir_all(folder).map_err(|e| fault::io(folder, e))?;
    let plan: Vec<Vec<Entry>> = tensors(&model.config)
        .into_iter()
        .map(|(name, shape)| match shape.last().filter(|_| is_linear(&name)) {
            Some(row) => Ok(bitsandbytes::entries(&name, &shape, nf4_block(&name, *row)?, nested)),
            None => Ok(vec![precision.entry(name, shape)]),
        })
        .collect::<Result<_, ModelError>>()?;
    // the parts of a matrix come one after another
    let mut now: Option<(Vec<usize>, String, Coded)> = None;
    let files = write_shards(folder, &plan, max_shard, |path, entry| {
        if let (true, Some(row)) =
            (is_linear(&entry.name), model.tensors.shape(&entry.name).and_then(|s| s.last().copied()))
        {
            let tensor = model.tensors.tensor(&entry.name)?;
            let (shape, block) = (tensor.shape.clone(), nf4_block(&entry.name, row)?);
            now = Some((shape, entry.name.clone(), nf4::encode(&tensor.into_f32(), block, nested)));
        }
        let part = now
            .as_ref()
            .and_then(|(shape, matrix, coded)| Some((shape, coded, entry.name.strip_prefix(matrix.as_str())?)));
        match part {
            Some((shape, coded, end)) => Ok(bitsandbytes::contents(coded, shape, precision.name(), end)),
            None => precision.contents(path, entry, &model.tensors.tensor(&entry.name)?.into_f32()),
        }
    })?;
    let text = config_text::of_base(base, &model.config, &model.tokenizer, precision)?;
    let text = config_text::in_nf4(&text, precision, nested)?;
    beside(folder, &model.config, &model.tokenizer, base, text, files)
}

/// Writes what stands beside the weights in `files`, `text` being that of `config.json`.
fn beside(
    folder: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    base: Option<&Path>,
    text: String,
    mut files: Vec<String>,
) -> Result<Vec<String>, ModelError> {
    write_atomic(&folder.join("config.json"), text.as_bytes())?;
    files.push("config.json".into());
    if base.is_none_or(|base| !base.join("generation_config.json").exists()) {
        write_atomic(&folder.join("generation_config.json"), config_text::generation(config, tokenizer).as_bytes())?;
    } else if let Some(base) = base {
        copy(&base.join("generation_config.json"), folder)?;
    }
    files.push("generation_config.json".into());
    files.extend(write_tokenizer(folder, tokenizer, base)?);
    Ok(files)
}

/// Writes the tokenizer's files into `folder`: those of the folder `base`, or made from `tokenizer`. Gives their names.
pub fn write_tokenizer(folder: &Path, tokenizer: &Tokenizer, base: Option<&Path>) -> Result<Vec<String>, ModelError> {
    if let Some(base) = base {
        let there: Vec<&str> = TOKENIZER_FILES.into_iter().filter(|name| base.join(name).exists()).collect();
        there.iter().try_for_each(|name| copy(&base.join(name), folder))?;
        return Ok(there.into_iter().map(str::to_owned).collect());
    }
    write_atomic(&folder.join("tokenizer.json"), tokenizer.to_json().as_bytes())?;
    write_atomic(&folder.join("tokenizer_config.json"), tokenizer.config_json().as_bytes())?;
    Ok(vec!["tokenizer.json".into(), "tokenizer_config.json".into()])
}

fn copy(from: &Path, folder: &Path) -> Result<(), ModelError> {
    let to = folder.join(from.file_name().unwrap_or_default());
    write_atomic(&to, &fs::read(from).map_err(|e| fault::io(from, e))?)
}

fn weights(
    folder: &Path,
    source: &dyn TensorSource,
    config: &ModelConfig,
    precision: Precision,
    max_shard: u64,
) -> Result<Vec<String>, ModelError> {
    let plan: Vec<Vec<Entry>> =
        tensors(config).into_iter().map(|(name, shape)| vec![precision.entry(name, shape)]).collect();
    write_shards(folder, &plan, max_shard, |path, entry| {
        precision.contents(path, entry, &source.tensor(&entry.name)?.into_f32())
    })
}

/// Writes `plan` into `folder`, in files of at most `max_shard` bytes; what belongs together is in one of them. Gives their names.
pub(super) fn write_shards(
    folder: &Path,
    plan: &[Vec<Entry>],
    max_shard: u64,
    mut contents: impl FnMut(&Path, &Entry) -> Result<Vec<u8>, ModelError>,
) -> Result<Vec<String>, ModelError> {
    let mut shards: Vec<Vec<Entry>> = vec![Vec::new()];
    let mut filled = 0;
    let mut total = 0;
    for together in plan {
        let bytes = together.iter().map(|entry| entry.bytes as u64).sum::<u64>();
        if filled > 0 && filled + bytes > max_shard {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.extend(together.iter().cloned());
        }
    }
    let count = shards.len();
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    let mut files = Vec::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let path = folder.join(&file);
        safetensors::write_raw(&path, shard, |entry| contents(&path, entry))?;
        places.extend(shard.iter().map(|entry| (entry.name.clone(), file.clone())));
        files.push(file);
    }
    if count > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": places});
        let path: PathBuf = folder.join("model.safetensors.index.json");
        write_atomic(&path, format!("{index:#}\n").as_bytes())?;
        files.push("model.safetensors.index.json".into());
    }
    Ok(files)
}

/// An object of a JSON file, for the texts beside.
pub(super) fn pretty(map: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(map))
}
