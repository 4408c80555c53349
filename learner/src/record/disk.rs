//! Opening and creating the file.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use redb::{Database, DatabaseError, StorageBackend};

use super::{Record, RecordError, error::Trouble};
use crate::checkpoint::lock;

/// Memory that the database may use for pages: rows are read once, so a large cache buys nothing.
const CACHE_BYTES: usize = 32 << 20;

impl Record {
    /// Opens the record at `path`, or creates it. Every page is checked.
    ///
    /// # Errors
    /// [`RecordError::Locked`] if another process has it, [`RecordError::Damaged`] if its bytes are not what was written.
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        let name = path.display().to_string();
        let io = |e: &io::Error| RecordError::from_io(name.clone(), e);
        match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => create(path).map_err(|e| e.named(&name))?,
            Err(e) => return Err(io(&e)),
            // Creation renames a whole file into place, so an empty one was cut, and must not be taken for a new one.
            Ok(found) if found.len() == 0 => {
                return Err(RecordError::Damaged { name, reason: "the file is empty".into() });
            }
            Ok(_) => {}
        }
        let db = guarded(&name, || builder().set_check_integrity_on_open(true).open(path)).map_err(|e| match e {
            RecordError::Locked { name, .. } => RecordError::Locked { holder: holder_beside(path), name },
            other => other,
        })?;
        Self::on(db, name)
    }

    /// Stands on any storage: what tests of crashes use.
    pub fn on_backend(backend: impl StorageBackend) -> Result<Self, RecordError> {
        let name = "record".to_owned();
        let db = guarded(&name, || builder().set_check_integrity_on_open(true).create_with_backend(backend))?;
        Self::on(db, name)
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Opens; a panic of the database over bytes that it cannot make sense of is damage, too.
fn guarded(name: &str, open: impl FnOnce() -> Result<Database, DatabaseError>) -> Result<Database, RecordError> {
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(|e| RecordError::from_trouble(name, Trouble::from(e))),
        Err(_) => Err(RecordError::Damaged { name: name.to_owned(), reason: "its pages do not fit together".into() }),
    }
}

enum CreateError {
    Io(io::Error),
    Record(RecordError),
}

impl CreateError {
    fn named(self, name: &str) -> RecordError {
        match self {
            CreateError::Io(e) => RecordError::from_io(name.to_owned(), &e),
            CreateError::Record(e) => e,
        }
    }
}

/// Makes a whole, empty record beside `path` and renames it into place, so that a crash leaves either none or all of it.
fn create(path: &Path) -> Result<(), CreateError> {
    let aside = path.with_extension("redb.new");
    match fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(CreateError::Io(e)),
        _ => {}
    }
    let name = path.display().to_string();
    let db = guarded(&name, || builder().create(&aside)).map_err(CreateError::Record)?;
    drop(Record::on(db, name).map_err(CreateError::Record)?);
    File::open(&aside).and_then(|f| f.sync_all()).map_err(CreateError::Io)?;
    fs::rename(&aside, path).map_err(CreateError::Io)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|f| f.sync_all()).map_err(CreateError::Io)
}

fn holder_beside(path: &Path) -> String {
    path.parent().and_then(lock::holder).unwrap_or_else(|| "another process".to_owned())
}
