//! What makes a run the run it is: resuming with anything else is refused, and the difference shown.

use std::{collections::BTreeMap, fmt};

/// Named facts about a run that may not change while it lives (digests, seeds, group size, algorithm).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunIdentity(BTreeMap<String, String>);

/// One fact that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Name of the fact.
    pub name: String,
    /// What the run began with; none: it did not say.
    pub recorded: Option<String>,
    /// What it is asked to go on with; none: not said now.
    pub given: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(f, "{}: began with {}, now {}", self.name, show(&self.recorded), show(&self.given))
    }
}

impl RunIdentity {
    /// No facts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the fact `name`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.0.insert(name.to_owned(), value.to_string());
        self
    }

    /// The facts, by name.
    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Takes recorded facts.
    pub fn from_facts(facts: BTreeMap<String, String>) -> Self {
        Self(facts)
    }

    /// What differs between the recorded `self` and `given`, by name; empty if nothing does.
    pub fn compare(&self, given: &Self) -> Vec<Difference> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(given.0.keys()).collect();
        let differences = names.into_iter().map(|name| Difference {
            name: name.clone(),
            recorded: self.0.get(name).cloned(),
            given: given.0.get(name).cloned(),
        });
        differences.filter(|d| d.recorded != d.given).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_with_both_values() {
        let began = RunIdentity::new().with("seed", 1).with("tokenizer", "aa");
        let now = RunIdentity::new().with("seed", 2).with("tokenizer", "aa").with("dataset", "cc");
        let shown: Vec<String> = began.compare(&now).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["dataset: began with nothing, now cc", "seed: began with 1, now 2"]);
        assert!(began.compare(&began.clone()).is_empty());
    }
}
