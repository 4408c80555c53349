//! `numeric`: the last number of the completion has the value of the right one. For answers in prose; `math` reads more.

use std::sync::LazyLock;

use folgore_protocol::{Outcome, ScoreItem};
use regex::Regex;
use serde::Deserialize;

use super::{expect_finite, expect_tag, scored_with};
use crate::{
    Rule, columns, extract,
    math_answer::{Answer, Comparison},
    text,
};

/// A number with separators of thousands and a decimal part or a denominator; its sign counts where no operand stands
/// before it.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?:^|[^\w.)])(-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?)|(\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?)")
        .expect("a constant pattern")
});

/// Arguments of `numeric`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Column of the right answer; unset: `answer`, else `ground_truth`.
    pub column: Option<String>,
    /// Reads only what stands between `<tag>` and `</tag>`, the last complete one; unset: the whole completion.
    pub tag: Option<String>,
    /// A completion that was cut off is malformed.
    pub require_eos: bool,
    /// Largest relative difference where one side is a decimal fraction; see [`Comparison`].
    pub tolerance: f64,
    /// Score of a right number.
    pub correct_score: f64,
    /// Score of a wrong number.
    pub format_score: f64,
    /// Score of a completion without a number.
    pub malformed_score: f64,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            column: None,
            tag: None,
            require_eos: false,
            tolerance: Comparison::default().tolerance,
            correct_score: 1.0,
            format_score: 0.0,
            malformed_score: 0.0,
        }
    }
}

/// The rule.
pub struct Numeric(Args);

impl Numeric {
    /// Checks `args`; the error names the argument.
    pub fn new(args: Args) -> Result<Self, String> {
        expect_finite(&[
            ("correct_score", args.correct_score),
            ("format_score", args.format_score),
            ("malformed_score", args.malformed_score),
        ])?;
        if let Some(tag) = &args.tag {
            expect_tag("tag", tag)?;
        }
        if !(0.0..=0.1).contains(&args.tolerance) {
            return Err(format!("tolerance: expected 0 to 0.1, got {}", args.tolerance));
        }
        Ok(Self(args))
    }

    fn stated(&self, item: &ScoreItem) -> Option<Answer> {
        if self.0.require_eos && item.stop_reason.truncated() {
            return None;
        }
        let text = match &self.0.tag {
            Some(tag) => {
                let found = extract::tagged(&item.completion, tag);
                found.answer.filter(|_| !found.nested)?
            }
            None => text::tail_bytes(&item.completion, text::MAX_COMPLETION_BYTES),
        };
        last_number(&text::fold(text))
    }
}

fn last_number(text: &str) -> Option<Answer> {
    let found = NUMBER.captures_iter(text).last()?;
    let number = found.get(1).or(found.get(2))?.as_str();
    // Commas go here and not in `Answer`, which would read "1,200,30" as a list.
    Answer::parse(&number.replace(',', "")).ok()
}

/// The right answers as numbers; text that is not one number is an error.
fn gold_numbers(item: &ScoreItem, column: Option<&str>) -> Result<Vec<Answer>, String> {
    let number = |text: String| {
        let answer = Answer::parse(&text).map_err(|e| format!("right answer: {e}"))?;
        if answer.is_number() { Ok(answer) } else { Err(format!("right answer: expected a number, got {text:?}")) }
    };
    columns::gold_texts(item, column)?.into_iter().map(number).collect()
}

impl Rule for Numeric {
    fn name(&self) -> &str {
        "numeric"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let args = &self.0;
        let gold = match gold_numbers(item, args.column.as_deref()) {
            Ok(gold) => gold,
            Err(reason) => return Outcome::Unscorable { reason },
        };
        let Some(answer) = self.stated(item) else {
            return scored_with("numeric", args.malformed_score, &[("no_answer", 1.0)]).with_answer(None);
        };
        let how = Comparison { tolerance: args.tolerance, percent_as_number: false };
        let right = gold.iter().find(|g| g.equals(&answer, how));
        let score = if right.is_some() { args.correct_score } else { args.format_score };
        // whatever equals the right number is one answer, also where tolerance says so
        Outcome::scored("numeric", score).with_answer(Some(&right.unwrap_or(&answer).canonical()))
    }
}

#[cfg(test)]
mod tests {
    use folgore_protocol::StopReason;
    use serde_json::json;

    use super::*;
    use crate::samples::{item, total, unscorable};

    fn score(text: &str, gold: serde_json::Value) -> f64 {
        let rule = Numeric::new(Args { format_score: 0.1, malformed_score: -1.0, ..Args::default() }).unwrap();
        total(&rule.score(&item(text, &[("answer", gold)])))
    }

    #[test]
    fn the_last_number_is_compared_by_value() {
        for (text, gold, want) in [
            ("12 + 34 = 46.", json!(46), 1.0),
            ("The sum of 12 and 34 is 46, I think.", json!("46"), 1.0),
            ("46, since 12 + 34", json!(46), 0.1),
            ("It is $1,200.00", json!(1200), 1.0),
            ("so x = -5", json!(-5), 1.0),
            ("so x = -5", json!(5), 0.1),
            ("it costs 9-5", json!(5), 1.0),
            ("(-5)", json!(-5), 1.0),
            ("a half: 0.5", json!("1/2"), 1.0),
            ("a half: 1/2", json!(0.5), 1.0),
            ("\u{ff14}\u{ff16}", json!(46), 1.0),
            ("forty-six", json!(46), -1.0),
            ("1/0", json!(46), -1.0),
            ("", json!(46), -1.0),
        ] {
            assert_eq!(score(text, gold.clone()), want, "{text:?} for {gold}");
        }
    }

    #[test]
    fn tags_and_the_end_can_be_demanded() {
        let args = Args { tag: Some("answer".into()), require_eos: true, ..Args::default() };
        let rule = Numeric::new(args).unwrap();
        let mut item = item("<answer>46</answer> 47", &[("answer", json!(46))]);
        assert_eq!(total(&rule.score(&item)), 1.0);
        item.stop_reason = StopReason::Length;
        assert_eq!(total(&rule.score(&item)), 0.0);
    }

    #[test]
    fn a_right_answer_that_is_no_number_is_not_scored() {
        let rule = Numeric::new(Args::default()).unwrap();
        for gold in [json!("x"), json!("1, 2"), json!("Monday"), json!(""), json!("nan")] {
            unscorable(rule.score(&item("1", &[("answer", gold)])));
        }
    }
}
