//! How long texts are: least, percentiles, most.

use std::fmt;

use serde::Serialize;

/// Percentiles of lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    min: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
    mean: u64,
}

impl Lengths {
    /// Of `lengths`; none if there are none.
    pub fn of(lengths: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut all: Vec<u64> = lengths.into_iter().collect();
        all.sort_unstable();
        let (min, max) = (*all.first()?, *all.last()?);
        // the least length that so many per cent of the rows do not exceed
        let at = |percent: usize| all[(all.len() * percent).div_ceil(100).max(1) - 1];
        let mean = all.iter().sum::<u64>() / all.len() as u64;
        Some(Self { min, p50: at(50), p90: at(90), p99: at(99), max, mean })
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, p50, p90, p99, max, mean } = self;
        write!(f, "min {min}, median {p50}, 90 % {p90}, 99 % {p99}, max {max}, mean {mean}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_lengths_that_there_are() {
        assert_eq!(Lengths::of([]), None);
        let one = Lengths::of([7]).unwrap();
        assert_eq!((one.min, one.p50, one.p99, one.max), (7, 7, 7, 7));
        let hundred = Lengths::of((1..=100).rev()).unwrap();
        assert_eq!((hundred.min, hundred.p50, hundred.p90, hundred.p99, hundred.max), (1, 50, 90, 99, 100));
    }
}
