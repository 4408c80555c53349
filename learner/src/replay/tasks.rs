//! Where questions come from, and in which order they are asked.

use folgore_protocol::{Task, seed};

/// A list of tasks, read by place. Pure: the same place always gives the same task.
pub trait TaskSource: Send + Sync {
    /// Number of tasks.
    fn len(&self) -> u64;

    /// The task at `index`, which is below [`TaskSource::len`].
    fn task(&self, index: u64) -> Task;

    /// What experts said to the task at `index`: turn after turn, for each of them.
    fn traces(&self, _index: u64) -> Vec<Vec<String>> {
        Vec::new()
    }

    /// True if there is nothing to ask.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl TaskSource for Vec<Task> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn task(&self, index: u64) -> Task {
        self[index as usize].clone()
    }
}

/// Separates the streams of this file from all others of the run.
const STREAM: u64 = 0x7461_736b_6f72_6465;
const ROUNDS: u64 = 8;
/// Smallest width of the network, in bits: over fewer, eight rounds do not mix well.
const BITS_MIN: u32 = 12;

/// The task that position `cursor` of the run asks, of `len`: every task once per epoch, in an order of its own for each.
///
/// A permutation as a pure function: a balanced Feistel network over the next power of four, walked until it lands inside
/// the range (cycle walking), so that nothing of the size of the dataset is ever held, and a restart needs the cursor only.
///
/// # Panics
/// If `len` is 0.
pub fn task_index(run_seed: u64, cursor: u64, len: u64) -> u64 {
    assert!(len > 0, "there is no task to choose");
    let (epoch, place) = (cursor / len, cursor % len);
    let key = seed::mix(&[run_seed, STREAM, epoch]);
    let half = (64 - (len - 1).leading_zeros()).max(BITS_MIN).div_ceil(2);
    let mut index = place;
    loop {
        index = permute(key, half, index);
        if index < len {
            return index;
        }
    }
}

fn permute(key: u64, half: u32, value: u64) -> u64 {
    let mask = (1u64 << half) - 1;
    let (mut left, mut right) = (value >> half, value & mask);
    for round in 0..ROUNDS {
        (left, right) = (right, left ^ (seed::bits(seed::mix(&[key, round]), right) & mask));
    }
    left << half | right
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_epoch_asks_every_task_once_in_its_own_order() {
        for len in [1, 2, 3, 7, 64, 1000, 4097] {
            let epoch = |e: u64| (0..len).map(|i| task_index(5, e * len + i, len)).collect::<Vec<_>>();
            let (first, second) = (epoch(0), epoch(1));
            assert_eq!(first.iter().collect::<BTreeSet<_>>().len() as u64, len, "of {len}");
            assert!(first.iter().all(|i| *i < len));
            if len >= 7 {
                assert_ne!(first, second, "of {len}");
                assert_ne!(first, (0..len).map(|i| task_index(6, i, len)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn places_are_uniform_over_epochs() {
        let mut first = [0u32; 10];
        (0..10_000u64).for_each(|epoch| first[task_index(1, epoch * 10, 10) as usize] += 1);
        assert!(first.iter().all(|n| (850..1150).contains(n)), "{first:?}");
    }

    #[test]
    fn a_source_without_end_costs_no_memory() {
        let seen: BTreeSet<u64> = (0..100).map(|i| task_index(2, i, u64::MAX)).collect();
        assert_eq!(seen.len(), 100);
    }
}
