//! Which rows are learnt in which update: a pure function of the step, so that a resumed run needs no memory of it.

use std::ops::Range;

use super::encode::Sequence;

/// What is learnt, by position in a sequence without end.
pub trait Lessons {
    /// Rows of a pass over all of them.
    fn rows(&self) -> u64;

    /// The sequences of the row at `position`; the same for the same position, always.
    fn at(&self, position: u64) -> &[Sequence];
}

/// How positions are divided into updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    rows: u64,
    batch: u64,
}

impl Order {
    /// Of `rows` rows, `batch` to an update.
    ///
    /// # Panics
    /// If either is 0.
    pub fn new(rows: u64, batch: u64) -> Self {
        assert!(rows > 0 && batch > 0, "order of {rows} rows in batches of {batch}");
        Self { rows, batch }
    }

    /// Updates of `epochs` passes over the rows, at least one.
    pub fn updates_of(&self, epochs: f64) -> u64 {
        ((epochs * self.rows as f64 / self.batch as f64).ceil() as u64).max(1)
    }

    /// Passes that are done after `step` updates.
    pub fn epochs(&self, step: u64) -> f64 {
        (step * self.batch) as f64 / self.rows as f64
    }

    /// Positions of update `step`, from 1.
    ///
    /// # Panics
    /// If `step` is 0.
    pub fn positions(&self, step: u64) -> Range<u64> {
        (step - 1) * self.batch..step * self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_follow_one_another_without_a_gap() {
        let order = Order::new(10, 4);
        assert_eq!((order.updates_of(1.0), order.updates_of(2.0), order.updates_of(0.01)), (3, 5, 1));
        assert_eq!([order.positions(1), order.positions(2)], [0..4, 4..8]);
        assert_eq!([0, 1, 5].map(|step| order.epochs(step)), [0.0, 0.4, 2.0]);
    }
}
