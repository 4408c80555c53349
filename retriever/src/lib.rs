//! Finds passages for a query.
//!
//! A [`Document`] is what a user has: a page, a file of source code, a row of a corpus. It is cut into [`Chunk`]s, which are
//! what is ranked and returned. [`Ranking`] is one way to order chunks (words, vectors, a mixture of rankings), and a
//! [`Retriever`] is what the rest of Folgore asks: queries in, [`Passages`](folgore_protocol::Passages) out, whether they
//! come from an index here or from elsewhere. A [`Host`] stands before each, with bounds; [`RetrieverWorker`] is its actor.

mod cache;
pub mod chunk;
mod document;
pub mod encode;
pub mod encoding;
mod fusion;
mod host;
mod index;
pub mod indexing;
pub mod lexical;
mod listed;
mod plan;
mod ranking;
pub mod read;
pub mod remote;
pub mod rerank;
mod retriever;
pub mod sop;
pub mod store;
pub mod vectors;
pub mod web;
mod worker;

pub use document::{Chunk, ChunkId, Document, Kind, Language};
pub use fusion::{Fusion, Hybrid};
pub use host::{Bounds, Host};
pub use index::{Index, IndexError, bm25, passage};
pub use listed::Listed;
pub use plan::{By, Plan, Ranked, Weights};
pub use ranking::{Allowed, Hit, Ranking};
pub use remote::Remote;
pub use retriever::{Retriever, SearchError};
pub use web::Web;
pub use worker::RetrieverWorker;
