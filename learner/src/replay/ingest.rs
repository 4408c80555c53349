//! What a trajectory must fulfil before it is believed.

use folgore_protocol::{ANSWER_BYTES_MAX, Outcome, PolicyId, Trajectory, UNJUDGED_BYTES_MAX};

/// A reward whose magnitude is above this is a fault of the rule: its square would still be exact enough, its group's
/// statistics would not.
const REWARD_MAX: f64 = 1e9;

/// Why a trajectory was not taken. Each is counted under its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Sent under another's name.
    ForgedSender,
    /// Without the token of its seat's job.
    WrongToken,
    /// Its maker is quarantined.
    Quarantined,
    /// The seat was never opened.
    UnknownSeat,
    /// It came for training where evaluation was asked, or the other way round, or for another evaluation.
    Purpose,
    /// It answers another task.
    Task,
    /// Its rows cannot be learned from.
    Rows,
    /// Its reward is no finite number of sane size.
    Reward,
    /// Its tokens come from a policy too old, or one that this run does not have.
    Policy,
    /// The message could not be read.
    Unreadable,
}

impl Refusal {
    /// Name of the counter.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::ForgedSender => "forged_sender",
            Refusal::WrongToken => "wrong_token",
            Refusal::Quarantined => "quarantined",
            Refusal::UnknownSeat => "unknown_seat",
            Refusal::Purpose => "purpose",
            Refusal::Task => "task",
            Refusal::Rows => "rows",
            Refusal::Reward => "reward",
            Refusal::Policy => "policy",
            Refusal::Unreadable => "unreadable",
        }
    }
}

/// What came of one trajectory.
#[derive(Clone, Debug, PartialEq)]
pub enum Ingested {
    /// It fills its seat.
    Taken,
    /// Its seat was filled, drawn again or dropped before: nothing changed.
    Duplicate,
    /// Its reward failed: the seat is drawn again, or the group is dropped.
    Redrawn(String),
    /// It is not believed.
    Refused(Refusal, String),
}

/// Checks what does not depend on the seat, of a scored trajectory: rows and numbers. One without a score is drawn again
/// whatever its rows are; an episode that could not be played has none.
///
/// `judged_later`: whether its score is to come from a verdict on its group.
pub(super) fn check_content(
    trajectory: &Trajectory,
    vocab_size: u32,
    judged_later: bool,
) -> Result<(), (Refusal, String)> {
    if trajectory.rows.is_empty() {
        return Err((Refusal::Rows, "expected at least one row, got none".into()));
    }
    for (i, row) in trajectory.rows.iter().enumerate() {
        row.validate(vocab_size).map_err(|e| (Refusal::Rows, format!("row {i}: {e}")))?;
    }
    match &trajectory.outcome {
        outcome if outcome.unjudged_bytes() > UNJUDGED_BYTES_MAX => {
            let got = outcome.unjudged_bytes();
            Err((Refusal::Rows, format!("expected at most {UNJUDGED_BYTES_MAX} bytes to be judged, got {got}")))
        }
        Outcome::Unjudged { .. } if !judged_later => {
            Err((Refusal::Reward, "expected a score, got a completion that is to be judged with its group".into()))
        }
        Outcome::Scored { .. } if judged_later => {
            Err((Refusal::Reward, "expected a completion to be judged with its group, got a score".into()))
        }
        outcome => check_reward(outcome).map_err(|reason| (Refusal::Reward, reason)),
    }
}

/// Checks the numbers of a score.
pub(super) fn check_reward(outcome: &Outcome) -> Result<(), String> {
    let Outcome::Scored { total, parts, answer } = outcome else { return Ok(()) };
    if let Some(answer) = answer.as_ref().filter(|answer| answer.len() > ANSWER_BYTES_MAX) {
        return Err(format!("expected an answer of at most {ANSWER_BYTES_MAX} bytes, got {}", answer.len()));
    }
    let sane = |value: f64| value.is_finite() && value.abs() <= REWARD_MAX;
    let numbers = std::iter::once(*total).chain(parts.iter().flat_map(|p| [p.value, p.weight]));
    match numbers.into_iter().find(|n| !sane(*n)) {
        Some(bad) => Err(format!("expected finite rewards of at most {REWARD_MAX:e}, got {bad}")),
        None => Ok(()),
    }
}

/// True if both are the same weights. The epoch is left out: a learner that took the run over and trained the same step on
/// the same batch has made the same policy.
pub(super) fn same_weights(a: &PolicyId, b: &PolicyId) -> bool {
    (a.step, a.digest) == (b.step, b.digest)
}
