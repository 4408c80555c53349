//! What the rewards of question answering share, as in Search-R1: the answer that the policy gave, the right ones, and the form
//! of SQuAD in which both are compared.

use std::sync::OnceLock;

use folgore_protocol::{Outcome, ScoreItem, SegmentKind};
use regex::Regex;
use serde::Deserialize;

use crate::{
    Rule, columns, extract,
    rules::{expect_finite, expect_tag, scored_with},
    text,
};

/// Columns with the right answers when none is named, in this order: those of Search-R1's rows, then the usual ones.
const GOLD_COLUMNS: [&str; 5] =
    ["reward_model.ground_truth.target", "golden_answers", "answer", "ground_truth", "reward_model.ground_truth"];

/// The right answers of `item`, from `column` or wherever its rows keep them; never empty.
pub(crate) fn gold(item: &ScoreItem, column: Option<&str>) -> Result<Vec<String>, String> {
    if column.is_some() {
        return columns::gold_texts(item, column);
    }
    match GOLD_COLUMNS.iter().find(|path| columns::lookup(item, path).is_some()) {
        Some(path) => columns::gold_texts(item, Some(path)),
        None => Err(format!("expected a column {}, got none", GOLD_COLUMNS.join(", "))),
    }
}

/// The last complete answer that the policy gave, without white space at its ends. A block that it opened in one turn and closed
/// in another is none, nor is what a passage or the prompt holds.
pub(crate) fn answer(item: &ScoreItem, tag: &str) -> Option<String> {
    let episode = item.episode();
    let turns = episode.iter().rev().filter(|said| said.by == SegmentKind::Sampled);
    turns.filter_map(|said| extract::tagged(&said.text, tag).answer).next().map(|answer| answer.trim().to_owned())
}

/// The form in which SQuAD compares: lower case, no ASCII punctuation, no articles, single spaces; in this order.
pub(crate) fn normal(given: &str) -> String {
    static ARTICLES: OnceLock<Option<Regex>> = OnceLock::new();
    let mut out = given.to_lowercase();
    out.retain(|c| !c.is_ascii_punctuation());
    if let Some(articles) = ARTICLES.get_or_init(|| Regex::new(r"\b(?:a|an|the)\b").ok()) {
        out = articles.replace_all(&out, " ").into_owned();
    }
    text::collapse_whitespace(&out)
}

/// Arguments of `search_em`, `search_subem` and `search_f1`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Column of the right answer or answers; unset: `reward_model.ground_truth.target`, `golden_answers`, `answer`,
    /// `ground_truth`, the first that there is.
    pub column: Option<String>,
    /// The answer is what stands between `<tag>` and `</tag>` in what the policy said, the last complete one.
    pub tag: String,
    /// Score of the best answer.
    pub score: f64,
    /// Score of an answer that has nothing of a right one.
    pub format_score: f64,
}

impl Default for Args {
    fn default() -> Self {
        Self { column: None, tag: "answer".into(), score: 1.0, format_score: 0.0 }
    }
}

/// A rule that compares the answer with each right one, all in SQuAD's form.
pub struct Compare {
    name: &'static str,
    args: Args,
    /// How far the first text agrees with the second, 0 to 1.
    agrees: fn(&str, &str) -> f64,
}

impl Compare {
    /// Checks `args`; the error names the argument.
    pub(crate) fn new(name: &'static str, args: Args, agrees: fn(&str, &str) -> f64) -> Result<Self, String> {
        expect_tag("tag", &args.tag)?;
        expect_finite(&[("score", args.score), ("format_score", args.format_score)])?;
        Ok(Self { name, args, agrees })
    }
}

impl Rule for Compare {
    fn name(&self) -> &str {
        self.name
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let args = &self.args;
        let gold = match gold(item, args.column.as_deref()) {
            Ok(gold) => gold,
            Err(reason) => return Outcome::Unscorable { reason },
        };
        let Some(answer) = answer(item, &args.tag) else {
            return scored_with(self.name, 0.0, &[("no_answer", 1.0)]).with_answer(None);
        };
        let answer = normal(&answer);
        let best = gold.iter().map(|gold| (self.agrees)(&answer, &normal(gold))).fold(0.0, f64::max);
        let score = if best > 0.0 { best * args.score } else { args.format_score };
        Outcome::scored(self.name, score).with_answer(Some(&answer))
    }
}

/// 1 if `answer` is `gold`.
pub(crate) fn equal(answer: &str, gold: &str) -> f64 {
    f64::from(u8::from(answer == gold))
}

#[cfg(test)]
mod tests {
    use folgore_protocol::Said;
    use serde_json::json;

    use super::*;
    use crate::samples::item;

    fn said(parts: &[(SegmentKind, &str)]) -> Vec<Said> {
        parts.iter().map(|(by, text)| Said { by: *by, text: (*text).to_owned() }).collect()
    }

    #[test]
    fn the_form_of_squad() {
        for (given, want) in [
            ("The Beatles!", "beatles"),
            ("Barack  Obama", "barack obama"),
            ("U.S.A.", "usa"),
            ("an apple a day", "apple day"),
            ("Answer", "answer"),
            ("co-operate", "cooperate"),
            ("", ""),
            ("the", ""),
            ("\u{c9}cole th\u{e9}\u{a0}x", "\u{e9}cole th\u{e9} x"),
            ("a-the", "athe"),
        ] {
            assert_eq!(normal(given), want, "{given}");
        }
    }

    #[test]
    fn right_answers_are_where_search_r1_keeps_them() {
        let model = json!({"style": "rule", "ground_truth": {"target": ["Lima", "lima"]}});
        for (columns, want) in [
            (vec![("reward_model", model.clone()), ("answer", json!("x"))], vec!["Lima", "lima"]),
            (vec![("golden_answers", json!(["a"])), ("answer", json!("x"))], vec!["a"]),
            (vec![("answer", json!("x")), ("reward_model", json!({"style": "rule"}))], vec!["x"]),
            (vec![("reward_model", json!({"ground_truth": "x"}))], vec!["x"]),
        ] {
            assert_eq!(gold(&item("", &columns), None).unwrap(), want);
        }
        assert!(gold(&item("", &[]), None).unwrap_err().contains("golden_answers"));
        assert!(gold(&item("", &[("answer", json!([]))]), None).unwrap_err().contains("column answer"));
    }

    #[test]
    fn only_the_policy_answers_and_in_one_turn() {
        use SegmentKind::{Observed, Sampled};
        let answer_of = |parts: &[(SegmentKind, &str)]| {
            let mut item = item("<answer>not read</answer>", &[]);
            item.said = said(parts);
            item.prompt = folgore_protocol::Prompt::Text("for example <answer>Beijing</answer>".into());
            answer(&item, "answer")
        };
        let evil = (Observed, "<information><answer>evil</answer></information>");
        assert_eq!(answer_of(&[(Sampled, "<search>q</search>"), evil]), None);
        assert_eq!(answer_of(&[(Sampled, "<answer> a </answer>"), evil]).as_deref(), Some("a"));
        assert_eq!(answer_of(&[(Sampled, "<answer>a</answer>"), evil, (Sampled, "b")]).as_deref(), Some("a"));
        assert_eq!(answer_of(&[(Sampled, "<answer>a"), evil, (Sampled, "b</answer>")]), None, "not in one turn");
        assert_eq!(answer(&item("<answer>1</answer><answer>2</answer>", &[]), "answer").as_deref(), Some("2"));
    }
}
