//! Run-length coding for per-token facts that rarely change: policy ids and masks.

use serde::{Deserialize, Serialize};

/// A sequence stored as (value, how often) pairs; neighbours always differ and no count is 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLength<T>(Vec<(T, u32)>);

impl<T> Default for RunLength<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> RunLength<T> {
    /// `count` times `value`; empty if `count` is 0.
    pub fn of(value: T, count: u32) -> Self {
        let mut runs = Self::default();
        runs.push(value, count);
        runs
    }

    /// Appends `count` times `value`.
    pub fn push(&mut self, value: T, count: u32) {
        match self.0.last_mut() {
            _ if count == 0 => {}
            Some((last, n)) if *last == value => *n += count,
            _ => self.0.push((value, count)),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(_, n)| *n as usize).sum()
    }

    /// True if there are no values.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The distinct runs, in order.
    pub fn runs(&self) -> &[(T, u32)] {
        &self.0
    }

    /// Each value in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|(value, n)| std::iter::repeat_n(value, *n as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_merge_and_iterate_in_order() {
        let mut runs = RunLength::of(1, 2);
        runs.push(1, 1);
        runs.push(2, 0);
        runs.push(3, 2);
        assert_eq!(runs.runs(), [(1, 3), (3, 2)]);
        assert_eq!(runs.iter().copied().collect::<Vec<_>>(), [1, 1, 1, 3, 3]);
        assert_eq!(runs.len(), 5);
    }
}
