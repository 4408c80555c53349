//! Groups and seats: each ended exactly once, or is open.

use std::collections::BTreeMap;

use folgore_protocol::GroupId;

use super::{Books, Invariant};
use crate::{
    record::evidence::{Fate, GroupEnd, LogEntry, SeatEnd, Tally},
    replay::evals::group_ids,
};

impl Books<'_> {
    /// Every group that was opened has ended once, or is open.
    pub(super) fn groups(&self) -> Invariant {
        let mut found = Invariant::new("groups");
        let (ends, open, pruned) = (&self.evidence.ends, &self.snapshot.groups, &self.evidence.pruned);
        let next = self.snapshot.counters.next_group;
        for id in open.keys() {
            found.expect(!ends.contains_key(id), || format!("group {id} has ended and is open"));
        }
        for id in ends.keys().chain(open.keys()) {
            found.expect(id.0 < next, || format!("group {id} was never opened: the next one is {}", GroupId(next)));
            found.expect(!self.skipped(*id), || format!("group {id} was skipped by a takeover"));
        }
        let skipped = self.snapshot.counters.skipped_groups;
        let told = pruned.groups + ends.len() as u64 + open.len() as u64 + skipped;
        found.expect(told == next, || {
            let known = |id: &u64| ends.contains_key(&GroupId(*id)) || open.contains_key(&GroupId(*id));
            let first = if pruned.groups == 0 { 0 } else { ends.keys().next().map_or(0, |id| id.0) };
            let missing: Vec<String> = (first..next)
                .filter(|id| !known(id) && !self.skipped(GroupId(*id)))
                .take(4)
                .map(|id| format!("g{id}"))
                .collect();
            format!("{next} groups were opened, {told} are accounted for; without an end: {}", missing.join(", "))
        });
        found.detail = format!(
            "{next} groups: {} ended ({} of them folded), {} open, {skipped} skipped",
            pruned.groups + ends.len() as u64,
            pruned.groups,
            open.len()
        );
        found
    }

    fn skipped(&self, id: GroupId) -> bool {
        let within = |entry: &LogEntry| matches!(entry, LogEntry::Takeover { skipped, .. } if (skipped.0..skipped.1).contains(&id.0));
        self.evidence.log.iter().any(|(_, entry)| within(entry))
    }

    /// Every draw of every seat ended exactly once: trained, rejected with a reason, or open.
    pub(super) fn seats(&self) -> Invariant {
        let mut found = Invariant::new("seats");
        let mut tally = self.evidence.pruned.seats.clone();
        for (id, end) in &self.evidence.ends {
            tally.add(end, self.is_trained(end));
            for (seat, sample) in end.seats.iter().zip(0..) {
                self.seat_ended(&mut found, &format!("{id}.{sample}"), seat, &end.fate);
            }
        }
        for (id, group) in &self.snapshot.groups {
            for (seat, sample) in group.seats.iter().zip(0..) {
                found.expect(seat.rejected.len() as u64 == u64::from(seat.draw), || {
                    format!("seat {id}.{sample} awaits draw {}, {} have ended", seat.draw, seat.rejected.len())
                });
                seat.rejected.iter().for_each(|draw| tally.reject(draw.label()));
                tally.open += 1;
            }
        }
        found.detail = told(&tally);
        found
    }

    fn seat_ended(&self, found: &mut Invariant, name: &str, seat: &SeatEnd, fate: &Fate) {
        let (draws, rejected) = (u64::from(seat.draws), seat.rejected.len() as u64);
        let undone = rejected == draws && matches!(fate, Fate::Dropped(_)) && seat.filled.is_none();
        found.expect(draws > 0 && (rejected + 1 == draws || undone), || {
            format!(
                "seat {name}: {draws} draws were opened, {rejected} were rejected, filled: {}",
                seat.filled.is_some()
            )
        });
        found.expect(*fate != Fate::Batch || seat.filled.is_some(), || format!("seat {name} is in a batch, and empty"));
        found.expect(self.any_rules(|rules| draws <= u64::from(rules.max_draws)), || {
            format!("seat {name}: drawn {draws} times")
        });
    }

    /// True if the group is in a batch that was trained on the surviving line.
    pub(super) fn is_trained(&self, end: &GroupEnd) -> bool {
        end.fate == Fate::Batch && end.step <= self.snapshot.counters.committed_step
    }

    /// The counters of the run are those of its rows.
    pub(super) fn counters(&self) -> Invariant {
        let mut found = Invariant::new("counters");
        let (counters, pruned) = (&self.snapshot.counters, &self.evidence.pruned);
        let mut sums = pruned.sums.clone();
        self.evidence.ends.values().for_each(|end| sums.add(end));
        self.snapshot.groups.values().for_each(|group| sums.add_live(group));
        let ended = pruned.groups + self.evidence.ends.len() as u64;
        found.equal("groups ended", ended, counters.ended_groups);
        found.equal("groups dropped", &sums.dropped, &counters.dropped_groups);
        found.equal("seats filled", sums.filled, counters.filled);
        found.equal("seats drawn again", sums.redrawn, counters.redrawn);
        found.equal("draws not kept", &sums.rejected, &counters.rejected);
        found.equal("groups closed", sums.closed + counters.reopened_groups, counters.closed_groups);
        found.equal("entries of the log", pruned.entries + self.evidence.log.len() as u64, counters.next_entry);
        found.expect(counters.trajectories >= counters.filled, || {
            format!("{} trajectories were taken in, {} seats filled", counters.trajectories, counters.filled)
        });
        found.expect(counters.refills >= counters.redrawn, || {
            format!("{} refills, {} of them for training", counters.refills, counters.redrawn)
        });
        let struck = |name: &String| counters.strikes.get(name).is_some_and(|strikes| *strikes > 0);
        for name in &counters.quarantined {
            found.expect(struck(name), || format!("{name} is quarantined without a strike"));
        }
        found.detail = format!("{} counters agree with the rows", found.checked - found.violated);
        let refused: Vec<String> = counters.refused.iter().map(|(why, n)| format!("{why} {n}")).collect();
        if !refused.is_empty() {
            found.detail += &format!("; not taken in: {}", refused.join(", "));
        }
        if !counters.quarantined.is_empty() {
            let names: Vec<&str> = counters.quarantined.iter().map(String::as_str).collect();
            found.detail += &format!("; quarantined: {}", names.join(", "));
        }
        found
    }

    /// Samples of evaluations belong to the seats of one, and to the draw that it awaited.
    pub(super) fn evaluations(&self) -> Invariant {
        let mut found = Invariant::new("evaluations");
        let rows: BTreeMap<GroupId, _> = self.snapshot.evals.values().map(|row| (group_ids(row).0, row)).collect();
        for ((id, sample), seat) in &self.evidence.eval_items {
            let awaited = rows.range(..=id).next_back().and_then(|(first, row)| {
                let place = (id.0 - first.0) as usize * row.samples as usize + *sample as usize;
                row.draws.get(place).filter(|_| *sample < row.samples)
            });
            let fits = (seat.group, seat.sample) == (*id, *sample) && awaited == Some(&seat.draw);
            found.expect(fits, || {
                format!("sample {seat} is kept as {id}.{sample}, of which draw {awaited:?} was awaited")
            });
        }
        found.detail = format!("{} samples of {} evaluations", self.evidence.eval_items.len(), rows.len());
        found
    }
}

fn told(tally: &Tally) -> String {
    let reasons: Vec<String> = tally.rejected.iter().map(|(why, n)| format!("{why} {n}")).collect();
    let rejected: u64 = tally.rejected.values().sum();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    let (total, trained, open) = (tally.total(), tally.trained, tally.open);
    format!("{total} seats ended once each: {trained} trained, {rejected} rejected{reasons}, {open} open")
}
