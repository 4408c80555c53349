//! Dice of one part of a schedule: what is thrown follows from the seed, and from nothing that runs beside it.

use folgore_protocol::seed;

pub struct Dice {
    seed: u64,
    thrown: u64,
}

impl Dice {
    pub fn new(parts: &[u64]) -> Self {
        Self { seed: seed::mix(parts), thrown: 0 }
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.thrown += 1;
        seed::below(self.seed, self.thrown, bound)
    }

    /// True one time in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
