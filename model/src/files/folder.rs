//! A Hugging Face folder: `config.json`, safetensors in one file or in shards, and the tokenizer's files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
    sync::Arc,
};

use serde_json::Value;

use super::{
    ModelFiles,
    bitsandbytes::{self, States},
    bytes::{read_text, read_text_if_there},
    config_json, family, fault,
    fingerprint::fingerprint,
    safetensors::{Limits, SafetensorsFile},
};
use crate::{Footprint, HostTensor, ModelConfig, ModelError, TensorSource, quant::Coded, tokenizer::Tokenizer};

const CONFIG_LIMIT: u64 = 1 << 20;
const INDEX_LIMIT: u64 = 64 << 20;

pub(crate) fn open(folder: &Path) -> Result<ModelFiles, ModelError> {
    let config_path = folder.join("config.json");
    if !config_path.exists() {
        let adapter = folder.join("adapter_config.json").exists();
        let what = if adapter {
            "config.json (this folder is an adapter: name it as one, beside its base model)"
        } else {
            "config.json"
        };
        return Err(fault::missing(folder.display(), what));
    }
    let config = read_text(&config_path, CONFIG_LIMIT)?;
    let generation_path = folder.join("generation_config.json");
    let generation = read_text_if_there(&generation_path, CONFIG_LIMIT)?;
    let generation_name = generation_path.display().to_string();
    let generation = generation.as_deref().map(|text| (generation_name.as_str(), text));
    let config = config_json::parse(&config_path.display().to_string(), &config, generation)?;
    let shards = Shards::open(folder)?;
    let tokenizer = Arc::new(Tokenizer::from_folder(folder)?);
    shards.into_model(config, tokenizer, folder.display().to_string())
}

/// One or more safetensors files read as one.
pub(crate) struct Shards {
    files: Vec<SafetensorsFile>,
    index: BTreeMap<String, usize>,
    /// Matrices in 4 bits.
    states: States,
    place: String,
}

impl Shards {
    /// All tensors of one file.
    pub(crate) fn single(file: SafetensorsFile) -> Result<Self, ModelError> {
        let index = file.names().into_iter().map(|name| (name, 0)).collect();
        Self::new(file.name().to_owned(), vec![file], index)
    }

    fn new(place: String, files: Vec<SafetensorsFile>, index: BTreeMap<String, usize>) -> Result<Self, ModelError> {
        let mut shards = Self { files, index, states: States::new(), place };
        let names: Vec<String> = shards.index.keys().cloned().collect();
        shards.states = bitsandbytes::states(&shards.place, &names, &|name, most| shards.bytes(name, most))?;
        Ok(shards)
    }

    /// The bytes of a tensor, `most` of them at most; none if it is not there.
    fn bytes(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>, ModelError> {
        let Some(file) = self.index.get(name).map(|number| &self.files[*number]) else { return Ok(None) };
        let len = file.part(name).map_or(0, |part| part.len);
        if len > most {
            return Err(fault::invalid(file.name(), format!("bytes of tensor {name}"), format!("at most {most}"), len));
        }
        file.raw(name).map(Some)
    }

    fn open(folder: &Path) -> Result<Self, ModelError> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.exists() {
            return Self::single(SafetensorsFile::open(&single, Limits::WEIGHTS)?);
        }
        if index.exists() {
            return Self::sharded(folder, &index);
        }
        let pickle = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt"];
        match pickle.iter().find(|name| folder.join(name).exists()) {
            Some(name) => Err(super::refuse_pickle(&folder.join(name))),
            None => Err(fault::missing(folder.display(), "model.safetensors (or model.safetensors.index.json)")),
        }
    }

    fn sharded(folder: &Path, path: &Path) -> Result<Self, ModelError> {
        let place = path.display().to_string();
        let index = config_json::parse_object(&place, &read_text(path, INDEX_LIMIT)?)?;
        let map =
            index.get("weight_map").and_then(Value::as_object).ok_or_else(|| fault::missing(&place, "weight_map"))?;
        let mut names: Vec<&str> = Vec::new();
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for (tensor, file) in map {
            let wrong = || fault::invalid(&place, format!("file of {tensor}"), "a file name without a folder", file);
            let name = file.as_str().filter(|name| is_plain(name)).ok_or_else(wrong)?;
            let number = match names.iter().position(|known| *known == name) {
                Some(number) => number,
                None => {
                    let shard = folder.join(name);
                    if !shard.exists() {
                        return Err(fault::missing(&place, format!("shard {name}")));
                    }
                    files.push(SafetensorsFile::open(&shard, Limits::WEIGHTS)?);
                    names.push(name);
                    names.len() - 1
                }
            };
            if files[number].shape(tensor).is_none() {
                return Err(fault::missing(
                    files[number].name(),
                    format!("tensor {tensor}, which the index places there,"),
                ));
            }
            tensors.insert(tensor.clone(), number);
        }
        Self::new(place, files, tensors)
    }

    /// Checks the weights against `config` and puts the model together.
    pub(crate) fn into_model(
        self,
        mut config: ModelConfig,
        tokenizer: Arc<Tokenizer>,
        origin: String,
    ) -> Result<ModelFiles, ModelError> {
        super::check_vocabulary(&origin, &config, &tokenizer)?;
        family::check(&self.place, &config, &self)?;
        let names: BTreeSet<String> = crate::decoder::tensors(&config).into_iter().map(|(name, _)| name).collect();
        // in order of their names
        let parts = self.index.iter().filter_map(|(name, number)| {
            let counts = names.contains(name) || bitsandbytes::is_beside(&self.states, name);
            let part = self.files[*number].part(name).filter(|_| counts)?;
            Some((name.clone(), part))
        });
        let digest = fingerprint(&config, parts)?;
        super::merge_end_ids(&mut config, &tokenizer);
        Ok(ModelFiles { config, tensors: Box::new(self), tokenizer, origin, digest })
    }
}

/// True for one ordinary path component: an index must not lead out of its folder.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}

impl TensorSource for Shards {
    fn tensor(&self, name: &str) -> Result<HostTensor, ModelError> {
        if let (Some(state), Some(coded)) = (self.states.get(name), self.coded(name)?) {
            return Ok(HostTensor::f32(state.shape.clone(), coded.decoded()));
        }
        let number = self.index.get(name).ok_or_else(|| fault::missing(&self.place, format!("tensor {name}")))?;
        let tensor = self.files[*number].tensor(name)?;
        match tensor.first_not_finite() {
            None => Ok(tensor),
            Some(value) => {
                let place = self.files[*number].name();
                Err(fault::invalid(place, format!("tensor {name}"), "finite numbers", value))
            }
        }
    }

    fn coded(&self, name: &str) -> Result<Option<Coded>, ModelError> {
        let Some(state) = self.states.get(name) else { return Ok(None) };
        bitsandbytes::matrix(&self.place, name, state, &|name, most| self.bytes(name, most)).map(Some)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        if let Some(state) = self.states.get(name) {
            return Some(state.shape.clone());
        }
        self.files[*self.index.get(name)?].shape(name)
    }

    fn footprint(&self, name: &str) -> Option<Footprint> {
        match self.states.get(name) {
            Some(state) => Some(Footprint::coded(state.bytes())),
            None => self.files[*self.index.get(name)?].footprint(name),
        }
    }

    fn names(&self) -> Vec<String> {
        self.index.keys().filter(|name| !bitsandbytes::is_beside(&self.states, name)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_stay_in_the_folder() {
        assert!(is_plain("model-00001-of-00002.safetensors"));
        for bad in ["../x", "/etc/passwd", "a/b", "..", ".", "", "a/"] {
            assert!(!is_plain(bad), "{bad:?} was taken");
        }
    }
}
