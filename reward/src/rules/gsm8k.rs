//! `gsm8k`: the number after `####`, compared as text, as verl's `utils/reward_score/gsm8k.py` does.
//!
//! Strict: the last `#### n` in the tail of the completion. Flexible: the last number anywhere.

use std::sync::LazyLock;

use folgore_protocol::{Outcome, ScoreItem};
use regex::Regex;
use serde::Deserialize;

use super::{expect_finite, scored_with};
use crate::{Rule, columns, text};

static STATED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"#### *(-?\$?[0-9.,]+)").expect("a constant pattern"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"-?\$?[0-9][0-9.,]*").expect("a constant pattern"));

/// What counts as a stated answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The last `#### n` in the tail.
    Strict,
    /// The last number anywhere.
    Flexible,
}

/// Arguments of `gsm8k`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Column of the right answer, with or without its working before `####`; unset: `answer`, else `ground_truth`.
    pub column: Option<String>,
    /// What counts as a stated answer.
    pub method: Method,
    /// Characters at the end of the completion that `strict` looks at.
    pub tail_chars: usize,
    /// Score of a right answer.
    pub correct_score: f64,
    /// Score of a wrong answer in good form.
    pub format_score: f64,
}

impl Default for Args {
    fn default() -> Self {
        Self { column: None, method: Method::Strict, tail_chars: 300, correct_score: 1.0, format_score: 0.0 }
    }
}

/// The rule.
pub struct Gsm8k(Args);

impl Gsm8k {
    /// Checks `args`; the error names the argument.
    pub fn new(args: Args) -> Result<Self, String> {
        expect_finite(&[("correct_score", args.correct_score), ("format_score", args.format_score)])?;
        if args.tail_chars == 0 {
            return Err("tail_chars: expected at least 1, got 0".into());
        }
        Ok(Self(args))
    }

    fn stated(&self, completion: &str) -> Option<String> {
        let last = match self.0.method {
            Method::Strict => {
                let tail = text::tail_chars(completion, self.0.tail_chars);
                STATED.captures_iter(tail).last().and_then(|found| found.get(1))
            }
            Method::Flexible => NUMBER.find_iter(text::tail_bytes(completion, text::MAX_COMPLETION_BYTES)).last(),
        };
        last.map(|number| bare(number.as_str())).filter(|number| !number.is_empty())
    }
}

/// The number without commas, `$` and the full stop of its sentence.
fn bare(number: &str) -> String {
    number.chars().filter(|c| !matches!(c, ',' | '$')).collect::<String>().trim().trim_end_matches('.').to_owned()
}

/// The right answer, if it is a number.
fn gold_number(text: &str) -> Result<String, String> {
    let gold = bare(text.rsplit_once("####").map_or(text, |(_, answer)| answer));
    let digits = gold.chars().any(|c| c.is_ascii_digit());
    if digits && gold.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | '.')) {
        Ok(gold)
    } else {
        Err(format!("right answer: expected a number, got {:?}", text.chars().take(80).collect::<String>()))
    }
}

impl Rule for Gsm8k {
    fn name(&self) -> &str {
        "gsm8k"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let gold = columns::gold_texts(item, self.0.column.as_deref())
            .and_then(|texts| texts.iter().map(|text| gold_number(text)).collect::<Result<Vec<_>, _>>());
        let gold = match gold {
            Ok(gold) => gold,
            Err(reason) => return Outcome::Unscorable { reason },
        };
        let stated = self.stated(&item.completion);
        let outcome = match &stated {
            None => scored_with("gsm8k", 0.0, &[("no_answer", 1.0)]),
            Some(answer) if gold.contains(answer) => Outcome::scored("gsm8k", self.0.correct_score),
            Some(_) => Outcome::scored("gsm8k", self.0.format_score),
        };
        outcome.with_answer(stated.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples::{item, total, unscorable};

    fn score(method: Method, text: &str, gold: &str) -> f64 {
        let rule = Gsm8k::new(Args { method, format_score: 0.1, ..Args::default() }).unwrap();
        total(&rule.score(&item(text, &[("answer", json!(gold))])))
    }

    #[test]
    fn strict_wants_hashes_near_the_end() {
        let strict = |text: &str, gold: &str| score(Method::Strict, text, gold);
        assert_eq!(strict("so\n#### 1,234", "2*617=1234\n#### 1234"), 1.0);
        assert_eq!(strict("#### 1 #### 2", "2"), 1.0);
        assert_eq!(strict("#### 2 #### 1", "2"), 0.1);
        assert_eq!(strict("#### -$5.", "-5"), 1.0);
        assert_eq!(strict("#### 5.0", "5"), 0.1, "compared as text");
        assert_eq!(strict("the answer is 2", "2"), 0.0);
        assert_eq!(strict(&format!("#### 2{}", " ".repeat(300)), "2"), 0.0, "not in the tail");
    }

    #[test]
    fn flexible_takes_the_last_number_anywhere() {
        let flexible = |text: &str, gold: &str| score(Method::Flexible, text, gold);
        assert_eq!(flexible("from 3 we get $1,250.", "1250"), 1.0);
        assert_eq!(flexible("2, not 3", "2"), 0.1);
        assert_eq!(flexible("2 . , .", "2"), 1.0);
        assert_eq!(flexible("none", "2"), 0.0);
    }

    #[test]
    fn a_right_answer_that_is_no_number_is_not_scored() {
        let rule = Gsm8k::new(Args::default()).unwrap();
        for gold in ["", "#### ", "seven", "."] {
            unscorable(rule.score(&item("#### 7", &[("answer", json!(gold))])));
        }
    }
}
