//! Everything that can be wrong with a configuration: each error is a line or lines that name the key and the way out.

use std::fmt;

use crate::Problem;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A path, the name of a preset, or the override as it was typed.
    pub source: String,
    /// Line and column, from 1, where the source is a file.
    pub at: Option<(usize, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some((line, column)) => write!(f, "{}:{line}:{column}", self.source),
            None => f.write_str(&self.source),
        }
    }
}

/// A value that is out of range, and where it was set; no place where the default is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where the key was set.
    pub place: Option<Place>,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.problem),
            None => write!(f, "{} (the default)", self.problem),
        }
    }
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source} (a file, or one of the presets {presets})")]
    Read {
        /// The path as it was given.
        path: String,
        /// Names of the presets.
        presets: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is larger than any configuration.
    #[error("{path}: expected at most {limit} bytes, got {bytes}: not a configuration")]
    TooLarge {
        /// The path as it was given.
        path: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The text is not YAML, or not a mapping of keys to values.
    #[error("{place}: {reason}")]
    Syntax {
        /// Where.
        place: Place,
        /// What is wrong.
        reason: String,
    },
    /// An override without `=` or without a key.
    #[error("{text}: expected key=value, as in rollout.temperature=0.8")]
    Override {
        /// The override as it was typed.
        text: String,
    },
    /// No such key.
    #[error("{place}: unknown key `{key}`{advice}")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key as it was written.
        key: String,
        /// What to write instead, beginning with a separator; empty where nothing is near.
        advice: String,
    },
    /// A bare name that occurs in several sections.
    #[error("{place}: `{key}` is ambiguous: write one of {}", .candidates.join(", "))]
    Ambiguous {
        /// Where.
        place: Place,
        /// The name as it was written.
        key: String,
        /// The full names.
        candidates: Vec<String>,
    },
    /// One source sets a key under two names.
    #[error("{place}: `{key}` is already set, at {first}")]
    SetTwice {
        /// Where.
        place: Place,
        /// Full name of the key.
        key: String,
        /// Where it was set before.
        first: Place,
    },
    /// A value of the wrong type, or an unknown word.
    #[error("{place}: {key}: expected {expected}, got {got}")]
    Wrong {
        /// Where.
        place: Place,
        /// Full name of the key.
        key: String,
        /// What the key takes.
        expected: String,
        /// What it was given.
        got: String,
    },
    /// Values out of range, or that contradict each other: one line each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Refused>),
}
