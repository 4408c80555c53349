//! Why a dataset is not usable: each error names the file, the row and the field, and the way out.

use std::fmt;

use crate::rows::Container;

/// A row that cannot be read as a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// Number of the row in its file, from 1; blank lines do not count.
    pub row: u64,
    /// Line of the file, from 1, where rows are lines.
    pub line: Option<u64>,
    /// The field, or none where the row as a whole is at fault.
    pub field: Option<String>,
    /// What it takes.
    pub expected: String,
    /// What it holds.
    pub got: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {}", self.row)?;
        if let Some(line) = self.line {
            write!(f, " (line {line})")?;
        }
        if let Some(field) = &self.field {
            write!(f, ", field `{field}`")?;
        }
        write!(f, ": expected {}, got {}", self.expected, self.got)
    }
}

/// Why there is nothing to train on.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The file cannot be read.
    #[error(
        "{path}: cannot be read: {source} (data.dataset is a file of rows, a folder of them, or one of {procedural})"
    )]
    Read {
        /// The path.
        path: String,
        /// Names of the procedural tasks.
        procedural: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is laid out otherwise than it says.
    #[error("{path}: cannot be read as {container}: {reason}")]
    Container {
        /// The path.
        path: String,
        /// How its rows seemed to be laid out.
        container: Container,
        /// What is wrong.
        reason: String,
    },
    /// It is a name on the hub, where somebody should have made a path of it.
    #[error(
        "{name}: no such file or folder, and this is no place where names on the hub are taken: `hf download --repo-type dataset {name} \
         --local-dir FOLDER`, and name that folder"
    )]
    OnTheHub {
        /// The name.
        name: String,
    },
    /// Sources that cannot be mixed.
    #[error("data.sources: {0}")]
    Mix(String),
    /// Passages that are asked for and not there.
    #[error("data.rag_share: {0}")]
    Rag(String),
    /// The text is not JSON at all.
    #[error("{path}: expected JSON (an array of rows, or one row on each line): {reason}")]
    Json {
        /// The path.
        path: String,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A JSON array is read as a whole and is too large for it.
    #[error(
        "{path}: a JSON array of {bytes} bytes is over the limit of {limit}: write one row on each line instead (JSONL)"
    )]
    TooLarge {
        /// The path.
        path: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The rows have none of the known shapes.
    #[error(
        "{path}: no known shape of row: expected `prompt` or `messages` among the fields (or those of another data.format), got {fields}{hint}"
    )]
    UnknownFormat {
        /// The path.
        path: String,
        /// The fields that rows have.
        fields: String,
        /// What to set, beginning with a separator; empty where nothing can be guessed.
        hint: String,
    },
    /// A row is bad, and the policy is to stop.
    #[error("{path}: {row}; data.on_bad_row=skip leaves such rows out")]
    BadRow {
        /// The path.
        path: String,
        /// Which row, and why.
        row: BadRow,
    },
    /// No row is left.
    #[error(
        "{path}: expected at least one usable row, got none of {rows}{first}; fill it, or set data.dataset to another file"
    )]
    Empty {
        /// The path.
        path: String,
        /// Rows in the file.
        rows: u64,
        /// The first bad row, beginning with a separator; empty if there is none.
        first: String,
    },
    /// All rows fall on one side.
    #[error("{path}: no row is left to train on: {why}")]
    NothingToTrain {
        /// The path.
        path: String,
        /// Where the rows went.
        why: String,
    },
    /// A rule that makes no question at this difficulty.
    #[error("data.{name}: no {side} question was found at this difficulty: {advice}")]
    NoQuestion {
        /// Name of the procedural task.
        name: &'static str,
        /// `training` or `held-out`.
        side: &'static str,
        /// What to change.
        advice: &'static str,
    },
}
