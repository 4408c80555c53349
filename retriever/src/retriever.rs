//! What the rest of Folgore asks for passages.

use folgore_actors::link::BoxFuture;
use folgore_protocol::{Digest, Passages, Search};

use crate::store::StoreError;

/// Why a search brought nothing: never to be taken for an empty result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// It may go better next time: nobody answered, or too late.
    #[error("search: {0}")]
    Unavailable(String),
    /// It will not go better: the question itself cannot be answered.
    #[error("search: {0}")]
    Refused(String),
}

/// A store that cannot be reached may be there again later; a damaged one stays so.
impl From<StoreError> for SearchError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { .. } | StoreError::Locked(_) => SearchError::Unavailable(error.to_string()),
            _ => SearchError::Refused(error.to_string()),
        }
    }
}

/// Finds passages, in whatever way: an index here, a service elsewhere.
pub trait Retriever: Send + Sync {
    /// Name, for spans and logs.
    fn name(&self) -> &str;

    /// Names what is searched: two retrievers with the same digest give the same passages. None where nobody can know.
    fn corpus(&self) -> Option<Digest> {
        None
    }

    /// Answers each query, in order; those of a batch may be answered together.
    fn search<'a>(&'a self, queries: &'a [Search]) -> BoxFuture<'a, Vec<Result<Passages, SearchError>>>;
}
