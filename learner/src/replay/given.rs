//! Groups with members that the policy does not sample from their first token on: an expert's traces, and its own successes of
//! before. Who is given what is decided when a group is opened, and a trajectory is held to it when it comes in.

use folgore_protocol::{Given, GroupId, Source, Task, Trajectory, seed};

use super::{experience::Success, ledger::Ledger, settings::Traces, tasks::task_index};
use crate::record::{
    Write,
    rows::{GroupRow, QuestionRow, SeatGiven, SeatRow},
};

/// Separates the draws of this file from all others of the run.
const STREAM: u64 = 0x6769_7665_6e00;
/// Draws of another question in place of a retired one, before they are looked through in order.
const TRIES: u64 = 64;

impl Ledger {
    /// The question that the next group of `step` replays; none: it asks that of its place in the stream.
    pub(super) fn replayed(&mut self, step: u64) -> Option<QuestionRow> {
        let place = self.steps.get(&step).map_or(0, |row| row.opened) as usize;
        if place == 0 {
            self.step_mut(step).replayed = self.choose_replayed(step);
        }
        let id = self.steps.get(&step)?.replayed.get(place)?;
        self.pool.as_ref()?.question(id).filter(|question| !question.past.is_empty()).cloned()
    }

    /// The question of the group `id`, with its seats.
    pub(super) fn new_group(&mut self, id: GroupId, replayed: Option<QuestionRow>) -> (Task, Vec<SeatRow>) {
        let index = self.live_index(id);
        let (task, experience) = match replayed {
            Some(question) => (question.task, Some(SeatGiven::Experience(question.past))),
            None => (self.train.task(index), None),
        };
        // a question that is replayed is asked for what was done right: its traces were there when it was asked first
        let traces = if experience.is_some() { Vec::new() } else { self.traces(id, index) };
        let given = experience.into_iter().chain(traces).map(Some).chain(std::iter::repeat(None));
        let seats = given.take(self.settings.num_generations as usize);
        (task, seats.map(|given| SeatRow { given, ..SeatRow::default() }).collect())
    }

    fn choose_replayed(&mut self, step: u64) -> Vec<String> {
        let (seed, prompts) = (self.settings.run_seed, self.settings.num_prompts);
        let begun = self.collects(step);
        self.pool.as_mut().filter(|_| begun).map_or_else(Vec::new, |pool| pool.choose(seed, step, prompts))
    }

    /// True if successes are kept and replayed in `step`.
    fn collects(&self, step: u64) -> bool {
        let from_the_start = self.pool.as_ref().is_some_and(|pool| pool.settings().start_success_rate == 0.0);
        from_the_start || self.counters.experience_from.is_some_and(|from| step >= from)
    }

    /// Place of the question that the group `id` asks: that of its id, unless it is retired.
    fn live_index(&self, id: GroupId) -> u64 {
        let (seed, len) = (self.settings.run_seed, self.train.len());
        let own = task_index(seed, id.0, len);
        let Some(pool) = self.pool.as_ref().filter(|pool| pool.sizes().2 > 0) else { return own };
        let is_live = |index: &u64| !pool.is_retired(&self.train.task(*index).id);
        let others = (0..TRIES).map(|i| seed::below(seed::mix(&[seed, STREAM, id.0]), i, len));
        let in_order = (1..len).map(|i| (own + i) % len);
        std::iter::once(own).chain(others).chain(in_order).find(is_live).unwrap_or(own)
    }

    fn traces(&self, id: GroupId, index: u64) -> Vec<SeatGiven> {
        let Some(Traces { per_group, min_reward, prefix_ratio: (least, most) }) = self.settings.traces else {
            return Vec::new();
        };
        let traces = self.train.traces(index);
        if traces.is_empty() {
            return Vec::new();
        }
        let own = seed::mix(&[self.settings.run_seed, STREAM, id.0, 1]);
        let trace = |i: u32| {
            let share = least + (most - least) * f64::from(seed::uniform(own, u64::from(i)));
            let turns = traces[i as usize % traces.len()].clone();
            SeatGiven::Trace(Given::Trace { turns, share: share.min(1.0), min_reward })
        };
        (0..per_group).map(trace).collect()
    }

    /// A trajectory that says it is another's must be what its seat was given; the error says why it is not. A worker may always
    /// play a seat itself.
    pub(super) fn check_source(seat: &SeatRow, trajectory: &Trajectory) -> Result<(), String> {
        let source = trajectory.source();
        let allowed = match (&seat.given, source) {
            (_, Source::OnPolicy) | (Some(SeatGiven::Trace(_)), Source::Teacher) => true,
            (Some(SeatGiven::Experience(past)), Source::Replay) => {
                let fingerprint = trajectory.fingerprint();
                past.iter().any(|past| past.fingerprint == fingerprint)
            }
            _ => false,
        };
        if allowed && trajectory.rows.iter().all(|row| row.source == source) {
            return Ok(());
        }
        Err(format!("its tokens are said to be {source:?}, which is not what its seat was given"))
    }

    /// Learns from the groups of a batch what was done right.
    pub(super) fn gain_experience(&mut self, step: u64, groups: &[(GroupId, GroupRow)]) {
        let collect = self.collects(step);
        let Some(pool) = &mut self.pool else { return };
        let correct = pool.settings().correct;
        let (mut right, mut all) = (0, 0);
        for (id, group) in groups {
            let filled = group.seats.iter().zip(0..).filter_map(|(seat, sample)| Some((seat.filled.as_ref()?, sample)));
            let successes: Vec<_> =
                filled.filter(|(filled, _)| filled.total.is_some_and(|total| total >= correct)).collect();
            all += group.seats.len();
            right += successes.len();
            let own = successes.iter().filter(|(filled, _)| filled.source == Source::OnPolicy);
            let fresh: Vec<Success> =
                own.map(|(filled, sample)| Success { sample: *sample, fingerprint: filled.fingerprint }).collect();
            let at = (step, self.counters.next_past);
            for (number, success) in pool.visited(&group.task, successes.len() as u32, &fresh, collect, at) {
                self.counters.next_past = number + 1;
                self.change.writes.push(Write::KeepPast(number, *id, success.sample));
            }
        }
        let enough = right as f64 > pool.settings().start_success_rate * all as f64;
        if self.counters.experience_from.is_none() && enough {
            self.counters.experience_from = Some(step + 1);
        }
        self.note_pool();
    }

    /// Notes which rows of the pool changed.
    pub(super) fn note_pool(&mut self) {
        let Some(pool) = &mut self.pool else { return };
        let (rows, gone) = pool.take_change();
        self.change.writes.extend(rows.into_iter().map(|(id, row)| Write::Question(id, row)));
        self.change.writes.extend(gone.into_iter().map(Write::RemovePast));
    }
}
