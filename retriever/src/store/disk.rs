//! Opening and creating the file.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use redb::{Database, DatabaseError, ReadableDatabase as _, backends::InMemoryBackend};

use super::{
    CHUNKS, DOCUMENTS, FILE_NAME, FILES, Handle, MEMBERS, META, NEXT_CHUNK, SETTINGS, Store, StoreError, VECTORS,
    error::Trouble, rows,
};
use crate::chunk::ChunkSettings;

/// Memory for pages: texts are read once for an index, and then a few at a time.
const CACHE_BYTES: usize = 64 << 20;

impl Store {
    /// Opens the store in `folder` for writing, or creates it, for documents cut by `settings`. One that was cut otherwise is emptied:
    /// all of it has to be read again.
    ///
    /// # Errors
    /// If another process has it, it is damaged, or the disk fails.
    pub fn open(folder: &Path, settings: &ChunkSettings) -> Result<Self, StoreError> {
        let path = folder.join(FILE_NAME);
        let name = folder.display().to_string();
        let io = |e: io::Error| StoreError::Io { name: name.clone(), reason: e.to_string() };
        if !path.try_exists().map_err(io)? {
            fs::create_dir_all(folder).map_err(io)?;
            create(folder, &path, settings)?;
        }
        let db = guarded(&name, || builder().open(&path))?;
        let mut store = Self::on(name, Some(folder), Handle::Whole(db))?;
        if store.settings != *settings {
            store.settings = settings.clone();
            store.clear()?;
        }
        Ok(store)
    }

    /// Opens the store in `folder` for reading, beside others who read it.
    ///
    /// # Errors
    /// If there is none, another process writes it, it is damaged, or the disk fails.
    pub fn read(folder: &Path) -> Result<Self, StoreError> {
        let (path, name) = (folder.join(FILE_NAME), folder.display().to_string());
        let db = guarded(&name, || match builder().open_read_only(&path) {
            // its writer was killed: what is committed has to be found first, which takes the file for a moment
            Err(DatabaseError::RepairAborted) => {
                drop(builder().open(&path)?);
                builder().open_read_only(&path)
            }
            other => other,
        })?;
        Self::on(name, Some(folder), Handle::Shared(db))
    }

    /// An empty store in memory, gone with the process.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn in_memory(name: &str, settings: &ChunkSettings) -> Result<Self, StoreError> {
        let db = guarded(name, || builder().create_with_backend(InMemoryBackend::new()))?;
        begin(&db, settings).map_err(|trouble| StoreError::new(name, trouble))?;
        Self::on(name.to_owned(), None, Handle::Whole(db))
    }

    fn on(name: String, folder: Option<&Path>, handle: Handle) -> Result<Self, StoreError> {
        let settings = || -> Result<ChunkSettings, Trouble> {
            let read = match &handle {
                Handle::Whole(db) => db.begin_read()?,
                Handle::Shared(db) => db.begin_read()?,
            };
            let row = read.open_table(META)?.get(SETTINGS)?;
            let row = row.ok_or_else(|| rows::RowError::Damaged("it does not say how it was cut".into()))?;
            Ok(rows::decode(row.value())?)
        };
        let settings = settings().map_err(|trouble| StoreError::new(&name, trouble))?;
        Ok(Self { name, folder: folder.map(Path::to_owned), handle, settings })
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Opens; a panic of the database over bytes that it cannot make sense of is damage, too.
fn guarded<T>(name: &str, open: impl FnOnce() -> Result<T, DatabaseError>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(|e| StoreError::new(name, Trouble::from(e))),
        Err(_) => Err(StoreError::Damaged { name: name.to_owned(), reason: "its pages do not fit together".into() }),
    }
}

/// Makes an empty store beside `path` and renames it into place, so that a crash leaves either none or all of it.
fn create(folder: &Path, path: &Path, settings: &ChunkSettings) -> Result<(), StoreError> {
    let name = folder.display().to_string();
    let io = |e: io::Error| StoreError::Io { name: name.clone(), reason: e.to_string() };
    let aside = path.with_extension("redb.new");
    match fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
        _ => {}
    }
    let db = guarded(&name, || builder().create(&aside))?;
    begin(&db, settings).map_err(|trouble| StoreError::new(&name, trouble))?;
    drop(db);
    File::open(&aside).and_then(|file| file.sync_all()).map_err(io)?;
    fs::rename(&aside, path).map_err(io)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

/// Makes the tables of an empty store.
fn begin(db: &Database, settings: &ChunkSettings) -> Result<(), Trouble> {
    let write = db.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        meta.insert(SETTINGS, rows::encode(settings)?.as_slice())?;
        meta.insert(NEXT_CHUNK, rows::encode(&0u32)?.as_slice())?;
        write.open_table(DOCUMENTS)?;
        write.open_table(CHUNKS)?;
        write.open_table(FILES)?;
        write.open_table(MEMBERS)?;
        write.open_table(VECTORS)?;
    }
    Ok(write.commit()?)
}
