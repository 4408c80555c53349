//! Several sources as one sequence, in exact proportions over any prefix: after n rows each source has the floor or the ceiling of
//! its share of n. The sequence is a pure function of the position, so that a position is all that is kept to go on.
//!
//! The k-th row of a source with share s may come from place ⌊(k-1)/s⌋ on and must have come before place ⌈k/s⌉; both follow from
//! the bounds. Rows are jobs of one unit of time, and the one whose time ends first is taken: that finds a schedule wherever there is
//! one, and there is one, because the shares sum to 1. With whole weights the sequence repeats after their sum.

use folgore_protocol::seed;

/// Most places of a schedule before it repeats.
const LONGEST: u64 = 1 << 24;

/// Whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    weights: Vec<u64>,
    /// By place: the source, and how many rows it had before.
    places: Vec<(u16, u32)>,
}

impl Schedule {
    /// For sources of these weights, each above 0.
    ///
    /// # Errors
    /// If there is none, or the weights have so many digits that the schedule would be very long.
    pub fn new(weights: &[f64]) -> Result<Self, String> {
        let weights = whole(weights)?;
        let sum: u64 = weights.iter().sum();
        let mut taken = vec![0u64; weights.len()];
        let mut places = Vec::with_capacity(sum as usize);
        for place in 0..sum {
            let open = |i: &usize| taken[*i] * sum / weights[*i] <= place;
            let ends = |i: &usize| ((taken[*i] + 1) * sum).div_ceil(weights[*i]);
            // some source is always open: the shares sum to 1
            let next = (0..weights.len()).filter(open).min_by_key(ends).unwrap_or(0);
            places.push((next as u16, taken[next] as u32));
            taken[next] += 1;
        }
        Ok(Self { weights, places })
    }

    /// The source at `position`, and how many rows it had before.
    pub fn at(&self, position: u64) -> (usize, u64) {
        let length = self.places.len() as u64;
        let (round, place) = (position / length, position % length);
        let (source, before) = self.places[place as usize];
        let source = usize::from(source);
        (source, round * self.weights[source] + u64::from(before))
    }

    /// The share of a source.
    pub fn share(&self, source: usize) -> f64 {
        self.weights[source] as f64 / self.places.len() as f64
    }
}

/// Weights as the smallest whole numbers of the same proportions: as they are written, not as they are stored.
fn whole(weights: &[f64]) -> Result<Vec<u64>, String> {
    if weights.is_empty() || weights.len() > usize::from(u16::MAX) {
        return Err(format!("expected 1 to {} sources, got {}", u16::MAX, weights.len()));
    }
    let written: Vec<String> = weights.iter().map(f64::to_string).collect();
    let digits = |text: &String| text.split_once('.').map_or(0, |(_, behind)| behind.len());
    let most = written.iter().map(digits).max().unwrap_or(0);
    let too_fine = || {
        format!(
            "expected weights whose proportions are whole numbers with a sum of at most {LONGEST}, got {}",
            written.join(", ")
        )
    };
    let number = |text: &String| -> Option<u64> {
        let (front, behind) = text.split_once('.').unwrap_or((text, ""));
        format!("{front}{behind:0<most$}").parse().ok().filter(|number| *number > 0)
    };
    let numbers: Vec<u64> = written.iter().map(number).collect::<Option<_>>().ok_or_else(too_fine)?;
    let common = numbers.iter().fold(0, |a, b| gcd(a, *b));
    let numbers: Vec<u64> = numbers.into_iter().map(|number| number / common).collect();
    let sum = numbers.iter().try_fold(0u64, |sum, number| sum.checked_add(*number));
    sum.filter(|sum| *sum <= LONGEST).ok_or_else(too_fine)?;
    Ok(numbers)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The rows of one source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceRows<T> {
    /// What it is called.
    pub name: String,
    /// Its rows, in the order of its files.
    pub rows: Vec<T>,
}

/// Rows of several sources as one sequence without end; of one source, its rows again and again.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixed<T> {
    sources: Vec<SourceRows<T>>,
    schedule: Schedule,
}

impl<T> Mixed<T> {
    /// Mixes `sources` by `weights`; none: by their numbers of rows, so that a pass has every row once.
    ///
    /// # Errors
    /// If a source has no rows, or the weights cannot be kept exactly.
    pub fn new(sources: Vec<SourceRows<T>>, weights: Option<&[f64]>) -> Result<Self, String> {
        if let Some(empty) = sources.iter().find(|source| source.rows.is_empty()) {
            return Err(format!("{}: no row is left to train on", empty.name));
        }
        let counts: Vec<f64> = sources.iter().map(|source| source.rows.len() as f64).collect();
        let schedule = match (sources.len(), weights) {
            (1, _) => Schedule::new(&[1.0]),
            (_, weights) => Schedule::new(weights.unwrap_or(&counts)),
        }?;
        Ok(Self { sources, schedule })
    }

    /// Rows of all sources together, which is what a pass is.
    pub fn len(&self) -> u64 {
        self.sources.iter().map(|source| source.rows.len() as u64).sum()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row at `position`, which has no end; each source goes through its rows in order, again and again.
    pub fn get(&self, position: u64) -> &T {
        let (source, before) = self.schedule.at(position);
        let rows = &self.sources[source].rows;
        &rows[(before % rows.len() as u64) as usize]
    }

    /// The row at `position` where each source goes through its rows in an order of its own for each time, drawn by `seed`.
    pub fn drawn(&self, seed: u64, position: u64) -> &T {
        let (source, before) = self.schedule.at(position);
        let rows = &self.sources[source].rows;
        let length = rows.len() as u64;
        let key = seed::mix(&[seed, 0x6d69_7865_6472_6f77, source as u64, before / length]);
        &rows[permuted(key, before % length, length) as usize]
    }

    /// The place of the source of `position` among [`Mixed::sources`].
    pub fn source_of(&self, position: u64) -> usize {
        self.schedule.at(position).0
    }

    /// The sources.
    pub fn sources(&self) -> &[SourceRows<T>] {
        &self.sources
    }

    /// The share of each source.
    pub fn shares(&self) -> Vec<f64> {
        (0..self.sources.len()).map(|source| self.schedule.share(source)).collect()
    }

    /// All rows, source by source, without their proportions.
    pub fn into_rows(self) -> Vec<T> {
        self.sources.into_iter().flat_map(|source| source.rows).collect()
    }

    /// All rows, source by source.
    pub fn rows(&self) -> impl Iterator<Item = &T> {
        self.sources.iter().flat_map(|source| &source.rows)
    }

    /// Keeps the rows that `keep` says; shares stay as they are.
    ///
    /// # Errors
    /// If a source has none left.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) -> Result<(), String> {
        for source in &mut self.sources {
            source.rows.retain(&mut keep);
            if source.rows.is_empty() {
                return Err(format!("{}: no row is left to train on", source.name));
            }
        }
        Ok(())
    }

    /// The same rows, changed.
    #[must_use]
    pub fn map<U>(self, mut change: impl FnMut(T) -> U) -> Mixed<U> {
        let change = |source: SourceRows<T>| SourceRows {
            name: source.name,
            rows: source.rows.into_iter().map(&mut change).collect(),
        };
        Mixed { sources: self.sources.into_iter().map(change).collect(), schedule: self.schedule }
    }
}

/// A permutation of `0..length` as a pure function: a Feistel network over the next power of four, walked until it lands inside.
fn permuted(key: u64, place: u64, length: u64) -> u64 {
    let half = (64 - (length - 1).leading_zeros()).max(12).div_ceil(2);
    let mask = (1u64 << half) - 1;
    let mut value = place;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for round in 0..8 {
            (left, right) = (right, left ^ (seed::bits(seed::mix(&[key, round]), right) & mask));
        }
        value = left << half | right;
        if value < length {
            return value;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn held(weights: &[f64], rows: u64) {
        let schedule = Schedule::new(weights).unwrap();
        let sum: f64 = weights.iter().sum();
        let mut had = vec![0u64; weights.len()];
        for position in 0..rows {
            let (source, before) = schedule.at(position);
            assert_eq!(before, had[source], "{weights:?} at {position}");
            had[source] += 1;
            for (i, weight) in weights.iter().enumerate() {
                let share = (position + 1) as f64 * weight / sum;
                let near = (had[i] as f64 - share).abs();
                assert!(near < 1.0 - 1e-9, "{weights:?} after {}: {i} has {} of {share}", position + 1, had[i]);
            }
        }
    }

    #[test]
    fn every_prefix_has_the_floor_or_the_ceiling_of_each_share() {
        held(&[1.0], 10);
        held(&[0.7, 0.3], 1000);
        held(&[0.5, 0.25, 0.125, 0.125], 1000);
        held(&[93733.0, 7473.0, 500.0], 110_000);
        held(&[0.1, 0.2, 0.3, 0.15, 0.25], 1000);
        // where taking who is furthest behind breaks the bounds
        held(&[6.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 500);
        for seed in 0..40 {
            let count = 2 + seed::below(seed, 0, 7);
            let weights: Vec<f64> = (0..count).map(|i| (1 + seed::below(seed, 1 + i, 60)) as f64 / 8.0).collect();
            held(&weights, 1200);
        }
    }

    #[test]
    fn weights_count_as_they_are_written() {
        assert_eq!(whole(&[0.1, 0.2, 0.7]).unwrap(), [1, 2, 7]);
        assert_eq!(whole(&[2.0, 4.0]).unwrap(), [1, 2]);
        assert_eq!(whole(&[1e-3, 1.0]).unwrap(), [1, 1000]);
        for bad in [&[1e-9, 1.0][..], &[], &[f64::NAN, 1.0], &[-1.0, 2.0], &[0.0, 1.0]] {
            assert!(whole(bad).is_err(), "{bad:?}");
        }
    }

    fn mixed() -> Mixed<(usize, usize)> {
        let source = |s: usize, n: usize| SourceRows { name: s.to_string(), rows: (0..n).map(|i| (s, i)).collect() };
        Mixed::new(vec![source(0, 30), source(1, 100)], Some(&[0.5, 0.5])).unwrap()
    }

    #[test]
    fn sources_go_through_all_their_rows_before_any_comes_again() {
        let mixed = mixed();
        for begin in [0u64, 60, 120] {
            let rows: BTreeSet<_> = (begin..begin + 60).map(|i| *mixed.drawn(7, i)).filter(|row| row.0 == 0).collect();
            assert_eq!(rows.len(), 30);
        }
        let all: BTreeSet<_> = (0..200).map(|i| *mixed.drawn(7, i)).collect();
        assert_eq!(all.len(), 130);
        let order = |seed| (0..60).map(|i| *mixed.drawn(seed, i)).collect::<Vec<_>>();
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
        assert_eq!((mixed.len(), mixed.source_of(0) + mixed.source_of(1)), (130, 1));
    }

    #[test]
    fn without_weights_a_pass_has_every_row_once() {
        let source = |s: usize, n: usize| SourceRows { name: s.to_string(), rows: (0..n).map(|i| (s, i)).collect() };
        let mixed = Mixed::new(vec![source(0, 3), source(1, 17), source(2, 80)], None).unwrap();
        let rows: BTreeSet<_> = (0..mixed.len()).map(|i| *mixed.get(i)).collect();
        assert_eq!(rows.len(), 100);
        assert!(Mixed::new(vec![source(0, 0)], None).unwrap_err().contains("no row is left"));
    }
}
