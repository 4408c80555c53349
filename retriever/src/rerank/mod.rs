//! A second look at the best passages, by models that see query and passage together.

mod cross;
mod late;
mod ranking;

use std::{path::Path, sync::Arc};

use folgore_model::files::safetensors;
use folgore_protocol::Digest;

pub use cross::CrossEncoder;
pub use late::LateInteraction;
pub use ranking::Reranked;

use crate::{ChunkId, Hit, encode::EncodeError, ranking::Top};

/// Says how well passages answer a query.
pub trait Reranker: Send + Sync {
    /// Name, for logs and reports.
    fn name(&self) -> &str;

    /// Names what it computes: rerankers of the same digest give the same scores.
    fn digest(&self) -> Digest;

    /// A score for each passage, in order; higher is better, comparable for one query only.
    fn scores(&self, query: &str, passages: &[&str]) -> Result<Vec<f32>, EncodeError>;

    /// The best `top_k` of some chunks with their texts, best first, equal ones in the order of chunks.
    fn rerank(&self, query: &str, chunks: &[(ChunkId, &str)], top_k: usize) -> Result<Vec<Hit>, EncodeError> {
        let texts: Vec<&str> = chunks.iter().map(|(_, text)| *text).collect();
        let scores = self.scores(query, &texts)?;
        if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
            return Err(EncodeError { encoder: self.name().to_owned(), what: format!("a score is {score}") });
        }
        let mut top = Top::new(top_k);
        chunks.iter().zip(scores).for_each(|((chunk, _), score)| top.offer(Hit { chunk: *chunk, score }));
        Ok(top.into_hits())
    }
}

/// Opens the reranker in a folder: the tensors of its checkpoint tell which kind it is.
///
/// # Errors
/// If it is neither a cross-encoder nor a ColBERT, or is damaged.
pub fn open(folder: &Path) -> Result<Arc<dyn Reranker>, EncodeError> {
    let fault = |what: String| EncodeError { encoder: folder.display().to_string(), what };
    let tensors = safetensors::open(&folder.join("model.safetensors")).map_err(|e| fault(e.to_string()))?;
    let has = |name: &str| tensors.shape(name).is_some();
    match (has("linear.weight"), has("classifier.weight")) {
        (true, false) => Ok(Arc::new(LateInteraction::open(folder)?)),
        (false, true) => Ok(Arc::new(CrossEncoder::open(folder)?)),
        (late, _) => {
            let got = if late { "both" } else { "neither" };
            Err(fault(format!(
                "no reranker: expected classifier.weight (a cross-encoder) or linear.weight (a ColBERT) among its tensors, got {got}"
            )))
        }
    }
}
