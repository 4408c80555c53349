//! What a record keeps to prove afterwards what became of every seat, when the rows themselves are long forgotten.
//!
//! Two tables only grow: one row for each group that has ended, and one entry for each takeover and each commit. Both are
//! written in the transaction of the change that they tell of. Beyond a bound the oldest rows are folded into [`Pruned`]:
//! their numbers stay, and the digest of the chain that they were.

use std::collections::BTreeMap;

use folgore_protocol::{Digest, Draws, GroupId, PolicyId};
use serde::{Deserialize, Serialize};

use super::rows::{GroupRow, SeatRow};

/// The numbers that a batch is judged by; kept, because a run may be forced to go on with others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Groups of a batch.
    pub num_prompts: u32,
    /// Seats of a group.
    pub num_generations: u32,
    /// Steps that the oldest token may lag behind the step that trains on it.
    pub max_staleness: u32,
    /// Draws of one seat before its group is dropped whole.
    pub max_draws: u32,
    /// Groups that a step may open; a batch may be smaller only after so many.
    pub groups_max: u64,
}

/// Why one draw of a seat was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrawEnd {
    /// Its reward failed.
    RewardError,
    /// Its reward could not judge it.
    Unscorable,
    /// It could not be played: there was nothing to judge.
    Unplayed,
    /// Handed out as often as may be, and nothing came back.
    Unanswered,
    /// Its rows could not be learned from.
    Rows,
    /// Its reward was no finite number of sane size.
    Reward,
    /// It was taken in, and its worker was quarantined before it was sampled for a batch.
    Void,
}

impl DrawEnd {
    /// Every end.
    pub const ALL: [DrawEnd; 7] = [
        DrawEnd::RewardError,
        DrawEnd::Unscorable,
        DrawEnd::Unplayed,
        DrawEnd::Unanswered,
        DrawEnd::Rows,
        DrawEnd::Reward,
        DrawEnd::Void,
    ];

    /// Adds `times` draws that ended so.
    pub fn count(self, draws: &mut Draws, times: u64) {
        match self {
            DrawEnd::RewardError | DrawEnd::Reward => draws.errors += times,
            DrawEnd::Unscorable => draws.unscorable += times,
            DrawEnd::Unplayed => draws.unplayed += times,
            DrawEnd::Unanswered | DrawEnd::Rows | DrawEnd::Void => {}
        }
    }

    /// The name in reports.
    pub fn label(self) -> &'static str {
        match self {
            DrawEnd::RewardError => "reward_error",
            DrawEnd::Unscorable => "unscorable",
            DrawEnd::Unplayed => "unplayed",
            DrawEnd::Unanswered => "unanswered",
            DrawEnd::Rows => "rows",
            DrawEnd::Reward => "reward",
            DrawEnd::Void => "void",
        }
    }
}

/// What became of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It is in the batch of its step: trained on once that step is on the line of commits.
    Batch,
    /// It was left out whole, under this label.
    Dropped(String),
}

/// The policy steps of those of a trajectory's tokens that were sampled for its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The oldest.
    pub oldest: u64,
    /// The newest.
    pub newest: u64,
}

impl Span {
    /// Of a trajectory that nobody sampled for its step: an expert's, or experience.
    pub const NOBODY: Self = Self { oldest: u64::MAX, newest: 0 };
}

/// What became of one seat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatEnd {
    /// Draws opened, the last one included.
    pub draws: u32,
    /// How the first of them ended: all but the last, or all where the last one was the group's undoing.
    pub rejected: Vec<DrawEnd>,
    /// What the last draw was filled with, if it was and has a score.
    pub filled: Option<Span>,
}

impl SeatEnd {
    fn of(seat: &SeatRow) -> Self {
        let span = |filled: &super::rows::Filled| Span {
            oldest: filled.policies.iter().map(|p| p.step).min().unwrap_or(Span::NOBODY.oldest),
            newest: filled.policies.iter().map(|p| p.step).max().unwrap_or(Span::NOBODY.newest),
        };
        // What waits to be judged has not ended: it is left with its group, as what was never played is.
        let filled = seat.filled.as_ref().filter(|filled| filled.total.is_some()).map(span);
        Self { draws: seat.draw + 1, rejected: seat.rejected.clone(), filled }
    }
}

/// The end of a group, written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupEnd {
    /// The step that it was opened for.
    pub step: u64,
    /// What became of it.
    pub fate: Fate,
    /// Its seats, by sample.
    pub seats: Vec<SeatEnd>,
}

impl GroupEnd {
    /// The end of `group`.
    pub fn of(group: &GroupRow, fate: Fate) -> Self {
        Self { step: group.step, fate, seats: group.seats.iter().map(SeatEnd::of).collect() }
    }

    /// True if every seat was filled. What was passed over has none.
    pub fn is_closed(&self) -> bool {
        !self.seats.is_empty() && self.seats.iter().all(|seat| seat.filled.is_some())
    }
}

/// One event of the line of checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogEntry {
    /// A learner took over from the checkpoint of `step`: commits beyond it are cut off.
    Takeover {
        /// The epoch that it was given.
        epoch: u32,
        /// The step of its checkpoint.
        step: u64,
        /// The policy of that step, if it said.
        policy: Option<PolicyId>,
        /// Ids of groups that its checkpoint has used up without this record: from the first up to the second.
        skipped: (u64, u64),
    },
    /// A step was trained.
    Commit {
        /// The epoch in which.
        epoch: u32,
        /// The step.
        step: u64,
        /// What came of it; none if only a later checkpoint tells that it was trained.
        policy: Option<PolicyId>,
        /// The groups of its batch.
        groups: u32,
        /// Groups that were opened for it.
        opened: u64,
        /// [`batch_digest`] of them.
        digest: Digest,
    },
}

/// Digest of the ids of a batch, in order.
pub fn batch_digest(ids: &[GroupId]) -> Digest {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.0.to_le_bytes()).collect();
    Digest::of(&bytes)
}

/// How many seats (draws, to be exact: group, sample, draw) ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// In a batch that was trained.
    pub trained: u64,
    /// Not trained on, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Waiting for a trajectory, or for the training of the batch that they are in.
    pub open: u64,
}

impl Tally {
    /// Counts the draws of an ended group; those of a batch are trained if `trained`, and open if not.
    pub fn add(&mut self, end: &GroupEnd, trained: bool) {
        for seat in &end.seats {
            seat.rejected.iter().for_each(|draw| self.reject(draw.label()));
            let last_is_left = (seat.rejected.len() as u64) < u64::from(seat.draws);
            match &end.fate {
                Fate::Dropped(label) if last_is_left => self.reject(label),
                Fate::Batch if trained => self.trained += 1,
                Fate::Batch => self.open += 1,
                Fate::Dropped(_) => {}
            }
        }
    }

    /// Counts one draw that was not trained on.
    pub fn reject(&mut self, reason: &str) {
        *self.rejected.entry(reason.to_owned()).or_default() += 1;
    }

    /// All draws.
    pub fn total(&self) -> u64 {
        self.trained + self.open + self.rejected.values().sum::<u64>()
    }
}

/// What is left of the oldest evidence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Groups.
    pub groups: u64,
    /// No group of a later step is among them.
    pub last_step: u64,
    /// Their draws; those of batches count as trained, for a batch still open is never that old.
    pub seats: Tally,
    /// Their totals.
    pub sums: Sums,
    /// Entries of the log.
    pub entries: u64,
    /// Epoch of the last of them.
    pub epoch: u32,
    /// Where the line of commits stood then.
    pub step: u64,
    /// Chain over all folded rows: SHA-256 of the value before and the row.
    pub chain: Option<Digest>,
}

/// Totals over groups, to be compared with the counters of the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Groups left out, by label.
    pub dropped: BTreeMap<String, u64>,
    /// Seats that were filled and have a score, also those voided later.
    pub filled: u64,
    /// Draws beyond the first.
    pub redrawn: u64,
    /// Draws that were not kept, by what ended them.
    pub rejected: BTreeMap<String, u64>,
    /// Groups of which every seat had a score at the end.
    pub closed: u64,
}

impl Sums {
    /// Adds an ended group.
    pub fn add(&mut self, end: &GroupEnd) {
        if let Fate::Dropped(label) = &end.fate {
            *self.dropped.entry(label.clone()).or_default() += 1;
        }
        self.closed += u64::from(end.is_closed());
        for seat in &end.seats {
            self.add_seat(seat.draws.saturating_sub(1), &seat.rejected, seat.filled.is_some());
        }
    }

    /// Adds a group that is open or closed.
    pub fn add_live(&mut self, group: &GroupRow) {
        self.closed += u64::from(group.is_closed());
        for seat in &group.seats {
            self.add_seat(seat.draw, &seat.rejected, seat.is_scored());
        }
    }

    fn add_seat(&mut self, redrawn: u32, rejected: &[DrawEnd], filled: bool) {
        let voided = rejected.iter().filter(|draw| **draw == DrawEnd::Void).count() as u64;
        self.filled += voided + u64::from(filled);
        self.redrawn += u64::from(redrawn);
        for draw in rejected {
            *self.rejected.entry(draw.label().to_owned()).or_default() += 1;
        }
    }
}

impl Pruned {
    /// Folds the end of a group in; `row` are its bytes.
    pub(super) fn fold_group(&mut self, end: &GroupEnd, row: &[u8]) {
        self.groups += 1;
        self.last_step = self.last_step.max(end.step);
        self.seats.add(end, true);
        self.sums.add(end);
        self.link(row);
    }

    /// Folds an entry of the log in; `row` are its bytes.
    pub(super) fn fold_entry(&mut self, entry: &LogEntry, row: &[u8]) {
        self.entries += 1;
        match entry {
            LogEntry::Takeover { epoch, step, .. } | LogEntry::Commit { epoch, step, .. } => {
                (self.epoch, self.step) = (*epoch, *step);
            }
        }
        self.link(row);
    }

    fn link(&mut self, row: &[u8]) {
        let mut bytes = self.chain.map_or_else(Vec::new, |before| before.0.to_vec());
        bytes.extend_from_slice(row);
        self.chain = Some(Digest::of(&bytes));
    }
}
