//! `optim`: the optimiser and its schedule.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedulerType {
    /// It stays.
    #[default]
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// In a straight line towards 0.
    Linear,
    /// Along half a cosine towards 0.
    Cosine,
}

/// How the optimiser keeps its two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OptimizerName {
    /// In f32: eight bytes for each trained weight.
    #[default]
    #[serde(rename = "adamw_torch", alias = "adamw", alias = "adamw_hf", alias = "adamw_torch_fused")]
    AdamwTorch,
    /// In codes of eight bits, those of tensors of 4096 weights and more: about two bytes for each. A first moment is off by at most
    /// 0.7 % of the largest of its 256 neighbours after each update, a second one by at most 0.35 %.
    #[serde(rename = "adamw_8bit", alias = "adamw_bnb_8bit", alias = "paged_adamw_8bit")]
    Adamw8bit,
}

impl std::fmt::Display for OptimizerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AdamwTorch => "adamw_torch",
            Self::Adamw8bit => "adamw_8bit",
        })
    }
}

/// The section `optim`: AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimSection {
    /// Steps of the run: batches that are trained on.
    pub max_steps: u64,
    /// Passes over all questions, which take the place of `max_steps` where they are set.
    pub num_train_epochs: Option<f64>,
    /// Tokens that one forward and backward pass holds at most, a prompt that samples share counted once, or one row where a row is
    /// longer: bounds the memory of activations. The result of a step depends on it by less than a millionth.
    pub max_tokens_per_micro_batch: u32,
    /// The optimiser. A run goes on with the one that it began with.
    pub optim: OptimizerName,
    /// Learning rate after the warm-up. The default suits an adapter; for all weights a tenth is usual.
    pub learning_rate: f64,
    /// Decay of the mean of gradients.
    pub adam_beta1: f64,
    /// Decay of the mean of squared gradients.
    pub adam_beta2: f64,
    /// Added to the root of the latter.
    pub adam_epsilon: f64,
    /// Share of the learning rate by which weights shrink in each update, apart from the gradient.
    pub weight_decay: f64,
    /// Longest gradient; a longer one is shortened to it. 0: as long as it likes.
    pub max_grad_norm: f64,
    /// Updates over which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// The same as a share of all updates; `warmup_steps` wins where it is above 0.
    pub warmup_ratio: f64,
    /// What the learning rate does after the warm-up.
    pub lr_scheduler_type: LrSchedulerType,
}

impl Default for OptimSection {
    fn default() -> Self {
        Self {
            max_steps: 40,
            num_train_epochs: None,
            max_tokens_per_micro_batch: 8192,
            optim: OptimizerName::AdamwTorch,
            learning_rate: 1e-5,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            warmup_steps: 0,
            warmup_ratio: 0.0,
            lr_scheduler_type: LrSchedulerType::Constant,
        }
    }
}

impl OptimSection {
    /// Checks ranges; the error names the first key, what it takes and what it was given.
    pub fn validate(&self) -> Result<(), String> {
        let mut problems = Problems::default();
        self.check(problems.section("optim"));
        problems.errors.first().map_or(Ok(()), |p| Err(p.to_string()))
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(self.max_steps > 0, "max_steps", "at least 1", self.max_steps);
        if let Some(epochs) = self.num_train_epochs {
            p.expect(epochs > 0.0 && epochs.is_finite(), "num_train_epochs", "a number above 0", epochs);
        }
        let tokens = self.max_tokens_per_micro_batch;
        p.expect(tokens > 0, "max_tokens_per_micro_batch", "at least 1 token", tokens);
        // 0 is allowed: it is the control run that must not learn.
        p.range("learning_rate", 0.0, 1.0, self.learning_rate);
        let share = |x: f64| (0.0..1.0).contains(&x);
        p.expect(share(self.adam_beta1), "adam_beta1", "0 or more and below 1", self.adam_beta1);
        p.expect(share(self.adam_beta2), "adam_beta2", "0 or more and below 1", self.adam_beta2);
        let epsilon = self.adam_epsilon;
        p.expect(epsilon > 0.0 && epsilon.is_finite(), "adam_epsilon", "a number above 0", epsilon);
        p.range("weight_decay", 0.0, 1.0, self.weight_decay);
        let norm = self.max_grad_norm;
        p.expect(norm >= 0.0 && norm.is_finite(), "max_grad_norm", "0 or more", norm);
        p.range("warmup_ratio", 0.0, 1.0, self.warmup_ratio);
        p.warn(self.learning_rate == 0.0, "learning_rate", "0 trains nothing: this is a control run");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_named_with_its_key() {
        let base = OptimSection::default;
        assert_eq!(base().validate(), Ok(()));
        for (bad, key) in [
            (OptimSection { max_steps: 0, ..base() }, "optim.max_steps"),
            (OptimSection { learning_rate: -1.0, ..base() }, "optim.learning_rate"),
            (OptimSection { learning_rate: f64::NAN, ..base() }, "optim.learning_rate"),
            (OptimSection { adam_beta2: 1.0, ..base() }, "optim.adam_beta2"),
            (OptimSection { adam_epsilon: 0.0, ..base() }, "optim.adam_epsilon"),
            (OptimSection { max_grad_norm: f64::INFINITY, ..base() }, "optim.max_grad_norm"),
            (OptimSection { warmup_ratio: 1.5, ..base() }, "optim.warmup_ratio"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(key), "{error:?} does not begin with {key:?}");
        }
        let cosine: OptimSection = serde_norway::from_str("lr_scheduler_type: cosine").unwrap();
        assert_eq!(cosine.lr_scheduler_type, LrSchedulerType::Cosine);
        for (written, name) in [("adamw_torch_fused", "adamw_torch"), ("paged_adamw_8bit", "adamw_8bit")] {
            let section: OptimSection = serde_norway::from_str(&format!("optim: {written}")).unwrap();
            assert_eq!(section.optim.to_string(), name);
            assert_eq!(serde_json::to_value(section.optim).unwrap(), name);
        }
    }
}
