//! Batches: whole groups of the right size, by policies fresh enough, with the trajectories that their seats name.

use std::collections::BTreeMap;

use folgore_protocol::GroupId;

use super::{Books, Invariant};
use crate::record::{
    evidence::{Fate, Span, batch_digest},
    rows::GroupRow,
};

impl Books<'_> {
    /// The groups of each batch, by the ends of groups. Steps whose ends may be folded are left out.
    fn by_step(&self) -> BTreeMap<u64, Vec<GroupId>> {
        let mut steps: BTreeMap<u64, Vec<GroupId>> = BTreeMap::new();
        for (id, end) in &self.evidence.ends {
            if end.fate == Fate::Batch && self.is_whole(end.step) {
                steps.entry(end.step).or_default().push(*id);
            }
        }
        steps
    }

    /// True if no end of a group of `step` is folded.
    fn is_whole(&self, step: u64) -> bool {
        self.evidence.pruned.groups == 0 || step > self.evidence.pruned.last_step
    }

    /// Batches hold whole groups of the right size, each group in one batch.
    pub(super) fn batches(&self) -> Invariant {
        let mut found = Invariant::new("batches");
        let steps = self.by_step();
        let none = Vec::new();
        for (id, end) in self.evidence.ends.iter().filter(|(_, end)| end.fate == Fate::Batch) {
            let seats = end.seats.len();
            found.expect(self.any_rules(|r| r.num_generations as usize == seats), || {
                format!("group {id} has {seats} seats")
            });
        }
        for (step, ids) in &steps {
            let groups = ids.len();
            found.expect(self.any_rules(|r| groups <= r.num_prompts as usize), || {
                format!("step {step} has {groups} groups")
            });
        }
        for (step, commit) in &self.line.commits {
            let full = |groups: u32, opened: u64| self.any_rules(|r| groups == r.num_prompts || opened >= r.groups_max);
            found.expect(full(commit.groups, commit.opened), || {
                format!("step {step} was trained on {} groups of {} opened", commit.groups, commit.opened)
            });
            if self.is_whole(*step) {
                let ids = steps.get(step).unwrap_or(&none);
                found.expect(batch_digest(ids) == commit.digest && ids.len() == commit.groups as usize, || {
                    format!("step {step} was trained on {} groups that are not its {}", commit.groups, ids.len())
                });
            }
        }
        for (step, row) in &self.snapshot.steps {
            let Some(batch) = &row.batch else { continue };
            found.expect(*step > self.snapshot.counters.forgotten_step, || {
                format!("step {step} is forgotten, and there")
            });
            if self.is_whole(*step) {
                let ids = steps.get(step).unwrap_or(&none);
                found.expect(batch == ids, || {
                    format!("step {step} keeps groups {batch:?}, those that ended in it are {ids:?}")
                });
            }
            for id in batch {
                let whole = self.evidence.groups.get(id).is_some_and(|group| group.step == *step && group.is_closed());
                found.expect(whole, || format!("group {id} of step {step} is not whole"));
            }
        }
        found.detail =
            format!("{} batches of whole groups, {} of them committed", steps.len(), self.line.commits.len());
        found
    }

    /// No token of a batch is older than allowed, or newer than the step before.
    pub(super) fn staleness(&self) -> Invariant {
        let mut found = Invariant::new("staleness");
        let mut most = 0;
        for (id, end) in self.evidence.ends.iter().filter(|(_, end)| end.fate == Fate::Batch) {
            let newest = end.step.saturating_sub(1);
            for (span, sample) in end.seats.iter().map(|seat| seat.filled).zip(0..) {
                let Some(span) = span.filter(|span| *span != Span::NOBODY) else { continue };
                let lag = newest.saturating_sub(span.oldest);
                let fresh = self.any_rules(|rules| lag <= u64::from(rules.max_staleness));
                found.expect(fresh && span.oldest <= span.newest && span.newest <= newest, || {
                    format!("seat {id}.{sample} of step {}: policies {} to {}", end.step, span.oldest, span.newest)
                });
                most = most.max(lag);
            }
        }
        for group in self.evidence.groups.values() {
            for policy in group.seats.iter().filter_map(|seat| seat.filled.as_ref()).flat_map(|f| &f.policies) {
                let known = self.line.published.get(&policy.step);
                found.expect(known.is_none_or(|known| known.contains(&policy.digest)), || {
                    format!(
                        "a trajectory of step {} was made by policy {policy}, which was never published",
                        group.step
                    )
                });
            }
        }
        found.detail = format!("{} checks of policies in batches, the oldest lags {most} steps", found.checked);
        found
    }

    /// Each filled seat has its trajectory, and each trajectory its seat.
    pub(super) fn trajectories(&self) -> Invariant {
        let mut found = Invariant::new("trajectories");
        let batched = |group: &GroupRow| self.snapshot.steps.get(&group.step).is_some_and(|row| row.batch.is_some());
        for (id, group) in &self.evidence.groups {
            if batched(group) {
                let ended = self.evidence.ends.get(id);
                let fits = ended.is_some_and(|end| end.fate == Fate::Batch && end.step == group.step);
                found.expect(fits || ended.is_none() && !self.is_whole(group.step), || {
                    format!("group {id} is kept for the batch of step {}, and did not end there", group.step)
                });
            }
            for (seat, sample) in group.seats.iter().zip(0u32..) {
                let Some(filled) = &seat.filled else { continue };
                let kept = self.evidence.trajectories.get(&(*id, sample));
                let fits = kept.is_some_and(|kept| {
                    (kept.seat.group, kept.seat.sample, kept.seat.draw) == (*id, sample, seat.draw)
                        && kept.policies == filled.policies
                        && kept.worker == filled.worker
                        && kept.total == filled.total
                });
                found
                    .expect(fits, || format!("seat {id}.{sample}.{}: its trajectory is another or missing", seat.draw));
            }
        }
        for (id, sample) in self.evidence.trajectories.keys() {
            let seat = self.evidence.groups.get(id).and_then(|group| group.seats.get(*sample as usize));
            found.expect(seat.is_some_and(|seat| seat.filled.is_some()), || {
                format!("the trajectory of seat {id}.{sample} fills no seat")
            });
        }
        found.detail = format!("{} trajectories kept, each fills its seat", self.evidence.trajectories.len());
        found
    }
}
