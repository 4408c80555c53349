//! Looking into a store.

use std::ops::Range;

use redb::{ReadableTable as _, ReadableTableMetadata as _};

use super::{
    CHUNKS, Counts, DOCUMENTS, FILES, FileRow, Filter, MEMBERS, Store, StoreError,
    rows::{self, ChunkRow, DocumentRow},
};
use crate::{Chunk, ChunkId};

/// A chunk with what it is a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkText {
    /// Its number.
    pub id: ChunkId,
    /// Id of its document.
    pub document: String,
    /// Title of its document.
    pub title: String,
    /// Its place among those of its document, and how many these are.
    pub place: (u32, u32),
    /// Where it stands, its header and its parent.
    pub chunk: Chunk,
    /// Its text.
    pub text: String,
}

impl ChunkText {
    /// What is ranked: title, header and text.
    pub fn ranked(&self) -> String {
        let parts = [&self.title, &self.chunk.header, &self.text];
        parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("\n")
    }

    pub(super) fn new(id: ChunkId, row: ChunkRow, document: &DocumentRow) -> Self {
        let bytes = row.bytes.start as usize..row.bytes.end as usize;
        Self {
            id,
            document: row.document,
            title: document.title.clone(),
            place: (row.number, document.chunks.len() as u32),
            chunk: Chunk { bytes, header: row.header, parent: row.parent },
            text: row.text,
        }
    }
}

/// A set of chunks, as ranges of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkSet(Vec<Range<ChunkId>>);

impl ChunkSet {
    /// Whether it holds a chunk.
    pub fn holds(&self, chunk: ChunkId) -> bool {
        let at = self.0.partition_point(|range| range.end <= chunk);
        self.0.get(at).is_some_and(|range| range.contains(&chunk))
    }
}

impl Store {
    /// How much there is.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn counts(&self) -> Result<Counts, StoreError> {
        self.named(|| {
            let read = self.begin_read()?;
            Ok(Counts {
                files: read.open_table(FILES)?.len()?,
                documents: read.open_table(DOCUMENTS)?.len()?,
                chunks: read.open_table(CHUNKS)?.len()?,
            })
        })
    }

    /// A chunk, if it is there.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn chunk(&self, id: ChunkId) -> Result<Option<ChunkText>, StoreError> {
        self.named(|| {
            let read = self.begin_read()?;
            let Some(row) = read.open_table(CHUNKS)?.get(id)? else { return Ok(None) };
            let row: ChunkRow = rows::decode(row.value())?;
            let document = read.open_table(DOCUMENTS)?.get(row.document.as_str())?;
            let document = document.ok_or_else(|| rows::RowError::Damaged(format!("chunk {id} has no document")))?;
            Ok(Some(ChunkText::new(id, row, &rows::decode(document.value())?)))
        })
    }

    /// Shows every chunk, in the order of numbers: what an index is built from.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn each_chunk(&self, mut show: impl FnMut(ChunkText)) -> Result<(), StoreError> {
        self.named(|| {
            let read = self.begin_read()?;
            let documents = read.open_table(DOCUMENTS)?;
            let mut last: Option<(String, DocumentRow)> = None;
            for entry in read.open_table(CHUNKS)?.iter()? {
                let (id, row) = entry?;
                let (id, row): (u32, ChunkRow) = (id.value(), rows::decode(row.value())?);
                // the chunks of a document follow each other
                let document = match last.take().filter(|(of, _)| *of == row.document) {
                    Some((_, document)) => document,
                    None => {
                        let found = documents.get(row.document.as_str())?;
                        let found =
                            found.ok_or_else(|| rows::RowError::Damaged(format!("chunk {id} has no document")))?;
                        rows::decode(found.value())?
                    }
                };
                let of = row.document.clone();
                show(ChunkText::new(id, row, &document));
                last = Some((of, document));
            }
            Ok(())
        })
    }

    /// The chunks of the documents that `filter` lets through.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn matching(&self, filter: &Filter) -> Result<ChunkSet, StoreError> {
        self.named(|| {
            let mut ranges = Vec::new();
            for entry in self.begin_read()?.open_table(DOCUMENTS)?.iter()? {
                let row: DocumentRow = rows::decode(entry?.1.value())?;
                if filter.lets(&row.metadata) && !row.chunks.is_empty() {
                    ranges.push(row.chunks);
                }
            }
            ranges.sort_unstable_by_key(|range| range.start);
            Ok(ChunkSet(ranges))
        })
    }

    /// Digest and file of a document, if it is there.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn known(&self, id: &str) -> Result<Option<([u8; 32], String)>, StoreError> {
        self.named(|| {
            let read = self.begin_read()?;
            let row = read.open_table(DOCUMENTS)?.get(id)?;
            let row: Option<DocumentRow> = row.map(|row| rows::decode(row.value())).transpose()?;
            Ok(row.map(|row| (row.digest, row.file)))
        })
    }

    /// What is known of a file.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn file(&self, path: &str) -> Result<Option<FileRow>, StoreError> {
        self.named(|| {
            let row = self.begin_read()?.open_table(FILES)?.get(path)?;
            Ok(row.map(|row| rows::decode(row.value())).transpose()?)
        })
    }

    /// Paths of all files that are `root` or below it and that `gone` takes.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn files_below(&self, root: &str, gone: impl Fn(&str) -> bool) -> Result<Vec<String>, StoreError> {
        self.named(|| {
            let mut found = Vec::new();
            for entry in self.begin_read()?.open_table(FILES)?.range(root..)? {
                let path = entry?.0.value().to_owned();
                match path.strip_prefix(root) {
                    Some("") => {}
                    Some(rest) if rest.starts_with('/') => {}
                    // `a-b` lies between `a` and `a/b`
                    Some(_) => continue,
                    None => break,
                }
                if gone(&path) {
                    found.push(path);
                }
            }
            Ok(found)
        })
    }

    /// Ids of documents of a file from `from` on, `limit` at most, and where to go on.
    pub(super) fn members(
        &self,
        path: &str,
        from: &str,
        limit: usize,
    ) -> Result<(Vec<String>, Option<String>), StoreError> {
        self.named(|| {
            let mut ids = Vec::new();
            for entry in self.begin_read()?.open_table(MEMBERS)?.range((path, from)..)? {
                let key = entry?.0;
                let (file, id) = key.value();
                if file != path {
                    break;
                }
                if ids.len() == limit {
                    return Ok((ids, Some(id.to_owned())));
                }
                ids.push(id.to_owned());
            }
            Ok((ids, None))
        })
    }
}
