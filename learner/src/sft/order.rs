//! Which sequences are learnt in which update: a pure function of seed, epoch and place, so that a resumed run needs no memory of it.

use folgore_protocol::seed;

/// Streams of this file are those of no other.
const STREAM: u64 = 0x0073_6674_6f72_6465;

/// The order of a run. In each epoch every sequence comes once; the last update of an epoch may have fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    sequences: usize,
    batch: usize,
    seed: u64,
}

impl Order {
    /// The order of `sequences` sequences, `batch` to an update.
    ///
    /// # Panics
    /// If either is 0.
    pub fn new(sequences: usize, batch: usize, seed: u64) -> Self {
        assert!(sequences > 0 && batch > 0, "order of {sequences} sequences in batches of {batch}");
        Self { sequences, batch, seed }
    }

    /// Updates of an epoch.
    pub fn updates(&self) -> u64 {
        self.sequences.div_ceil(self.batch) as u64
    }

    /// Updates of `epochs` epochs, at least one.
    pub fn updates_of(&self, epochs: f64) -> u64 {
        ((epochs * self.updates() as f64).ceil() as u64).max(1)
    }

    /// Epochs that are done after `step` updates.
    pub fn epochs(&self, step: u64) -> f64 {
        let (whole, rest) = (step / self.updates(), (step % self.updates()) as usize);
        whole as f64 + (rest * self.batch) as f64 / self.sequences as f64
    }

    /// Places of the sequences of update `step`, from 1.
    ///
    /// # Panics
    /// If `step` is 0.
    pub fn batch(&self, step: u64) -> Vec<usize> {
        let (epoch, part) = ((step - 1) / self.updates(), ((step - 1) % self.updates()) as usize);
        let mut places: Vec<usize> = (0..self.sequences).collect();
        // places of equal draws stay in order
        places.sort_by_cached_key(|place| seed::mix(&[STREAM, self.seed, epoch, *place as u64]));
        let begin = part * self.batch;
        places[begin..(begin + self.batch).min(self.sequences)].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_comes_once_an_epoch_in_an_order_of_its_own() {
        let order = Order::new(10, 4, 7);
        assert_eq!((order.updates(), order.updates_of(2.5), order.updates_of(0.01)), (3, 8, 1));
        let epoch = |e: u64| (1..=3).map(|part| order.batch(3 * e + part)).collect::<Vec<_>>();
        assert_eq!(epoch(0).iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
        for e in 0..3 {
            let mut all = epoch(e).concat();
            all.sort_unstable();
            assert_eq!(all, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(epoch(0), epoch(1));
        assert_eq!(epoch(1), epoch(1));
        assert_ne!(epoch(0)[0], Order::new(10, 4, 8).batch(1));
        assert_eq!([0, 1, 3, 4].map(|step| order.epochs(step)), [0.0, 0.4, 1.0, 1.4]);
    }
}
