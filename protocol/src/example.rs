//! What a policy is to imitate: one row of a dataset for supervised training.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::task::Message;

/// One row to be imitated, with what is learnt of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Unique within its dataset; names the row in errors and logs.
    pub id: String,
    /// Name of the source that it came from, for what is told by source.
    pub source: String,
    /// What was said.
    pub body: Body,
    /// All other columns of the row, by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub columns: Map<String, Value>,
}

/// The form in which an example was said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// Plain text, all of it learnt.
    Text {
        /// The text.
        text: String,
    },
    /// Plain text that goes on: the completion is learnt.
    Completion {
        /// What is given.
        prompt: String,
        /// What is said to it.
        completion: String,
    },
    /// A conversation, rendered by a chat template.
    Conversation {
        /// All messages, in order; reasoning, tool calls and their results as their keys say (see [`Message::extra`]).
        messages: Vec<Message>,
        /// By message: true where it is learnt. Only messages of the assistant are; a row may take some of them out.
        learnt: Vec<bool>,
        /// Functions that the assistant may call, as JSON schemas, for the template.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tools: Vec<Value>,
    },
}

impl Body {
    /// A conversation of which every message of the assistant is learnt.
    pub fn conversation(messages: Vec<Message>, tools: Vec<Value>) -> Self {
        let learnt = messages.iter().map(|message| message.role == "assistant").collect();
        Body::Conversation { messages, learnt, tools }
    }

    /// True if nothing of it is learnt.
    pub fn teaches_nothing(&self) -> bool {
        match self {
            Body::Text { text } => text.is_empty(),
            Body::Completion { completion, .. } => completion.is_empty(),
            Body::Conversation { learnt, .. } => !learnt.contains(&true),
        }
    }
}
