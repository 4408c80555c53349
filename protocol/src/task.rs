//! What a policy is asked: one row of a dataset in the form that environments and rewards read.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One message of a conversation, with the keys of the OpenAI chat shape; unknown keys are kept for the template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, ...
    pub role: String,
    /// The text; empty where a message only carries tool calls.
    #[serde(default)]
    pub content: String,
    /// Every other key (`name`, `tool_calls`, `reasoning_content`, ...), as it came.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of `role` saying `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

/// How the question is put.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Plain text, encoded as it stands, without a chat template.
    Text(String),
    /// A conversation, rendered by the model's chat template with a generation prompt.
    Messages(Vec<Message>),
}

impl Prompt {
    /// The last thing the user said, or the whole text: for titles and logs.
    pub fn last_text(&self) -> &str {
        match self {
            Prompt::Text(text) => text,
            Prompt::Messages(messages) => messages.last().map_or("", |m| &m.content),
        }
    }
}

/// One question with everything a reward may want to know about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Unique within its dataset; names the row in errors and logs.
    pub id: String,
    /// The question.
    pub prompt: Prompt,
    /// All other columns of the row, by name (`answer`, `ground_truth`, ...): what rewards are given.
    #[serde(default)]
    pub columns: Map<String, Value>,
}
