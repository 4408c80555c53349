//! One way to order chunks.

use crate::{ChunkId, SearchError};

/// A chunk and how well it fits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The chunk.
    pub chunk: ChunkId,
    /// Higher is better; comparable within one ranking only.
    pub score: f32,
}

/// Says which chunks may be found.
pub type Allowed<'a> = &'a (dyn Fn(ChunkId) -> bool + Sync);

/// Orders the chunks of a corpus for a query. Any number of threads may ask while one adds or removes.
pub trait Ranking: Send + Sync {
    /// For each query, in order, the best `top_k` chunks of those that `allowed` lets through, best first; equal scores in the
    /// order of chunks. A ranking that needs more than the index (an encoder) may fail.
    fn search(&self, queries: &[&str], top_k: usize, allowed: Allowed<'_>) -> Result<Vec<Vec<Hit>>, SearchError>;
}

/// Scores that are looked at side by side.
const LANES: usize = 16;
/// How many times as many are passed over together if none of them is good enough.
const FEW: usize = 4;

/// Whether any of `scores` is `bar` at least.
fn reach(scores: &[f32], bar: f32) -> bool {
    let (blocks, rest) = scores.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for lane in 0..LANES {
            most[lane] = if block[lane] > most[lane] { block[lane] } else { most[lane] };
        }
    }
    most.iter().chain(rest).any(|&score| score >= bar)
}

/// Keeps the best hits of many, best first, equal scores in the order of chunks.
#[derive(Debug)]
pub(crate) struct Top {
    hits: Vec<Hit>,
    limit: usize,
    least: f32,
}

impl Top {
    pub(crate) fn new(limit: usize) -> Self {
        Self { hits: Vec::with_capacity(limit.min(1024)), limit, least: f32::NEG_INFINITY }
    }

    /// Of those whose score is above 0.
    pub(crate) fn above_zero(limit: usize) -> Self {
        Self { least: f32::MIN_POSITIVE, ..Self::new(limit) }
    }

    /// What a score must reach to have a chance.
    fn bar(&self) -> f32 {
        match self.hits.last() {
            _ if self.limit == 0 => f32::INFINITY,
            Some(last) if self.hits.len() == self.limit => last.score,
            _ => self.least,
        }
    }

    /// Offers a hit for each of `scores` that is good enough and for which `chunk`, given its place, names a chunk.
    pub(crate) fn offer_all(&mut self, scores: &[f32], chunk: impl Fn(usize) -> Option<ChunkId>) {
        let mut bar = self.bar();
        for (first, block) in (0..).step_by(FEW * LANES).zip(scores.chunks(FEW * LANES)) {
            if !reach(block, bar) {
                continue;
            }
            for (first, few) in (first..).step_by(LANES).zip(block.chunks(LANES)) {
                if !reach(few, bar) {
                    continue;
                }
                for (place, &score) in (first..).zip(few) {
                    if score >= bar
                        && let Some(chunk) = chunk(place)
                    {
                        self.offer(Hit { chunk, score });
                        bar = self.bar();
                    }
                }
            }
        }
    }

    pub(crate) fn offer(&mut self, hit: Hit) {
        let before = |h: &Hit| h.score > hit.score || (h.score == hit.score && h.chunk < hit.chunk);
        let at = self.hits.partition_point(before);
        if at >= self.limit {
            return;
        }
        if self.hits.len() == self.limit {
            self.hits.pop();
        }
        self.hits.insert(at, hit);
    }

    pub(crate) fn into_hits(self) -> Vec<Hit> {
        self.hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_are_offered_are_looked_at() {
        let scores: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1009) as f32 - 500.0).collect();
        for count in [0, 1, 15, 16, 17, 63, 64, 65, 1000] {
            let (mut one_by_one, mut together) = (Top::new(7), Top::new(7));
            for (chunk, &score) in (0..).zip(&scores[..count]).filter(|(chunk, _)| chunk % 3 != 0) {
                one_by_one.offer(Hit { chunk, score });
            }
            together.offer_all(&scores[..count], |i| Some(i as ChunkId).filter(|chunk| chunk % 3 != 0));
            assert_eq!(together.into_hits(), one_by_one.into_hits(), "{count}");
        }
    }

    #[test]
    fn top_keeps_the_best_and_the_smallest_of_equals() {
        let mut top = Top::new(3);
        for (chunk, score) in [(5, 1.0), (4, 1.0), (9, 2.0), (1, 1.0), (2, 0.5)] {
            top.offer(Hit { chunk, score });
        }
        assert_eq!(top.bar(), 1.0);
        let chunks: Vec<_> = top.into_hits().iter().map(|h| h.chunk).collect();
        assert_eq!(chunks, [9, 1, 4]);
        let mut none = Top::new(0);
        none.offer(Hit { chunk: 1, score: 1.0 });
        assert!(none.into_hits().is_empty());
    }
}
