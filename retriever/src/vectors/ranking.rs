//! Queries as words, answered by vectors.

use std::sync::Arc;

use super::Vectors;
use crate::{Allowed, Hit, Ranking, SearchError, encode::Encoder};

/// Encodes queries and ranks by the vectors of chunks, which the same encoder made.
#[derive(Clone)]
pub struct VectorRanking {
    encoder: Arc<dyn Encoder>,
    vectors: Arc<dyn Vectors>,
}

impl VectorRanking {
    /// Over `vectors` of `encoder`.
    pub fn new(encoder: Arc<dyn Encoder>, vectors: Arc<dyn Vectors>) -> Self {
        Self { encoder, vectors }
    }
}

impl Ranking for VectorRanking {
    fn search(&self, queries: &[&str], top_k: usize, allowed: Allowed<'_>) -> Result<Vec<Vec<Hit>>, SearchError> {
        let refused = |e: &dyn std::fmt::Display| SearchError::Refused(e.to_string());
        let encoded = self.encoder.encode_queries(queries).map_err(|e| refused(&e))?;
        let encoded: Vec<&[f32]> = encoded.iter().map(Vec::as_slice).collect();
        let mut found = self.vectors.search(&encoded, top_k, allowed).map_err(|e| refused(&e))?;
        // nothing to be seen in a query: every chunk is as near to it as any other
        let blind = encoded.iter().map(|vector| vector.iter().all(|x| *x == 0.0));
        found.iter_mut().zip(blind).filter(|(_, blind)| *blind).for_each(|(hits, _)| hits.clear());
        Ok(found)
    }
}
