//! What is said to a reward elsewhere and what it answers, as JSON.

use folgore_protocol::{Answer, Outcome, Scope, ScoreItem, ScoreRequest, SeatKey};
use serde::Serialize;

use super::{Failure, shown};

/// Largest answer read, in bytes.
pub const MAX_ANSWER: usize = 8 << 20;

/// A request, with its number.
#[derive(Serialize)]
struct Asked<'a> {
    id: u64,
    budget_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<Scope>,
    items: &'a [ScoreItem],
}

/// The request numbered `id` as one line of JSON, without its end.
///
/// # Errors
/// Not with any request that came off a link; the writer's error is passed on all the same.
pub fn question(id: u64, request: &ScoreRequest) -> Result<Vec<u8>, Failure> {
    let scope = Some(request.scope).filter(|scope| *scope == Scope::Group);
    let asked = Asked { id, budget_ms: request.budget_ms, scope, items: &request.items };
    serde_json::to_vec(&asked).map_err(|e| Failure::lasting(format!("the request cannot be written: {e}")))
}

/// Reads the answer to `request`; an answer that bears a number must bear `id`, and where `numbered` it must bear one.
///
/// # Errors
/// If it is no answer to this request (which may pass), or says itself that it could not score.
pub fn answer(
    body: &[u8],
    name: &str,
    id: u64,
    numbered: bool,
    request: &ScoreRequest,
) -> Result<Vec<Outcome>, Failure> {
    let odd = |what: String| Failure::passing(format!("{what}, got {:?}", shown(body)));
    let answer: Answer = serde_json::from_slice(body)
        .or_else(|first| serde_json::from_slice(&quoted(body)).map_err(|_| first))
        .map_err(|e| odd(format!("expected a JSON reply ({e})")))?;
    if answer.id.is_some_and(|got| got != id) || (numbered && answer.id.is_none()) {
        return Err(odd(format!("expected a reply with id {id}")));
    }
    let ids: Vec<SeatKey> = request.items.iter().map(|item| item.id).collect();
    answer.outcomes(name, &ids).map_err(Failure::said)
}

/// `body` with `NaN`, `Infinity` and `-Infinity`, which several languages write and JSON has no word for, as texts: where a
/// score belongs, they are then named in the error of their item.
fn quoted(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 16);
    let (mut at, mut in_text) = (0, false);
    while at < body.len() {
        let rest = &body[at..];
        let word = [&b"NaN"[..], b"Infinity", b"-Infinity"].into_iter().find(|word| !in_text && rest.starts_with(word));
        if let Some(word) = word {
            out.push(b'"');
            out.extend_from_slice(word);
            out.push(b'"');
            at += word.len();
            continue;
        }
        out.push(body[at]);
        match body[at] {
            b'"' => in_text = !in_text,
            // What follows a backslash ends no text.
            b'\\' if in_text && at + 1 < body.len() => {
                at += 1;
                out.push(body[at]);
            }
            _ => {}
        }
        at += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{external::FailureKind, samples::item};

    fn request(n: u32) -> ScoreRequest {
        let items = (0..n).map(|sample| {
            let mut item = item("x", &[]);
            item.id.sample = sample;
            item
        });
        ScoreRequest { items: items.collect(), budget_ms: 1000, scope: Scope::Sample }
    }

    fn reason(outcome: &Outcome) -> &str {
        match outcome {
            Outcome::Error { reason } => reason,
            other => panic!("expected an error, got {other:?}"),
        }
    }

    #[test]
    fn numbers_that_json_has_no_word_for_fail_their_items_only() {
        let body = br#"{"note": "\"NaN\\", "scores": [NaN, 0.1, Infinity, -Infinity]}"#;
        let got = answer(body, "r", 1, false, &request(4)).unwrap();
        assert_eq!(got[1].total(), Some(0.1));
        for (at, word) in [(0, "NaN"), (2, "Infinity"), (3, "-Infinity")] {
            assert!(reason(&got[at]).contains(&format!("got \"{word}\"")), "{:?}", got[at]);
        }
    }

    #[test]
    fn what_answers_another_request_or_none_is_refused() {
        for (body, numbered, kind) in [
            ("garbage", false, FailureKind::Passing),
            ("", false, FailureKind::Passing),
            ("[1]", false, FailureKind::Passing),
            (r#"{"scores": [1e999]}"#, false, FailureKind::Passing),
            (r#"{"id": 6, "scores": [1]}"#, false, FailureKind::Passing),
            (r#"{"scores": [1]}"#, true, FailureKind::Passing),
            (r#"{"id": 7, "error": "no"}"#, true, FailureKind::Said),
            (r#"{"id": 7, "scores": []}"#, true, FailureKind::Said),
        ] {
            assert_eq!(answer(body.as_bytes(), "r", 7, numbered, &request(1)).unwrap_err().kind, kind, "{body}");
        }
        let long = format!("\"{}", "x".repeat(9000));
        assert!(answer(long.as_bytes(), "r", 7, false, &request(1)).unwrap_err().reason.len() < 300);
        assert!(answer(br#"{"id": 7, "scores": [1]}"#, "r", 7, true, &request(1)).is_ok());
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        proptest::proptest!(|(body in "[NaIfinty\"\\\\{}\\[\\],:0-9 -]{0,60}")| {
            let _ = answer(body.as_bytes(), "r", 1, false, &request(1));
        });
    }
}
