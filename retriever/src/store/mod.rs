//! Documents and chunks on disk: what every index is built from.
//!
//! One file, `corpus.redb`. Each [`Batch`] is one transaction: killed at any moment, the store holds all of the batches that were
//! answered and nothing of the others. Numbers of chunks are given in order and never again.

mod batch;
mod digest;
mod disk;
mod error;
mod read;
mod rows;
#[cfg(test)]
mod tests;
mod vectors;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use redb::{Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase as _, TableDefinition, TransactionError};

use crate::chunk::ChunkSettings;

pub use batch::{Applied, Batch, Ids};
pub use digest::document_digest;
pub use error::StoreError;
pub use read::{ChunkSet, ChunkText};
pub use rows::{FileRow, Stamp};
pub use vectors::EncoderRow;

/// Settings, next number, digest: by name.
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
/// Documents by id, without their texts.
const DOCUMENTS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("documents");
/// Chunks by number, with their texts.
const CHUNKS: TableDefinition<'static, u32, &[u8]> = TableDefinition::new("chunks");
/// Files that documents came from, by path.
const FILES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("files");
/// Which documents came from a file: path and id.
const MEMBERS: TableDefinition<'static, (&str, &str), ()> = TableDefinition::new("members");
/// Vectors of chunks, f32 in little-endian order.
const VECTORS: TableDefinition<'static, u32, &[u8]> = TableDefinition::new("vectors");

const NEXT_CHUNK: &str = "next_chunk";
const SETTINGS: &str = "settings";
const DIGEST: &str = "digest";
const ENCODER: &str = "encoder";

/// Name of the file in its folder.
pub const FILE_NAME: &str = "corpus.redb";

/// Metadata that a document must have: exact values, or beginnings where they end in `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(pub BTreeMap<String, String>);

impl Filter {
    /// Reads `key=value`.
    ///
    /// # Errors
    /// What was expected, if it is something else.
    pub fn with(mut self, asked: &str) -> Result<Self, String> {
        let (key, value) = asked
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| format!("filter {asked:?}: expected key=value, or key=beginning*"))?;
        self.0.insert(key.to_owned(), value.to_owned());
        Ok(self)
    }

    /// Whether a document with `metadata` is let through.
    pub fn lets(&self, metadata: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, asked)| {
            metadata.get(key).is_some_and(|value| match asked.strip_suffix('*') {
                Some(beginning) => value.starts_with(beginning),
                None => value == asked,
            })
        })
    }
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Files that were read or looked at.
    pub files: u64,
    /// Documents.
    pub documents: u64,
    /// Chunks.
    pub chunks: u64,
}

enum Handle {
    /// Nobody else has the file.
    Whole(Database),
    /// Others may read it, too.
    Shared(ReadOnlyDatabase),
}

/// Documents and their chunks. Any number of threads may read while one writes.
pub struct Store {
    name: String,
    /// None where it is in memory.
    folder: Option<PathBuf>,
    handle: Handle,
    settings: ChunkSettings,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.name)
    }
}

impl Store {
    /// Where it is, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder; none if it is in memory.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// How its documents are cut.
    pub fn settings(&self) -> &ChunkSettings {
        &self.settings
    }

    fn begin_read(&self) -> Result<ReadTransaction, TransactionError> {
        match &self.handle {
            Handle::Whole(db) => db.begin_read(),
            Handle::Shared(db) => db.begin_read(),
        }
    }

    /// Does `work`, and puts the file's name to what goes wrong.
    fn named<T>(&self, work: impl FnOnce() -> Result<T, error::Trouble>) -> Result<T, StoreError> {
        work().map_err(|trouble| StoreError::new(&self.name, trouble))
    }
}
