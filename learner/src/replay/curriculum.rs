//! Which questions are passed over for now, because the policy did too well on them, or too badly, when they were asked last
//! (`data.curriculum`).
//!
//! **The order stays that of the seed.** Position `n` of the stream asks `task_index(seed, n)`, as ever; all that is decided here is whether
//! a position is passed over. A question that is put off comes by again in each epoch, and is asked again once `revisit_steps` steps have gone
//! by since it was asked. At most an epoch and at most [`PASSED_MAX`] positions are passed over in a row; the next one is asked whatever
//! is known of it.
//!
//! **Why arrival order cannot matter.** A visit is what a group came to: how many of its members that the policy sampled succeeded. It is noted
//! when the group ends, in a batch or because all of its rewards are equal, with its step and id. For a group of step `s` only visits of
//! steps up to `s - 1 - max_staleness` count: these steps had their batches before `s` could be opened, so that the visits are
//! complete. Which groups ended first, what a restart loaded and how refills went within a step changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use folgore_config::data::Curriculum;
use folgore_protocol::{GroupId, Source, Task};

use super::{
    ledger::{EQUAL_REWARDS, Ledger},
    tasks::task_index,
};
use crate::record::{
    Write,
    evidence::Fate,
    rows::{GroupRow, Visit},
};

/// Positions that are passed over in a row at most: each leaves a row in the record.
pub const PASSED_MAX: u64 = 256;
/// Questions that there may be: what is known of each is kept in memory.
pub const QUESTIONS_MAX: u64 = 1 << 20;

/// What is known of the questions that were asked.
#[derive(Clone, Debug)]
pub struct Difficulty {
    settings: Curriculum,
    max_staleness: u64,
    /// Visits of each question, by the id of its task, in the order of their steps and groups.
    visits: BTreeMap<String, Vec<Visit>>,
    changed: BTreeSet<String>,
}

impl Difficulty {
    /// What `settings` say, with what a record holds.
    pub fn new(settings: Curriculum, max_staleness: u32, visits: BTreeMap<String, Vec<Visit>>) -> Self {
        Self { settings, max_staleness: max_staleness.into(), visits, changed: BTreeSet::new() }
    }

    /// Reward from which on a sample has succeeded.
    pub fn correct(&self) -> f64 {
        self.settings.correct
    }

    /// The last step whose visits count for a group of `step`; none: nothing counts yet.
    fn horizon(&self, step: u64) -> Option<u64> {
        step.checked_sub(1 + self.max_staleness)
    }

    /// True if a group of `step` may not ask `task`.
    pub fn puts_off(&self, step: u64, task: &Task) -> bool {
        let seen = self.horizon(step).and_then(|horizon| self.last(&task.id, horizon));
        let (asked, rate) = match seen {
            Some(visit) => (visit.step, visit.rate()),
            None => (0, self.unseen(task)),
        };
        let within = self.settings.min_success_rate < rate && rate < self.settings.max_success_rate;
        !within && step - asked <= self.settings.revisit_steps
    }

    fn last(&self, id: &str, horizon: u64) -> Option<&Visit> {
        self.visits.get(id)?.iter().rev().find(|visit| visit.step <= horizon)
    }

    fn unseen(&self, task: &Task) -> f64 {
        let column = self.settings.success_rate_column.as_ref().and_then(|name| task.columns.get(name)?.as_f64());
        column.unwrap_or(self.settings.unseen_success_rate)
    }

    /// A group for the question `id` has ended. `committed` is the last committed step: no older group will be opened.
    pub fn visited(&mut self, id: &str, visit: Visit, committed: u64) {
        if visit.members == 0 {
            return;
        }
        let oldest = self.horizon(committed + 1).unwrap_or(0);
        let visits = self.visits.entry(id.to_owned()).or_default();
        let at = visits.partition_point(|v| (v.step, v.group) < (visit.step, visit.group));
        visits.insert(at, visit);
        // of those that count for every group to come, the last is all that is ever asked for
        let over = visits.partition_point(|v| v.step <= oldest).saturating_sub(1);
        visits.drain(..over);
        self.changed.insert(id.to_owned());
    }

    /// Rows that changed since the last call.
    pub fn take_change(&mut self) -> Vec<(String, Vec<Visit>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter_map(|id| Some((id.clone(), self.visits.get(&id)?.clone()))).collect()
    }

    /// Questions that were asked, by what came of it last: none succeeded, some, all.
    pub fn counts(&self) -> [u64; 3] {
        let mut counts = [0; 3];
        for visit in self.visits.values().filter_map(|visits| visits.last()) {
            let at = usize::from(visit.successes > 0) + usize::from(visit.successes == visit.members);
            counts[at] += 1;
        }
        counts
    }
}

/// Under which a position that was passed over has ended.
const LABEL: &str = "put_off";

impl Ledger {
    /// Passes over the positions whose question is put off, or retired. Each of them ends at once, as a group without seats, so that the
    /// record accounts for every position.
    pub(super) fn pass_over(&mut self, step: u64) {
        for _ in 0..PASSED_MAX.min(self.train.len()) {
            let Some(difficulty) = &self.difficulty else { return };
            let id = GroupId(self.counters.next_group);
            let task = self.train.task(task_index(self.settings.run_seed, id.0, self.train.len()));
            let retired = self.pool.as_ref().is_some_and(|pool| pool.is_retired(&task.id));
            if !retired && !difficulty.puts_off(step, &task) {
                return;
            }
            self.counters.next_group += 1;
            self.step_mut(step).passed_over += 1;
            *self.counters.dropped_groups.entry(LABEL.to_owned()).or_default() += 1;
            self.end_group(id, &GroupRow { step, task, seats: Vec::new() }, Fate::Dropped(LABEL.to_owned()));
        }
    }

    /// Positions that were passed over so far.
    pub(super) fn passed_over(&self) -> u64 {
        self.counters.dropped_groups.get(LABEL).copied().unwrap_or(0)
    }

    /// Notes what a group came to. Those that were left out for anything but equal rewards say nothing of their question.
    pub(super) fn note_visit(&mut self, id: GroupId, group: &GroupRow, fate: &Fate) {
        let Some(difficulty) = &mut self.difficulty else { return };
        match fate {
            Fate::Batch => {}
            Fate::Dropped(label) if label == EQUAL_REWARDS => {}
            Fate::Dropped(_) => return,
        }
        let sampled = group.seats.iter().filter_map(|seat| seat.filled.as_ref());
        let totals = sampled.filter(|filled| filled.source == Source::OnPolicy).filter_map(|filled| filled.total);
        let (mut successes, mut members) = (0, 0);
        for total in totals {
            members += 1;
            successes += u32::from(total >= difficulty.correct());
        }
        let visit = Visit { step: group.step, group: id, successes, members };
        difficulty.visited(&group.task.id, visit, self.counters.committed_step);
        self.change.writes.extend(difficulty.take_change().into_iter().map(|(id, visits)| Write::Visits(id, visits)));
    }
}

#[cfg(test)]
mod tests {
    use folgore_config::data::CurriculumMode;
    use folgore_protocol::{GroupId, Prompt};
    use serde_json::json;

    use super::*;

    fn task(id: &str) -> Task {
        Task { id: id.into(), prompt: Prompt::Text("?".into()), columns: Default::default() }
    }

    fn visit(step: u64, group: u64, successes: u32) -> Visit {
        Visit { step, group: GroupId(group), successes, members: 4 }
    }

    fn difficulty(max_staleness: u32, change: impl FnOnce(&mut Curriculum)) -> Difficulty {
        let mut settings = Curriculum { mode: CurriculumMode::Difficulty, revisit_steps: 5, ..Curriculum::default() };
        change(&mut settings);
        Difficulty::new(settings, max_staleness, BTreeMap::new())
    }

    /// Steps of `range` in which `id` is put off.
    fn put_off(d: &Difficulty, id: &str, range: std::ops::Range<u64>) -> Vec<u64> {
        range.filter(|step| d.puts_off(*step, &task(id))).collect()
    }

    #[test]
    fn none_and_all_are_put_off_for_as_long_as_is_said_and_come_back() {
        let mut d = difficulty(0, |_| {});
        d.visited("none", visit(3, 7, 0), 2);
        d.visited("some", visit(3, 8, 1), 2);
        d.visited("all", visit(3, 9, 4), 2);
        assert_eq!(put_off(&d, "none", 1..20), [4, 5, 6, 7, 8]);
        assert_eq!(put_off(&d, "all", 1..20), [4, 5, 6, 7, 8]);
        assert_eq!((put_off(&d, "some", 1..20), put_off(&d, "unseen", 1..20)), (vec![], vec![]));
        assert_eq!(d.counts(), [1, 1, 1]);
        // asked again in step 9, it is solved in part
        d.visited("none", visit(9, 30, 2), 8);
        assert_eq!(put_off(&d, "none", 10..20), Vec::<u64>::new());
    }

    #[test]
    fn the_band_and_the_reward_are_settings() {
        let mut d = difficulty(0, |s| (s.min_success_rate, s.max_success_rate) = (0.25, 0.75));
        for (id, successes) in [("0", 0), ("1", 1), ("2", 2), ("3", 3), ("4", 4)] {
            d.visited(id, visit(1, successes.into(), successes), 0);
        }
        let asked: Vec<bool> = ["0", "1", "2", "3", "4"].iter().map(|id| !d.puts_off(2, &task(id))).collect();
        assert_eq!(asked, [false, false, true, false, false], "strictly between");
    }

    #[test]
    fn a_measured_column_stands_for_questions_that_were_not_asked_here() {
        let mut d = difficulty(0, |s| s.success_rate_column = Some("pass_rate".into()));
        let mut hard = task("hard");
        hard.columns.insert("pass_rate".into(), json!(0.0));
        assert_eq!((1..10).filter(|step| d.puts_off(*step, &hard)).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        d.visited("hard", visit(6, 1, 1), 5);
        assert!(!d.puts_off(7, &hard), "what was seen here counts more");
    }

    #[test]
    fn only_steps_that_are_complete_count_and_the_order_of_ends_does_not() {
        let mut d = difficulty(2, |_| {});
        d.visited("q", visit(4, 9, 0), 1);
        assert_eq!(put_off(&d, "q", 1..20), [7, 8, 9], "step 6 may be open before step 4 is done");
        let ends = [visit(1, 1, 4), visit(2, 5, 0), visit(2, 6, 2), visit(3, 8, 0)];
        let known = |order: [usize; 4]| {
            let mut d = difficulty(2, |_| {});
            order.iter().for_each(|at| d.visited("q", ends[*at].clone(), 0));
            (put_off(&d, "q", 1..20), d.take_change())
        };
        assert_eq!(known([0, 1, 2, 3]), known([3, 2, 1, 0]));
        assert_eq!(known([0, 1, 2, 3]).0, [4, 6, 7, 8], "by step 1 in 4, by 2.6 in 5, by 3 from 6 on");
    }

    #[test]
    fn what_no_group_can_ask_for_is_forgotten() {
        let mut d = difficulty(1, |_| {});
        (1..=20).for_each(|step| d.visited("q", visit(step, step, 0), step - 1));
        let kept: Vec<u64> = d.take_change()[0].1.iter().map(|visit| visit.step).collect();
        // 19 is committed: the next group is of step 20 or later, for which those up to step 18 count
        assert_eq!(kept, [18, 19, 20]);
        d.visited("empty", Visit { members: 0, ..visit(1, 1, 0) }, 20);
        assert!(!d.puts_off(3, &task("empty")), "nobody was asked");
    }
}
