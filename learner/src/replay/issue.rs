//! Handing seats out: each is due again after a while, until its trajectory is in or it is given up.

use std::collections::HashMap;

use folgore_protocol::{Given, GroupId, Purpose, RolloutJob, SeatKey, seed};

use super::{defence, evals::is_eval, ledger::Ledger};
use crate::record::{evidence::DrawEnd, rows::SeatGiven};

/// When a seat was handed out last, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Issue {
    at_ms: u64,
    times: u32,
    /// What came back was not taken: due again at once.
    released: bool,
}

/// The time of one question for seats.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    now_ms: u64,
    /// Since when nothing has come in.
    quiet_since_ms: u64,
    reissue_after_ms: u64,
}

impl Clock {
    /// A seat is due again when it has been out long, and nothing at all came in for as long: a queue that is merely long
    /// must not be made longer.
    fn due(&self, issue: &Issue) -> bool {
        issue.released || issue.at_ms.max(self.quiet_since_ms).saturating_add(self.reissue_after_ms) <= self.now_ms
    }
}

/// The seats that are out. Not durable: after a restart every open seat may be handed out again.
#[derive(Debug, Default)]
pub(super) struct Issues {
    out: HashMap<SeatKey, Issue>,
    heard: bool,
    quiet_since_ms: u64,
}

impl Issues {
    /// A trajectory came in.
    pub(super) fn heard(&mut self) {
        self.heard = true;
    }

    /// Notes that `seat` is handed out, unless it is out and not due.
    pub(super) fn hand_out(&mut self, seat: SeatKey, clock: &Clock) -> bool {
        let before = self.out.get(&seat);
        if before.is_some_and(|issue| !clock.due(issue)) {
            return false;
        }
        let times = before.map_or(0, |issue| issue.times) + 1;
        self.out.insert(seat, Issue { at_ms: clock.now_ms, times, released: false });
        true
    }

    /// What came back for `seat` was not taken, and that was not the seat's fault: it is due at once. How often it was
    /// handed out stays known, lest it goes to and fro for ever.
    pub(super) fn release(&mut self, seat: &SeatKey) {
        if let Some(issue) = self.out.get_mut(seat) {
            issue.released = true;
        }
    }

    /// Forgets `seat`.
    pub(super) fn settle(&mut self, seat: &SeatKey) {
        self.out.remove(seat);
    }

    /// Forgets the seats of groups for which `gone` holds.
    pub(super) fn settle_groups(&mut self, gone: impl Fn(GroupId) -> bool) {
        self.out.retain(|seat, _| !gone(seat.group));
    }

    fn clock(&mut self, now_ms: u64, reissue_after_ms: u64) -> Clock {
        if std::mem::take(&mut self.heard) {
            self.quiet_since_ms = now_ms;
        }
        Clock { now_ms, quiet_since_ms: self.quiet_since_ms, reissue_after_ms }
    }

    /// Seats that are due and were handed out `limit` times, in order.
    fn unanswered(&self, clock: &Clock, limit: u32) -> Vec<SeatKey> {
        let tired = self.out.iter().filter(|(_, issue)| clock.due(issue) && issue.times >= limit);
        let mut tired: Vec<SeatKey> = tired.map(|(seat, _)| *seat).collect();
        tired.sort_unstable();
        tired
    }
}

impl Ledger {
    /// Numbers of the successes that the seat `key` may be filled with.
    pub fn past_of(&self, key: &SeatKey) -> Vec<u64> {
        let seat = self.groups.get(&key.group).and_then(|group| group.seats.get(key.sample as usize));
        match seat.and_then(|seat| seat.given.as_ref()) {
            Some(SeatGiven::Experience(past)) => past.iter().map(|past| past.number).collect(),
            _ => Vec::new(),
        }
    }

    /// Jobs for up to `max` seats that wait: never handed out, or due again at `now_ms` on any clock that only grows.
    pub fn open_seats(&mut self, now_ms: u64, max: usize, reissue: bool) -> Vec<RolloutJob> {
        if reissue {
            self.issues = Issues::default();
        }
        let clock = self.issues.clock(now_ms, self.settings.reissue_after_ms);
        self.give_up_unanswered(&clock);
        let mut jobs = self.eval_jobs(&clock, max);
        // After a resume, groups of a later step may lie open: their policy is still to be made again.
        let last = self.last_open_step();
        for (id, group) in self.groups.iter().filter(|(_, group)| group.step <= last) {
            for (sample, seat) in group.seats.iter().enumerate().filter(|(_, seat)| seat.filled.is_none()) {
                let key = SeatKey { group: *id, sample: sample as u32, draw: seat.draw };
                if jobs.len() == max {
                    return jobs;
                }
                if self.issues.hand_out(key, &clock) {
                    jobs.push(RolloutJob {
                        seat: key,
                        task: group.task.clone(),
                        seed: seed::seat(self.settings.run_seed, key),
                        purpose: Purpose::Train,
                        min_policy_step: self.settings.oldest_policy(group.step),
                        environment: self.settings.environment.clone(),
                        sampling: self.settings.sampling.clone(),
                        token: defence::token(&self.secret, key),
                        given: seat.given.as_ref().map(|given| match given {
                            SeatGiven::Trace(trace) => trace.clone(),
                            // the rows lie in the record
                            SeatGiven::Experience(_) => Given::Experience { past: Vec::new() },
                        }),
                    });
                }
            }
        }
        jobs
    }

    /// A seat handed out again and again without any answer counts as a failed draw, lest it holds its step for ever.
    fn give_up_unanswered(&mut self, clock: &Clock) {
        let limit = self.settings.max_issues;
        for seat in self.issues.unanswered(clock, limit) {
            let reason = format!("handed out {limit} times, and nothing that can be taken came back");
            if is_eval(seat.group) {
                self.redraw_eval_unanswered(seat, &reason);
            } else {
                self.redraw(seat, DrawEnd::Unanswered, &reason);
            }
        }
        self.advance();
    }
}
