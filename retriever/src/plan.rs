//! How an index is ranked.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    Fusion, Hybrid, IndexError, Ranking, bm25,
    encode::Encoder,
    encoding,
    lexical::Bm25Settings,
    rerank::{Reranked, Reranker},
    store::Store,
    vectors::{self, GraphSettings, VectorRanking},
};

/// A ranking, and what names it together with its settings.
pub struct Ranked {
    /// The ranking, filled.
    pub ranking: Arc<dyn Ranking>,
    /// Two rankings of the same name order the same chunks the same way.
    pub name: String,
}

/// What chunks are ranked by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Their words: BM25.
    #[default]
    Words,
    /// Their vectors.
    Vectors,
    /// Words and vectors, fused.
    Both,
}

impl By {
    /// Whether vectors have a say.
    pub fn takes_vectors(self) -> bool {
        self != Self::Words
    }
}

/// What each ranking of [`By::Both`] weighs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// BM25.
    pub words: f32,
    /// The vectors.
    pub vectors: f32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { words: 1.0, vectors: 1.0 }
    }
}

/// Which rankings there are, how they are fused, and what looks at the best of them again.
#[derive(Clone)]
pub struct Plan {
    /// What ranks.
    pub by: By,
    /// Words.
    pub bm25: Bm25Settings,
    /// Makes vectors of queries; has to be the encoder that made those of the chunks.
    pub encoder: Option<Arc<dyn Encoder>>,
    /// From how many vectors on there is a graph.
    pub graph: GraphSettings,
    /// How words and vectors become one.
    pub fusion: Fusion,
    /// What they weigh.
    pub weights: Weights,
    /// Looks at the best again.
    pub reranker: Option<Arc<dyn Reranker>>,
    /// Hits that are fused of each ranking, and hits that are looked at again; as many as are asked for, at least.
    pub candidates: usize,
}

impl Default for Plan {
    /// BM25 alone.
    fn default() -> Self {
        Self {
            by: By::Words,
            bm25: Bm25Settings::default(),
            encoder: None,
            graph: GraphSettings::default(),
            fusion: Fusion::default(),
            weights: Weights::default(),
            reranker: None,
            candidates: 50,
        }
    }
}

impl Plan {
    /// Words, and vectors of `encoder`.
    pub fn hybrid(encoder: Arc<dyn Encoder>) -> Self {
        Self { by: By::Both, encoder: Some(encoder), ..Self::default() }
    }

    /// The ranking over the chunks of `store`.
    ///
    /// # Errors
    /// If a setting means nothing, the store cannot be read, or its vectors are none, those of another encoder, or not all there.
    pub fn rank(&self, store: &Arc<Store>) -> Result<Ranked, IndexError> {
        self.check()?;
        let first = match self.by {
            By::Words => bm25(store, self.bm25)?,
            By::Vectors => self.vectors(store)?,
            By::Both => self.both(store)?,
        };
        let Some(reranker) = &self.reranker else { return Ok(first) };
        let ranking = Reranked::new(first.ranking, reranker.clone(), store.clone(), self.candidates);
        let name = format!("{}; the first {} by {}", first.name, self.candidates, reranker.digest());
        Ok(Ranked { ranking: Arc::new(ranking), name })
    }

    fn vectors(&self, store: &Store) -> Result<Ranked, IndexError> {
        let index = || store.name().to_owned();
        let encoder = self.encoder.as_ref().ok_or_else(|| IndexError::NoEncoder(index()))?;
        encoding::expect(store, &**encoder)?;
        let (there, all) = (store.vectors()?, store.counts()?.chunks);
        if there < all {
            let what = format!("{} of {all} chunks have no vector yet", all - there);
            return Err(IndexError::Behind { index: index(), what });
        }
        let vectors = vectors::of_store(store, encoder.dim(), self.graph)?;
        let graph = match (vectors.has_graph(), vectors.graph_name()) {
            (false, _) => String::new(),
            (true, Some(name)) => format!(" through {:?} {name}", self.graph),
            // one that was made here is like no other
            (true, None) => format!(" through {:?} {:x}", self.graph, RandomState::new().hash_one(0)),
        };
        let name = format!("vectors by {}{graph}", encoder.digest());
        Ok(Ranked { ranking: Arc::new(VectorRanking::new(encoder.clone(), Arc::new(vectors))), name })
    }

    fn both(&self, store: &Store) -> Result<Ranked, IndexError> {
        let (words, vectors) = (bm25(store, self.bm25)?, self.vectors(store)?);
        let Weights { words: of_words, vectors: of_vectors } = self.weights;
        let name = format!(
            "{:?} of the first {}: {of_words} {}, {of_vectors} {}",
            self.fusion, self.candidates, words.name, vectors.name
        );
        let rankings = vec![(words.ranking, of_words), (vectors.ranking, of_vectors)];
        Ok(Ranked { ranking: Arc::new(Hybrid::new(rankings, self.fusion, self.candidates)), name })
    }

    fn check(&self) -> Result<(), IndexError> {
        let Weights { words, vectors } = self.weights;
        let wrong = |what: String| Err(IndexError::Plan(what));
        let weight = |x: f32| x.is_finite() && x >= 0.0;
        match self.fusion {
            _ if self.by != By::Both => Ok(()),
            _ if !weight(words) || !weight(vectors) || words + vectors == 0.0 => {
                wrong(format!("weights {words} and {vectors}: expected numbers of at least 0, and one above it"))
            }
            Fusion::ReciprocalRank { k } if !(k.is_finite() && k >= 0.0) => {
                wrong(format!("reciprocal ranks with k {k}: expected a number of at least 0"))
            }
            _ => Ok(()),
        }
    }
}
