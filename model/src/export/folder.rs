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
    files::{atomic::write_atomic, fault, read_text, safetensors},
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
const CONFIG_LIMIT: u64 = 1 << 20;

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
    let mut files = weights(folder, source, config, precision, max_shard)?;
    let text = match base.map(|base| base.join("config.json")) {
        Some(path) => {
            let text = read_text(&path, CONFIG_LIMIT)?;
            config_text::with_precision(&path.display().to_string(), &text, precision)?
        }
        None => config_text::of(config, tokenizer, precision)?,
    };
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
    let mut shards: Vec<Vec<(String, Vec<usize>)>> = vec![Vec::new()];
    let mut filled = 0;
    let mut total = 0;
    for (name, shape) in tensors(config) {
        let bytes = (shape.iter().product::<usize>() * precision.bytes()) as u64;
        if filled > 0 && filled + bytes > max_shard {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push((name, shape));
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
        safetensors::write_each(&folder.join(&file), shard, precision, |name| Ok(source.tensor(name)?.to_f32()))?;
        places.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
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
