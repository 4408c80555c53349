//! `exact_match`: the answer is one of the right texts, after a normalisation that is asked for.

use folgore_protocol::{Outcome, ScoreItem};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use super::{expect_finite, expect_tag, scored_with};
use crate::{Rule, columns, extract, text};

/// Arguments of `exact_match`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Column of the right answer (text, number or list of either); unset: `answer`, else `ground_truth`.
    pub column: Option<String>,
    /// The answer is what stands between `<tag>` and `</tag>`, the last complete one; unset: the pattern's group, or the
    /// whole completion.
    pub tag: Option<String>,
    /// Regular expression that the whole completion must match, or it is malformed. What its first group matched is the
    /// answer, if it has one and no tag is named.
    pub pattern: Option<String>,
    /// A completion that was cut off is malformed.
    pub require_eos: bool,
    /// More complete answers than this are malformed.
    pub max_answers: usize,
    /// Ignores white space at both ends.
    pub trim: bool,
    /// Ignores the difference between upper and lower case.
    pub ignore_case: bool,
    /// Leaves out ASCII punctuation.
    pub ignore_punctuation: bool,
    /// Leaves out the words a, an, the.
    pub ignore_articles: bool,
    /// Takes runs of white space as one space.
    pub collapse_whitespace: bool,
    /// Folds Unicode look-alikes (NFKC) and leaves out invisible characters.
    pub fold_unicode: bool,
    /// Score of a right answer.
    pub correct_score: f64,
    /// Score of a wrong answer in good form.
    pub format_score: f64,
    /// Score of a completion without an answer, or not in the form asked for.
    pub malformed_score: f64,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            column: None,
            tag: None,
            pattern: None,
            require_eos: false,
            max_answers: 16,
            trim: true,
            ignore_case: false,
            ignore_punctuation: false,
            ignore_articles: false,
            collapse_whitespace: false,
            fold_unicode: false,
            correct_score: 1.0,
            format_score: 0.0,
            malformed_score: 0.0,
        }
    }
}

/// The rule.
pub struct ExactMatch {
    args: Args,
    pattern: Option<Regex>,
    articles: Regex,
}

impl ExactMatch {
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
        let whole = |pattern: &String| {
            let anchored = format!(r"\A(?:{pattern})\z");
            RegexBuilder::new(&anchored).size_limit(1 << 20).build().map_err(|e| format!("pattern: {e}"))
        };
        let pattern = args.pattern.as_ref().map(whole).transpose()?;
        let articles = Regex::new(r"(?i)\b(?:a|an|the)\b").map_err(|e| e.to_string())?;
        Ok(Self { args, pattern, articles })
    }

    /// The form in which answers are compared: lower case, punctuation, articles, white space, in this order.
    fn normal(&self, given: &str) -> String {
        let args = &self.args;
        let mut out = if args.fold_unicode { text::fold(given) } else { given.to_owned() };
        if args.ignore_case {
            out = out.to_lowercase();
        }
        if args.ignore_punctuation {
            out.retain(|c| !c.is_ascii_punctuation());
        }
        if args.ignore_articles {
            out = self.articles.replace_all(&out, " ").into_owned();
        }
        if args.collapse_whitespace {
            out = text::collapse_whitespace(&out);
        }
        if args.trim { out.trim().to_owned() } else { out }
    }

    /// The answer of `item`, or the reason why it is malformed.
    fn answer<'a>(&self, item: &'a ScoreItem) -> Result<&'a str, &'static str> {
        let args = &self.args;
        if args.require_eos && item.stop_reason.truncated() {
            return Err("truncated");
        }
        // Past the bound only its end is read, which a pattern for the whole could not judge.
        if item.completion.len() > text::MAX_COMPLETION_BYTES && self.pattern.is_some() {
            return Err("too_long");
        }
        let mut whole = text::tail_bytes(&item.completion, text::MAX_COMPLETION_BYTES);
        if let Some(pattern) = &self.pattern {
            let groups = pattern.captures(whole).ok_or("pattern_mismatch")?;
            whole = groups.get(1).map_or(whole, |group| group.as_str());
        }
        let Some(tag) = &args.tag else { return Ok(whole) };
        let found = extract::tagged(&item.completion, tag);
        match found.answer {
            _ if found.nested => Err("nested_answer"),
            _ if found.count > args.max_answers => Err("many_answers"),
            Some(answer) => Ok(answer),
            None => Err("no_answer"),
        }
    }
}

impl Rule for ExactMatch {
    fn name(&self) -> &str {
        "exact_match"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let gold = match columns::gold_texts(item, self.args.column.as_deref()) {
            Ok(gold) => gold,
            Err(reason) => return Outcome::Unscorable { reason },
        };
        match self.answer(item) {
            Err(flag) => scored_with(self.name(), self.args.malformed_score, &[(flag, 1.0)]).with_answer(None),
            Ok(answer) => {
                let answer = self.normal(answer);
                let correct = gold.iter().any(|g| self.normal(g) == answer);
                let score = if correct { self.args.correct_score } else { self.args.format_score };
                Outcome::scored(self.name(), score).with_answer(Some(&answer))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use folgore_protocol::StopReason;
    use serde_json::json;

    use super::*;
    use crate::samples::{item, total, unscorable};

    fn rule(args: serde_json::Value) -> ExactMatch {
        ExactMatch::new(serde_json::from_value(args).unwrap()).unwrap()
    }

    fn arithmetic() -> ExactMatch {
        rule(json!({
            "tag": "answer",
            "pattern": "<think>[^<]*</think><answer>[^<]*</answer>",
            "require_eos": true,
            "trim": false
        }))
    }

    #[test]
    fn the_embedded_task_demands_the_whole_form() {
        let columns = [("answer", json!(432))];
        let score = |text: &str| total(&arithmetic().score(&item(text, &columns)));
        assert_eq!(score("<think>7+5=12</think><answer>432</answer>"), 1.0);
        for wrong in [
            "<think>7+5=12</think><answer>433</answer>",
            "<think></think><answer>432 </answer>",
            "<answer>432</answer>",
            "<think></think><answer>432</answer>x",
            "<think></think><answer>432</answer><answer>432</answer>",
            "<think></think><answer>1</answer>\n<think></think><answer>432</answer>",
            "<think><answer>432</answer></think><answer>432</answer>",
            "",
        ] {
            assert_eq!(score(wrong), 0.0, "{wrong}");
        }
        let mut cut = item("<think></think><answer>432</answer>", &columns);
        cut.stop_reason = StopReason::Length;
        assert_eq!(total(&arithmetic().score(&cut)), 0.0, "cut off");
    }

    #[test]
    fn the_first_group_of_a_pattern_is_the_answer() {
        let rule = rule(json!({"pattern": r"^<think>[^<]*</think><answer>(\d+)</answer>$"}));
        let score = |text: &str| total(&rule.score(&item(text, &[("answer", json!("432"))])));
        assert_eq!(score("<think>7+5=12;</think><answer>432</answer>"), 1.0);
        assert_eq!(score("<think>432</think><answer>433</answer>"), 0.0);
        assert_eq!(score("<think></think><answer>432</answer>\n"), 0.0);
        assert_eq!(score("432"), 0.0);
    }

    #[test]
    fn switches_normalise_in_the_order_of_the_search_task() {
        let loose = rule(json!({
            "ignore_case": true, "ignore_punctuation": true, "ignore_articles": true, "collapse_whitespace": true,
            "fold_unicode": true
        }));
        let score =
            |rule: &ExactMatch, text: &str, gold: &str| total(&rule.score(&item(text, &[("answer", json!(gold))])));
        assert_eq!(score(&loose, " The  U.S.A. ", "usa"), 1.0);
        assert_eq!(score(&loose, "co-operate", "Cooperate"), 1.0);
        assert_eq!(score(&loose, "another", "other"), 0.0);
        assert_eq!(score(&loose, "\u{ff21}\u{200b}BC", "abc"), 1.0);
        let strict = rule(json!({}));
        assert_eq!(score(&strict, "ABC", "abc"), 0.0);
        assert_eq!(score(&strict, " abc\n", "abc"), 1.0);
    }

    #[test]
    fn scores_of_right_wrong_and_malformed_are_told_apart() {
        let rule = rule(json!({"tag": "answer", "format_score": 0.1, "malformed_score": -1.0, "max_answers": 2}));
        let columns = [("answer", json!(["a", "b"]))];
        let score = |text: &str| total(&rule.score(&item(text, &columns)));
        assert_eq!(score("<answer>x</answer><answer> b </answer>"), 1.0);
        assert_eq!(score("<answer>c</answer>"), 0.1);
        assert_eq!(score("b"), -1.0);
        assert_eq!(score(&"<answer>b</answer>".repeat(3)), -1.0, "one answer too many");
        assert_eq!(score("<answer>a<answer>b</answer></answer>"), -1.0, "nested");
    }

    #[test]
    fn a_row_without_an_answer_is_not_scored() {
        assert!(unscorable(rule(json!({})).score(&item("x", &[]))).contains("answer"));
        assert!(ExactMatch::new(Args { pattern: Some("(".into()), ..Args::default() }).is_err());
        assert!(ExactMatch::new(Args { tag: Some("<a>".into()), ..Args::default() }).is_err());
    }
}
