//! Draws one after another from a stream.

use folgore_protocol::seed;

/// The next draws of a stream.
#[derive(Clone, Debug)]
pub struct Draws {
    stream: u64,
    next: u64,
}

impl Draws {
    /// The draws of `stream`, from its first.
    pub fn of(stream: u64) -> Self {
        Self { stream, next: 0 }
    }

    /// Uniform in `0..bound`, which is above 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.next += 1;
        seed::below(self.stream, self.next, bound as u64) as usize
    }

    /// Uniform in `0..1`.
    pub fn share(&mut self) -> f64 {
        self.next += 1;
        f64::from(seed::uniform(self.stream, self.next))
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.share() < p
    }

    /// One of `items`, of which there is one at least.
    pub fn of_these<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
