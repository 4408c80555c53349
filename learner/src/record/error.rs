//! What can go wrong with the record, in the words of whoever has to mend it.

use super::codec::RowError;

/// Why the record cannot be opened, read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Another process has it.
    #[error("{name}: in use by {holder}: stop that one first, or give this run another name")]
    Locked {
        /// The file.
        name: String,
        /// Who has it, if known.
        holder: String,
    },
    /// The bytes are not what was written.
    #[error("{name}: {reason}: restore the file from a copy, or start the run afresh under another name")]
    Damaged {
        /// The file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Another version wrote it.
    #[error(
        "{name}: {what} was written with schema {found}, this program reads schema {expected}: use the version that began the run, or start \
         the run afresh under another name"
    )]
    Schema {
        /// The file.
        name: String,
        /// The kind of row.
        what: String,
        /// The version found.
        found: u8,
        /// The version that this program reads.
        expected: u8,
    },
    /// The disk is full. The change was not made; it may succeed once there is space.
    #[error("{name}: the disk is full: free some space ({reason})")]
    DiskFull {
        /// The file.
        name: String,
        /// What the system said.
        reason: String,
    },
    /// The system failed. The change was not made.
    #[error("{name}: {reason}")]
    Io {
        /// The file.
        name: String,
        /// What the system said.
        reason: String,
    },
}

impl RecordError {
    /// True if trying again later may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, RecordError::DiskFull { .. } | RecordError::Io { .. } | RecordError::Locked { .. })
    }

    /// Puts the file's name to `trouble`.
    pub(super) fn from_trouble(name: &str, trouble: Trouble) -> Self {
        let name = name.to_owned();
        match trouble {
            Trouble::Row(what, RowError::Schema { found }) => {
                RecordError::Schema { name, what, found, expected: super::codec::SCHEMA }
            }
            Trouble::Row(what, error) => RecordError::Damaged { name, reason: format!("{what}: {error}") },
            Trouble::Database(error) => Self::from_database(name, &error),
        }
    }

    fn from_database(name: String, error: &redb::Error) -> Self {
        let reason = error.to_string();
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
                RecordError::Locked { name, holder: "another process".into() }
            }
            redb::Error::Io(io) => Self::from_io(name, io),
            redb::Error::PreviousIo | redb::Error::DatabaseClosed | redb::Error::LockPoisoned(_) => {
                RecordError::Io { name, reason }
            }
            _ => RecordError::Damaged { name, reason },
        }
    }

    /// Puts the file's name to an error of the system.
    pub(super) fn from_io(name: String, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let reason = error.to_string();
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                RecordError::DiskFull { name, reason }
            }
            // The database reports a file that ends too early as a failed read or as bad input.
            ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput => {
                RecordError::Damaged { name, reason }
            }
            _ => RecordError::Io { name, reason },
        }
    }
}

/// An error before the file's name is put to it.
#[derive(Debug)]
pub(super) enum Trouble {
    Row(String, RowError),
    Database(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Trouble::Database(error.into())
    }
}
