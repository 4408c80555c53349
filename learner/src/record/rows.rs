//! The stored forms. A change here, or in the protocol types that they hold, raises [`super::codec::SCHEMA`]; the test at the
//! end fails until that is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use folgore_protocol::{
    Draws, EvalItem, Given, GroupId, Outcome, PolicyId, Purpose, Row, SeatKey, Source, StopReason, Task, Trajectory,
};
use serde::{Deserialize, Serialize};

use super::{codec::as_json, evidence::DrawEnd};

/// Numbers of the whole run. Each grows with the transaction of the change that it counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Fences writers: raised whenever a learner takes the run over.
    pub epoch: u32,
    /// The last step committed on the present line of checkpoints.
    pub committed_step: u64,
    /// Batches of steps up to here are forgotten.
    pub forgotten_step: u64,
    /// Id of the next group, and so the position in the stream of tasks.
    pub next_group: u64,
    /// Number of the next evaluation.
    pub next_eval: u32,
    /// Trajectories taken in.
    pub trajectories: u64,
    /// Seats drawn again.
    pub refills: u64,
    /// Groups closed with a score for each seat.
    pub closed_groups: u64,
    /// Groups dropped whole, by reason.
    pub dropped_groups: BTreeMap<String, u64>,
    /// Trajectories not taken, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Groups that ended, in a batch or dropped.
    pub ended_groups: u64,
    /// Ids of groups that a checkpoint had used up without this record.
    pub skipped_groups: u64,
    /// Groups that were closed and opened again, because a worker of theirs was quarantined.
    pub reopened_groups: u64,
    /// Seats for training that were filled and have a score, also those voided later, with a score or before it.
    pub filled: u64,
    /// Draws of seats for training beyond the first of each.
    pub redrawn: u64,
    /// Draws of seats for training that were not kept, by what ended them.
    pub rejected: BTreeMap<String, u64>,
    /// Number of the next entry of the log.
    pub next_entry: u64,
    /// Strikes against workers, by name.
    pub strikes: BTreeMap<String, u32>,
    /// Workers from which nothing is taken for the rest of the run.
    pub quarantined: BTreeSet<String>,
    /// The step from which on experience is kept and replayed; none: not yet.
    pub experience_from: Option<u64>,
    /// Number of the next success that is kept.
    pub next_past: u64,
}

impl Counters {
    /// What became of the draws for training.
    pub fn draws(&self) -> Draws {
        let mut draws = Draws { scored: self.filled, refilled: self.redrawn, ..Draws::default() };
        for end in DrawEnd::ALL {
            end.count(&mut draws, self.rejected.get(end.label()).copied().unwrap_or(0));
        }
        draws
    }
}

/// What the tokens of seats are made with. Never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What filled a seat, as far as decisions need it; the trajectory itself has its own table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Filled {
    /// The reward; none while it waits to be judged with its group.
    pub total: Option<f64>,
    /// The distinct policies of its tokens.
    pub policies: Vec<PolicyId>,
    /// Who made it.
    pub worker: String,
    /// Where it comes from.
    pub source: Source,
    /// [`Trajectory::fingerprint`] of it.
    pub fingerprint: u64,
}

/// What a seat is given to begin with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SeatGiven {
    /// An expert's trace.
    Trace(#[serde(with = "as_json")] Given),
    /// One of these successes.
    Experience(Vec<PastRow>),
}

/// A success that is kept, as far as decisions need it; its rows have their own table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastRow {
    /// Its number.
    pub number: u64,
    /// [`Trajectory::fingerprint`] of it.
    pub fingerprint: u64,
    /// The step that it was sampled for.
    pub step: u64,
}

/// What is known of a question that was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuestionRow {
    /// The question.
    #[serde(with = "as_json")]
    pub task: Task,
    /// Members of its group that succeeded when it was asked last, and any did.
    pub successes: u32,
    /// What is kept of it, the oldest first.
    pub past: Vec<PastRow>,
    /// It is not asked again.
    pub retired: bool,
}

/// What a group came to, for how hard its question is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// The step that it was opened for.
    pub step: u64,
    /// Which group.
    pub group: GroupId,
    /// Members that the policy sampled and that succeeded.
    pub successes: u32,
    /// Members that the policy sampled, at least 1.
    pub members: u32,
}

impl Visit {
    /// Share that succeeded.
    pub fn rate(&self) -> f64 {
        f64::from(self.successes) / f64::from(self.members)
    }
}

/// One seat of a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeatRow {
    /// The draw that is awaited, or that came in.
    pub draw: u32,
    /// How the draws before it ended, and itself where that was the end of its group.
    pub rejected: Vec<DrawEnd>,
    /// What came in.
    pub filled: Option<Filled>,
    /// What it begins with, where that is not for the policy to say.
    pub given: Option<SeatGiven>,
}

impl SeatRow {
    /// True if it is filled and has a score.
    pub fn is_scored(&self) -> bool {
        self.filled.as_ref().is_some_and(|filled| filled.total.is_some())
    }
}

/// A group that is open, or closed and kept. A dropped group has no row: its id lies below `next_group`, which tells a late
/// trajectory from one that was never asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRow {
    /// The step that will train on it.
    pub step: u64,
    /// The question, as it was when the group was opened.
    #[serde(with = "as_json")]
    pub task: Task,
    /// Its seats, by sample.
    pub seats: Vec<SeatRow>,
}

impl GroupRow {
    /// True if every seat is filled and has a score.
    pub fn is_closed(&self) -> bool {
        self.seats.iter().all(SeatRow::is_scored)
    }

    /// True if every seat is filled and none has a score: the group is to be judged as a whole.
    pub fn is_unjudged(&self) -> bool {
        self.open_seats() == 0 && !self.seats.iter().any(SeatRow::is_scored)
    }

    /// What became of the draws of its seats so far.
    pub fn draws(&self) -> Draws {
        let mut draws = Draws::default();
        for seat in &self.seats {
            draws.scored += u64::from(seat.is_scored());
            draws.refilled += u64::from(seat.draw);
            seat.rejected.iter().for_each(|end| end.count(&mut draws, 1));
        }
        draws
    }

    /// Number of seats that wait.
    pub fn open_seats(&self) -> usize {
        self.seats.iter().filter(|seat| seat.filled.is_none()).count()
    }
}

/// A step from the opening of its first group to its batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Groups opened for it, dropped ones included.
    pub opened: u64,
    /// Groups left out: equal rewards, no score, stale.
    pub left_out: u32,
    /// Why the last one was left out.
    pub last_drop: Option<String>,
    /// Those left out because a member got no score.
    pub unscored: u32,
    /// Positions of the stream of questions that were passed over for it.
    pub passed_over: u32,
    /// Questions that are replayed in its first groups; set when the first of them is opened.
    pub replayed: Vec<String>,
    /// The groups of its batch, in order; none while it is gathered.
    pub batch: Option<Vec<GroupId>>,
}

/// An evaluation; its samples have their own table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// Number of the evaluation, part of the ids of its groups.
    pub ordinal: u32,
    /// The policy evaluated.
    pub policy: PolicyId,
    /// Temperature 0.
    pub greedy: bool,
    /// Samples per task.
    pub samples: u32,
    /// Places in the held-out set.
    pub tasks: Range<u64>,
    /// The draw awaited of each seat, task by task.
    pub draws: Vec<u32>,
}

/// A trajectory as it is stored. Purpose and outcome are tagged enums, which bincode cannot read.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Trajectory")]
struct TrajectoryForm {
    seat: SeatKey,
    task_id: String,
    #[serde(with = "as_json")]
    purpose: Purpose,
    rows: Vec<Row>,
    #[serde(with = "as_json")]
    outcome: Outcome,
    stop_reason: StopReason,
    worker: String,
    duration_ms: u64,
    /// It has served once the trajectory is taken in.
    #[serde(skip)]
    token: String,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "EvalItem")]
struct EvalItemForm {
    seat: SeatKey,
    task_id: String,
    #[serde(with = "as_json")]
    outcome: Outcome,
    completion_ids: Vec<u32>,
    stop_reason: StopReason,
}

/// A trajectory in its stored form.
#[derive(Serialize, Deserialize)]
pub struct StoredTrajectory(#[serde(with = "TrajectoryForm")] pub Trajectory);

/// A sample of an evaluation in its stored form.
#[derive(Serialize, Deserialize)]
pub struct StoredEvalItem(#[serde(with = "EvalItemForm")] pub EvalItem);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{
        codec,
        evidence::{self, Fate, GroupEnd, LogEntry},
    };
    use folgore_protocol::{Digest, Prompt, RunLength, Segment, SegmentKind};

    fn trajectory() -> Trajectory {
        let policy = PolicyId { epoch: 1, step: 2, digest: Digest::of(b"p") };
        let prompt =
            Segment { kind: SegmentKind::Prompt, ids: vec![1, 300], logprobs: vec![], policies: RunLength::default() };
        let sampled = Segment {
            kind: SegmentKind::Sampled,
            ids: vec![3, 4],
            logprobs: vec![-0.5, -f32::MIN_POSITIVE],
            policies: RunLength::of(policy, 2),
        };
        Trajectory {
            seat: SeatKey { group: GroupId(5), sample: 1, draw: 0 },
            task_id: "t".into(),
            purpose: Purpose::Eval { label: "before".into(), policy },
            rows: vec![Row { segments: vec![prompt, sampled], source: Source::OnPolicy }],
            outcome: Outcome::scored("exact", 0.1 + 0.2),
            stop_reason: StopReason::Eos,
            worker: "w".into(),
            duration_ms: 12,
            token: String::new(),
        }
    }

    #[test]
    fn rows_read_back_bit_for_bit() {
        let t = trajectory();
        let row = codec::encode(&StoredTrajectory(t.clone())).unwrap();
        assert_eq!(codec::decode::<StoredTrajectory>(&row).unwrap().0, t);
        let item = EvalItem {
            seat: t.seat,
            task_id: t.task_id.clone(),
            outcome: Outcome::Unscorable { reason: "no gold".into() },
            completion_ids: vec![3, 4],
            stop_reason: t.stop_reason,
        };
        let row = codec::encode(&StoredEvalItem(item.clone())).unwrap();
        assert_eq!(codec::decode::<StoredEvalItem>(&row).unwrap().0, item);
        let columns = serde_json::from_str(r#"{"answer": [1, {"x": 0.1}], "big": 123456789012}"#).unwrap();
        let task = Task { id: "t".into(), prompt: Prompt::Text("2+2".into()), columns };
        let (source, fingerprint) = (Source::OnPolicy, t.fingerprint());
        let filled = Filled { total: Some(1.0), policies: vec![], worker: "w".into(), source, fingerprint };
        let trace = Given::Trace { turns: vec!["4".into()], share: 0.5, min_reward: None };
        let past = PastRow { number: 1, fingerprint, step: 2 };
        let seats = vec![
            SeatRow { given: Some(SeatGiven::Trace(trace)), ..SeatRow::default() },
            SeatRow { given: Some(SeatGiven::Experience(vec![past.clone()])), ..SeatRow::default() },
            SeatRow { draw: 1, rejected: vec![DrawEnd::Rows], filled: Some(filled), given: None },
        ];
        let group = GroupRow { step: 3, task, seats };
        assert_eq!(codec::decode::<GroupRow>(&codec::encode(&group).unwrap()).unwrap(), group);
        let question = QuestionRow { task: group.task, successes: 2, past: vec![past], retired: false };
        assert_eq!(codec::decode::<QuestionRow>(&codec::encode(&question).unwrap()).unwrap(), question);
    }

    /// Pins the stored bytes: a change of a stored type must raise `SCHEMA`, and then this digest.
    #[test]
    fn stored_forms_belong_to_their_schema() {
        let counters = Counters { next_group: 7, refused: [("duplicate".to_owned(), 2)].into(), ..Counters::default() };
        let step = StepRow { opened: 2, batch: Some(vec![GroupId(5)]), ..StepRow::default() };
        let mut bytes = codec::encode(&StoredTrajectory(trajectory())).unwrap();
        bytes.extend(codec::encode(&counters).unwrap());
        bytes.extend(codec::encode(&step).unwrap());
        let policies = vec![trajectory().rows[0].segments[1].policies.runs()[0].0];
        let filled = Filled { total: Some(1.0), policies, worker: "w".into(), source: Source::Replay, fingerprint: 7 };
        let past = PastRow { number: 1, fingerprint: 7, step: 2 };
        let given = Some(SeatGiven::Experience(vec![past.clone()]));
        let seat = SeatRow { draw: 1, rejected: vec![DrawEnd::Void], filled: Some(filled), given };
        let task = Task { id: "t".into(), prompt: Prompt::Text("2+2".into()), columns: Default::default() };
        let group = GroupRow { step: 3, task, seats: vec![seat] };
        let end = GroupEnd::of(&group, Fate::Dropped("stale".into()));
        let digest = evidence::batch_digest(&[GroupId(5)]);
        let commit = LogEntry::Commit { epoch: 1, step: 3, policy: None, groups: 1, opened: 2, digest };
        let takeover = LogEntry::Takeover { epoch: 2, step: 3, policy: None, skipped: (0, 0) };
        let mut pruned = evidence::Pruned::default();
        pruned.fold_group(&end, b"row");
        pruned.fold_entry(&commit, b"row");
        let question = QuestionRow { task: group.task.clone(), successes: 2, past: vec![past], retired: false };
        let visit = Visit { step: 3, group: GroupId(5), successes: 1, members: 8 };
        bytes.extend(codec::encode(&(group, end, commit, takeover, pruned, question, visit)).unwrap());
        assert_eq!((codec::SCHEMA, Digest::of(&bytes).short().as_str()), (6, "677d9c6fd3b7"));
    }
}
