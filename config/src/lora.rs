//! `lora`: the adapter that trains, or all weights without one.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// How the `A` matrices begin; `B` begins at zero, so that a fresh adapter changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitLoraWeights {
    /// Uniform in +-1/sqrt(inputs), as PEFT's default.
    #[default]
    Kaiming,
    /// Normal with deviation 1/r.
    Gaussian,
}

/// Which linears carry an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// `all-linear`, or the name of one linear.
    One(String),
    /// Names of linears (`q_proj`, ...).
    Some(Vec<String>),
}

/// The linears of a decoder layer, by the names of the Hugging Face files.
pub const LINEARS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl TargetModules {
    /// The linears named, in the order of [`LINEARS`]; the error is the name that is no linear.
    pub fn resolve(&self) -> Result<Vec<&'static str>, String> {
        let names: Vec<&str> = match self {
            TargetModules::One(name) if name == "all-linear" => return Ok(LINEARS.to_vec()),
            TargetModules::One(name) => vec![name],
            TargetModules::Some(names) => names.iter().map(String::as_str).collect(),
        };
        match names.iter().find(|name| !LINEARS.contains(name)) {
            Some(unknown) => Err((*unknown).to_owned()),
            None => Ok(LINEARS.into_iter().filter(|name| names.contains(name)).collect()),
        }
    }
}

/// The section `lora`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraSection {
    /// False trains all weights: for small models, in one process.
    pub use_peft: bool,
    /// Rank.
    pub lora_r: u32,
    /// Scale: the update is multiplied by `lora_alpha / lora_r`, or by `lora_alpha / sqrt(lora_r)` with `use_rslora`.
    pub lora_alpha: f64,
    /// Share of the adapter's inputs that is dropped in training.
    pub lora_dropout: f64,
    /// `all-linear`, or a list of names.
    pub lora_target_modules: TargetModules,
    /// Rank-stabilised scale.
    pub use_rslora: bool,
    /// How the `A` matrices begin.
    pub init_lora_weights: InitLoraWeights,
}

impl Default for LoraSection {
    fn default() -> Self {
        Self {
            use_peft: true,
            lora_r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            lora_target_modules: TargetModules::One("all-linear".into()),
            use_rslora: false,
            init_lora_weights: InitLoraWeights::Kaiming,
        }
    }
}

impl LoraSection {
    /// Factor of the adapter's product.
    pub fn scale(&self) -> f64 {
        let r = f64::from(self.lora_r);
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.range("lora_r", 1.0, 1024.0, self.lora_r.into());
        p.expect(self.lora_alpha > 0.0 && self.lora_alpha.is_finite(), "lora_alpha", "above 0", self.lora_alpha);
        p.expect((0.0..1.0).contains(&self.lora_dropout), "lora_dropout", "0 or more and below 1", self.lora_dropout);
        match self.lora_target_modules.resolve() {
            Ok(linears) => p.expect(!linears.is_empty(), "lora_target_modules", "at least one linear", "none"),
            Err(name) => {
                let expected = format!("all-linear or any of {}", LINEARS.join(", "));
                p.expect(false, "lora_target_modules", expected, format!("{name:?}"));
            }
        }
    }
}
