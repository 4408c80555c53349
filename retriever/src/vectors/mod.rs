//! Ranking by vectors: the chunks whose vectors point where the query's does.
//!
//! [`Vectors`] is what a ranking asks. [`VectorIndex`] compares a query with every vector, exactly, until there are so many that
//! [`GraphSettings::from`] calls for a graph (HNSW), which looks at a few hundred of them and misses some neighbours. Where a filter
//! leaves too few of the graph's answers, the exact search answers: a filter never makes hits disappear.

mod dot;
mod files;
mod graph;
mod index;
mod panels;
mod ranking;
mod rows;
mod stored;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use self::dot::dot;
pub(crate) use self::stored::of_store;
pub use self::{index::VectorIndex, ranking::VectorRanking, stored::keep_graph};
use crate::{Allowed, ChunkId, Hit};

/// Unit vectors by chunk. Any number of threads may search while one changes it.
pub trait Vectors: Send + Sync {
    /// Numbers of a vector.
    fn dim(&self) -> usize;

    /// Vectors in it.
    fn len(&self) -> usize;

    /// Whether it holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds vectors, or puts others in the place of those that chunks have. All or none.
    fn add(&self, batch: &[(ChunkId, &[f32])]) -> Result<(), VectorsError>;

    /// Removes the vectors of chunks; how many there were.
    fn remove(&self, chunks: &[ChunkId]) -> usize;

    /// For each query, in order, the `top_k` chunks of those that `allowed` lets through with the largest dot products, best first;
    /// equal ones in the order of chunks.
    fn search(&self, queries: &[&[f32]], top_k: usize, allowed: Allowed<'_>) -> Result<Vec<Vec<Hit>>, VectorsError>;
}

/// When there is a graph, and how it is built and searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphSettings {
    /// Vectors from which on there is one.
    pub from: usize,
    /// Neighbours of a vector, twice as many in the lowest layer; 2 to 255.
    pub neighbours: usize,
    /// Candidates for them.
    pub ef_construction: usize,
    /// Candidates of a search: more find more, and take longer.
    pub ef_search: usize,
}

impl Default for GraphSettings {
    fn default() -> Self {
        // where both answer as many queries a second (docs/performance.md)
        Self { from: 300_000, neighbours: 16, ef_construction: 200, ef_search: 128 }
    }
}

impl GraphSettings {
    /// Never a graph: every search is exact.
    pub fn never() -> Self {
        Self { from: usize::MAX, ..Self::default() }
    }
}

/// Bytes that `count` vectors of `dim` numbers take in memory, with their graph where there is one.
pub fn held(count: u64, dim: usize, settings: GraphSettings) -> u64 {
    // an arc, its counts, and a distance
    const LINK: u64 = 48;
    let vectors = count * 4 * dim as u64;
    let linked = count >= settings.from as u64;
    // the graph has copies
    if linked { 2 * vectors + count * 2 * settings.neighbours as u64 * LINK } else { vectors }
}

/// What is wrong with vectors, or with the files that hold them.
#[derive(Debug, thiserror::Error)]
pub enum VectorsError {
    /// Another length than the others.
    #[error("vector of {what}: {got} numbers, expected {expected}")]
    Dimension {
        /// Whose vector.
        what: String,
        /// Its length.
        got: usize,
        /// That of the index.
        expected: usize,
    },
    /// Infinite or no number.
    #[error("vector of {what}: {got} is not finite")]
    NotFinite {
        /// Whose vector.
        what: String,
        /// The first such number.
        got: f32,
    },
    /// A setting that means nothing.
    #[error("graph of vectors: {name} is {got}, expected {expected}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// Its value.
        got: usize,
        /// What it may be.
        expected: &'static str,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not what was written: the index has to be filled again.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}
