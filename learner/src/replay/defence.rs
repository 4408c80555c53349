//! Whom replay believes, before it looks at what was said.
//!
//! In this order: the link proves the sender, the sender is who made the trajectory, the trajectory repeats the token of the
//! job, and its maker is not quarantined. Only then is its content looked at. So whoever does not hold a seat's token can
//! neither fill the seat nor burn its draw. Content that no honest sampler makes (log-probs that are no numbers, tokens
//! outside the vocabulary) is a strike against its maker, and so is another's name.
//!
//! A wrong token is no strike: after the record was lost, honest workers still hand in what the lost one had asked for.

use folgore_protocol::{GroupId, SeatKey, Trajectory};
use sha2::{Digest as _, Sha256};

use super::{
    events::ReplayEvent,
    ingest::{Ingested, Refusal},
    ledger::Ledger,
};
use crate::record::{
    Write,
    evidence::DrawEnd,
    rows::{GroupRow, Secret},
};

/// Names with strikes; beyond that, new ones are refused without being counted.
const STRUCK_MAX: usize = 4096;

/// The token of `seat`: what only replay can make, and only the receiver of the seat's job can know. SHA-256 over the secret
/// and numbers of fixed length, cut to 128 bits.
pub(super) fn token(secret: &Secret, seat: SeatKey) -> String {
    let mut hash = Sha256::new();
    hash.update(b"folgore seat token");
    hash.update(secret.0);
    hash.update(seat.group.0.to_le_bytes());
    hash.update(seat.sample.to_le_bytes());
    hash.update(seat.draw.to_le_bytes());
    hash.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect()
}

impl Ledger {
    /// Checks who says it; the error is the refusal.
    pub(super) fn believe(&mut self, sender: Option<&str>, trajectory: &Trajectory) -> Result<(), Ingested> {
        let (seat, worker) = (trajectory.seat, trajectory.worker.as_str());
        if let Some(sender) = sender.filter(|sender| *sender != worker) {
            let reason = format!("seat {seat}: sent by {sender} under the name of {worker}");
            self.strike(Some(sender), sender, &reason);
            return Err(Ingested::Refused(Refusal::ForgedSender, reason));
        }
        if trajectory.token != token(&self.secret, seat) {
            return Err(Ingested::Refused(Refusal::WrongToken, format!("seat {seat}: not the token of its job")));
        }
        if self.counters.quarantined.contains(worker) {
            // Somebody else shall have the seat, and soon.
            self.issues.release(&seat);
            return Err(Ingested::Refused(Refusal::Quarantined, format!("seat {seat}: {worker} is quarantined")));
        }
        Ok(())
    }

    /// Counts a strike against `worker`. It is quarantined only where the link proves who it is: in one process there is
    /// nobody to keep out, and numbers that are wrong there end in dropped groups, which are told.
    pub(super) fn strike(&mut self, sender: Option<&str>, worker: &str, reason: &str) {
        let known = self.counters.strikes.contains_key(worker);
        if self.counters.quarantined.contains(worker) || !known && self.counters.strikes.len() >= STRUCK_MAX {
            return;
        }
        let strikes = self.counters.strikes.entry(worker.to_owned()).or_default();
        *strikes = strikes.saturating_add(1);
        let strikes = *strikes;
        let (worker, reason) = (worker.to_owned(), reason.to_owned());
        self.change.events.push(ReplayEvent::WorkerStruck { worker: worker.clone(), strikes, reason });
        let limit = self.settings.max_strikes;
        if sender.is_some() && limit > 0 && strikes >= limit {
            self.quarantine(worker);
        }
    }

    /// Takes nothing more from `worker`, and draws again what it has filled and no batch has yet.
    fn quarantine(&mut self, worker: String) {
        let made = |group: &GroupRow| -> Vec<u32> {
            let by_it = |seat: &crate::record::rows::SeatRow| seat.filled.as_ref().is_some_and(|f| f.worker == worker);
            let seats = group.seats.iter().zip(0..);
            seats.filter(|(seat, _)| by_it(seat)).map(|(_, sample)| sample).collect()
        };
        let theirs: Vec<(GroupId, Vec<u32>)> = self.groups.iter().map(|(id, group)| (*id, made(group))).collect();
        let mut voided = 0;
        for (id, samples) in theirs {
            for sample in samples {
                voided += u32::from(self.void(id, sample, &worker));
            }
        }
        self.counters.quarantined.insert(worker.clone());
        self.change.events.push(ReplayEvent::WorkerQuarantined { worker, voided });
    }

    /// Takes back what fills a seat; false if its group has gone meanwhile.
    fn void(&mut self, id: GroupId, sample: u32, worker: &str) -> bool {
        let Some(group) = self.groups.get_mut(&id) else { return false };
        let closed = group.is_closed();
        if closed && self.settings.judge_groups {
            // the texts that the others were judged by went with the verdict: nobody new can be compared with them
            self.drop_group(id, "quarantine", format!("{worker}, who made a member, is quarantined"));
            return true;
        }
        let seat = &mut group.seats[sample as usize];
        // What is void counts as filled: what waits to be judged was not counted yet.
        self.counters.filled += u64::from(!seat.is_scored());
        seat.filled = None;
        let key = SeatKey { group: id, sample, draw: seat.draw };
        self.counters.reopened_groups += u64::from(closed);
        self.change.writes.push(Write::RemoveTrajectory(id, sample));
        self.redraw(key, DrawEnd::Void, &format!("{worker} is quarantined"));
        true
    }
}
