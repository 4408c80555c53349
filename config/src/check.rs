//! Collects what is wrong with a tree of values, so that a user mends a file once and not key by key.

use std::fmt::Display;

/// A value outside its range, or two values that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Full name of the key, `rollout.temperature`.
    pub key: String,
    /// What the key takes, in words.
    pub expected: String,
    /// What it was given.
    pub got: String,
}

impl Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: expected {}, got {}", self.key, self.expected, self.got)
    }
}

/// What the sections say about themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    section: &'static str,
    /// Reasons not to start.
    pub errors: Vec<Problem>,
    /// Settings that work and are seldom meant; one sentence each, with the key in front.
    pub warnings: Vec<String>,
}

impl Problems {
    /// Names the section that the next keys belong to; the empty name takes keys as they are.
    pub fn section(&mut self, name: &'static str) -> &mut Self {
        self.section = name;
        self
    }

    /// Notes an error unless `ok`. `key` is relative to the section.
    pub fn expect(&mut self, ok: bool, key: &str, expected: impl Into<String>, got: impl Display) {
        if !ok {
            self.errors.push(Problem { key: self.full(key), expected: expected.into(), got: got.to_string() });
        }
    }

    /// Notes an error unless `got` is in `low..=high`; not-a-number is never in it.
    pub fn range(&mut self, key: &str, low: f64, high: f64, got: f64) {
        self.expect((low..=high).contains(&got), key, format!("{low} to {high}"), got);
    }

    /// Notes a warning if `when`.
    pub fn warn(&mut self, when: bool, key: &str, text: impl Display) {
        if when {
            self.warnings.push(format!("{}: {text}", self.full(key)));
        }
    }

    /// Takes over what `inner` noted about the item called `name`.
    pub(crate) fn nest(&mut self, name: &str, inner: Problems) {
        let errors = inner.errors.into_iter().map(|p| Problem { key: format!("{name}.{}", p.key), ..p });
        self.errors.extend(errors);
        self.warnings.extend(inner.warnings.into_iter().map(|text| format!("{name}.{text}")));
    }

    fn full(&self, key: &str) -> String {
        if self.section.is_empty() { key.to_owned() } else { format!("{}.{key}", self.section) }
    }
}
