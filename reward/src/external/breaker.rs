//! Leaves a reward alone that failed several times in a row, and tries it again after a pause, once.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The state of one reward.
pub(super) struct Breaker {
    most: u32,
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    /// Why the last of them failed.
    reason: String,
    /// Set while the reward is left alone.
    until: Option<Instant>,
    /// One attempt shows whether the reward is well again.
    trial: bool,
}

/// Why there is no leave: the reward is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shut {
    /// Failures in a row.
    pub(super) failures: u32,
    /// Why the last of them failed.
    pub(super) reason: String,
    /// How much longer; zero while a trial is under way.
    pub(super) left: Duration,
}

/// Leave for one attempt, which ends with [`Leave::settle`]; dropped without it, the attempt says nothing.
pub(super) struct Leave<'a> {
    breaker: &'a Breaker,
    trial: bool,
}

impl Breaker {
    /// Lets `most` failures in a row pass.
    pub(super) fn new(most: u32, pause: Duration) -> Self {
        Self { most: most.max(1), pause, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A number and a time are whole whatever a panic cut short.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave for an attempt at `now`.
    ///
    /// # Errors
    /// If the reward is left alone.
    pub(super) fn enter(&self, now: Instant) -> Result<Leave<'_>, Shut> {
        let mut state = self.state();
        let Some(until) = state.until else { return Ok(Leave { breaker: self, trial: false }) };
        if state.trial || now < until {
            let left = until.saturating_duration_since(now);
            return Err(Shut { failures: state.failures, reason: state.reason.clone(), left });
        }
        state.trial = true;
        Ok(Leave { breaker: self, trial: true })
    }
}

impl Leave<'_> {
    /// Says at `now` how the attempt ended: well, or why not. True if the reward is left alone from now on, and was not before.
    pub(super) fn settle(mut self, ended: Result<(), String>, now: Instant) -> bool {
        let (breaker, trial) = (self.breaker, std::mem::take(&mut self.trial));
        let mut state = breaker.state();
        let Err(reason) = ended else {
            // A late success of an attempt from before the pause is as good a sign as a trial's.
            *state = State::default();
            return false;
        };
        state.reason = reason;
        state.failures = state.failures.saturating_add(1);
        if trial {
            state.trial = false;
            state.until = Some(now + breaker.pause);
            return false;
        }
        let tripped = state.until.is_none() && state.failures >= breaker.most;
        if tripped {
            state.until = Some(now + breaker.pause);
        }
        tripped
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.trial {
            self.breaker.state().trial = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);

    #[test]
    fn failures_in_a_row_bring_a_pause_and_one_trial_ends_it() {
        let (breaker, now) = (Breaker::new(3, PAUSE), Instant::now());
        let settle =
            |now, ended| breaker.enter(now).map(|leave| leave.settle(ended, now)).map_err(|shut| shut.failures);
        let (fail, pass) = (|now| settle(now, Err("gone".into())), |now| settle(now, Ok(())));
        assert_eq!([fail(now), fail(now), pass(now)], [Ok(false); 3]);
        assert_eq!(
            [fail(now), fail(now), fail(now)],
            [Ok(false), Ok(false), Ok(true)],
            "a success begins the row again"
        );
        assert_eq!(fail(now), Err(3));
        assert_eq!(breaker.enter(now).err(), Some(Shut { failures: 3, reason: "gone".into(), left: PAUSE }));
        assert_eq!(fail(now + PAUSE), Ok(false), "one is let through");
        assert_eq!(pass(now + PAUSE), Err(4), "and after its failure nobody");
        assert_eq!(pass(now + PAUSE * 2), Ok(false));
        assert_eq!(pass(now + PAUSE * 2), Ok(false), "all is well");
    }

    #[test]
    fn a_trial_is_alone_and_leaves_its_place_when_it_is_given_up() {
        let (breaker, now) = (Breaker::new(1, PAUSE), Instant::now());
        assert!(breaker.enter(now).ok().unwrap().settle(Err("gone".into()), now));
        let later = now + PAUSE;
        let trial = breaker.enter(later).ok().unwrap();
        assert!(breaker.enter(later).is_err());
        drop(trial);
        assert!(breaker.enter(later).is_ok());
    }
}
