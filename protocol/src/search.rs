//! The request to a retriever and its reply.

use serde::{Deserialize, Serialize};

/// Asks for the `top_k` best passages for `query`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// What to look for.
    pub query: String,
    /// Most passages to return.
    pub top_k: u32,
}

/// One passage found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// Id in its corpus.
    pub id: String,
    /// Title of its document; may be empty.
    pub title: String,
    /// The text.
    pub text: String,
    /// Higher is better; comparable within one reply only.
    pub score: f32,
}

/// The reply: best first, at most `top_k`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Passages {
    /// The passages.
    pub passages: Vec<Passage>,
}
