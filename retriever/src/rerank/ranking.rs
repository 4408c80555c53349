//! A ranking over a ranking.

use std::sync::Arc;

use super::Reranker;
use crate::{Allowed, ChunkId, Hit, Ranking, SearchError, store::Store};

/// The best of another ranking, looked at again. The reranker reads what was ranked: title, header and text, out of the store.
#[derive(Clone)]
pub struct Reranked {
    first: Arc<dyn Ranking>,
    reranker: Arc<dyn Reranker>,
    store: Arc<Store>,
    candidates: usize,
}

impl Reranked {
    /// Over `first`, which ranks the chunks of `store`; `candidates`: hits that are looked at, `top_k` at least.
    pub fn new(first: Arc<dyn Ranking>, reranker: Arc<dyn Reranker>, store: Arc<Store>, candidates: usize) -> Self {
        Self { first, reranker, store, candidates }
    }

    fn again(&self, query: &str, hits: &[Hit], top_k: usize) -> Result<Vec<Hit>, SearchError> {
        let mut texts: Vec<(ChunkId, String)> = Vec::with_capacity(hits.len());
        for hit in hits {
            // it may have gone since
            texts.extend(self.store.chunk(hit.chunk)?.map(|chunk| (chunk.id, chunk.ranked())));
        }
        let chunks: Vec<(ChunkId, &str)> = texts.iter().map(|(id, text)| (*id, text.as_str())).collect();
        let reranked = self.reranker.rerank(query, &chunks, top_k);
        reranked.map_err(|e| SearchError::Refused(e.to_string()))
    }
}

impl Ranking for Reranked {
    fn search(&self, queries: &[&str], top_k: usize, allowed: Allowed<'_>) -> Result<Vec<Vec<Hit>>, SearchError> {
        let found = self.first.search(queries, self.candidates.max(top_k), allowed)?;
        queries.iter().zip(found).map(|(query, hits)| self.again(query, &hits, top_k)).collect()
    }
}
