//! Who is there, as far as heartbeats tell.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use folgore_protocol::{Heartbeat, Role};
use tokio::time::Instant;

use super::GONE_AFTER;

/// Most workers that are remembered: names come from outside.
const MEMBERS_MAX: usize = 16_384;

/// What a worker said last, and when that was.
#[derive(Clone, Debug)]
struct Member {
    beat: Heartbeat,
    heard: Instant,
}

/// The workers of one role together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strength {
    /// How many there are.
    pub workers: usize,
    /// Episodes or requests in their hands.
    pub active: u64,
}

fn is_there(member: &Member, now: Instant) -> bool {
    now.saturating_duration_since(member.heard) < GONE_AFTER
}

/// The workers heard of lately. Clones are the same roster.
#[derive(Clone, Debug, Default)]
pub struct Roster(Arc<Mutex<BTreeMap<(Role, String), Member>>>);

impl Roster {
    /// An empty roster.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a heartbeat; true if the worker was not there before.
    pub fn heard(&self, beat: Heartbeat, now: Instant) -> bool {
        let mut members = self.members();
        members.retain(|_, member| is_there(member, now));
        let key = (beat.role, beat.worker.clone());
        if beat.state == "leaving" {
            members.remove(&key);
            return false;
        }
        let is_new = !members.contains_key(&key);
        if is_new && members.len() >= MEMBERS_MAX {
            return false;
        }
        members.insert(key, Member { beat, heard: now });
        is_new
    }

    /// How many of `role` are there at `now`, and what they have in hand.
    pub fn strength(&self, role: Role, now: Instant) -> Strength {
        let members = self.members();
        let there = members.values().filter(|m| m.beat.role == role && is_there(m, now));
        there.fold(Strength::default(), |sum, member| Strength {
            workers: sum.workers + 1,
            active: sum.active + u64::from(member.beat.active),
        })
    }

    fn members(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Role, String), Member>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) fn beat(role: Role, worker: &str, state: &str) -> Heartbeat {
    Heartbeat {
        role,
        worker: worker.into(),
        host: "here".into(),
        pid: 1,
        build: "test".into(),
        state: state.into(),
        slots: 4,
        active: 1,
        policy: None,
        status: serde_json::Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn workers_come_go_and_are_forgotten() {
        let roster = Roster::new();
        let begin = Instant::now();
        assert!(roster.heard(beat(Role::Rollout, "a", "working"), begin));
        assert!(!roster.heard(beat(Role::Rollout, "a", "idle"), begin));
        assert!(roster.heard(beat(Role::Reward, "a", "idle"), begin), "another role is another worker");
        let count = |role, now| roster.strength(role, now).workers;
        assert_eq!((count(Role::Rollout, begin), count(Role::Reward, begin)), (1, 1));
        roster.heard(beat(Role::Rollout, "b", "working"), begin);
        assert_eq!(roster.strength(Role::Rollout, begin), Strength { workers: 2, active: 2 });
        let later = begin + GONE_AFTER / 2;
        roster.heard(beat(Role::Reward, "a", "leaving"), later);
        assert_eq!(count(Role::Reward, later), 0, "it said so");
        assert_eq!(count(Role::Rollout, begin + GONE_AFTER + Duration::from_secs(1)), 0, "it fell silent");
        assert!(roster.heard(beat(Role::Rollout, "a", "idle"), begin + 2 * GONE_AFTER), "it is back");
    }
}
