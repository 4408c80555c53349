//! `adapter_config.json`: the settings that decide what an adapter computes, and those that are refused by name.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Patterns;
use crate::{
    ModelError,
    decoder::Linear,
    files::{config_json::parse_object, fault},
    lora::{LoraInit, LoraShape, Modules, Pattern, Rules},
};

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
    /// Last part of the names of the linears that carry an adapter, sorted; where `target_paths` is there, of all linears.
    pub target_modules: Vec<String>,
    /// The modules that carry one, where they are not simply all of `target_modules`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_paths: Option<Modules>,
    /// Modules that carry none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Modules>,
    /// The only layers that carry one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Ranks of modules that have one of their own, by the end of their path: the first that matches counts.
    #[serde(default, skip_serializing_if = "Patterns::is_empty")]
    pub rank_pattern: Patterns<usize>,
    /// Numerators likewise.
    #[serde(default, skip_serializing_if = "Patterns::is_empty")]
    pub alpha_pattern: Patterns<f32>,
    /// Scale by alpha / sqrt(r) instead of alpha / r.
    #[serde(default)]
    pub use_rslora: bool,
    /// The rows of the sum of base and adapter have norms of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_dora: bool,
    /// How it began; of no effect once trained, unless that changed the base.
    #[serde(default)]
    pub init_lora_weights: InitLoraWeights,
}

/// `init_lora_weights`: `true` (Kaiming), `"gaussian"`, `false` (both matrices random), `"pissa"` or `"olora"`.
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
    /// The leading singular vectors, taken out of the base (Meng et al. 2024).
    Pissa,
    /// The first columns of the QR decomposition, taken out of the base (Büyükakyüz 2024).
    Olora,
}

impl TryFrom<Value> for InitLoraWeights {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match &value {
            Value::Null | Value::Bool(true) => Ok(Self::Kaiming),
            Value::Bool(false) => Ok(Self::Random),
            Value::String(name) => match name.to_ascii_lowercase().as_str() {
                "gaussian" => Ok(Self::Gaussian),
                "pissa" => Ok(Self::Pissa),
                "olora" => Ok(Self::Olora),
                // these two only begin elsewhere
                "eva" | "orthogonal" => Ok(Self::Kaiming),
                // what they took out of the base was drawn at random, or depends on data: nobody else can know it
                _ => Err(format!(
                    "init_lora_weights {value}: such adapters do not fit the unchanged base model; save it in PEFT with \
                     path_initial_model_for_weight_conversion"
                )),
            },
            _ => Err(format!("init_lora_weights {value}: expected true, false or a name")),
        }
    }
}

impl From<InitLoraWeights> for Value {
    fn from(init: InitLoraWeights) -> Self {
        match init {
            InitLoraWeights::Kaiming => json!(true),
            InitLoraWeights::Gaussian => json!("gaussian"),
            InitLoraWeights::Random => json!(false),
            InitLoraWeights::Pissa => json!("pissa"),
            InitLoraWeights::Olora => json!("olora"),
        }
    }
}

impl LoraConfig {
    /// The configuration of an adapter of `shape`, which has no rules.
    pub fn from_shape(shape: &LoraShape, init: LoraInit) -> Self {
        let mut target_modules: Vec<String> = shape.targets.iter().map(|t| t.name().to_owned()).collect();
        target_modules.sort();
        Self {
            r: shape.r,
            lora_alpha: shape.alpha,
            lora_dropout: shape.dropout,
            target_modules,
            target_paths: None,
            exclude_modules: None,
            layers_to_transform: None,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            use_rslora: shape.use_rslora,
            use_dora: false,
            init_lora_weights: match init {
                LoraInit::Kaiming => InitLoraWeights::Kaiming,
                LoraInit::Gaussian => InitLoraWeights::Gaussian,
            },
        }
    }

    /// True if the adapter fits only the base that it left behind when it began.
    pub fn changed_its_base(&self) -> bool {
        matches!(self.init_lora_weights, InitLoraWeights::Pissa | InitLoraWeights::Olora)
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
            rules: Rules {
                only: self.target_paths.clone(),
                never: self.exclude_modules.clone(),
                layers: self.layers_to_transform.clone(),
                ranks: self.rank_pattern.compiled(),
                alphas: self.alpha_pattern.compiled(),
            },
        }
    }

    /// Reads `adapter_config.json`; gives the name of its base model too. Unknown keys are ignored; settings that change the
    /// result and are not served are refused by name.
    pub(super) fn parse(place: &str, text: &str) -> Result<(Self, Option<String>), ModelError> {
        let mut map = parse_object(place, text)?;
        for (key, harmless, hint) in REFUSED {
            let value = map.get(*key).filter(|value| !is_empty(value) && !harmless.iter().any(|h| *value == h));
            if let Some(value) = value {
                return Err(fault::unsupported(place, format!("{key}: {value}"), hint));
            }
        }
        for (key, served) in [("peft_type", "LORA"), ("bias", "none"), ("layers_pattern", "layers")] {
            match map.get(key) {
                None => {}
                Some(value) if is_empty(value) || value == served || *value == json!([served]) => {}
                Some(value) => {
                    return Err(fault::unsupported(place, format!("{key}: {value}"), &format!("served is {served:?}")));
                }
            }
        }
        settle_modules(place, &mut map)?;
        let text = |key: &str| map.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let base = match (text("base_model_name_or_path"), text("revision")) {
            (Some(base), Some(revision)) if revision != "main" => Some(format!("{base}@{revision}")),
            (base, _) => base.map(str::to_owned),
        };
        let config: Self = serde_json::from_value(Value::Object(map))
            .map_err(|e| fault::invalid(place, "content", "a LoRA configuration", e))?;
        config.check(place)?;
        Ok((config, base))
    }

    /// Reads the text of an `adapter_config.json`; `place` is for errors.
    pub fn from_json(place: &str, text: &str) -> Result<Self, ModelError> {
        Self::parse(place, text).map(|(config, _)| config)
    }

    fn check(&self, place: &str) -> Result<(), ModelError> {
        for (what, r) in
            self.rank_pattern.0.iter().map(|(k, r)| (format!("rank_pattern {k}"), *r)).chain([("r".into(), self.r)])
        {
            if r == 0 || r > 4096 {
                return Err(fault::invalid(place, what, "1 to 4096", r));
            }
        }
        let alphas = self.alpha_pattern.0.iter().map(|(key, alpha)| (format!("alpha_pattern {key}"), *alpha));
        for (what, alpha) in alphas.chain([("lora_alpha".into(), self.lora_alpha)]) {
            if !alpha.is_finite() {
                return Err(fault::invalid(place, what, "a finite number", alpha));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(fault::invalid(place, "lora_dropout", "0 or more and below 1", self.lora_dropout));
        }
        let ranks = self.rank_pattern.0.iter().map(|(key, _)| key);
        for key in ranks.chain(self.alpha_pattern.0.iter().map(|(key, _)| key)) {
            Pattern::try_from(key.clone()).map_err(|why| fault::unsupported(place, format!("pattern: {why}"), ""))?;
        }
        Ok(())
    }

    /// The text of `adapter_config.json`: the keys that every PEFT since 0.9 knows, sorted as it sorts them.
    pub(super) fn to_json(&self, base_model: Option<&str>) -> String {
        let alpha = |value: f32| if value.fract() == 0.0 { json!(value as i64) } else { shortest(value) };
        let alphas: Map<String, Value> = self.alpha_pattern.0.iter().map(|(k, v)| (k.clone(), alpha(*v))).collect();
        let targets = self.target_paths.as_ref().map_or(json!(self.target_modules), |paths| json!(paths));
        let (base_model, revision) = base_model.map(with_commit).unzip();
        let mut value = json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": base_model,
            "bias": "none",
        });
        // PEFT before 0.14 does not know it
        if let Some(modules) = &self.exclude_modules {
            value["exclude_modules"] = json!(modules);
        }
        let rest = json!({
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": self.init_lora_weights,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": self.layers_to_transform,
            "lora_alpha": alpha(self.lora_alpha),
            "lora_dropout": shortest(self.lora_dropout),
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": self.rank_pattern,
            "revision": revision.flatten(),
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        });
        if let (Value::Object(value), Value::Object(rest)) = (&mut value, rest) {
            value.extend(rest);
        }
        format!("{value:#}\n")
    }
}

/// A base named `owner/name@COMMIT` is on the hub, where PEFT knows the two apart; any other name is one.
fn with_commit(base: &str) -> (&str, Option<&str>) {
    match base.rsplit_once('@') {
        Some((name, commit)) if commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()) => {
            (name, Some(commit))
        }
        _ => (base, None),
    }
}

/// `value` with the digits that an f32 needs, not those of its f64 neighbour.
fn shortest(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}

/// Settings of PEFT that are not computed here: key, values that change nothing, the way out.
const REFUSED: &[(&str, &[Value], &str)] = &[
    ("use_qalora", &[Value::Bool(false)], "merge the adapter in PEFT"),
    ("lora_bias", &[Value::Bool(false)], "merge the adapter in PEFT"),
    ("fan_in_fan_out", &[Value::Bool(false)], "it belongs to another model family"),
    ("modules_to_save", &[], "train only low-rank pairs, or merge the adapter in PEFT"),
    ("layer_replication", &[], "merge the adapter in PEFT"),
    ("target_parameters", &[], "list target_modules instead"),
    ("trainable_token_indices", &[], "merge the adapter in PEFT"),
    ("alora_invocation_tokens", &[], "use a plain LoRA adapter"),
    ("kasa_config", &[], "merge the adapter in PEFT"),
    ("arrow_config", &[], "use a plain LoRA adapter"),
    ("monteclora_config", &[], "use a plain LoRA adapter"),
    ("velora_config", &[], "use a plain LoRA adapter"),
    ("use_bdlora", &[Value::Bool(false)], "merge the adapter in PEFT"),
];

const TARGETS_HINT: &str = "use a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, paths that end in \
                            them, or a regular expression";

/// Modules beside the linears that an expression for linears may hit by mistake.
const OTHERS: [&str; 2] = ["lm_head", "model.embed_tokens"];

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Brings `target_modules`, `exclude_modules` and `layers_to_transform` into the form of [`LoraConfig`].
fn settle_modules(place: &str, map: &mut Map<String, Value>) -> Result<(), ModelError> {
    // as it travels between actors, the rule has a key of its own
    let travelled = map.remove("target_paths");
    let value = travelled.or_else(|| map.get("target_modules").cloned()).unwrap_or(Value::Null);
    let refuse = |why: String| fault::unsupported(place, why, TARGETS_HINT);
    let (names, paths) = parse_targets(&value).map_err(refuse)?;
    map.insert("target_modules".into(), json!(names));
    let by_expression = matches!(paths, Some(Modules::Matching(_)));
    if let Some(paths) = paths {
        map.insert("target_paths".into(), json!(paths));
    }
    for key in ["exclude_modules", "layers_to_transform", "rank_pattern", "alpha_pattern"] {
        if map.get(key).is_some_and(is_empty) {
            map.remove(key);
        }
    }
    if let Some(layer) = map.get("layers_to_transform").and_then(Value::as_u64) {
        map.insert("layers_to_transform".into(), json!([layer]));
    }
    if by_expression && map.contains_key("layers_to_transform") {
        let what = format!("layers_to_transform beside target_modules {value}");
        return Err(fault::unsupported(place, what, "PEFT takes it beside a list alone"));
    }
    Ok(())
}

/// A list of names, `"all-linear"`, nothing (PEFT's default for Llama), or a regular expression. Gives the linears, and the
/// rule where that does not say all.
fn parse_targets(value: &Value) -> Result<(Vec<String>, Option<Modules>), String> {
    let refuse = || format!("target_modules {value}");
    let all = || Linear::ALL.iter().map(|l| l.name().to_owned()).collect::<Vec<_>>();
    let names: Vec<&str> = match value {
        Value::Null => vec!["q_proj", "v_proj"],
        Value::String(text) if text == "all-linear" => Linear::ALL.iter().map(|l| l.name()).collect(),
        Value::String(text) => match endings(text) {
            Some(names) => names,
            None => return expression(text).map(|modules| (sorted(all()), Some(modules))),
        },
        Value::Array(list) => list.iter().map(|v| v.as_str().ok_or_else(refuse)).collect::<Result<_, _>>()?,
        _ => return Err(refuse()),
    };
    let known = |name: &str| Linear::ALL.iter().find(|l| l.name() == name || l.path() == name);
    let of_path = |name: &str| Linear::ALL.iter().find(|l| name.ends_with(&format!(".{}", l.path())));
    let mut targets = Vec::new();
    for name in &names {
        let linear = known(name).or_else(|| of_path(name)).ok_or_else(|| format!("target_modules entry {name:?}"))?;
        targets.push(linear.name().to_owned());
    }
    let targets = sorted(targets);
    if targets.is_empty() {
        return Err(refuse());
    }
    let paths = names.iter().any(|name| known(name).is_none());
    Ok((targets, paths.then(|| Modules::Names(names.iter().map(|n| (*n).to_owned()).collect()))))
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names.dedup();
    names
}

/// An expression that hits linears of layers, and nothing else that a model has.
fn expression(text: &str) -> Result<Modules, String> {
    let pattern = Pattern::try_from(text.to_owned()).map_err(|why| format!("target_modules: {why}"))?;
    if let Some(other) = OTHERS.into_iter().find(|module| pattern.is_all_of(module)) {
        return Err(format!("target_modules {text:?}, which takes in {other},"));
    }
    // no model has more layers than this
    let hits = |l: &Linear| (0..4096).any(|layer| pattern.is_all_of(&l.module(layer)));
    match Linear::ALL.iter().any(hits) {
        true => Ok(Modules::Matching(pattern)),
        false => Err(format!("target_modules {text:?}, which takes in no linear of a layer,")),
    }
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
    let known = |name: &&str| Linear::ALL.iter().any(|l| l.name() == *name);
    let names: Vec<&str> = inner.split('|').collect();
    names.iter().all(known).then_some(names)
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
            json!(["model.embed_tokens"]),
            json!(".*layers\\.[0-3]\\..*norm"),
            json!(3),
            json!("(q_proj|v_proj"),
            json!(".*"),
        ] {
            assert!(targets(bad.clone()).unwrap_err().contains("target_modules"), "{bad} was taken");
        }
    }

    #[test]
    fn rules_choose_modules_ranks_and_alphas() {
        let modules = |text: Value| {
            let modules = config(text).unwrap().shape().modules(3);
            modules
                .into_iter()
                .map(|(layer, linear, rank)| (layer, linear.name(), rank.r, rank.scale))
                .collect::<Vec<_>>()
        };
        let q = |layer: usize| (layer, "q_proj", 4, 2.0);
        let v = |layer: usize| (layer, "v_proj", 4, 2.0);
        assert_eq!(modules(json!({"layers_to_transform": [0, 2]})), [q(0), v(0), q(2), v(2)]);
        assert_eq!(modules(json!({"layers_to_transform": 1, "layers_pattern": "layers"})), [q(1), v(1)]);
        assert_eq!(modules(json!({"exclude_modules": ["q_proj", "layers.1.self_attn.v_proj"]})), [v(0), v(2)]);
        assert_eq!(modules(json!({"exclude_modules": ".*layers\\.[12]\\..*"})), [q(0), v(0)]);
        assert_eq!(modules(json!({"target_modules": ".*layers\\.[01]\\..*q_proj"})), [q(0), q(1)]);
        assert_eq!(modules(json!({"target_modules": ["layers.2.self_attn.q_proj"]})), [q(2)]);
        let patterns = json!({"target_modules": ["q_proj"], "rank_pattern": {"layers\\.0\\..*": 2, "q_proj": 1},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 6}});
        assert_eq!(modules(patterns), [(0, "q_proj", 2, 4.0), (1, "q_proj", 1, 6.0), (2, "q_proj", 1, 8.0)]);
        // the first of the file, also where an order by name were another
        let both =
            |first: &str, second: &str| json!({"target_modules": ["q_proj"], "rank_pattern": {first: 2, second: 1}});
        let (one, all) = ("layers.0.self_attn.q_proj", "q_proj");
        assert_eq!(modules(both(one, all)).iter().map(|m| m.2).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!(modules(both(all, one)).iter().map(|m| m.2).collect::<Vec<_>>(), [2, 2, 2]);
        assert_eq!(modules(json!({"lora_alpha": 0}))[0], (0, "q_proj", 4, 0.0), "nothing is added");
        assert_eq!(modules(json!({"rank_pattern": {}, "layers_to_transform": null, "exclude_modules": []})).len(), 6);
    }

    #[test]
    fn what_is_written_says_the_same() {
        for text in [
            json!({}),
            json!({"layers_to_transform": [0, 2], "exclude_modules": ["k_proj"], "use_rslora": true}),
            json!({"target_modules": ".*layers\\.[01]\\..*q_proj", "rank_pattern": {"q_proj": 2}, "use_dora": true}),
            json!({"target_modules": ["layers.2.self_attn.q_proj"], "alpha_pattern": {"q_proj": 2.5}}),
            json!({"init_lora_weights": "pissa"}),
            json!({"rank_pattern": {"q_proj": 2, "layers.0.self_attn.q_proj": 3}, "lora_alpha": 0}),
        ] {
            let read = config(text).unwrap();
            let (again, base) = LoraConfig::parse("c", &read.to_json(Some("b"))).unwrap();
            assert_eq!((again, base.as_deref()), (read.clone(), Some("b")));
            // as it travels
            assert_eq!(LoraConfig::parse("c", &json!(read).to_string()).unwrap(), (read, None));
        }
    }

    #[test]
    fn what_changes_the_result_is_refused_by_name() {
        for (key, value) in [
            ("bias", json!("all")),
            ("peft_type", json!("IA3")),
            ("modules_to_save", json!(["lm_head"])),
            ("trainable_token_indices", json!([1])),
            ("lora_bias", json!(true)),
            ("fan_in_fan_out", json!(true)),
            ("layers_pattern", json!("h")),
            ("init_lora_weights", json!("pissa_niter_16")),
            ("init_lora_weights", json!("loftq")),
            ("r", json!(0)),
            ("rank_pattern", json!({"q_proj": 0})),
            ("rank_pattern", json!("q_proj")),
            ("alpha_pattern", json!({"(q_proj": 2})),
            ("layers_to_transform", json!("0")),
            ("lora_dropout", json!(1.0)),
        ] {
            let error = config(json!({key: value})).unwrap_err();
            assert!(
                error.contains(key) || error.contains("invalid type") || error.contains("pattern:"),
                "{key}: {error}"
            );
        }
        let both = json!({"layers_to_transform": [0], "target_modules": ".*layers\\.[01]\\..*q_proj"});
        assert!(config(both).unwrap_err().contains("layers_to_transform beside"));
        assert!(config(json!({"use_dora": false, "bias": "none", "modules_to_save": [], "loftq_config": {}})).is_ok());
        for (name, init) in [
            ("gaussian", InitLoraWeights::Gaussian),
            ("pissa", InitLoraWeights::Pissa),
            ("OLoRA", InitLoraWeights::Olora),
        ] {
            assert_eq!(config(json!({"init_lora_weights": name})).unwrap().init_lora_weights, init);
        }
    }
}
