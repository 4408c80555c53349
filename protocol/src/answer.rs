//! What a reward answers, as forgiving in form as it is strict in numbers: any language may have written it.
//!
//! Two forms are taken. `{"outcomes": [[id, outcome], ...]}` is [`ScoreReply`]; `{"scores": [...]}` has one entry for each
//! item, in order: a number, null for "cannot be judged", or `{"error": reason}`. `{"error": reason}` alone fails all items.
//! Whatever is not a finite number where a score belongs is an error of its item, never a number.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    ids::SeatKey,
    score::{Outcome, ScoreReply},
};

/// Longest text of an answer that an error repeats, in characters.
const SHOWN: usize = 80;

/// A reply of either form, as it came.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Answer {
    /// The number of the request, where requests have one.
    #[serde(default)]
    pub id: Option<u64>,
    /// Outcomes by id, in any order.
    #[serde(default)]
    pub outcomes: Option<Vec<(SeatKey, Value)>>,
    /// Scores in the order of the items.
    #[serde(default)]
    pub scores: Option<Vec<Value>>,
    /// Why nothing was scored.
    #[serde(default)]
    pub error: Option<String>,
}

impl From<ScoreReply> for Answer {
    fn from(reply: ScoreReply) -> Self {
        let value = |outcome: Outcome| serde_json::to_value(outcome).unwrap_or_default();
        let outcomes = reply.outcomes.into_iter().map(|(id, outcome)| (id, value(outcome))).collect();
        Self { outcomes: Some(outcomes), ..Self::default() }
    }
}

impl Answer {
    /// One outcome for each of `ids`, in order; `name` is the reward's, for the part of a plain score.
    ///
    /// # Errors
    /// If the answer is of neither form, or says itself that nothing was scored.
    pub fn outcomes(self, name: &str, ids: &[SeatKey]) -> Result<Vec<Outcome>, String> {
        match (self.outcomes, self.scores, self.error) {
            (None, None, Some(reason)) => Err(reason),
            (Some(outcomes), None, None) => Ok(ids.iter().map(|id| by_id(&outcomes, *id)).collect()),
            (None, Some(scores), None) if scores.len() == ids.len() => {
                Ok(scores.into_iter().map(|score| plain(name, score)).collect())
            }
            (None, Some(scores), None) => Err(format!("expected {} scores, got {}", ids.len(), scores.len())),
            _ => Err("expected one of outcomes, scores and error in the reply".to_owned()),
        }
    }
}

fn error(reason: String) -> Outcome {
    Outcome::Error { reason }
}

fn by_id(outcomes: &[(SeatKey, Value)], id: SeatKey) -> Outcome {
    let mut found = outcomes.iter().filter(|(seat, _)| *seat == id);
    match (found.next(), found.next()) {
        (None, _) => error(format!("the reply has no outcome for {id}")),
        (Some(_), Some(_)) => error(format!("the reply has several outcomes for {id}")),
        (Some((_, value)), None) => match serde_json::from_value(value.clone()) {
            Ok(Outcome::Scored { total, .. }) if !total.is_finite() => {
                error(format!("expected a finite score, got {total}"))
            }
            Ok(Outcome::Unjudged { .. }) => error(format!("expected an outcome, got {}", shown(value))),
            Ok(outcome) => outcome,
            Err(e) => error(format!("expected an outcome, got {}: {e}", shown(value))),
        },
    }
}

fn plain(name: &str, score: Value) -> Outcome {
    match &score {
        Value::Null => Outcome::Unscorable { reason: "the reward gave no score".to_owned() },
        Value::Number(number) => match number.as_f64() {
            Some(value) => Outcome::scored(name, value),
            None => error(format!("expected a finite score, got {number}")),
        },
        Value::Object(map) => match map.get("error").and_then(Value::as_str) {
            Some(reason) => error(reason.to_owned()),
            None => error(format!("expected a number, got {}", shown(&score))),
        },
        _ => error(format!("expected a finite number, got {}", shown(&score))),
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ids::GroupId;

    fn ids(n: u32) -> Vec<SeatKey> {
        (0..n).map(|sample| SeatKey { group: GroupId(1), sample, draw: 0 }).collect()
    }

    fn read(answer: Value, n: u32) -> Result<Vec<Outcome>, String> {
        serde_json::from_value::<Answer>(answer).unwrap().outcomes("r", &ids(n))
    }

    #[test]
    fn plain_scores_are_read_and_everything_else_is_no_number() {
        let scores = json!({"scores": [1, -0.5, 1e308, null, "1", [1], true, {"error": "gone"}, {"x": 1}]});
        let got = read(scores, 9).unwrap();
        let totals: Vec<_> = got.iter().map(Outcome::total).collect();
        assert_eq!(totals, [Some(1.0), Some(-0.5), Some(1e308), None, None, None, None, None, None]);
        assert!(matches!(&got[3], Outcome::Unscorable { .. }));
        for (at, want) in [(4, "got \"1\""), (5, "got [1]"), (6, "got true"), (7, "gone"), (8, "got {\"x\":1}")] {
            assert!(matches!(&got[at], Outcome::Error { reason } if reason.contains(want)), "{:?}", got[at]);
        }
    }

    #[test]
    fn outcomes_are_found_by_id_in_any_order() {
        let id = |sample: u32| json!({"group": 1, "sample": sample, "draw": 0});
        let scored = |total: Value| json!({"outcome": "scored", "total": total});
        let got = read(
            json!({"outcomes": [
                [id(4), {"outcome": "unscorable", "reason": "gold"}],
                [id(0), scored(json!(2))],
                [id(1), scored(json!(null))],
                [id(2), scored(json!(1))],
                [id(2), scored(json!(1))],
                [id(3), "fine"],
                [id(6), {"outcome": "unjudged", "completion": "2"}],
            ]}),
            7,
        )
        .unwrap();
        assert_eq!(got[0], Outcome::Scored { total: 2.0, parts: vec![], answer: None });
        for (at, want) in
            [(1, "null"), (2, "several"), (3, "got \"fine\""), (5, "no outcome for g1.5.0"), (6, "unjudged")]
        {
            assert!(matches!(&got[at], Outcome::Error { reason } if reason.contains(want)), "{at}: {:?}", got[at]);
        }
        assert_eq!(got[4], Outcome::Unscorable { reason: "gold".into() });
    }

    #[test]
    fn what_is_no_answer_fails_as_a_whole() {
        for (answer, want) in [
            (json!({"scores": [1]}), "expected 2 scores, got 1"),
            (json!({"error": "ValueError: x"}), "ValueError: x"),
            (json!({}), "expected one of"),
            (json!({"scores": [1, 1], "error": "x"}), "expected one of"),
        ] {
            assert!(read(answer, 2).unwrap_err().contains(want));
        }
    }

    #[test]
    fn our_own_reply_comes_back() {
        let outcomes = vec![Outcome::scored("a", 0.1), Outcome::Unscorable { reason: "u".into() }];
        let reply = ScoreReply { outcomes: ids(2).into_iter().zip(outcomes.clone()).collect() };
        assert_eq!(Answer::from(reply).outcomes("r", &ids(2)), Ok(outcomes));
    }
}
