//! Changes to a store, one transaction each.

use std::{collections::HashSet, hash::BuildHasher, ops::Range};

use redb::{ReadableTable as _, Table, WriteTransaction};

use super::{
    CHUNKS, DIGEST, DOCUMENTS, FILES, FileRow, Handle, MEMBERS, META, NEXT_CHUNK, SETTINGS, Store, StoreError, VECTORS,
    document_digest,
    error::Trouble,
    rows::{self, ChunkRow, DocumentRow},
};
use crate::{Chunk, ChunkId, Document};

/// Documents that are removed in one transaction.
const REMOVED_AT_ONCE: usize = 4096;

/// Changes that are made together or not at all, in this order: documents, then files.
#[derive(Debug, Default)]
pub struct Batch {
    documents: Vec<(String, Document, Vec<Chunk>)>,
    files: Vec<(String, FileRow)>,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Documents that were not there.
    pub added: u64,
    /// Documents that took the place of one with their id.
    pub changed: u64,
    /// Documents that are there already, as they are.
    pub unchanged: u64,
    /// Ids that another file has taken, each with that file; these documents were left out.
    pub taken: Vec<(String, String)>,
    /// Numbers of chunks that are new.
    pub new_chunks: Vec<ChunkId>,
    /// Numbers of chunks that are gone.
    pub old_chunks: Vec<ChunkId>,
}

impl Batch {
    /// Puts a document of `file`, with its chunks. The file is empty for a document that comes from elsewhere.
    pub fn put(&mut self, file: &str, document: Document, chunks: Vec<Chunk>) {
        self.documents.push((file.to_owned(), document, chunks));
    }

    /// Notes that `path` was read to its end.
    pub fn file(&mut self, path: &str, row: FileRow) {
        self.files.push((path.to_owned(), row));
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty() && self.files.is_empty()
    }
}

/// The tables of a transaction.
struct Tables<'t> {
    documents: Table<'t, &'static str, &'static [u8]>,
    chunks: Table<'t, u32, &'static [u8]>,
    members: Table<'t, (&'static str, &'static str), ()>,
    vectors: Table<'t, u32, &'static [u8]>,
    files: Table<'t, &'static str, &'static [u8]>,
    meta: Table<'t, &'static str, &'static [u8]>,
}

impl<'t> Tables<'t> {
    fn of(write: &'t WriteTransaction) -> Result<Self, Trouble> {
        let mut tables = Self {
            documents: write.open_table(DOCUMENTS)?,
            chunks: write.open_table(CHUNKS)?,
            members: write.open_table(MEMBERS)?,
            vectors: write.open_table(VECTORS)?,
            files: write.open_table(FILES)?,
            meta: write.open_table(META)?,
        };
        tables.meta.remove(DIGEST)?;
        Ok(tables)
    }

    fn document(&self, id: &str) -> Result<Option<DocumentRow>, Trouble> {
        Ok(self.documents.get(id)?.map(|row| rows::decode(row.value())).transpose()?)
    }

    fn put(&mut self, file: &str, document: Document, chunks: &[Chunk], applied: &mut Applied) -> Result<(), Trouble> {
        let digest = document_digest(&document).0;
        match self.document(&document.id)? {
            Some(there) if there.file != file => {
                applied.taken.push((document.id, there.file));
                return Ok(());
            }
            Some(there) if there.digest == digest => {
                applied.unchanged += 1;
                return Ok(());
            }
            Some(there) => {
                self.remove_chunks(there.chunks, &mut applied.old_chunks)?;
                applied.changed += 1;
            }
            None => applied.added += 1,
        }
        let numbers = self.numbers(chunks.len())?;
        for ((number, id), chunk) in (0..).zip(numbers.clone()).zip(chunks) {
            let row = ChunkRow {
                document: document.id.clone(),
                number,
                header: chunk.header.clone(),
                parent: chunk.parent,
                bytes: chunk.bytes.start as u64..chunk.bytes.end as u64,
                text: document.text.get(chunk.bytes.clone()).unwrap_or_default().to_owned(),
            };
            self.chunks.insert(id, rows::encode(&row)?.as_slice())?;
            applied.new_chunks.push(id);
        }
        let Document { id, title, kind, metadata, .. } = document;
        let row = DocumentRow { digest, file: file.to_owned(), title, kind, metadata, chunks: numbers };
        self.documents.insert(id.as_str(), rows::encode(&row)?.as_slice())?;
        self.members.insert((file, id.as_str()), ())?;
        Ok(())
    }

    /// Numbers that were never given.
    fn numbers(&mut self, count: usize) -> Result<Range<u32>, Trouble> {
        let next: u32 = match self.meta.get(NEXT_CHUNK)? {
            Some(row) => rows::decode(row.value())?,
            None => return Err(rows::RowError::Damaged("it does not say how many chunks there were".into()).into()),
        };
        let end = u32::try_from(count).ok().and_then(|count| next.checked_add(count)).ok_or(Trouble::Full)?;
        self.meta.insert(NEXT_CHUNK, rows::encode(&end)?.as_slice())?;
        Ok(next..end)
    }

    fn remove_chunks(&mut self, numbers: Range<u32>, gone: &mut Vec<ChunkId>) -> Result<(), Trouble> {
        for number in numbers {
            self.chunks.remove(number)?;
            self.vectors.remove(number)?;
            gone.push(number);
        }
        Ok(())
    }

    fn remove(&mut self, id: &str, gone: &mut Vec<ChunkId>) -> Result<bool, Trouble> {
        let Some(row) = self.document(id)? else { return Ok(false) };
        self.remove_chunks(row.chunks, gone)?;
        self.documents.remove(id)?;
        self.members.remove((row.file.as_str(), id))?;
        Ok(true)
    }
}

impl Store {
    /// Makes the changes of `batch`; they are on disk when this returns.
    ///
    /// # Errors
    /// If the disk fails or no numbers are left; nothing of the batch is kept then.
    pub fn apply(&self, batch: Batch) -> Result<Applied, StoreError> {
        self.change(|tables| {
            let mut applied = Applied::default();
            for (file, document, chunks) in batch.documents {
                tables.put(&file, document, &chunks, &mut applied)?;
            }
            for (path, row) in &batch.files {
                tables.files.insert(path.as_str(), rows::encode(row)?.as_slice())?;
            }
            Ok(applied)
        })
    }

    /// Removes a document; its chunks, or none if it was not there.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn remove(&self, id: &str) -> Result<Option<Vec<ChunkId>>, StoreError> {
        self.change(|tables| {
            let mut gone = Vec::new();
            Ok(tables.remove(id, &mut gone)?.then_some(gone))
        })
    }

    /// Removes the documents of a file but for those that `kept` holds, and forgets the file unless anything is kept; how many
    /// documents went. In several transactions: cut off, it is to be done again.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn remove_file(&self, path: &str, kept: Option<&Ids>) -> Result<u64, StoreError> {
        let (mut removed, mut from) = (0, String::new());
        loop {
            let (ids, next) = self.members(path, &from, REMOVED_AT_ONCE)?;
            let gone: Vec<String> = ids.into_iter().filter(|id| kept.is_none_or(|kept| !kept.holds(id))).collect();
            let done = next.is_none();
            if !gone.is_empty() || (done && kept.is_none()) {
                removed += gone.len() as u64;
                self.change(|tables| {
                    for id in &gone {
                        tables.remove(id, &mut Vec::new())?;
                    }
                    if done && kept.is_none() {
                        tables.files.remove(path)?;
                    }
                    Ok(())
                })?;
            }
            match next {
                Some(next) => from = next,
                None => return Ok(removed),
            }
        }
    }

    /// Removes everything but the name of the encoder. Numbers that were given are not given again.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn clear(&self) -> Result<(), StoreError> {
        self.write(|write| {
            write.delete_table(DOCUMENTS)?;
            write.delete_table(CHUNKS)?;
            write.delete_table(FILES)?;
            write.delete_table(MEMBERS)?;
            write.delete_table(VECTORS)?;
            let mut tables = Tables::of(write)?;
            tables.meta.insert(SETTINGS, rows::encode(&self.settings)?.as_slice())?;
            Ok(())
        })
    }

    fn change<T>(&self, work: impl FnOnce(&mut Tables<'_>) -> Result<T, Trouble>) -> Result<T, StoreError> {
        self.write(|write| work(&mut Tables::of(write)?))
    }

    /// Does `work` in one transaction.
    pub(super) fn write<T>(&self, work: impl FnOnce(&WriteTransaction) -> Result<T, Trouble>) -> Result<T, StoreError> {
        self.named(|| {
            let Handle::Whole(db) = &self.handle else { return Err(Trouble::ReadOnly) };
            let write = db.begin_write()?;
            let done = work(&write)?;
            write.commit()?;
            Ok(done)
        })
    }
}

/// Ids of documents, kept as 64-bit hashes under a key of their own: a corpus may have tens of millions.
#[derive(Debug, Default)]
pub struct Ids {
    key: std::hash::RandomState,
    hashes: HashSet<u64, std::hash::RandomState>,
}

impl Ids {
    /// Adds one; whether it is new.
    pub fn insert(&mut self, id: &str) -> bool {
        self.hashes.insert(self.key.hash_one(id))
    }

    /// Whether it was added.
    pub fn holds(&self, id: &str) -> bool {
        self.hashes.contains(&self.key.hash_one(id))
    }
}
