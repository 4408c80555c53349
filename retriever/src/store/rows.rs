//! The stored forms: a byte for the version, then MessagePack.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::Kind;

/// Version of the forms here; raised with every change to them.
const SCHEMA: u8 = 1;

/// Why a row cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RowError {
    /// Another version wrote it.
    #[error("written in form {found}, this program reads form {SCHEMA}")]
    Schema { found: u8 },
    /// The bytes are not what was written.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The value cannot be written.
    #[error("cannot be written: {0}")]
    Unwritable(String),
}

/// A document without its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DocumentRow {
    /// Of all that the reader gave.
    pub(super) digest: [u8; 32],
    /// The file that it came from; empty for one that did not.
    pub(super) file: String,
    pub(super) title: String,
    pub(super) kind: Kind,
    pub(super) metadata: BTreeMap<String, String>,
    /// Numbers of its chunks.
    pub(super) chunks: Range<u32>,
}

/// A chunk with its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChunkRow {
    pub(super) document: String,
    /// Place in its document.
    pub(super) number: u32,
    pub(super) header: String,
    pub(super) parent: Option<u32>,
    pub(super) bytes: Range<u64>,
    pub(super) text: String,
}

/// Size and time of a file: the same again, and it is not read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// In bytes.
    pub size: u64,
    /// Last change, in nanoseconds since 1970.
    pub modified: i64,
}

/// What is known of a file that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRow {
    /// None where it might have changed in the very moment that it was read.
    pub stamp: Option<Stamp>,
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
    /// Why nothing of it was taken, or what was noted about what was.
    pub notes: Vec<String>,
    /// Whether documents of it are here.
    pub taken: bool,
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, RowError> {
    let mut row = vec![SCHEMA];
    rmp_serde::encode::write(&mut row, value).map_err(|e| RowError::Unwritable(e.to_string()))?;
    Ok(row)
}

pub(super) fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T, RowError> {
    match row.split_first() {
        Some((&SCHEMA, value)) => rmp_serde::from_slice(value).map_err(|e| RowError::Damaged(e.to_string())),
        Some((&found, _)) => Err(RowError::Schema { found }),
        None => Err(RowError::Damaged("an empty row".into())),
    }
}
