//! From a batch of trajectories to micro-batches that the model can run.
//!
//! [`Flat`] lays a batch out: one entry for each row, and one flat list of all its sampled tokens, by which log-probs,
//! masks and gradients are exchanged. [`pack`] puts rows into calls of the model by a budget of tokens, each prompt once.
//!
//! Alignment: the hidden state at position `p` scores the token at `p + 1`; the first sampled token is scored by the last
//! position of the prompt, which several rows may share.

mod flat;
mod pack;

pub use flat::{Columns, Flat, FlatRow, split_groups};
pub use pack::{PackedBatch, Span, Target, pack};

/// A batch that cannot be laid out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// A row with a token that nothing precedes, or with lists that do not fit each other.
    #[error("trajectory {seat}, row {row}: {reason}")]
    Row {
        /// Key of the trajectory.
        seat: folgore_protocol::ids::SeatKey,
        /// Place of the row in it.
        row: usize,
        /// What is wrong.
        reason: String,
    },
    /// Advantages of another batch.
    #[error("advantages: expected {expected} in group {group}, got {got}")]
    Advantages {
        /// Place of the group.
        group: usize,
        /// Its members.
        expected: usize,
        /// Advantages given for it.
        got: usize,
    },
    /// More optimiser updates than groups.
    #[error("algo.steps_per_generation: expected at most {groups}, the groups of the batch, got {parts}")]
    TooManyParts {
        /// Groups of the batch.
        groups: usize,
        /// Parts asked for.
        parts: usize,
    },
}
