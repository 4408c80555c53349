//! What is searched: documents, and the chunks that they are cut into.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

/// A programming language that has a grammar here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// C.
    C,
    /// C++.
    Cpp,
    /// Go.
    Go,
    /// Java.
    Java,
    /// JavaScript, with JSX.
    JavaScript,
    /// Python.
    Python,
    /// Rust.
    Rust,
    /// TypeScript, with TSX.
    TypeScript,
}

/// How the text of a document is built, and so where it can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Sentences and paragraphs.
    Prose,
    /// Headings and what is below them.
    Markdown,
    /// Functions, methods, classes.
    Code(Language),
    /// One passage already, which is never cut: a row of a corpus.
    Passage,
}

/// One thing to be found, as its reader gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Unique in its corpus: the id of a row, or the path of a file below the folder that was indexed, with `/`.
    pub id: String,
    /// Title; may be empty.
    pub title: String,
    /// The text, in UTF-8 whatever the file was.
    pub text: String,
    /// How it is built.
    pub kind: Kind,
    /// What filters may ask for (`path`, `language`, columns of a row), by name.
    pub metadata: BTreeMap<String, String>,
}

/// Place of a chunk in its corpus: small numbers, given in order, not used again after a deletion.
pub type ChunkId = u32;

/// A part of a document: what is ranked and returned.
///
/// The chunks of a document cover its text: put end to end by [`Chunk::bytes`], nothing but white space is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The part of [`Document::text`] that it is, in bytes.
    pub bytes: Range<usize>,
    /// What it is about, for ranking and embedding beside the text: headings, signature, first line of the documentation.
    pub header: String,
    /// Number of the chunk among those of its document that encloses it: the class of a method, the section of a subsection.
    pub parent: Option<u32>,
}
