//! The built-in rules, one per file. Each has a struct of arguments with defaults that refuses unknown keys; its name in
//! the configuration is that of its file.

pub mod countdown;
pub mod dapo_math;
pub mod exact_match;
pub mod gsm8k;
pub mod length;
pub mod math;
pub mod numeric;
pub mod search_em;
pub mod search_f1;
pub mod search_format;
pub mod search_subem;
pub mod soft_overlong_punishment;
pub mod think_format;

use folgore_protocol::{Outcome, Part};

/// A score of `name` with metrics beside it, which are shown and not counted.
pub(crate) fn scored_with(name: &str, value: f64, metrics: &[(&str, f64)]) -> Outcome {
    match Outcome::scored(name, value) {
        Outcome::Scored { total, mut parts } => {
            parts.extend(metrics.iter().map(|(name, value)| Part {
                name: (*name).to_owned(),
                value: *value,
                weight: 0.0,
            }));
            Outcome::Scored { total, parts }
        }
        other => other,
    }
}

/// Checks that arguments are finite numbers; the error names the first that is not.
pub(crate) fn expect_finite(arguments: &[(&str, f64)]) -> Result<(), String> {
    match arguments.iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(format!("{name}: expected a finite number, got {value}")),
        None => Ok(()),
    }
}

/// Checks that a tag is a plain name.
pub(crate) fn expect_tag(name: &str, tag: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !tag.is_empty() && tag.chars().all(plain) {
        Ok(())
    } else {
        Err(format!("{name}: expected a tag of letters, digits, - and _ without brackets, got {tag:?}"))
    }
}
