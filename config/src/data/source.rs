//! Sources that are mixed, and chats that a program kept.

use serde::{Deserialize, Serialize};

use super::{DataFormat, Formatter};
use crate::Problems;

/// What is taken out of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redact {
    /// Addresses of electronic mail.
    Email,
    /// Telephone numbers: with `+`, or of at least nine digits in groups.
    Phone,
    /// Keys and tokens: of known beginnings (`sk-`, `ghp_`, `AKIA`, ...), private keys, and values of `password=` and the like.
    Key,
}

/// What is taken of chats that were kept by a program: SQLite files and logs of requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatMemory {
    /// Sessions by id or title; `*` stands for anything. Empty: all.
    pub sessions: Vec<String>,
    /// Sessions in which one of these models answered; `*` stands for anything. Empty: all.
    pub models: Vec<String>,
    /// Sessions begun then or later: `2026-01-31`, with a time or without.
    pub since: Option<String>,
    /// Sessions begun before then.
    pub until: Option<String>,
    /// Sessions with fewer messages are left out.
    pub min_messages: u32,
    /// Sessions with fewer characters said are left out.
    pub min_chars: u32,
    /// What is replaced by its name in brackets, `[email]`.
    pub redact: Vec<Redact>,
}

impl Default for ChatMemory {
    fn default() -> Self {
        Self {
            sessions: Vec::new(),
            models: Vec::new(),
            since: None,
            until: None,
            min_messages: 2,
            min_chars: 0,
            redact: vec![Redact::Email, Redact::Phone, Redact::Key],
        }
    }
}

/// One of several files that are mixed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSource {
    /// A file, a folder, or a name on the hub.
    pub path: String,
    /// What it is called in rows and figures; the name of its file without it.
    pub name: Option<String>,
    /// Its share of the rows, against the weights of the others; all sources have one or none has: then it is its rows.
    pub weight: Option<f64>,
    /// Most rows kept of it, drawn by a hash of their prompts; none: all.
    pub max_samples: Option<u64>,
    /// Shape of its rows.
    pub format: DataFormat,
    /// What becomes of its rows; none: as `data.formatter` says.
    pub formatter: Option<Formatter>,
    /// Column that holds the prompt, where it has a name of its own.
    pub prompt_column: Option<String>,
    /// Column that is handed to rewards as `answer`, where it has a name of its own.
    pub answer_column: Option<String>,
}

impl DataSource {
    /// What it is called.
    pub fn title(&self) -> String {
        self.name.clone().unwrap_or_else(|| super::names::title(&self.path))
    }

    pub(super) fn check(&self, p: &mut Problems) {
        p.expect(!self.path.trim().is_empty(), "path", "a file or a folder", "nothing");
        if let Some(weight) = self.weight {
            p.expect(weight.is_finite() && weight > 0.0, "weight", "a number above 0", weight);
        }
        if let Some(rows) = self.max_samples {
            p.expect(rows > 0, "max_samples", "at least 1", rows);
        }
    }
}
