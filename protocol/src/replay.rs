//! What replay can be asked, and what it answers: subject [`crate::subjects::REPLAY`].
//!
//! Every variant is written as a map with one key (`{"next_batch": {"step": 3}}`), so that a JSON body always starts with
//! `{` and a large batch is read without an intermediate copy. What replay cannot do is the error of the ask, as text.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{
    batch::{Batch, Draws},
    generate::StopReason,
    ids::{PolicyId, SeatKey},
    job::RolloutJob,
    score::Outcome,
};

/// A question or an order to replay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayRequest {
    /// Jobs for seats that wait for a trajectory; answered with [`ReplayReply::Seats`].
    OpenSeats {
        /// Most jobs to return.
        max: u32,
        /// Also the seats that were handed out before and have not come in: for a coordinator that has just started, or
        /// whose queue was lost.
        reissue: bool,
    },
    /// The batch of `step`; answered with [`ReplayReply::Batch`] or [`ReplayReply::NotYet`]. Asking again gives the same.
    NextBatch {
        /// The step that will train on it, from 1.
        step: u64,
    },
    /// `step` is trained and its checkpoint is durable; answered with [`ReplayReply::Done`]. Repeating it changes nothing.
    Commit {
        /// The step that was trained.
        step: u64,
        /// The policy that came out of it.
        policy: PolicyId,
    },
    /// Opens an evaluation; answered with [`ReplayReply::Done`]. Repeating it changes nothing.
    OpenEval {
        /// Name of the evaluation, unique in the run (`before`, `step-20`, `after`).
        label: String,
        /// The policy to evaluate.
        policy: PolicyId,
        /// True: temperature 0. False: the run's own sampling.
        greedy: bool,
        /// Samples per task; at least 1.
        samples: u32,
        /// Which tasks of the held-out set, by place.
        tasks: Range<u64>,
    },
    /// What an evaluation has so far; answered with [`ReplayReply::Eval`].
    EvalResult {
        /// Name of the evaluation.
        label: String,
    },
    /// A learner takes over from the checkpoint of `step`; answered with [`ReplayReply::Resumed`]. Batches recorded beyond
    /// `step` are served again as recorded.
    Resume {
        /// Step of the checkpoint; 0: from the start.
        step: u64,
        /// The policy of that step, if it is known.
        policy: Option<PolicyId>,
        /// Ids of groups below this one are used up, also where the record does not know of them; 0: ask the record.
        first_free_group: u64,
        /// The least epoch to take, where heads are fenced from each other over a network; 0: ask the record alone.
        #[serde(default)]
        min_epoch: u32,
    },
    /// Batches of steps up to `step` are not needed any more; answered with [`ReplayReply::Done`].
    Forget {
        /// The step of the oldest checkpoint that is kept.
        step: u64,
    },
    /// Counters; answered with [`ReplayReply::Status`].
    Status {},
}

/// The answer of replay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayReply {
    /// Jobs to issue; empty when no seat is open.
    Seats {
        /// The jobs.
        jobs: Vec<RolloutJob>,
    },
    /// The batch asked for.
    Batch(Batch),
    /// The batch is not complete; ask again.
    NotYet {
        /// What it waits for.
        reason: String,
    },
    /// Done as asked.
    Done {},
    /// The learner holds the run from here on.
    Resumed {
        /// Epoch of the policies that this learner publishes; whoever commits with a lower one is refused.
        epoch: u32,
        /// The last step with a recorded batch; the checkpoint's step if there is none beyond it.
        recorded_step: u64,
    },
    /// An evaluation.
    Eval(EvalSummary),
    /// Counters.
    Status(ReplayStatus),
}

/// One sample of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalItem {
    /// Which seat.
    pub seat: SeatKey,
    /// Id of the task.
    pub task_id: String,
    /// What the reward said.
    pub outcome: Outcome,
    /// The ids that the policy sampled, all turns.
    pub completion_ids: Vec<u32>,
    /// Why the last turn ended.
    pub stop_reason: StopReason,
}

/// An evaluation as far as it has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalSummary {
    /// Name of the evaluation.
    pub label: String,
    /// The policy evaluated.
    pub policy: PolicyId,
    /// Number of samples asked for.
    pub expected: u32,
    /// The samples that are in, in the order of their seats.
    pub items: Vec<EvalItem>,
}

impl EvalSummary {
    /// True if every sample is in.
    pub fn complete(&self) -> bool {
        self.items.len() as u64 >= u64::from(self.expected)
    }

    /// Mean score of the scored items; none if there are none.
    pub fn mean_reward(&self) -> Option<f64> {
        let totals: Vec<f64> = self.items.iter().filter_map(|item| item.outcome.total()).collect();
        (!totals.is_empty()).then(|| totals.iter().sum::<f64>() / totals.len() as f64)
    }

    /// Share of the scored items whose score reaches `correct`; none if there are none.
    pub fn share_reaching(&self, correct: f64) -> Option<f64> {
        let totals: Vec<f64> = self.items.iter().filter_map(|item| item.outcome.total()).collect();
        let reached = totals.iter().filter(|total| **total >= correct).count();
        (!totals.is_empty()).then(|| reached as f64 / totals.len() as f64)
    }

    /// Share of the tasks (groups with a scored item) of which at least one sample reaches `correct`; none if there are none.
    pub fn tasks_reaching(&self, correct: f64) -> Option<f64> {
        let mut best = std::collections::BTreeMap::new();
        for item in &self.items {
            if let Some(total) = item.outcome.total() {
                *best.entry(item.seat.group).or_insert(false) |= total >= correct;
            }
        }
        (!best.is_empty()).then(|| best.values().filter(|solved| **solved).count() as f64 / best.len() as f64)
    }
}

/// Counters of replay since the run began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplayStatus {
    /// The step whose batch is being gathered.
    pub open_step: u64,
    /// The last step committed; 0 before the first.
    pub committed_step: u64,
    /// Groups that are open.
    pub open_groups: u64,
    /// Seats that wait for a trajectory, handed out or not.
    pub open_seats: u64,
    /// Groups whose seats are all in, and that wait to be judged as a whole.
    #[serde(default)]
    pub unjudged_groups: u64,
    /// Trajectories taken in.
    pub trajectories: u64,
    /// Trajectories refused, by reason.
    pub refused: Vec<(String, u64)>,
    /// What became of the draws for training.
    #[serde(default)]
    pub draws: Draws,
    /// Draws for training that were not kept, by what ended them (`reward_error`, `unscorable`, `unplayed`, ...).
    #[serde(default)]
    pub rejected: Vec<(String, u64)>,
    /// Groups closed.
    pub closed_groups: u64,
    /// Groups dropped whole (unscorable, stale, equal rewards).
    pub dropped_groups: u64,
    /// Positions of the stream of questions that were passed over, because what they ask was put off.
    #[serde(default)]
    pub passed_over: u64,
    /// Strikes against workers, by name: content that no honest sampler makes.
    #[serde(default)]
    pub strikes: Vec<(String, u32)>,
    /// Workers from which nothing is taken any more.
    #[serde(default)]
    pub quarantined: Vec<String>,
    /// What is kept of the policy's successes; none where nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experience: Option<ExperienceStatus>,
    /// How the questions that were asked did last; none without a curriculum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difficulty: Option<DifficultyStatus>,
}

/// Questions that were asked, by what came of their last group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifficultyStatus {
    /// Nothing of it succeeded.
    pub none: u64,
    /// Some of it did.
    pub some: u64,
    /// All of it did.
    pub all: u64,
}

/// What is kept of the policy's successes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExperienceStatus {
    /// The step from which on it is kept and replayed; none: not yet.
    pub from_step: Option<u64>,
    /// Questions that may be replayed.
    pub questions: u64,
    /// Successes at them.
    pub past: u64,
    /// Questions that are not asked any more.
    pub retired: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec,
        ids::{Digest, GroupId},
    };

    fn item(group: u64, sample: u32, total: Option<f64>) -> EvalItem {
        EvalItem {
            seat: SeatKey { group: GroupId(group), sample, draw: 0 },
            task_id: format!("t{group}"),
            outcome: total.map_or(Outcome::Error { reason: "timed out".into() }, |t| Outcome::scored("exact", t)),
            completion_ids: vec![1, 2],
            stop_reason: StopReason::Eos,
        }
    }

    #[test]
    fn every_request_is_a_map_in_both_formats() {
        let policy = PolicyId { epoch: 1, step: 2, digest: Digest::of(b"a") };
        let requests = [
            ReplayRequest::OpenSeats { max: 3, reissue: true },
            ReplayRequest::NextBatch { step: 3 },
            ReplayRequest::Commit { step: 3, policy },
            ReplayRequest::OpenEval { label: "before".into(), policy, greedy: true, samples: 1, tasks: 0..300 },
            ReplayRequest::EvalResult { label: "before".into() },
            ReplayRequest::Resume { step: 0, policy: Some(policy), first_free_group: 0, min_epoch: 3 },
            ReplayRequest::Forget { step: 2 },
            ReplayRequest::Status {},
        ];
        for request in requests {
            let json = codec::encode_json(&request).unwrap();
            assert_eq!(codec::Format::of(&json), codec::Format::Json);
            assert_eq!(codec::decode::<ReplayRequest>(&json).unwrap(), request);
            assert_eq!(codec::decode::<ReplayRequest>(&codec::encode(&request).unwrap()).unwrap(), request);
        }
    }

    #[test]
    fn shares_leave_out_what_was_not_scored() {
        let policy = PolicyId { epoch: 0, step: 0, digest: Digest::of(b"") };
        let items = vec![item(0, 0, Some(1.0)), item(0, 1, Some(0.0)), item(1, 0, Some(0.0)), item(1, 1, None)];
        let summary = EvalSummary { label: "before".into(), policy, expected: 5, items };
        assert!(!summary.complete());
        assert_eq!(summary.mean_reward(), Some(1.0 / 3.0));
        assert_eq!(summary.share_reaching(1.0), Some(1.0 / 3.0));
        assert_eq!(summary.tasks_reaching(1.0), Some(0.5));
        let empty = EvalSummary { items: Vec::new(), ..summary };
        assert_eq!((empty.mean_reward(), empty.tasks_reaching(1.0)), (None, None));
    }
}
