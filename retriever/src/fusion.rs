//! Several rankings made into one.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Allowed, ChunkId, Hit, Ranking, SearchError, ranking::Top};

/// How hits of several rankings become one score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fusion {
    /// Reciprocal rank: the sum over rankings of `weight / (k + rank)`, ranks from 1 (Cormack et al., SIGIR 2009). Scores are not
    /// looked at, so that any rankings go together.
    ReciprocalRank {
        /// Larger: a first place is worth less beside a tenth. 60 in the paper.
        k: f32,
    },
    /// The sum over rankings of `weight * (score - least) / (largest - least)`, least and largest among the ranking's candidates;
    /// 1 where they are equal, 0 for what is no candidate.
    Weighted,
}

impl Default for Fusion {
    fn default() -> Self {
        Self::ReciprocalRank { k: 60.0 }
    }
}

impl Fusion {
    /// What each hit of one ranking, best first, adds before its weight.
    fn parts(self, hits: &[Hit]) -> impl Iterator<Item = f32> {
        let (largest, least) = (hits.first().map_or(0.0, |h| h.score), hits.last().map_or(0.0, |h| h.score));
        let part = move |rank: usize, score: f32| match self {
            Self::ReciprocalRank { k } => 1.0 / (k + rank as f32),
            Self::Weighted if largest > least => (score - least) / (largest - least),
            Self::Weighted => 1.0,
        };
        hits.iter().enumerate().map(move |(i, hit)| part(i + 1, hit.score))
    }

    /// The best `top_k` of what several rankings found for one query, each best first and with its weight.
    pub fn fuse(self, rankings: &[(&[Hit], f32)], top_k: usize) -> Vec<Hit> {
        let mut scores: BTreeMap<ChunkId, f32> = BTreeMap::new();
        for (hits, weight) in rankings {
            for (hit, part) in hits.iter().zip(self.parts(hits)) {
                *scores.entry(hit.chunk).or_default() += weight * part;
            }
        }
        let mut top = Top::new(top_k);
        scores.into_iter().for_each(|(chunk, score)| top.offer(Hit { chunk, score }));
        top.into_hits()
    }
}

/// Several rankings, asked together. If one of them fails, so does the whole: half an answer would pass for one.
#[derive(Clone)]
pub struct Hybrid {
    rankings: Vec<(Arc<dyn Ranking>, f32)>,
    fusion: Fusion,
    candidates: usize,
}

impl Hybrid {
    /// Rankings, each with its weight; `candidates`: hits that each is asked for, `top_k` at least.
    pub fn new(rankings: Vec<(Arc<dyn Ranking>, f32)>, fusion: Fusion, candidates: usize) -> Self {
        Self { rankings, fusion, candidates }
    }
}

impl Ranking for Hybrid {
    fn search(&self, queries: &[&str], top_k: usize, allowed: Allowed<'_>) -> Result<Vec<Vec<Hit>>, SearchError> {
        let depth = self.candidates.max(top_k);
        let found: Vec<Vec<Vec<Hit>>> = self
            .rankings
            .iter()
            .map(|(ranking, _)| ranking.search(queries, depth, allowed))
            .collect::<Result<_, _>>()?;
        let weights = self.rankings.iter().map(|(_, weight)| *weight);
        let fuse = |query: usize| {
            let lists: Vec<(&[Hit], f32)> = found.iter().map(|lists| &lists[query][..]).zip(weights.clone()).collect();
            self.fusion.fuse(&lists, top_k)
        };
        Ok((0..queries.len()).map(fuse).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(list: &[(ChunkId, f32)]) -> Vec<Hit> {
        list.iter().map(|&(chunk, score)| Hit { chunk, score }).collect()
    }

    /// Always finds the same.
    struct Fixed(Result<Vec<Hit>, SearchError>);

    impl Ranking for Fixed {
        fn search(&self, queries: &[&str], top_k: usize, allowed: Allowed<'_>) -> Result<Vec<Vec<Hit>>, SearchError> {
            let hits: Vec<Hit> = self.0.clone()?.into_iter().filter(|h| allowed(h.chunk)).take(top_k).collect();
            Ok(vec![hits; queries.len()])
        }
    }

    #[test]
    fn reciprocal_ranks_add_up() {
        let (a, b) = (hits(&[(1, 9.0), (2, 8.0), (3, 7.0)]), hits(&[(3, 0.1), (4, 0.05)]));
        let fused = Fusion::default().fuse(&[(&a, 1.0), (&b, 1.0)], 10);
        let chunks: Vec<_> = fused.iter().map(|h| h.chunk).collect();
        assert_eq!(chunks, [3, 1, 2, 4], "2 and 4 are equal: in order");
        assert!((fused[0].score - (1.0 / 63.0 + 1.0 / 61.0)).abs() < 1e-7);
        assert!((fused[2].score - 1.0 / 62.0).abs() < 1e-7);
        let fused = Fusion::default().fuse(&[(&a, 1.0), (&b, 2.0)], 2);
        assert_eq!(fused.iter().map(|h| h.chunk).collect::<Vec<_>>(), [3, 4], "the second counts twice");
    }

    #[test]
    fn weighted_scores_are_between_the_least_and_the_largest() {
        let (a, b) = (hits(&[(1, 10.0), (2, 7.5), (3, 5.0)]), hits(&[(2, -1.0)]));
        let fused = Fusion::Weighted.fuse(&[(&a, 0.5), (&b, 0.5)], 10);
        assert_eq!(fused, hits(&[(2, 0.75), (1, 0.5), (3, 0.0)]));
        assert!(Fusion::Weighted.fuse(&[(&[], 1.0)], 10).is_empty());
    }

    #[test]
    fn a_hybrid_asks_deeper_keeps_the_filter_and_fails_whole() {
        let words = Arc::new(Fixed(Ok(hits(&[(1, 3.0), (2, 2.0), (5, 1.0)]))));
        let vectors = Arc::new(Fixed(Ok(hits(&[(7, 0.9), (5, 0.8), (2, 0.1)]))));
        let hybrid = Hybrid::new(vec![(words.clone(), 1.0), (vectors, 1.0)], Fusion::default(), 3);
        let found = hybrid.search(&["a", "b"], 1, &|_| true).unwrap();
        assert_eq!(found.len(), 2);
        // 5 is third and second, which neither shows if asked for its first alone
        assert_eq!(found[0].iter().map(|h| h.chunk).collect::<Vec<_>>(), [2]);
        let odd = hybrid.search(&["a"], 5, &|chunk| chunk % 2 == 1).unwrap();
        assert_eq!(odd[0].iter().map(|h| h.chunk).collect::<Vec<_>>(), [5, 1, 7]);
        let broken = Arc::new(Fixed(Err(SearchError::Unavailable("gone".into()))));
        let hybrid = Hybrid::new(vec![(words, 1.0), (broken, 1.0)], Fusion::default(), 3);
        assert!(hybrid.search(&["a"], 1, &|_| true).is_err());
    }
}
