//! `math`: the answer means the same as the right one ([`crate::math_answer`]), however it is written.

use folgore_protocol::{Outcome, ScoreItem};
use serde::Deserialize;

use super::{expect_finite, expect_tag, scored_with};
use crate::{
    Rule, columns,
    extract::{self, Found},
    math_answer::{Answer, Comparison},
};

/// Where a completion holds its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerIn {
    /// In the last complete `\boxed{...}`.
    Boxed,
    /// Between the last complete pair of tags; a box inside them is opened.
    Tag,
    /// The whole completion.
    Whole,
}

/// Arguments of `math`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Column of the right answer; unset: `answer`, else `ground_truth`. `\boxed{...}` and `#### ...` in it are opened.
    pub column: Option<String>,
    /// Where the completion holds its answer.
    pub answer_in: AnswerIn,
    /// The tag for `answer_in: tag`.
    pub tag: String,
    /// More complete answers than this are malformed; 0: any number.
    pub max_answers: usize,
    /// Largest relative difference where one side is a decimal fraction; see [`Comparison`].
    pub tolerance: f64,
    /// Lets `50%` equal `50` too.
    pub percent_as_number: bool,
    /// Score of a right answer.
    pub correct_score: f64,
    /// Score of a wrong answer.
    pub format_score: f64,
    /// Score of a completion without an answer.
    pub malformed_score: f64,
}

impl Default for Args {
    fn default() -> Self {
        let comparison = Comparison::default();
        Self {
            column: None,
            answer_in: AnswerIn::Boxed,
            tag: "answer".into(),
            max_answers: 16,
            tolerance: comparison.tolerance,
            percent_as_number: comparison.percent_as_number,
            correct_score: 1.0,
            format_score: 0.0,
            malformed_score: 0.0,
        }
    }
}

/// The rule.
pub struct Math {
    args: Args,
    comparison: Comparison,
}

impl Math {
    /// Checks `args`; the error names the argument.
    pub fn new(args: Args) -> Result<Self, String> {
        expect_finite(&[
            ("correct_score", args.correct_score),
            ("format_score", args.format_score),
            ("malformed_score", args.malformed_score),
        ])?;
        expect_tag("tag", &args.tag)?;
        if !(0.0..=0.1).contains(&args.tolerance) {
            return Err(format!("tolerance: expected 0 to 0.1, got {}", args.tolerance));
        }
        let comparison = Comparison { tolerance: args.tolerance, percent_as_number: args.percent_as_number };
        Ok(Self { args, comparison })
    }

    fn find<'a>(&self, completion: &'a str) -> Found<'a> {
        match self.args.answer_in {
            AnswerIn::Boxed => extract::boxed(completion),
            AnswerIn::Whole => Found { answer: Some(completion), count: 1, nested: false },
            AnswerIn::Tag => {
                let found = extract::tagged(completion, &self.args.tag);
                Found { answer: found.answer.map(|text| extract::boxed(text).answer.unwrap_or(text)), ..found }
            }
        }
    }
}

/// The right answers that can be read; the error says why there is none.
fn gold_answers(item: &ScoreItem, column: Option<&str>) -> Result<Vec<Answer>, String> {
    let mut reason = String::new();
    let mut answers = Vec::new();
    for text in columns::gold_texts(item, column)? {
        let after_hashes = text.rsplit_once("####").map(|(_, answer)| answer);
        let stated = extract::boxed(&text).answer.or(after_hashes).unwrap_or(&text);
        match Answer::parse(stated) {
            Ok(answer) => answers.push(answer),
            Err(e) => reason = format!("right answer: {e}"),
        }
    }
    if answers.is_empty() { Err(reason) } else { Ok(answers) }
}

impl Rule for Math {
    fn name(&self) -> &str {
        "math"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let args = &self.args;
        let gold = match gold_answers(item, args.column.as_deref()) {
            Ok(gold) => gold,
            Err(reason) => return Outcome::Unscorable { reason },
        };
        let found = self.find(&item.completion);
        let malformed = |flag| scored_with("math", args.malformed_score, &[(flag, 1.0)]).with_answer(None);
        if found.nested {
            return malformed("nested_answer");
        }
        if args.max_answers > 0 && found.count > args.max_answers {
            return malformed("many_answers");
        }
        let Some(stated) = found.answer else { return malformed("no_answer") };
        match Answer::parse(stated) {
            Err(_) => {
                scored_with("math", args.format_score, &[("unreadable_answer", 1.0)]).with_answer(Some(stated.trim()))
            }
            Ok(answer) => {
                let right = gold.iter().find(|g| g.equals(&answer, self.comparison));
                let score = if right.is_some() { args.correct_score } else { args.format_score };
                // whatever equals the right answer is one answer, also where tolerance says so
                Outcome::scored("math", score).with_answer(Some(&right.unwrap_or(&answer).canonical()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples::{item, total, unscorable};

    fn rule(args: serde_json::Value) -> Math {
        Math::new(serde_json::from_value(args).unwrap()).unwrap()
    }

    #[test]
    fn the_last_complete_box_is_compared_by_value() {
        let rule = rule(json!({}));
        let score = |text: &str, gold: &str| total(&rule.score(&item(text, &[("answer", json!(gold))])));
        assert_eq!(score(r"so \boxed{0.5}, no: \boxed{\dfrac{3}{4}}", "0.75"), 1.0);
        assert_eq!(score(r"so \boxed{0.75}, no: \boxed{0.5}", "0.75"), 0.0);
        assert_eq!(score(r"\boxed{0.75} and \boxed{0.5", r"$\frac34$"), 1.0);
        assert_eq!(score("0.75", "0.75"), 0.0, "not in a box");
        assert_eq!(score(r"\boxed{\text{}}", "0.75"), 0.0);
        assert_eq!(score(r"\boxed{72}", "6*12=72\n#### 72"), 1.0);
        assert_eq!(score(r"\boxed{72}", r"thus \boxed{71} or rather $\boxed{72}$."), 1.0);
        assert_eq!(score(&r"\boxed{1}".repeat(100), "1"), 0.0, "a hundred answers");
        assert_eq!(score(r"\boxed{2\boxed{1}}", "1"), 0.0, "nested");
    }

    #[test]
    fn a_right_answer_that_cannot_be_read_is_never_scored() {
        let rule = rule(json!({}));
        for gold in ["", "nan", r"\begin{pmatrix}1\\2\end{pmatrix}", "1/0", "((", "$$", "because it is prime, 7"] {
            let reason = unscorable(rule.score(&item(r"\boxed{1}", &[("answer", json!(gold))])));
            assert!(reason.contains("right answer"), "{gold:?}: {reason}");
        }
        assert_eq!(total(&rule.score(&item(r"\boxed{1}", &[("answer", json!(["((", "1"]))]))), 1.0);
    }

    #[test]
    fn arguments_choose_where_and_how() {
        let whole = rule(json!({"answer_in": "whole", "percent_as_number": true}));
        assert_eq!(total(&whole.score(&item("50", &[("answer", json!("50%"))]))), 1.0);
        let tag = rule(json!({"answer_in": "tag", "malformed_score": -1.0}));
        let columns = [("answer", json!("3"))];
        assert_eq!(total(&tag.score(&item(r"<answer>\(\boxed{3}\)</answer>", &columns))), 1.0);
        assert_eq!(total(&tag.score(&item(r"<answer>$3$</answer>", &columns))), 1.0);
        assert_eq!(total(&tag.score(&item("3", &columns))), -1.0);
        assert!(Math::new(Args { tolerance: 0.5, ..Args::default() }).is_err());
    }
}
