//! A second look at the best passages, by models that see query and passage together.

mod cross;
mod late;

pub use cross::CrossEncoder;
pub use late::LateInteraction;

use crate::{ChunkId, Hit, encode::EncodeError, ranking::Top};

/// Says how well passages answer a query.
pub trait Reranker: Send + Sync {
    /// Name, for logs and reports.
    fn name(&self) -> &str;

    /// A score for each passage, in order; higher is better, comparable for one query only.
    fn scores(&self, query: &str, passages: &[&str]) -> Result<Vec<f32>, EncodeError>;

    /// The best `top_k` of some chunks with their texts, best first, equal ones in the order of chunks.
    fn rerank(&self, query: &str, chunks: &[(ChunkId, &str)], top_k: usize) -> Result<Vec<Hit>, EncodeError> {
        let texts: Vec<&str> = chunks.iter().map(|(_, text)| *text).collect();
        let mut top = Top::new(top_k);
        for ((chunk, _), score) in chunks.iter().zip(self.scores(query, &texts)?) {
            top.offer(Hit { chunk: *chunk, score });
        }
        Ok(top.into_hits())
    }
}
