//! The embedded policies: three small decoders, compiled into the executable, with habits that were planted for reinforcement to
//! select from.
//!
//! Their files in `deploy/embedded/` are made by `folgore make-base` from the recipes in this folder and nothing else: no
//! foreign weights.

mod arithmetic;
mod files;
mod search;

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use folgore_learner::pretrain::{Lesson, PretrainSettings, pretrain};
use folgore_model::{ModelConfig, backend::Cpu, decoder::Decoder, files::ModelFiles, tokenizer::Tokenizer};
use serde_json::Value;

/// One of the embedded policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Embedded {
    /// Adds numbers badly.
    Arithmetic,
    /// Seldom searches before it answers.
    Search,
    /// Adds single columns well, and hardly ever takes a carry along.
    Carries,
}

/// The files of one policy.
struct Compiled {
    weights: &'static [u8],
    config: &'static str,
    tokenizer: &'static str,
    tokenizer_config: &'static str,
}

const ARITHMETIC: Compiled = Compiled {
    weights: include_bytes!("../../embedded/arithmetic/model.safetensors"),
    config: include_str!("../../embedded/arithmetic/config.json"),
    tokenizer: include_str!("../../embedded/arithmetic/tokenizer.json"),
    tokenizer_config: include_str!("../../embedded/arithmetic/tokenizer_config.json"),
};

const SEARCH: Compiled = Compiled {
    weights: include_bytes!("../../embedded/search/model.safetensors"),
    config: include_str!("../../embedded/search/config.json"),
    tokenizer: include_str!("../../embedded/search/tokenizer.json"),
    tokenizer_config: include_str!("../../embedded/search/tokenizer_config.json"),
};

/// It has the words of the one that adds.
const CARRIES: Compiled = Compiled {
    weights: include_bytes!("../../embedded/carries/model.safetensors"),
    config: include_str!("../../embedded/carries/config.json"),
    tokenizer: include_str!("../../embedded/carries/tokenizer.json"),
    tokenizer_config: include_str!("../../embedded/carries/tokenizer_config.json"),
};

/// The name of the policy that adds, which is also what [`folgore_config::ModelSection`] begins with.
pub const NAME: &str = folgore_config::model::EMBEDDED;

impl Embedded {
    /// The policy that the configuration calls `name`.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Arithmetic, Self::Search, Self::Carries].into_iter().find(|policy| policy.name() == name)
    }

    /// What the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arithmetic => NAME,
            Self::Search => folgore_config::model::EMBEDDED_SEARCH,
            Self::Carries => folgore_config::model::EMBEDDED_CARRIES,
        }
    }

    /// Where its files lie in the repository.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Arithmetic => "deploy/embedded/arithmetic",
            Self::Search => "deploy/embedded/search",
            Self::Carries => "deploy/embedded/carries",
        }
    }

    /// Its files.
    pub fn files(self) -> Result<ModelFiles> {
        let c = match self {
            Self::Arithmetic => &ARITHMETIC,
            Self::Search => &SEARCH,
            Self::Carries => &CARRIES,
        };
        ModelFiles::from_memory(self.name(), c.weights, c.config, c.tokenizer, c.tokenizer_config, "")
            .with_context(|| format!("policy {}", self.name()))
    }

    fn recipe(self) -> Result<Recipe> {
        match self {
            Self::Arithmetic => arithmetic::recipe(),
            Self::Search => search::recipe(),
            Self::Carries => arithmetic::recipe_of_carries(),
        }
    }

    /// Makes the policy and writes its files into `folder`; `steps` in place of the recipe's number of updates.
    pub fn make(self, folder: &Path, steps: Option<u64>, mut say: impl FnMut(String)) -> Result<()> {
        let recipe = self.recipe()?;
        let settings = PretrainSettings { steps: steps.unwrap_or(recipe.settings.steps), ..recipe.settings };
        let teach = (recipe.lessons)(settings.steps);
        let begin = Instant::now();
        let values = pretrain(Arc::new(Cpu::new()), &recipe.config, &settings, teach, |p, decoder| {
            if p.step == 1 || p.step.is_multiple_of(50) || p.step == settings.steps {
                let speed = p.tokens as f64 / begin.elapsed().as_secs_f64();
                let (step, steps) = (p.step, settings.steps);
                say(format!(
                    "step {step:>5}/{steps}  loss {:.4}  grad_norm {:.3}  {speed:.0} tokens/s",
                    p.loss, p.grad_norm
                ));
            }
            if p.step.is_multiple_of((settings.steps / LOOKS).max(1))
                && let Some(skill) = (recipe.skill)(decoder)
            {
                say(skill);
            }
        })?;
        files::write(folder, &recipe.config, &recipe.tokenizer_json, &recipe.tokenizer_config, values)
    }
}

/// How often the skill is looked at while a policy is made.
const LOOKS: u64 = 12;

/// What a policy can do so far, in a line; none where the loss says enough.
type Skill = Box<dyn Fn(&Decoder<Cpu>) -> Option<String>>;
/// Lesson number `i` of so many updates.
type Lessons = Box<dyn Fn(u64) -> Lesson>;

/// How a policy is made.
struct Recipe {
    config: ModelConfig,
    tokenizer_json: Value,
    tokenizer_config: Value,
    settings: PretrainSettings,
    /// The lessons of a training of that many updates.
    lessons: Box<dyn FnOnce(u64) -> Lessons>,
    skill: Skill,
}

impl Recipe {
    /// The tokenizer of `json` and `config`.
    fn tokenizer(name: &str, json: &Value, config: &Value) -> Result<Tokenizer> {
        Ok(Tokenizer::from_json(name, &json.to_string(), &config.to_string(), None)?)
    }
}
