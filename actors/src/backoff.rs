//! How long to wait before trying again: exponential, capped, jittered from a seed so that a rerun waits as long.

use std::time::Duration;

use folgore_protocol::seed;

/// Waits that double from `base` up to `cap`; each is drawn from the upper half of its range, so that many who failed
/// together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    seed: u64,
    tries: u32,
}

impl Backoff {
    /// A backoff whose jitter is stream `seed`.
    pub fn new(base: Duration, cap: Duration, seed: u64) -> Self {
        Self { base, cap, seed, tries: 0 }
    }

    /// The next wait: between one and two halves of `min(cap, base * 2^n)` at the n-th call, from 0.
    pub fn next_wait(&mut self) -> Duration {
        let wait = wait(self.base, self.cap, self.tries, seed::uniform(self.seed, u64::from(self.tries)));
        self.tries = self.tries.saturating_add(1);
        wait
    }
}

/// The wait after `doublings`, with `jitter` from 0 to 1.
pub(crate) fn wait(base: Duration, cap: Duration, doublings: u32, jitter: f32) -> Duration {
    base.saturating_mul(1 << doublings.min(20)).min(cap).mul_f32(0.5 + 0.5 * jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_their_range_and_stop_at_the_cap() {
        let (base, cap) = (Duration::from_millis(10), Duration::from_millis(200));
        let mut backoff = Backoff::new(base, cap, 7);
        for n in 0..40 {
            let full = base.saturating_mul(1 << n.min(20)).min(cap);
            let wait = backoff.next_wait();
            assert!(wait >= full / 2 && wait <= full, "try {n}: {wait:?} of {full:?}");
        }
        let waits = |seed| {
            let mut backoff = Backoff::new(base, cap, seed);
            (0..8).map(|_| backoff.next_wait()).collect::<Vec<_>>()
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }
}
