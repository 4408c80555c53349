//! Standard operating procedures: what somebody's house does in which case, step by step, found by the question that it fits.
//!
//! [`read()`] makes [`Procedure`]s of files, [`Procedures`] holds those that are in force and finds those that fit a question, and
//! [`told`] writes them down for a prompt, within a budget. Nothing here depends on time or order of arrival: the same files and the same
//! question give the same text.
//!
//! A procedure is trusted as a system prompt is: its user wrote it. It is text all the same, in which no added token of a base counts.

mod builtin;
mod memory;
mod questions;
mod read;
mod tell;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use builtin::builtin;
pub use memory::{Found, Procedures};
pub use read::{SopError, read};
pub use tell::{Told, told};

/// Most procedures of a memory.
pub const MAX_PROCEDURES: usize = 1024;
/// Most triggers of a procedure.
pub const MAX_TRIGGERS: usize = 32;
/// Most steps of a procedure.
pub const MAX_STEPS: usize = 64;

/// Whether a procedure is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is, and can be found.
    #[default]
    Active,
    /// Not yet.
    Draft,
    /// Not any more.
    Retired,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Active, Self::Draft, Self::Retired];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draft => "draft",
            Self::Retired => "retired",
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What is done.
    pub action: String,
    /// What is the case afterwards, if all is well; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub expect: String,
}

/// A standard operating procedure. Texts are of one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Procedure {
    /// Names it; unique in its memory, whatever the case of its letters.
    pub name: String,
    /// What it belongs to (`support`, `coding`); may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub category: String,
    /// Whether it is in force.
    #[serde(default)]
    pub status: Status,
    /// In which case it is used, in a sentence; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub when: String,
    /// What questions say that it fits, in words as they would use them.
    pub triggers: Vec<String>,
    /// What is done, in order.
    pub steps: Vec<Step>,
}
