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
    /// Set while the reward is left alone.
    until: Option<Instant>,
    /// One attempt shows whether the reward is well again.
    trial: bool,
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
    /// The number of failures and how much longer the reward is left alone.
    pub(super) fn enter(&self, now: Instant) -> Result<Leave<'_>, (u32, Duration)> {
        let mut state = self.state();
        let Some(until) = state.until else { return Ok(Leave { breaker: self, trial: false }) };
        if state.trial || now < until {
            return Err((state.failures, until.saturating_duration_since(now)));
        }
        state.trial = true;
        Ok(Leave { breaker: self, trial: true })
    }
}

impl Leave<'_> {
    /// Says at `now` how the attempt ended. True if the reward is left alone from now on, and was not before.
    pub(super) fn settle(mut self, well: bool, now: Instant) -> bool {
        let (breaker, trial) = (self.breaker, std::mem::take(&mut self.trial));
        let mut state = breaker.state();
        if well {
            // A late success of an attempt from before the pause is as good a sign as a trial's.
            *state = State::default();
            return false;
        }
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
        let fail = |now| breaker.enter(now).map(|leave| leave.settle(false, now)).map_err(|(failures, _)| failures);
        let pass = |now| breaker.enter(now).map(|leave| leave.settle(true, now)).map_err(|(failures, _)| failures);
        assert_eq!([fail(now), fail(now), pass(now)], [Ok(false); 3]);
        assert_eq!(
            [fail(now), fail(now), fail(now)],
            [Ok(false), Ok(false), Ok(true)],
            "a success begins the row again"
        );
        assert_eq!(fail(now), Err(3));
        assert_eq!(fail(now + PAUSE), Ok(false), "one is let through");
        assert_eq!(pass(now + PAUSE), Err(4), "and after its failure nobody");
        assert_eq!(pass(now + PAUSE * 2), Ok(false));
        assert_eq!(pass(now + PAUSE * 2), Ok(false), "all is well");
    }

    #[test]
    fn a_trial_is_alone_and_leaves_its_place_when_it_is_given_up() {
        let (breaker, now) = (Breaker::new(1, PAUSE), Instant::now());
        assert!(breaker.enter(now).ok().unwrap().settle(false, now));
        let later = now + PAUSE;
        let trial = breaker.enter(later).ok().unwrap();
        assert!(breaker.enter(later).is_err());
        drop(trial);
        assert!(breaker.enter(later).is_ok());
    }
}
