//! Adapters as PEFT writes and reads them: a folder with `adapter_config.json` and `adapter_model.safetensors`, or the same
//! safetensors file on its own with the configuration in its header (how an adapter travels between actors).
//!
//! `config.rs` says what of PEFT is served; `start.rs` turns adapters that changed their base when they began (PiSSA, OLoRA)
//! into plain ones.

mod config;
mod patterns;
mod start;

use std::{collections::BTreeMap, path::Path};

use serde_json::json;

pub use config::{InitLoraWeights, LoraConfig};
pub use patterns::Patterns;

use super::{
    atomic::write_atomic,
    bytes::read_text,
    fault,
    safetensors::{self, Limits, SafetensorsFile},
};
use crate::{HostTensor, ModelConfig, ModelError, TensorSource, Tensors};

const PREFIX: &str = "base_model.model.";
/// Last part of the name of DoRA's third tensor.
const MAGNITUDE: &str = "lora_magnitude_vector";
const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const CONFIG_LIMIT: u64 = 1 << 20;
/// Keys of the header of an adapter that travels.
const CONFIG_KEY: &str = "lora_config";
const BASE_KEY: &str = "base_model";
/// Largest Frobenius norm that one tensor of a sane adapter may have.
const NORM_LIMIT: f64 = 1e6;

/// An adapter and what it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFile {
    /// Its shape.
    pub config: LoraConfig,
    /// Name or path of the base model, as its author gave it.
    pub base_model: Option<String>,
    /// Weights by name, without PEFT's prefix and suffix: `model.layers.0.self_attn.q_proj.lora_A`.
    pub tensors: Tensors,
}

impl AdapterFile {
    /// Reads a folder that PEFT, or [`AdapterFile::write`], wrote.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(CONFIG_FILE);
        if !path.exists() {
            return Err(fault::missing(folder.display(), CONFIG_FILE));
        }
        let (config, base_model) = LoraConfig::parse(&path.display().to_string(), &read_text(&path, CONFIG_LIMIT)?)?;
        let weights = folder.join(WEIGHTS_FILE);
        let pickle = folder.join("adapter_model.bin");
        if !weights.exists() && pickle.exists() {
            return Err(super::refuse_pickle(&pickle));
        }
        if !weights.exists() {
            return Err(fault::missing(folder.display(), WEIGHTS_FILE));
        }
        let file = SafetensorsFile::open(&weights, Limits::ADAPTER)?;
        Ok(Self { config, base_model, tensors: read_pairs(&file)? })
    }

    /// Writes both files into `folder` (made if needed), each whole or not at all, the weights first.
    pub fn write(&self, folder: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(folder).map_err(|e| fault::io(folder, e))?;
        safetensors::write_tensors(&folder.join(WEIGHTS_FILE), self.prefixed())?;
        write_atomic(&folder.join(CONFIG_FILE), self.config.to_json(self.base_model.as_deref()).as_bytes())
    }

    /// One self-contained safetensors file; equal adapters give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        metadata.insert(CONFIG_KEY.into(), json!(self.config).to_string());
        if let Some(base) = &self.base_model {
            metadata.insert(BASE_KEY.into(), base.clone());
        }
        safetensors::to_bytes(self.prefixed(), &metadata)
    }

    /// Reads what [`AdapterFile::to_bytes`] made; `name` is for errors.
    pub fn from_bytes(name: &str, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self, ModelError> {
        let file = SafetensorsFile::memory(name, bytes, Limits::ADAPTER)?;
        let text =
            file.metadata(CONFIG_KEY).ok_or_else(|| fault::missing(name, format!("{CONFIG_KEY} in the header")))?;
        let (config, _) = LoraConfig::parse(name, text)?;
        Ok(Self { config, base_model: file.metadata(BASE_KEY).map(str::to_owned), tensors: read_pairs(&file)? })
    }

    /// Refuses an adapter that does not fit a model of shape `config`: another set of names, another shape, a number that is
    /// not finite, a norm beyond reason. `place` names the adapter.
    pub fn validate(&self, place: &str, config: &ModelConfig) -> Result<(), ModelError> {
        let expected = self.expected(config);
        for (name, shape) in &expected {
            let tensor = self.tensors.get(name).ok_or_else(|| fault::missing(place, format!("tensor {name}")))?;
            if tensor.shape != *shape {
                let got = format!("{:?} (is it an adapter of this base model?)", tensor.shape);
                return Err(fault::invalid(place, format!("shape of {name}"), format!("{shape:?}"), got));
            }
            check_values(place, name, tensor)?;
        }
        match self.tensors.keys().find(|name| !expected.contains_key(*name)) {
            None => Ok(()),
            Some(name) => Err(fault::invalid(place, "tensors", "only those of target_modules and layers", name)),
        }
    }

    /// The norms of the rows of `module`'s weights under DoRA.
    pub fn magnitude(&self, module: &str) -> Option<&HostTensor> {
        self.tensors.get(&format!("{module}.{MAGNITUDE}"))
    }

    /// This adapter as one that adds to the unchanged base: itself, unless it changed its base when it began. `base` are the
    /// weights that it began from.
    pub fn on_unchanged_base(self, place: &str, base: &dyn TensorSource, layers: usize) -> Result<Self, ModelError> {
        start::undone(self, place, base, layers)
    }

    /// Names and shapes of all tensors in a model of shape `config`.
    fn expected(&self, config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
        let shape = self.config.shape();
        let mut all: BTreeMap<String, Vec<usize>> =
            shape.tensors(config).into_iter().map(|(name, shape)| (name, shape.to_vec())).collect();
        if self.config.use_dora {
            let modules = shape.modules(config.num_hidden_layers).into_iter();
            all.extend(modules.map(|(layer, linear, _)| {
                (format!("{}.{MAGNITUDE}", linear.module(layer)), vec![linear.shape(config).0])
            }));
        }
        all
    }

    /// The tensors under PEFT's names.
    fn prefixed(&self) -> impl Iterator<Item = (String, &HostTensor)> {
        let full = |name: &String| match name.ends_with(MAGNITUDE) {
            true => format!("{PREFIX}{name}"),
            false => format!("{PREFIX}{name}.weight"),
        };
        self.tensors.iter().map(move |(name, tensor)| (full(name), tensor))
    }
}

/// Reads all tensors under their short names.
fn read_pairs(file: &SafetensorsFile) -> Result<Tensors, ModelError> {
    let short = |name: String| {
        let inner = name.strip_prefix(PREFIX).map(|rest| rest.strip_suffix(".weight").unwrap_or(rest));
        let inner = inner.filter(|inner| ["lora_A", "lora_B", MAGNITUDE].iter().any(|s| inner.ends_with(s)));
        let expected = format!("{PREFIX}<module>.lora_A.weight, .lora_B.weight or .{MAGNITUDE}");
        inner.map(str::to_owned).ok_or_else(|| fault::invalid(file.name(), "name of a tensor", expected, name))
    };
    file.read_all()?.into_iter().map(|(name, tensor)| short(name).map(|name| (name, tensor))).collect()
}

fn check_values(place: &str, name: &str, tensor: &HostTensor) -> Result<(), ModelError> {
    let mut squares = 0.0;
    for value in tensor.to_f32() {
        if !value.is_finite() {
            return Err(fault::invalid(place, format!("values of {name}"), "finite numbers", value));
        }
        squares += f64::from(value) * f64::from(value);
    }
    if squares.sqrt() > NORM_LIMIT {
        return Err(fault::invalid(place, format!("norm of {name}"), format!("at most {NORM_LIMIT}"), squares.sqrt()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter() -> AdapterFile {
        let text = json!({"r": 4, "lora_alpha": 2.5, "lora_dropout": 0.05, "target_modules": ["q_proj"]}).to_string();
        let (config, _) = LoraConfig::parse("c", &text).unwrap();
        let pair = |x: f32| [("A", HostTensor::f32([4, 8], vec![x; 32])), ("B", HostTensor::f32([8, 4], vec![-x; 32]))];
        let name = |layer: usize, side: &str| format!("model.layers.{layer}.self_attn.q_proj.lora_{side}");
        let tensors = (0..2).flat_map(|l| pair(l as f32 + 0.1).map(|(side, t)| (name(l, side), t))).collect();
        AdapterFile { config, base_model: Some("some/model".into()), tensors }
    }

    fn model() -> ModelConfig {
        ModelConfig {
            model_type: "llama".into(),
            vocab_size: 10,
            hidden_size: 8,
            intermediate_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            tie_word_embeddings: true,
            max_position_embeddings: 16,
            eos_token_ids: vec![2],
            bos_token_id: None,
            variant: Default::default(),
        }
    }

    #[test]
    fn folder_and_blob_give_back_what_was_put_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        adapter().write(&path).unwrap();
        assert_eq!(AdapterFile::read(&path).unwrap(), adapter());
        assert_eq!(AdapterFile::from_bytes("blob", adapter().to_bytes()).unwrap(), adapter());
        assert_eq!(adapter().to_bytes(), adapter().to_bytes());
        let text = std::fs::read_to_string(path.join(CONFIG_FILE)).unwrap();
        assert!(text.contains("\"lora_dropout\": 0.05,") && text.contains("\"lora_alpha\": 2.5,"), "{text}");
        adapter().validate("a", &model()).unwrap();
    }

    #[test]
    fn a_commit_of_the_base_is_where_peft_has_it() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let folder = tempfile::tempdir().unwrap();
        for (base, name, revision) in [
            (format!("some/model@{commit}"), "some/model", json!(commit)),
            ("models/a@b".into(), "models/a@b", json!(null)),
        ] {
            let file = AdapterFile { base_model: Some(base), ..adapter() };
            file.write(folder.path()).unwrap();
            let text = std::fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap();
            let written: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&written["base_model_name_or_path"], &written["revision"]), (&json!(name), &revision));
            assert_eq!(AdapterFile::read(folder.path()).unwrap(), file);
        }
    }

    #[test]
    fn a_wrong_adapter_is_refused_with_the_tensor_named() {
        let name = "model.layers.1.self_attn.q_proj.lora_B";
        let broken = |change: fn(&mut Tensors, &str)| {
            let mut file = adapter();
            change(&mut file.tensors, name);
            file.validate("a", &model()).unwrap_err().to_string()
        };
        let set = |t: &mut Tensors, n: &str, v: f32| t.insert(n.into(), HostTensor::f32([8, 4], vec![v; 32]));
        assert!(broken(|t, n| drop(t.remove(n))).contains(&format!("tensor {name} is missing")));
        assert!(broken(|t, n| drop(t.insert(n.into(), HostTensor::f32([4, 8], vec![0.0; 32])))).contains("shape of"));
        for value in [f32::NAN, f32::INFINITY, 1e30] {
            let mut file = adapter();
            set(&mut file.tensors, name, value);
            assert!(file.validate("a", &model()).unwrap_err().to_string().contains(name));
        }
        let extra = |t: &mut Tensors, _: &str| {
            drop(t.insert("model.layers.0.mlp.up_proj.lora_A".into(), HostTensor::f32([0], vec![])))
        };
        assert!(broken(extra).contains("up_proj.lora_A"));
    }
}
