//! Adapters as PEFT writes and reads them: a folder with `adapter_config.json` and `adapter_model.safetensors`, or the same
//! safetensors file on its own with the configuration in its header (how an adapter travels between actors).

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    atomic::write_atomic,
    bytes::read_text,
    config_json::parse_object,
    fault,
    safetensors::{Limits, SafetensorsFile, to_bytes},
};
use crate::{
    HostTensor, ModelConfig, ModelError, Tensors,
    decoder::Linear,
    lora::{LoraInit, LoraShape},
};

const PREFIX: &str = "base_model.model.";
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

/// The part of `adapter_config.json` that decides what an adapter computes, in PEFT's spelling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f32,
    /// Share of inputs dropped while learning.
    #[serde(default)]
    pub lora_dropout: f32,
    /// Last part of the names of the linears that carry an adapter, sorted.
    pub target_modules: Vec<String>,
    /// Scale by alpha / sqrt(r) instead of alpha / r.
    #[serde(default)]
    pub use_rslora: bool,
    /// How it began; of no effect once trained.
    #[serde(default)]
    pub init_lora_weights: InitLoraWeights,
}

/// `init_lora_weights`: `true` (Kaiming), `"gaussian"` or `false` (both matrices random).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum InitLoraWeights {
    /// A Kaiming-uniform, B zero.
    #[default]
    Kaiming,
    /// A normal, B zero.
    Gaussian,
    /// Both random.
    Random,
}

impl TryFrom<Value> for InitLoraWeights {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match &value {
            Value::Null | Value::Bool(true) => Ok(Self::Kaiming),
            Value::Bool(false) => Ok(Self::Random),
            Value::String(name) if name == "gaussian" => Ok(Self::Gaussian),
            // these two only begin elsewhere; the others (pissa, olora, corda, loftq, lora_ga, ...) also change the base
            Value::String(name) if name == "eva" || name == "orthogonal" => Ok(Self::Kaiming),
            other => Err(format!("init_lora_weights {other}: such adapters do not fit the unchanged base model")),
        }
    }
}

impl From<InitLoraWeights> for Value {
    fn from(init: InitLoraWeights) -> Self {
        match init {
            InitLoraWeights::Kaiming => json!(true),
            InitLoraWeights::Gaussian => json!("gaussian"),
            InitLoraWeights::Random => json!(false),
        }
    }
}

impl LoraConfig {
    /// The configuration of an adapter of `shape`.
    pub fn from_shape(shape: &LoraShape, init: LoraInit) -> Self {
        let mut target_modules: Vec<String> = shape.targets.iter().map(|t| t.name().to_owned()).collect();
        target_modules.sort();
        Self {
            r: shape.r,
            lora_alpha: shape.alpha,
            lora_dropout: shape.dropout,
            target_modules,
            use_rslora: shape.use_rslora,
            init_lora_weights: match init {
                LoraInit::Kaiming => InitLoraWeights::Kaiming,
                LoraInit::Gaussian => InitLoraWeights::Gaussian,
            },
        }
    }

    /// The shape that the decoder uses.
    pub fn shape(&self) -> LoraShape {
        let chosen = |linear: &Linear| self.target_modules.iter().any(|name| name == linear.name());
        LoraShape {
            r: self.r,
            alpha: self.lora_alpha,
            use_rslora: self.use_rslora,
            dropout: self.lora_dropout,
            targets: Linear::ALL.into_iter().filter(chosen).collect(),
        }
    }

    /// Reads `adapter_config.json`. Unknown keys are ignored; settings that change the result are refused by name.
    fn parse(place: &str, text: &str) -> Result<(Self, Option<String>), ModelError> {
        let mut map = parse_object(place, text)?;
        for (key, harmless, hint) in REFUSED {
            let value = map.get(*key).filter(|value| !is_empty(value) && !harmless.iter().any(|h| *value == h));
            if let Some(value) = value {
                return Err(fault::unsupported(place, format!("{key}: {value}"), hint));
            }
        }
        for (key, served) in [("peft_type", "LORA"), ("bias", "none")] {
            match map.get(key) {
                None | Some(Value::Null) => {}
                Some(value) if value == served => {}
                Some(value) => {
                    return Err(fault::unsupported(place, format!("{key}: {value}"), &format!("served is {served:?}")));
                }
            }
        }
        let targets = map.get("target_modules").unwrap_or(&Value::Null);
        let targets = parse_targets(targets).map_err(|why| fault::unsupported(place, why, TARGETS_HINT))?;
        map.insert("target_modules".into(), json!(targets));
        let base = map.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
        let config: Self = serde_json::from_value(Value::Object(map))
            .map_err(|e| fault::invalid(place, "content", "a LoRA configuration", e))?;
        config.check(place)?;
        Ok((config, base))
    }

    fn check(&self, place: &str) -> Result<(), ModelError> {
        if self.r == 0 || self.r > 4096 {
            return Err(fault::invalid(place, "r", "1 to 4096", self.r));
        }
        if !self.lora_alpha.is_finite() {
            return Err(fault::invalid(place, "lora_alpha", "a finite number", self.lora_alpha));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(fault::invalid(place, "lora_dropout", "0 or more and below 1", self.lora_dropout));
        }
        Ok(())
    }
}

/// Settings of PEFT that this version does not compute: key, values that change nothing, the way out.
const REFUSED: &[(&str, &[Value], &str)] = &[
    ("use_dora", &[Value::Bool(false)], "train without DoRA, or merge the adapter in PEFT"),
    ("use_qalora", &[Value::Bool(false)], "merge the adapter in PEFT"),
    ("lora_bias", &[Value::Bool(false)], "merge the adapter in PEFT"),
    ("fan_in_fan_out", &[Value::Bool(false)], "it belongs to another model family"),
    ("modules_to_save", &[], "train only low-rank pairs, or merge the adapter in PEFT"),
    ("rank_pattern", &[], "use one rank for all modules"),
    ("alpha_pattern", &[], "use one alpha for all modules"),
    ("layers_to_transform", &[], "train all layers"),
    ("layer_replication", &[], "merge the adapter in PEFT"),
    ("exclude_modules", &[], "list target_modules instead"),
    ("target_parameters", &[], "list target_modules instead"),
    ("trainable_token_indices", &[], "merge the adapter in PEFT"),
    ("alora_invocation_tokens", &[], "use a plain LoRA adapter"),
];

const TARGETS_HINT: &str = "use a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// A list of names, `"all-linear"`, nothing (PEFT's default for Llama), or a regular expression that only lists endings.
fn parse_targets(value: &Value) -> Result<Vec<String>, String> {
    let refuse = || format!("target_modules {value}");
    let names: Vec<&str> = match value {
        Value::Null => vec!["q_proj", "v_proj"],
        Value::String(text) if text == "all-linear" => Linear::ALL.iter().map(|l| l.name()).collect(),
        Value::String(text) => endings(text).ok_or_else(refuse)?,
        Value::Array(list) => list.iter().map(|v| v.as_str().ok_or_else(refuse)).collect::<Result<_, _>>()?,
        _ => return Err(refuse()),
    };
    let known = |name: &str| Linear::ALL.iter().find(|l| l.name() == name || l.path() == name);
    let mut targets = Vec::new();
    for name in names {
        let linear = known(name).ok_or_else(|| format!("target_modules entry {name:?}"))?;
        targets.push(linear.name().to_owned());
    }
    targets.sort();
    targets.dedup();
    if targets.is_empty() { Err(refuse()) } else { Ok(targets) }
}

/// The alternatives of `.*\.(a|b)$` and its plainer forms.
fn endings(pattern: &str) -> Option<Vec<&str>> {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let pattern = pattern.strip_suffix('$').unwrap_or(pattern);
    let pattern = pattern.strip_prefix(".*").unwrap_or(pattern);
    let pattern = pattern.strip_prefix("\\.").unwrap_or(pattern);
    let inner = match pattern.strip_prefix("(?:").or(pattern.strip_prefix('(')) {
        Some(rest) => rest.strip_suffix(')')?,
        None => pattern,
    };
    let plain = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let names: Vec<&str> = inner.split('|').collect();
    names.iter().all(plain).then_some(names)
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
        let metadata = BTreeMap::from([("format".into(), "pt".into())]);
        write_atomic(&folder.join(WEIGHTS_FILE), &to_bytes(&self.prefixed(), &metadata))?;
        write_atomic(&folder.join(CONFIG_FILE), self.config_json().as_bytes())
    }

    /// One self-contained safetensors file; equal adapters give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        metadata.insert(CONFIG_KEY.into(), json!(self.config).to_string());
        if let Some(base) = &self.base_model {
            metadata.insert(BASE_KEY.into(), base.clone());
        }
        to_bytes(&self.prefixed(), &metadata)
    }

    /// Reads what [`AdapterFile::to_bytes`] made; `name` is for errors.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, ModelError> {
        let file = SafetensorsFile::memory(name, bytes.into(), Limits::ADAPTER)?;
        let text =
            file.metadata(CONFIG_KEY).ok_or_else(|| fault::missing(name, format!("{CONFIG_KEY} in the header")))?;
        let (config, _) = LoraConfig::parse(name, text)?;
        Ok(Self { config, base_model: file.metadata(BASE_KEY).map(str::to_owned), tensors: read_pairs(&file)? })
    }

    /// Refuses an adapter that does not fit a model of shape `config`: another set of names, another shape, a number that is
    /// not finite, a norm beyond reason. `place` names the adapter.
    pub fn validate(&self, place: &str, config: &ModelConfig) -> Result<(), ModelError> {
        let expected: BTreeMap<String, [usize; 2]> = self.config.shape().tensors(config).into_iter().collect();
        for (name, shape) in &expected {
            let tensor = self.tensors.get(name).ok_or_else(|| fault::missing(place, format!("tensor {name}")))?;
            if tensor.shape != shape {
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

    fn prefixed(&self) -> Tensors {
        self.tensors.iter().map(|(name, tensor)| (format!("{PREFIX}{name}.weight"), tensor.clone())).collect()
    }

    /// The keys that every PEFT since 0.9 knows, sorted as it sorts them.
    fn config_json(&self) -> String {
        let c = &self.config;
        let alpha = if c.lora_alpha.fract() == 0.0 { json!(c.lora_alpha as i64) } else { shortest(c.lora_alpha) };
        let value = json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": c.init_lora_weights,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": alpha,
            "lora_dropout": shortest(c.lora_dropout),
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": c.r,
            "rank_pattern": {},
            "revision": null,
            "target_modules": c.target_modules,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": c.use_rslora,
        });
        format!("{value:#}\n")
    }
}

/// `value` with the digits that an f32 needs, not those of its f64 neighbour.
fn shortest(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}

/// Reads all tensors under their short names.
fn read_pairs(file: &SafetensorsFile) -> Result<Tensors, ModelError> {
    let short = |name: String| {
        let inner = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(".weight"));
        let inner = inner.filter(|inner| inner.ends_with(".lora_A") || inner.ends_with(".lora_B"));
        let expected = format!("{PREFIX}<module>.lora_A.weight or .lora_B.weight");
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

    fn config(text: Value) -> Result<LoraConfig, String> {
        let mut map =
            json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "q_proj"], "new": 1});
        map.as_object_mut().unwrap().extend(text.as_object().unwrap().clone());
        LoraConfig::parse("c", &map.to_string()).map(|(config, _)| config).map_err(|e| e.to_string())
    }

    #[test]
    fn target_modules_in_all_spellings() {
        let targets = |value: Value| config(json!({"target_modules": value})).map(|c| c.target_modules);
        let qv = Ok(vec!["q_proj".to_owned(), "v_proj".to_owned()]);
        for same in [json!(["v_proj", "q_proj"]), json!(null), json!(["self_attn.q_proj", "v_proj"])] {
            assert_eq!(targets(same), qv);
        }
        for same in [".*\\.(q_proj|v_proj)$", "^.*(?:q_proj|v_proj)", "(v_proj|q_proj)"] {
            assert_eq!(targets(json!(same)), qv, "{same}");
        }
        assert_eq!(targets(json!("all-linear")).unwrap().len(), 7);
        assert_eq!(targets(json!(".*\\.q_proj")), Ok(vec!["q_proj".to_owned()]));
        for bad in [
            json!([]),
            json!(["lm_head"]),
            json!(".*layers\\.[0-3]\\..*q_proj"),
            json!(3),
            json!("(q_proj|v_proj"),
            json!(".*"),
        ] {
            assert!(targets(bad.clone()).unwrap_err().contains("target_modules"), "{bad} was taken");
        }
    }

    #[test]
    fn what_changes_the_result_is_refused_by_name() {
        for (key, value) in [
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("peft_type", json!("IA3")),
            ("modules_to_save", json!(["lm_head"])),
            ("rank_pattern", json!({"q_proj": 2})),
            ("alpha_pattern", json!({"q_proj": 2})),
            ("layers_to_transform", json!([0])),
            ("fan_in_fan_out", json!(true)),
            ("init_lora_weights", json!("pissa_niter_16")),
            ("r", json!(0)),
            ("lora_dropout", json!(1.0)),
        ] {
            let error = config(json!({key: value})).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
        assert!(config(json!({"use_dora": false, "bias": "none", "modules_to_save": [], "loftq_config": {}})).is_ok());
        assert_eq!(
            config(json!({"init_lora_weights": "gaussian"})).unwrap().init_lora_weights,
            InitLoraWeights::Gaussian
        );
    }

    fn adapter() -> AdapterFile {
        let config = config(json!({"lora_alpha": 2.5, "lora_dropout": 0.05, "target_modules": ["q_proj"]})).unwrap();
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
