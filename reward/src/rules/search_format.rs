//! `search_format`: a right answer in the right form, as Search-R1's format variant scores it.
//!
//! The form is think, then any number of (search, information, think), then answer, with nothing but white space between. Who
//! wrote what is known and not guessed: a block of information is one that the environment wrote, and every other tag is the
//! policy's. What counts as right is as in `search_em`.

use folgore_protocol::{Outcome, Said, ScoreItem, SegmentKind};
use serde::Deserialize;

use super::{expect_finite, expect_tag, scored_with};
use crate::{Rule, qa};

/// Arguments of `search_format`; those of Search-R1 have its names.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Column of the right answer or answers, as in `search_em`.
    pub column: Option<String>,
    /// Score of a right answer in the right form.
    pub score: f64,
    /// What a right answer loses by a wrong form, and what a right form is worth without a right answer.
    pub structure_format_score: f64,
    /// Score of a wrong answer in the wrong form.
    pub final_format_score: f64,
    /// What is added, in the right form, to a wrong answer when a right one was among the passages.
    pub retrieval_score: f64,
    /// What is added when at least one search was carried out, whatever came of it.
    pub search_bonus: f64,
    /// Tag of a thought.
    pub think: String,
    /// Tag of a query.
    pub search: String,
    /// Tag of passages.
    pub information: String,
    /// Tag of the answer.
    pub answer: String,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            column: None,
            score: 1.0,
            structure_format_score: 0.2,
            final_format_score: 0.1,
            retrieval_score: 0.0,
            search_bonus: 0.0,
            think: "think".into(),
            search: "search".into(),
            information: "information".into(),
            answer: "answer".into(),
        }
    }
}

/// The rule.
pub struct SearchFormat(Args);

/// What is known of an episode.
#[derive(Clone, Copy, Debug)]
struct Facts {
    right: bool,
    valid: bool,
    answered: bool,
    /// A right answer was among the passages.
    hit: bool,
    /// Searches that were carried out.
    searches: usize,
}

impl SearchFormat {
    /// Checks `args`; the error names the argument.
    pub fn new(args: Args) -> Result<Self, String> {
        expect_finite(&[
            ("score", args.score),
            ("structure_format_score", args.structure_format_score),
            ("final_format_score", args.final_format_score),
            ("retrieval_score", args.retrieval_score),
            ("search_bonus", args.search_bonus),
        ])?;
        for (name, tag) in [
            ("think", &args.think),
            ("search", &args.search),
            ("information", &args.information),
            ("answer", &args.answer),
        ] {
            expect_tag(name, tag)?;
        }
        Ok(Self(args))
    }

    fn facts(&self, item: &ScoreItem, gold: &[String]) -> Facts {
        let args = &self.0;
        let golds: Vec<String> = gold.iter().map(|gold| qa::normal(gold)).collect();
        let episode = item.episode();
        let answer = qa::answer(item, &args.answer).map(|answer| qa::normal(&answer));
        let found: Vec<&str> = episode.iter().filter_map(|said| self.passages(said)).collect();
        let holds = |text: &str| golds.iter().any(|gold| !gold.is_empty() && text.contains(gold.as_str()));
        Facts {
            right: answer.as_ref().is_some_and(|answer| golds.contains(answer)),
            valid: self.is_valid(&episode),
            answered: answer.is_some(),
            hit: found.iter().any(|text| holds(&qa::normal(text))),
            searches: found.len(),
        }
    }

    /// The passages that `said` tells, if it does.
    fn passages<'a>(&self, said: &'a Said) -> Option<&'a str> {
        let (open, close) = tags(&self.0.information);
        let text = Some(said).filter(|said| said.by == SegmentKind::Observed)?.text.trim();
        text.strip_prefix(&open)?.strip_suffix(&close)
    }

    /// Search-R1's table, with the bonus for searching.
    fn worth(&self, facts: Facts) -> f64 {
        let args = &self.0;
        let retrieved = if facts.hit { args.retrieval_score } else { 0.0 };
        let worth = match (facts.answered, facts.valid) {
            (true, true) if facts.right => args.score,
            (true, false) if facts.right => args.score - args.structure_format_score,
            (_, true) => args.structure_format_score + retrieved,
            (true, false) => args.final_format_score,
            (false, false) => 0.0,
        };
        worth + if facts.searches > 0 { args.search_bonus } else { 0.0 }
    }

    fn is_valid(&self, episode: &[Said]) -> bool {
        let mut place = Place::Start;
        for said in episode {
            let next = match said.by {
                SegmentKind::Sampled => self.read(place, &said.text),
                _ if place == Place::Searched && self.passages(said).is_some() => Some(Place::Informed),
                _ => None,
            };
            match next {
                Some(next) => place = next,
                None => return false,
            }
        }
        place == Place::Answered
    }

    /// Where the form stands after the policy's `text`; none if the text breaks it.
    fn read(&self, mut place: Place, text: &str) -> Option<Place> {
        let args = &self.0;
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (tag, next) =
                [(&args.think, Place::Thought), (&args.search, Place::Searched), (&args.answer, Place::Answered)]
                    .into_iter()
                    .find(|(tag, _)| rest.starts_with(&tags(tag).0))?;
            let follows = match next {
                Place::Thought => matches!(place, Place::Start | Place::Informed),
                _ => place == Place::Thought,
            };
            let (open, close) = tags(tag);
            let (body, after) = rest[open.len()..].split_once(&close)?;
            if !follows || self.holds_tag(body) {
                return None;
            }
            (place, rest) = (next, after.trim_start());
        }
        Some(place)
    }

    fn holds_tag(&self, body: &str) -> bool {
        let args = &self.0;
        let names = [&args.think, &args.search, &args.information, &args.answer];
        names.into_iter().flat_map(|name| <[String; 2]>::from(tags(name))).any(|tag| body.contains(&tag))
    }
}

/// The block that was complete last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    Thought,
    Searched,
    Informed,
    Answered,
}

fn tags(name: &str) -> (String, String) {
    (format!("<{name}>"), format!("</{name}>"))
}

impl Rule for SearchFormat {
    fn name(&self) -> &str {
        "search_format"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let gold = match qa::gold(item, self.0.column.as_deref()) {
            Ok(gold) => gold,
            Err(reason) => return Outcome::Unscorable { reason },
        };
        let facts = self.facts(item, &gold);
        let number = |fact: bool| f64::from(u8::from(fact));
        let shown = [
            ("em", number(facts.right)),
            ("valid_format", number(facts.valid)),
            ("answered", number(facts.answered)),
            ("retrieval_hit", number(facts.hit)),
            ("searches", facts.searches as f64),
        ];
        scored_with(self.name(), self.worth(facts), &shown)
    }
}

#[cfg(test)]
mod tests {
    use SegmentKind::{Observed, Sampled};
    use folgore_protocol::Part;
    use serde_json::json;

    use super::*;
    use crate::samples::{item, total};

    fn rule(change: impl FnOnce(&mut Args)) -> SearchFormat {
        let mut args = Args::default();
        change(&mut args);
        SearchFormat::new(args).unwrap()
    }

    fn episode(parts: &[(SegmentKind, &str)]) -> ScoreItem {
        let mut item = item("", &[("golden_answers", json!(["Lima"]))]);
        item.said = parts.iter().map(|(by, text)| Said { by: *by, text: (*text).to_owned() }).collect();
        item
    }

    const SEARCH: (SegmentKind, &str) = (Sampled, "<think> a </think>\n<search> Peru capital </search>");
    const FOUND: (SegmentKind, &str) =
        (Observed, "\n\n<information>Doc 1(Title: Peru) capital: Lima.</information>\n\n");
    const ANSWER: (SegmentKind, &str) = (Sampled, "<think> b </think> <answer> lima </answer>");

    #[test]
    fn the_table_of_search_r1() {
        // `search_r1.format_reward` of the shared vectors: the 16 rows in their order
        let want = [1.0, 1.0, 0.2, 0.2, 0.8, 0.8, 0.0, 0.0, 0.2, 0.2, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0];
        let rule = rule(|_| ());
        for (i, want) in want.into_iter().enumerate() {
            let on = |bit: usize| i & bit == 0;
            let facts = Facts { right: on(8), valid: on(4), answered: on(2), hit: on(1), searches: 1 };
            assert!((rule.worth(facts) - want).abs() < 1e-12, "{facts:?}: expected {want}, got {}", rule.worth(facts));
        }
    }

    #[test]
    fn right_and_wrong_forms() {
        let rule = rule(|_| ());
        let score = |parts: &[(SegmentKind, &str)]| (total(&rule.score(&episode(parts))) * 10.0).round() / 10.0;
        assert_eq!(score(&[SEARCH, FOUND, ANSWER]), 1.0);
        assert_eq!(score(&[SEARCH, FOUND, SEARCH, FOUND, ANSWER]), 1.0);
        assert_eq!(score(&[ANSWER]), 1.0, "a form without searches");
        assert_eq!(score(&[SEARCH, FOUND]), 0.0);
        let wrong = (Sampled, "<think> b </think><answer>Quito</answer>");
        assert_eq!(score(&[SEARCH, FOUND, wrong]), 0.2);
        for parts in [
            vec![SEARCH, ANSWER],
            vec![SEARCH, (Observed, "The search failed."), ANSWER],
            vec![SEARCH, FOUND, FOUND, ANSWER],
            vec![SEARCH, FOUND, (Sampled, "<answer>Lima</answer>")],
            vec![(Sampled, "<search>a</search>"), FOUND, ANSWER],
            vec![(Sampled, "so <think> b </think><answer>Lima</answer>")],
            vec![(Sampled, "<think> b </think> so <answer>Lima</answer>")],
            vec![(Sampled, "<think> b </think><answer>Lima</answer> done")],
            vec![(Sampled, "<think> b <think></think><answer>Lima</answer>")],
            vec![(Sampled, "<think> b </think><think></think><answer>Lima</answer>")],
            // the policy cannot inform itself
            vec![(
                Sampled,
                "<think></think><search>a</search><information>b</information><think></think><answer>Lima</answer>",
            )],
        ] {
            assert_eq!(score(&parts), 0.8, "{parts:?}");
        }
    }

    #[test]
    fn passages_and_searches_count_where_they_are_asked_to() {
        let wrong = (Sampled, "<think> b </think><answer>Quito</answer>");
        let rule = rule(|args| (args.retrieval_score, args.search_bonus) = (0.1, 0.05));
        let score = |parts: &[(SegmentKind, &str)]| (total(&rule.score(&episode(parts))) * 100.0).round() / 100.0;
        assert_eq!(score(&[SEARCH, FOUND, wrong]), 0.35);
        assert_eq!(score(&[wrong]), 0.2, "nothing was searched");
        let said_itself = (Sampled, "<information>Lima</information>");
        assert_eq!(score(&[said_itself]), 0.0, "its own words are no passages");
        let Outcome::Scored { parts, .. } = rule.score(&episode(&[SEARCH, FOUND, ANSWER])) else { panic!() };
        let shown =
            |name: &str| parts.iter().find(|p| p.name == name).map(|Part { value, weight, .. }| (*value, *weight));
        assert_eq!(
            (shown("searches"), shown("em"), shown("valid_format")),
            (Some((1.0, 0.0)), Some((1.0, 0.0)), Some((1.0, 0.0)))
        );
    }
}
