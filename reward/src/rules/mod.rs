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
        Outcome::Scored { total, mut parts, answer } => {
            parts.extend(metrics.iter().map(|(name, value)| Part {
                name: (*name).to_owned(),
                value: *value,
                weight: 0.0,
            }));
            Outcome::Scored { total, parts, answer }
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

#[cfg(test)]
mod tests {
    use folgore_config::RewardSpec;
    use folgore_protocol::{Scope, ScoreRequest};
    use serde_json::json;

    use super::*;
    use crate::{build, samples::item};

    async fn answer(rule: &str, completion: &str, gold: &str) -> Option<String> {
        let mut spec = RewardSpec::held(rule);
        if rule == "length" {
            spec.args.insert("cap".into(), json!(10));
        }
        let columns = [("answer", json!(gold)), ("golden_answers", json!([gold]))];
        let request = ScoreRequest { items: vec![item(completion, &columns)], budget_ms: 1000, scope: Scope::Sample };
        match build(&[spec]).unwrap().score(&request).await.remove(0) {
            Outcome::Scored { answer, .. } => answer,
            other => panic!("{rule}: {other:?}"),
        }
    }

    #[tokio::test]
    async fn rules_that_compare_answers_tell_what_they_read() {
        for (rule, completion, gold, want) in [
            ("exact_match", " 7 ", "8", Some("7")),
            ("gsm8k", "#### $1,234.", "7", Some("1234")),
            ("gsm8k", "seven", "7", Some("")),
            ("dapo_math", "Answer: 12 cm", "7", Some("12")),
            ("dapo_math", "12", "7", Some("")),
            ("numeric", "so 1,200.50", "7", Some("2401/2")),
            ("numeric", "so many", "7", Some("")),
            ("math", r"\boxed{\frac{2}{4}}", "7", Some("1/2")),
            ("math", r"\boxed{0.3333333}", "1/3", Some("1/3")), // what counts as right is one answer
            ("math", r"\boxed{ (( }", "7", Some("((")),
            ("math", "1/2", "7", Some("")),
            ("search_em", "<answer>The Beatles!</answer>", "x", Some("beatles")),
            ("search_f1", "The Beatles", "x", Some("")),
            ("length", "7", "7", None),
            ("think_format", "<think></think>7", "7", None),
        ] {
            assert_eq!(answer(rule, completion, gold).await.as_deref(), want, "{rule}: {completion}");
        }
    }
}
