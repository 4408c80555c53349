//! What can go wrong with a store.

use super::rows::RowError;

/// Why a store cannot be opened, read or written. Nothing of a batch that fails is kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error("{0}: no index is there: make one with `folgore index FOLDER --out {0}`")]
    Missing(String),
    /// Another process writes it, or reads it while this one wants to write.
    #[error("{0}: in use by another process: stop that one first")]
    Locked(String),
    /// The bytes are not what was written, or were written by another version.
    #[error("{name}: {reason}: remove the folder and index again")]
    Damaged {
        /// The file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The system failed: no space, no permission.
    #[error("{name}: {reason}")]
    Io {
        /// The file.
        name: String,
        /// What the system said.
        reason: String,
    },
    /// All numbers of chunks are given away.
    #[error("{0}: {max} chunks were made in it over time, which is all that an index can number: index again into an empty folder", max = u32::MAX)]
    Full(String),
    /// Vectors that cannot be kept.
    #[error("{name}: vectors of {encoder:?}: {reason}")]
    Vectors {
        /// The file.
        name: String,
        /// What made them.
        encoder: String,
        /// What is wrong with them.
        reason: String,
    },
}

/// An error before the file's name is put to it.
#[derive(Debug)]
pub(super) enum Trouble {
    Row(RowError),
    Database(redb::Error),
    Full,
    ReadOnly,
}

impl<E: Into<redb::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Trouble::Database(error.into())
    }
}

impl From<RowError> for Trouble {
    fn from(error: RowError) -> Self {
        Trouble::Row(error)
    }
}

impl StoreError {
    pub(super) fn new(name: &str, trouble: Trouble) -> Self {
        let name = name.to_owned();
        match trouble {
            Trouble::Row(error) => StoreError::Damaged { name, reason: error.to_string() },
            Trouble::Full => StoreError::Full(name),
            Trouble::ReadOnly => StoreError::Io { name, reason: "opened for reading only".into() },
            Trouble::Database(error) => Self::from_database(name, &error),
        }
    }

    fn from_database(name: String, error: &redb::Error) -> Self {
        use std::io::ErrorKind as Kind;
        let reason = error.to_string();
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => StoreError::Locked(name),
            redb::Error::Io(e) if e.kind() == Kind::NotFound => StoreError::Missing(name),
            // a file that ends too early, or holds something else
            redb::Error::Io(e) if matches!(e.kind(), Kind::UnexpectedEof | Kind::InvalidData | Kind::InvalidInput) => {
                StoreError::Damaged { name, reason }
            }
            redb::Error::Io(_)
            | redb::Error::PreviousIo
            | redb::Error::DatabaseClosed
            | redb::Error::LockPoisoned(_)
            | redb::Error::ValueTooLarge(_) => StoreError::Io { name, reason },
            _ => StoreError::Damaged { name, reason },
        }
    }
}
