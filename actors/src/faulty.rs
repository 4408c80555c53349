//! Any links, with faults: what a network does to them, drawn from a seed, for tests.
//!
//! Each fate is drawn from what the message is (link, subject, key) and how often it was tried, never from the time or
//! the order of tasks, so that a failing seed fails again. Nothing here breaks the promises of [`crate::link`]: what is
//! lost is told as [`LinkError::Deadline`] where the promise is "an answer or an error", and a lost publish may have
//! arrived all the same, as on a network.

mod links;

use std::{collections::HashMap, sync::Arc, sync::Mutex, time::Duration};

use folgore_protocol::seed;

use crate::{LinkError, Links, hash, lock};

/// How often each fault happens, as a probability from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultPlan {
    /// What the faults are drawn from.
    pub seed: u64,
    /// Lost: half of the time before it arrives, half of the time its answer.
    pub loss: f32,
    /// Delivered twice.
    pub duplicate: f32,
    /// Overtaken by a later one.
    pub reorder: f32,
    /// Delivered late.
    pub delay: f32,
    /// Longest delay.
    pub max_delay: Duration,
}

impl FaultPlan {
    /// No faults at all.
    pub fn none(seed: u64) -> Self {
        Self { seed, loss: 0.0, duplicate: 0.0, reorder: 0.0, delay: 0.0, max_delay: Duration::ZERO }
    }

    /// A bad network: each fault one time in five, delays up to 50 ms.
    pub fn rough(seed: u64) -> Self {
        let often = 0.2;
        let max_delay = Duration::from_millis(50);
        Self { seed, loss: often, duplicate: often, reorder: often, delay: often, max_delay }
    }
}

/// `links`, with the faults of `plan`.
pub fn faulty(links: Links, plan: FaultPlan) -> Links {
    let dice = Arc::new(Dice { plan, thrown: Mutex::default() });
    Links {
        run: links.run,
        ask: Arc::new(links::FaultyAsk { inner: links.ask, dice: dice.clone() }),
        queue: Arc::new(links::FaultyQueue { inner: links.queue, dice: dice.clone() }),
        topic: Arc::new(links::FaultyTopic { inner: links.topic, dice: dice.clone() }),
        state: Arc::new(links::FaultyState { inner: links.state, dice: dice.clone() }),
        blob: Arc::new(links::FaultyBlob { inner: links.blob, dice }),
    }
}

/// What happens to one thing.
#[derive(Clone, Debug, PartialEq)]
struct Fate {
    /// It does not arrive.
    lost_before: bool,
    /// It arrives, but nobody learns so.
    lost_after: bool,
    duplicate: bool,
    reorder: bool,
    delay: Duration,
    /// More draws.
    seed: u64,
}

/// Draws fates, and remembers how often each thing was tried.
struct Dice {
    plan: FaultPlan,
    thrown: Mutex<HashMap<u64, u64>>,
}

impl Dice {
    fn throw(&self, what: &[&str]) -> Fate {
        let what = hash(what);
        let time = {
            let mut thrown = lock(&self.thrown);
            let times = thrown.entry(what).or_default();
            *times += 1;
            *times
        };
        let seed = seed::mix(&[self.plan.seed, what, time]);
        let happens = |index, often: f32| seed::uniform(seed, index) < often;
        let lost = happens(0, self.plan.loss);
        let before = happens(1, 0.5);
        let late = happens(4, self.plan.delay);
        Fate {
            lost_before: lost && before,
            lost_after: lost && !before,
            duplicate: happens(2, self.plan.duplicate),
            reorder: happens(3, self.plan.reorder),
            delay: if late { self.plan.max_delay.mul_f32(seed::uniform(seed, 5)) } else { Duration::ZERO },
            seed,
        }
    }
}

fn lost(subject: &str, waited: Duration) -> LinkError {
    LinkError::Deadline { subject: subject.to_owned(), waited_ms: waited.as_millis() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates_depend_on_the_thing_and_the_try_and_not_on_the_order() {
        let dice = |seed| Dice { plan: FaultPlan::rough(seed), thrown: Mutex::default() };
        let (a, b) = (dice(1), dice(1));
        let first: Vec<Fate> = ["k0", "k1", "k0"].map(|key| a.throw(&["queue", key])).into();
        let second: Vec<Fate> = ["k0", "k0", "k1"].map(|key| b.throw(&["queue", key])).into();
        assert_eq!((&first[0], &first[2], &first[1]), (&second[0], &second[1], &second[2]));
        assert_ne!(first[0].seed, first[2].seed);
        assert_ne!(first[0].seed, dice(2).throw(&["queue", "k0"]).seed);
    }

    #[test]
    fn faults_come_as_often_as_planned() {
        let dice = Dice { plan: FaultPlan::rough(3), thrown: Mutex::default() };
        let fates: Vec<Fate> = (0..2000).map(|i| dice.throw(&[&i.to_string()])).collect();
        let share = |test: &dyn Fn(&Fate) -> bool| fates.iter().filter(|f| test(f)).count() as f32 / 2000.0;
        assert!((share(&|f| f.lost_before) - 0.1).abs() < 0.03);
        assert!((share(&|f| f.lost_after) - 0.1).abs() < 0.03);
        assert!((share(&|f| f.duplicate) - 0.2).abs() < 0.04);
        assert!((share(&|f| f.reorder) - 0.2).abs() < 0.04);
        assert!((share(&|f| !f.delay.is_zero()) - 0.2).abs() < 0.04);
    }
}
