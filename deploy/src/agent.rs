//! `agent_config.yaml`: what a policy was trained to be spoken to with, beside its weights: system prompt, tools, sampling and the
//! template that turned conversations into text. Each checkpoint and each export holds one.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use folgore_config::{BaseForm, Config, rollout::RolloutSection};
use folgore_protocol::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{policy::Policy, sop::Kept, template::Template};

/// Name of the file.
pub const FILE: &str = "agent_config.yaml";

/// How the policy is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentConfig {
    /// The base, as the user named it.
    pub base_model: String,
    /// How it was held: numbers that are not those of its files are part of the policy.
    pub base_form: BaseForm,
    /// Put before every conversation without a system message of its own.
    pub system_prompt: Option<String>,
    /// Descriptions of tools, as the chat template was given them.
    pub tools: Vec<Value>,
    /// How completions were drawn.
    pub sampling: Sampling,
    /// The chat template, where another one was chosen than the model's own: a name of ours, or its source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// SHA-256 of the chat template; none without one.
    pub chat_template_sha256: Option<String>,
    /// Further variables of the template.
    pub chat_template_kwargs: Map<String, Value>,
    /// Procedures that stood in its prompts, for `folgore generate --sop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub procedures: Option<Kept>,
}

/// How completions were drawn in training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Divides the logits.
    pub temperature: f64,
    /// The smallest set of tokens whose probability reaches this.
    pub top_p: f64,
    /// The likeliest tokens; 0 is all.
    pub top_k: u32,
    /// Least share of the likeliest token.
    pub min_p: f64,
    /// Divides positive and multiplies negative logits of tokens already seen.
    pub repetition_penalty: f64,
    /// Longest prompt, in tokens.
    pub max_prompt_tokens: u32,
    /// Most tokens of a turn.
    pub max_new_tokens: u32,
    /// Texts that end a completion.
    pub stop: Vec<String>,
}

impl From<&RolloutSection> for Sampling {
    fn from(rollout: &RolloutSection) -> Self {
        Self {
            temperature: rollout.temperature,
            top_p: rollout.top_p,
            top_k: rollout.top_k,
            min_p: rollout.min_p,
            repetition_penalty: rollout.repetition_penalty,
            max_prompt_tokens: rollout.max_prompt_length,
            max_new_tokens: rollout.max_completion_length,
            stop: rollout.stop.clone(),
        }
    }
}

/// The digest of a template as it is told.
pub fn template_digest(template: &str) -> String {
    Digest::of(template.as_bytes()).hex()
}

impl AgentConfig {
    /// That of a run of `config` on `policy`.
    ///
    /// # Errors
    /// If a chat template was chosen and is no longer there.
    pub fn new(config: &Config, policy: &Policy, procedures: Option<Kept>) -> Result<Self> {
        let mut variables = config.rollout.chat_template_kwargs.clone();
        let tools = variables.remove("tools");
        Ok(Self {
            base_model: policy.name.clone(),
            base_form: config.model.base_form(),
            system_prompt: config.data.system_prompt.clone(),
            tools: tools.and_then(|tools| tools.as_array().cloned()).unwrap_or_default(),
            sampling: (&config.rollout).into(),
            chat_template: Template::of(&config.model)?.map(|template| template.kept()),
            chat_template_sha256: policy.tokenizer.chat_template().map(template_digest),
            chat_template_kwargs: variables,
            procedures,
        })
    }

    /// The chat template that was chosen.
    pub fn template(&self) -> Option<Template> {
        self.chat_template.as_deref().map(Template::again)
    }

    /// As the text of the file.
    pub fn to_yaml(&self) -> Result<String> {
        serde_norway::to_string(self).context(FILE)
    }

    /// The file in `folder`, if there is one.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_norway::from_str(&text).map(Some).with_context(|| path.display().to_string())
    }

    /// Variables of the template, tools among them.
    pub fn variables(&self) -> Map<String, Value> {
        let mut variables = self.chat_template_kwargs.clone();
        if !self.tools.is_empty() {
            variables.insert("tools".into(), Value::Array(self.tools.clone()));
        }
        variables
    }
}
