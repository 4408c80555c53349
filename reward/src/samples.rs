//! Items for the unit tests.

use folgore_protocol::{GroupId, Outcome, Prompt, ScoreItem, SeatKey, StopReason};
use serde_json::Value;

/// An item whose completion ended by itself.
pub(crate) fn item(completion: &str, columns: &[(&str, Value)]) -> ScoreItem {
    ScoreItem {
        id: SeatKey { group: GroupId(1), sample: 0, draw: 0 },
        columns: columns.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        prompt: Prompt::Text("question".into()),
        completion: completion.to_owned(),
        completion_ids: Vec::new(),
        stop_reason: StopReason::Eos,
        said: Vec::new(),
    }
}

/// The score, or a panic that shows what came instead.
pub(crate) fn total(outcome: &Outcome) -> f64 {
    outcome.total().unwrap_or_else(|| panic!("expected a score, got {outcome:?}"))
}

/// Why the item could not be judged, or a panic that shows what came instead.
pub(crate) fn unscorable(outcome: Outcome) -> String {
    match outcome {
        Outcome::Unscorable { reason } => reason,
        other => panic!("expected an unscorable item, got {other:?}"),
    }
}
