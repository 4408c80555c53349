//! Ranking by words: BM25.
//!
//! # The formula
//! A chunk `d` scores for a query the sum over the query's words `t`, as often as they stand there:
//!
//! ```text
//! idf(t) * tf / (tf + k1 * (1 - b + b * |d| / average))          idf(t) = ln(1 + (n - df + 0.5) / (df + 0.5))
//! ```
//!
//! `tf`: how often `t` is in `d`; `|d|`: words of `d`; `n`: chunks; `df`: chunks that hold `t`. This is Lucene's form (Robertson's, with
//! an idf that is never negative and without the factor `k1 + 1`, which changes no order) as in Kamphuis et al., "Which BM25 Do You
//! Mean?" (ECIR 2020), and the default of bm25s, with which `tests/bm25_parity.rs` compares.
//!
//! `n`, `df` and the average are those of the chunks that are there: they are exact after every addition and removal.

mod index;
mod words;

pub use index::{Bm25, Bm25Settings, SettingsError};
pub use words::Words;
