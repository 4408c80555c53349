//! `reward`: the rules that score a completion.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Problems;

/// One rule of the list `reward`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardSpec {
    /// Name of the rule.
    pub name: String,
    /// Weight in the total.
    #[serde(default = "one")]
    pub weight: f64,
    /// Arguments of the rule, by name.
    #[serde(default)]
    pub args: Map<String, Value>,
}

fn one() -> f64 {
    1.0
}

impl RewardSpec {
    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(self.weight.is_finite(), "weight", "a finite number", self.weight);
    }
}
