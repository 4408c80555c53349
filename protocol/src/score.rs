//! The contract of every reward, in whatever language it is written: batched items in, one of three outcomes each.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    generate::StopReason,
    ids::{Digest, SeatKey},
    task::Prompt,
    trajectory::SegmentKind,
};

/// One completion to score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreItem {
    /// Names the completion; the reply to a group may come in any order.
    pub id: SeatKey,
    /// The task's columns (`answer`, `ground_truth`, ...).
    pub columns: Map<String, Value>,
    /// The question.
    pub prompt: Prompt,
    /// What the policy sampled, special tokens that it sampled left out.
    pub completion: String,
    /// The ids of the completion.
    pub completion_ids: Vec<u32>,
    /// Why the last turn ended.
    pub stop_reason: StopReason,
    /// What followed the prompt, in order, where the environment told the policy something in between; else empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub said: Vec<Said>,
}

impl ScoreItem {
    /// What followed the prompt, in order: of an episode in which nobody but the policy spoke, its completion.
    pub fn episode(&self) -> Cow<'_, [Said]> {
        if self.said.is_empty() {
            Cow::Owned(vec![Said { by: SegmentKind::Sampled, text: self.completion.clone() }])
        } else {
            Cow::Borrowed(&self.said)
        }
    }
}

/// A part of an episode, as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Whose words these are: the policy's (`sampled`) or the environment's (`observed`).
    pub by: SegmentKind,
    /// The words, special tokens left out.
    pub text: String,
}

/// What one request holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Any completions: each is judged by itself.
    #[default]
    Sample,
    /// All members of one group: they may be judged against each other.
    Group,
}

fn is_default(scope: &Scope) -> bool {
    *scope == Scope::default()
}

/// Longest text that is handed in to be judged with its group, in bytes: what waits is kept in the record.
pub const UNJUDGED_BYTES_MAX: usize = 256 << 10;

/// Longest answer that a score repeats, in bytes; a longer one is told by its digest.
pub const ANSWER_BYTES_MAX: usize = 256;

/// Asks for the scores of `items`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreRequest {
    /// What to score; with [`Scope::Group`], all members of one group.
    pub items: Vec<ScoreItem>,
    /// What the items are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scope: Scope,
    /// Milliseconds that the caller waits.
    pub budget_ms: u64,
}

/// One named contribution to a score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Name of the rule.
    pub name: String,
    /// What the rule gave, before its weight.
    pub value: f64,
    /// Its weight in the total.
    pub weight: f64,
}

/// What came of scoring one item. Only `Scored` is ever trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// A finite score.
    Scored {
        /// Weighted sum of the parts.
        total: f64,
        /// Where it came from.
        #[serde(default)]
        parts: Vec<Part>,
        /// What the completion answers, in a form in which equal answers are equal: what a majority vote counts. Empty: there is no
        /// answer in it. None: the reward reads none. At most [`ANSWER_BYTES_MAX`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answer: Option<String>,
    },
    /// The item cannot be judged, by nobody's fault (a gold answer that cannot be parsed): never scored 0.
    Unscorable {
        /// Why.
        reason: String,
    },
    /// The reward failed (time-out, crash, non-finite number).
    Error {
        /// Why.
        reason: String,
    },
    /// Nobody was asked yet: to be judged with its group, when all members of it are there. A worker's word, never a reward's.
    Unjudged {
        /// What is judged, with `said` at most [`UNJUDGED_BYTES_MAX`]; whoever asks then has no tokenizer.
        completion: String,
        /// What is judged, as [`ScoreItem::said`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        said: Vec<Said>,
    },
}

impl Outcome {
    /// Bytes of text that are to be judged later.
    pub fn unjudged_bytes(&self) -> usize {
        match self {
            Outcome::Unjudged { completion, said } => {
                said.iter().map(|s| s.text.len()).fold(completion.len(), usize::saturating_add)
            }
            _ => 0,
        }
    }

    /// A score with a single part.
    pub fn scored(name: &str, value: f64) -> Self {
        if value.is_finite() {
            let parts = vec![Part { name: name.to_owned(), value, weight: 1.0 }];
            Outcome::Scored { total: value, parts, answer: None }
        } else {
            Outcome::Error { reason: format!("reward {name}: expected a finite score, got {value}") }
        }
    }

    /// The same, if it is a score, of a completion that answers `read`; none: there was no answer to read.
    #[must_use]
    pub fn with_answer(mut self, read: Option<&str>) -> Self {
        if let Outcome::Scored { answer, .. } = &mut self {
            let read = read.unwrap_or_default();
            *answer = Some(match read.len() {
                0..=ANSWER_BYTES_MAX => read.to_owned(),
                _ => format!("sha256:{}", Digest::of(read.as_bytes()).hex()),
            });
        }
        self
    }

    /// The score, if there is one.
    pub fn total(&self) -> Option<f64> {
        match self {
            Outcome::Scored { total, .. } => Some(*total),
            _ => None,
        }
    }
}

/// The reply: one outcome for each item, by id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreReply {
    /// Outcomes in the order of the request.
    pub outcomes: Vec<(SeatKey, Outcome)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_long_is_told_by_its_digest() {
        let answer = |read: Option<&str>| match Outcome::scored("exact", 1.0).with_answer(read) {
            Outcome::Scored { answer, .. } => answer,
            other => panic!("{other:?}"),
        };
        assert_eq!(answer(Some("7")).as_deref(), Some("7"));
        assert_eq!(answer(None).as_deref(), Some(""));
        let (one, other) = ("x".repeat(ANSWER_BYTES_MAX + 1), "x".repeat(ANSWER_BYTES_MAX + 2));
        assert!(answer(Some(&one)).is_some_and(|short| short.len() < ANSWER_BYTES_MAX && short.starts_with("sha256:")));
        assert_ne!(answer(Some(&one)), answer(Some(&other)));
        let failed = Outcome::Error { reason: "late".into() };
        assert_eq!(failed.clone().with_answer(Some("7")), failed);
    }

    #[test]
    fn a_score_of_before_has_no_answer() {
        let old: Outcome = serde_json::from_str(r#"{"outcome":"scored","total":1.0,"parts":[]}"#).unwrap();
        assert_eq!(old, Outcome::Scored { total: 1.0, parts: vec![], answer: None });
        assert!(!serde_json::to_string(&old).unwrap().contains("answer"));
    }
}
