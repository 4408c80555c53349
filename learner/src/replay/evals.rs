//! Held-out evaluation on the same path as training, and never mixed with it.
//!
//! A seat of an evaluation is seeded by its task and sample alone: two evaluations of one set draw the same random numbers,
//! so that their difference is the policies' and not the dice's.

use std::{collections::BTreeSet, ops::Range};

use folgore_protocol::{
    EvalItem, GroupId, Outcome, PolicyId, Purpose, RolloutJob, SamplingParams, SeatKey, Trajectory, seed,
};

use super::{
    defence,
    events::ReplayEvent,
    ingest::{Ingested, Refusal, check_content, same_weights},
    issue::Clock,
    ledger::Ledger,
};
use crate::record::{Write, rows::EvalRow};

/// Set in the ids of groups that belong to an evaluation; the number of the evaluation and the task follow.
const EVAL_BIT: u64 = 1 << 63;
const ORDINAL_SHIFT: u32 = 32;
/// Tasks of one evaluation: what fits below the ordinal, and far more than anybody waits for.
const TASKS_MAX: u64 = 1 << 20;

/// An evaluation in memory.
#[derive(Clone, Debug)]
pub(super) struct Evaluation {
    pub(super) row: EvalRow,
    /// Seats that are in, by place in `row.draws`.
    done: BTreeSet<usize>,
    /// Somebody of this process has asked for it.
    awaited: bool,
}

impl Evaluation {
    pub(super) fn new(row: EvalRow, done: &BTreeSet<(GroupId, u32)>) -> Self {
        let (first, last) = group_ids(&row);
        let place =
            |(group, sample): &(GroupId, u32)| (group.0 - first.0) as usize * row.samples as usize + *sample as usize;
        let done = done.range((first, 0)..=(last, u32::MAX)).map(place).collect();
        Self { row, done, awaited: false }
    }

    fn key(&self, place: usize) -> SeatKey {
        let samples = self.row.samples as usize;
        let group = GroupId(group_ids(&self.row).0.0 + (place / samples) as u64);
        SeatKey { group, sample: (place % samples) as u32, draw: self.row.draws[place] }
    }

    fn place(&self, seat: SeatKey) -> Option<usize> {
        let task = seat.group.0.checked_sub(group_ids(&self.row).0.0)? as usize;
        let place = task * self.row.samples as usize + seat.sample as usize;
        (seat.sample < self.row.samples && place < self.row.draws.len()).then_some(place)
    }

    fn open(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.row.draws.len()).filter(|place| !self.done.contains(place))
    }

    fn is_complete(&self) -> bool {
        self.done.len() == self.row.draws.len()
    }
}

/// True if the group belongs to an evaluation.
pub(super) fn is_eval(group: GroupId) -> bool {
    group.0 & EVAL_BIT != 0
}

/// First and last id of the groups of an evaluation.
pub fn group_ids(row: &EvalRow) -> (GroupId, GroupId) {
    let first = EVAL_BIT | u64::from(row.ordinal) << ORDINAL_SHIFT;
    (GroupId(first), GroupId(first + (row.tasks.end - row.tasks.start).max(1) - 1))
}

fn ordinal(group: GroupId) -> u32 {
    ((group.0 & !EVAL_BIT) >> ORDINAL_SHIFT) as u32
}

impl Ledger {
    /// Opens the evaluation `label`; the same one again goes on with what is in, another policy under the same label starts anew.
    ///
    /// # Errors
    /// If the tasks are not there, or there is nothing to sample.
    pub fn open_eval(
        &mut self,
        label: &str,
        policy: PolicyId,
        greedy: bool,
        samples: u32,
        tasks: Range<u64>,
    ) -> Result<(), String> {
        let held_out = self.held_out.len();
        if tasks.is_empty() || tasks.end > held_out || tasks.end - tasks.start > TASKS_MAX || samples == 0 {
            return Err(format!(
                "evaluation {label}: expected samples of at least 1 and tasks within 0..{held_out} (at most {TASKS_MAX}), \
                 got {samples} samples of tasks {tasks:?}"
            ));
        }
        if let Some(known) = self.evals.get_mut(label) {
            let row = &mut known.row;
            let same = same_weights(&row.policy, &policy)
                && (row.greedy, row.samples, &row.tasks) == (greedy, samples, &tasks);
            if same {
                known.awaited = true;
                if row.policy != policy {
                    row.policy = policy;
                    self.change.writes.push(Write::Eval(label.to_owned(), row.clone()));
                }
                return Ok(());
            }
            let (first, last) = group_ids(row);
            self.change.writes.push(Write::RemoveEvalItems(first, last));
            self.issues.settle_groups(|group| (first..=last).contains(&group));
        }
        let draws = vec![0; (tasks.end - tasks.start) as usize * samples as usize];
        let row = EvalRow { ordinal: self.counters.next_eval, policy, greedy, samples, tasks, draws };
        self.counters.next_eval += 1;
        self.change.writes.push(Write::Eval(label.to_owned(), row.clone()));
        self.evals.insert(label.to_owned(), Evaluation { row, done: BTreeSet::new(), awaited: true });
        Ok(())
    }

    /// True if every sample of `label` is in; none if there is no such evaluation.
    pub fn eval_complete(&self, label: &str) -> Option<bool> {
        self.evals.get(label).map(Evaluation::is_complete)
    }

    /// The same, for whoever waits for it.
    pub fn await_eval(&mut self, label: &str) -> Option<bool> {
        let eval = self.evals.get_mut(label)?;
        eval.awaited = true;
        Some(eval.is_complete())
    }

    pub(super) fn open_eval_seats(&self) -> u64 {
        self.evals.values().map(|eval| (eval.row.draws.len() - eval.done.len()) as u64).sum()
    }

    /// Seats of evaluations go first: whoever asked waits for them. An evaluation that an earlier process opened waits until it is asked for
    /// again: nobody serves its policy yet, and its draws would be spent for nothing.
    pub(super) fn eval_jobs(&mut self, clock: &Clock, max: usize) -> Vec<RolloutJob> {
        let mut jobs = Vec::new();
        for (label, eval) in self.evals.iter().filter(|(_, eval)| eval.awaited) {
            for place in eval.open() {
                let seat = eval.key(place);
                if jobs.len() == max {
                    return jobs;
                }
                if !self.issues.hand_out(seat, clock) {
                    continue;
                }
                let task = eval.row.tasks.start + (place / eval.row.samples as usize) as u64;
                let seeded_by = SeatKey { group: GroupId(EVAL_BIT | task), ..seat };
                let own = &self.settings.sampling;
                let temperature = if eval.row.greedy { 0.0 } else { own.temperature };
                jobs.push(RolloutJob {
                    seat,
                    task: self.held_out.task(task),
                    seed: seed::seat(self.settings.run_seed, seeded_by),
                    purpose: Purpose::Eval { label: label.clone(), policy: eval.row.policy },
                    min_policy_step: eval.row.policy.step,
                    environment: self.settings.environment.clone(),
                    sampling: SamplingParams { temperature, ..own.clone() },
                    token: defence::token(&self.secret, seat),
                    given: None,
                });
            }
        }
        jobs
    }

    pub(super) fn ingest_eval(&mut self, trajectory: Trajectory) -> Ingested {
        let key = trajectory.seat;
        let unknown = || Ingested::Refused(Refusal::UnknownSeat, format!("seat {key} belongs to no evaluation"));
        let Purpose::Eval { label, .. } = &trajectory.purpose else {
            return Ingested::Refused(Refusal::Purpose, format!("seat {key} is for evaluation"));
        };
        let label = label.clone();
        if ordinal(key.group) >= self.counters.next_eval {
            return unknown();
        }
        let Some(eval) = self.evals.get(&label) else { return unknown() };
        if eval.row.ordinal != ordinal(key.group) {
            return Ingested::Duplicate;
        }
        let Some(place) = eval.place(key) else { return unknown() };
        let awaited = eval.row.draws[place];
        if key.draw < awaited || eval.done.contains(&place) {
            return Ingested::Duplicate;
        }
        if key.draw > awaited {
            return unknown();
        }
        let policy = eval.row.policy;
        if let Some(other) = trajectory.policies().iter().find(|made_by| !same_weights(made_by, &policy)) {
            self.issues.release(&key);
            let reason = format!("seat {key}: evaluates policy {policy}, made by {other}");
            return Ingested::Refused(Refusal::Policy, reason);
        }
        if let Outcome::Unscorable { reason } | Outcome::Error { reason } = &trajectory.outcome {
            self.redraw_eval(&label, place, item_of(&trajectory, trajectory.outcome.clone()));
            return Ingested::Redrawn(reason.clone());
        }
        if let Err((refusal, reason)) = check_content(&trajectory, self.settings.vocab_size, false) {
            let item = item_of(&trajectory, Outcome::Error { reason: reason.clone() });
            self.redraw_eval(&label, place, item);
            return Ingested::Refused(refusal, format!("seat {key}: {reason}"));
        }
        self.fill_eval(&label, place, item_of(&trajectory, trajectory.outcome.clone()));
        Ingested::Taken
    }

    /// The next draw; after the last one, `item` is what the evaluation shows: failed, and never a score of 0.
    fn redraw_eval(&mut self, label: &str, place: usize, item: EvalItem) {
        self.issues.settle(&item.seat);
        let Some(eval) = self.evals.get_mut(label) else { return };
        if eval.row.draws[place] + 1 >= self.settings.max_draws {
            self.fill_eval(label, place, item);
            return;
        }
        eval.row.draws[place] += 1;
        self.counters.refills += 1;
        self.change.writes.push(Write::Eval(label.to_owned(), eval.row.clone()));
        let reason = match item.outcome {
            Outcome::Unscorable { reason } | Outcome::Error { reason } => reason,
            Outcome::Scored { .. } | Outcome::Unjudged { .. } => String::new(),
        };
        self.change.events.push(ReplayEvent::SeatRefilled { seat: eval.key(place), reason });
    }

    pub(super) fn redraw_eval_unanswered(&mut self, seat: SeatKey, reason: &str) {
        let found = self.evals.iter().find(|(_, eval)| eval.row.ordinal == ordinal(seat.group));
        let Some((label, eval)) = found else { return };
        let Some(place) = eval.place(seat) else { return };
        let task = eval.row.tasks.start + (place / eval.row.samples as usize) as u64;
        let item = EvalItem {
            seat,
            task_id: self.held_out.task(task).id,
            outcome: Outcome::Error { reason: reason.to_owned() },
            completion_ids: Vec::new(),
            stop_reason: folgore_protocol::StopReason::Length,
        };
        let label = label.clone();
        self.redraw_eval(&label, place, item);
    }

    fn fill_eval(&mut self, label: &str, place: usize, item: EvalItem) {
        self.issues.settle(&item.seat);
        let Some(eval) = self.evals.get_mut(label) else { return };
        eval.done.insert(place);
        self.change.events.push(ReplayEvent::SeatClosed { seat: item.seat, reward: item.outcome.total() });
        self.change.writes.push(Write::EvalItem(item));
        if eval.is_complete() {
            self.change.events.push(ReplayEvent::EvalClosed { label: label.to_owned() });
        }
    }
}

fn item_of(trajectory: &Trajectory, outcome: Outcome) -> EvalItem {
    EvalItem {
        seat: trajectory.seat,
        task_id: trajectory.task_id.clone(),
        outcome,
        completion_ids: trajectory.completion_ids(),
        stop_reason: trajectory.stop_reason,
    }
}
