//! `dapo_math`: `Answer: ...` near the end, compared as normalised text, +1 or -1.
//!
//! The normalisation is that of Minerva (Lewkowycz et al. 2022, appendix on answer extraction), as DAPO uses it: units and
//! LaTeX layout fall away, short fractions and roots get their braces. The metric `acc` (0 or 1) is what DAPO filters groups by.

use std::sync::LazyLock;

use folgore_protocol::{Outcome, ScoreItem};
use regex::Regex;
use serde::Deserialize;

use super::scored_with;
use crate::{Rule, columns, extract, text};

static ANSWER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)answer\s*:\s*([^\n]+)").expect("a constant pattern"));
static MATHS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\$([^$]*)\$").expect("a constant pattern"));
static WRAPPER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\\(?:text|textbf|overline|boxed)\{([^{}]*)\}").expect("a constant pattern"));
static SHORT_FRACTION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\\?frac([^{}\\])([^{}\\])").expect("a constant pattern"));
static SHORT_ROOT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\\?sqrt([^{}\[\\])").expect("a constant pattern"));

/// Words and marks that say nothing about the value.
const SILENT: &[&str] = &[
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "hours",
    "km",
    "units",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "children",
    "tickets",
    "multiples",
    r"\ldots",
    r"\dots",
    r"\text{s}",
    r"\text{.}",
    r"\text{m}",
    r"\text{}^2",
    r"\text{}^3",
    r"\text{}",
    r"\mathrm{th}",
    r"^\circ",
    r"^{\circ}",
    r"\;",
    r"\!",
    r"{,}",
    "\"",
];

/// Arguments of `dapo_math`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Column of the right answer; unset: `answer`, else `ground_truth`.
    pub column: Option<String>,
    /// Characters at the end of the completion that are looked at.
    pub tail_chars: usize,
}

impl Default for Args {
    fn default() -> Self {
        Self { column: None, tail_chars: 300 }
    }
}

/// The rule.
pub struct DapoMath(Args);

impl DapoMath {
    /// Checks `args`; the error names the argument.
    pub fn new(args: Args) -> Result<Self, String> {
        if args.tail_chars == 0 {
            return Err("tail_chars: expected at least 1, got 0".into());
        }
        Ok(Self(args))
    }
}

/// The text of an answer in the form that is compared.
fn normal(answer: &str) -> String {
    let mut out = answer.rsplit('=').next().unwrap_or(answer).replace("mbox", "text");
    for article in ["an ", "a "] {
        out = out.replace(article, "");
    }
    out = out.replace(".$", "$").replace(r"\$", "").replace(r"\ ", "").replace(' ', "");
    for and in [r",\text{and}", r"\text{and}"] {
        out = out.replace(and, ",");
    }
    for silent in SILENT {
        out = out.replace(silent, "");
    }
    if let Some(maths) = MATHS.captures(&out) {
        out = maths[1].to_owned();
    }
    out = WRAPPER.replace_all(&out, "$1").into_owned();
    out = SHORT_FRACTION.replace_all(&out, r"\frac{$1}{$2}").into_owned();
    out = SHORT_ROOT.replace_all(&out, r"\sqrt{$1}").into_owned();
    out.retain(|c| c != '$');
    let digits: String = out.chars().filter(|c| *c != ',').collect();
    let whole = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
    if whole { digits } else { out.trim().to_owned() }
}

impl Rule for DapoMath {
    fn name(&self) -> &str {
        "dapo_math"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let gold = match columns::gold_texts(item, self.0.column.as_deref()) {
            Ok(gold) => gold,
            Err(reason) => return Outcome::Unscorable { reason },
        };
        let gold: Vec<String> = gold.iter().map(|g| normal(extract::boxed(g).answer.unwrap_or(g))).collect();
        if let Some(place) = gold.iter().position(String::is_empty) {
            return Outcome::Unscorable { reason: format!("right answer {}: nothing is left of it", place + 1) };
        }
        let tail = text::tail_chars(&item.completion, self.0.tail_chars);
        let stated = ANSWER.captures_iter(tail).last().map(|found| normal(&found[1]));
        let correct = stated.as_ref().is_some_and(|answer| gold.contains(answer));
        let (value, acc) = if correct { (1.0, 1.0) } else { (-1.0, 0.0) };
        scored_with("dapo_math", value, &[("acc", acc)]).with_answer(stated.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples::{item, total, unscorable};

    #[test]
    fn the_last_answer_line_decides_between_plus_and_minus_one() {
        let rule = DapoMath::new(Args::default()).unwrap();
        for (text, gold, want) in [
            ("Answer: 34", "34", 1.0),
            ("answer :  $34$.", "34", 1.0),
            ("ANSWER: $34$", "34", 1.0),
            ("Answer: 33\nAnswer: 34", "34", 1.0),
            ("Answer: 34\nAnswer: 33", "34", -1.0),
            ("Answer: 1,234", "1234", 1.0),
            ("Answer: x = 34", "34", 1.0),
            (r"Answer: \boxed{34}", "34", 1.0),
            (r"Answer: $\frac12$", r"\frac{1}{2}", 1.0),
            (r"Answer: \sqrt2", r"\sqrt{2}", 1.0),
            ("Answer: 12 cm", "12", 1.0),
            (r"Answer: 90^\circ", "90", 1.0),
            (r"Answer: 12\text{ meters}", "12", 1.0),
            ("34", "34", -1.0),
            ("Answer:", "34", -1.0),
            ("Answer: 0.5", r"\frac{1}{2}", -1.0),
        ] {
            let outcome = rule.score(&item(text, &[("answer", json!(gold))]));
            assert_eq!(total(&outcome), want, "{text:?} for {gold:?}");
            let Outcome::Scored { parts, .. } = outcome else { panic!() };
            assert_eq!((parts[1].name.as_str(), parts[1].value, parts[1].weight), ("acc", f64::max(want, 0.0), 0.0));
        }
        let far = format!("Answer: 34{}", "\n".repeat(300));
        assert_eq!(total(&rule.score(&item(&far, &[("answer", json!("34"))]))), -1.0, "not in the tail");
    }

    #[test]
    fn an_empty_right_answer_is_not_scored() {
        let rule = DapoMath::new(Args::default()).unwrap();
        unscorable(rule.score(&item("Answer: 1", &[("answer", json!("$ $"))])));
        unscorable(rule.score(&item("Answer: 1", &[])));
    }
}
