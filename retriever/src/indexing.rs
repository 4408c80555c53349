//! Folders into a store: what is new or changed is read, what is gone is removed, the rest is left.
//!
//! Batches of documents are transactions. A file is noted as read together with the last of its documents, so that one
//! that was cut off is read again; its documents that are there already are known by their digest and left.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rayon::prelude::*;
use serde::Serialize;

use crate::{
    Document,
    chunk::Chunker,
    read::{self, Entry, Found, Outcome, Read, ReadLimits, Source},
    store::{Applied, Batch, FileRow, Ids, Store, StoreError, document_digest},
};

/// Text of a batch, in bytes.
const BATCH_BYTES: usize = 4 << 20;
/// Documents and files of a batch.
const BATCH_LEN: usize = 4096;
/// Names that a report holds; what is beyond is counted.
const NAMES_MAX: usize = 10_000;
/// Notes that are kept of a file.
const NOTES_MAX: usize = 20;
/// A file that changed this shortly before it was read may change again without showing it by its time.
const SETTLED: Duration = Duration::from_secs(2);

/// What indexing did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Files that were read and taken.
    pub files_read: u64,
    /// Files that are as they were.
    pub files_unchanged: u64,
    /// Files that are no longer there, or hold nothing to take any more.
    pub files_removed: u64,
    /// Documents that are new.
    pub documents_added: u64,
    /// Documents that changed.
    pub documents_changed: u64,
    /// Documents that are gone.
    pub documents_removed: u64,
    /// Files and folders that nothing was taken of.
    pub skipped: Noted,
    /// What was left out of files that were taken, or changed in them.
    pub notes: Noted,
}

/// Names with a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Noted {
    /// How many there are.
    pub count: u64,
    /// The first of them: what and why.
    pub names: Vec<(String, String)>,
}

impl Noted {
    fn add(&mut self, name: &str, why: impl Into<String>) {
        self.count += 1;
        if self.names.len() < NAMES_MAX {
            self.names.push((name.to_owned(), why.into()));
        }
    }
}

/// Brings `store` to what `sources` hold now. Documents of other sources are left. `progress` is shown the report as it
/// grows, and the file that is read next.
///
/// # Errors
/// If the store cannot be read or written. What was done until then stays, and the next call goes on from there.
pub fn index(
    store: &Store,
    chunker: &Chunker,
    sources: &[Source],
    limits: &ReadLimits,
    progress: &mut dyn FnMut(&Report, &str),
) -> Result<Report, StoreError> {
    let mut work = Indexing {
        store,
        chunker,
        limits,
        report: Report::default(),
        documents: Vec::new(),
        files: Vec::new(),
        bytes: 0,
        ids: Ids::default(),
        conflict: false,
    };
    for source in sources {
        work.source(source, progress)?;
    }
    work.flush()?;
    store.digest()?;
    Ok(work.report)
}

struct Indexing<'a> {
    store: &'a Store,
    chunker: &'a Chunker,
    limits: &'a ReadLimits,
    report: Report,
    /// Documents that wait for their transaction, with their files.
    documents: Vec<(String, Document)>,
    /// Files that were read to the end since the last transaction.
    files: Vec<(String, FileRow)>,
    bytes: usize,
    /// Ids of the documents that were taken of all files that were read.
    ids: Ids,
    /// Whether a document of the file that is read was left to another file.
    conflict: bool,
}

impl Indexing<'_> {
    fn source(&mut self, source: &Source, progress: &mut dyn FnMut(&Report, &str)) -> Result<(), StoreError> {
        let mut there = HashSet::new();
        // below these nothing can be said to be gone
        let mut unseen: Vec<String> = Vec::new();
        let mut entries = Vec::new();
        for found in source.entries() {
            match found {
                Found::Folder => {}
                Found::Skipped { id, reason } => self.report.skipped.add(&id, reason),
                Found::Failed { id, error } => {
                    self.report.skipped.add(&id, error.to_string());
                    unseen.push(id);
                }
                Found::File(entry) => {
                    there.insert(entry.id.clone());
                    entries.push(entry);
                }
            }
        }
        // first what is gone: a row that moved to another file is free for it then
        let is_below = |path: &str, id: &String| {
            path.strip_prefix(id.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        let gone = |path: &str| !there.contains(path) && !unseen.iter().any(|id| is_below(path, id));
        for path in self.store.files_below(&source.name, gone)? {
            self.report.documents_removed += self.store.remove_file(&path, None)?;
            self.report.files_removed += 1;
        }
        for entry in &entries {
            progress(&self.report, &entry.id);
            self.file(entry)?;
        }
        self.flush()
    }

    fn file(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let known = self.store.file(&entry.id)?;
        if let Some(row) = known.as_ref().filter(|row| row.stamp == Some(entry.stamp)) {
            self.unchanged(entry, row);
            return Ok(());
        }
        let mut notes = Vec::new();
        self.conflict = false;
        let outcome = read::read_file(&entry.path, &entry.id, self.limits, &mut |read| {
            match read {
                Read::Note(note) => self.note(entry, note, &mut notes),
                Read::Document(document) => self.document(entry, document, &mut notes)?,
            }
            Ok::<_, StoreError>(())
        })?;
        // a row that another file has is to be taken once it is free
        let stamp = (settled(entry) && !self.conflict).then_some(entry.stamp);
        match outcome {
            // what is known of it stays: it may be readable again next time
            Outcome::Failed(error) => {
                self.report.skipped.add(&entry.id, error.to_string());
                return Ok(());
            }
            Outcome::Refused(reason, digest) => {
                self.report.skipped.add(&entry.id, reason.clone());
                self.left_over(&entry.id)?;
                self.finish(entry, FileRow { stamp, digest, notes: vec![reason], taken: false });
            }
            Outcome::Whole(digest) => {
                match known.is_some_and(|row| row.taken && row.digest == digest) {
                    true => self.report.files_unchanged += 1,
                    false => self.report.files_read += 1,
                }
                self.left_over(&entry.id)?;
                self.finish(entry, FileRow { stamp, digest, notes, taken: true });
            }
        }
        if self.files.len() >= BATCH_LEN { self.flush() } else { Ok(()) }
    }

    /// A file of the same size and time as before: nothing is read, and what was said of it is said again.
    fn unchanged(&mut self, entry: &Entry, row: &FileRow) {
        let list = if row.taken { &mut self.report.notes } else { &mut self.report.skipped };
        row.notes.iter().for_each(|note| list.add(&entry.id, note.as_str()));
        self.report.files_unchanged += u64::from(row.taken);
    }

    fn note(&mut self, entry: &Entry, note: String, kept: &mut Vec<String>) {
        self.report.notes.add(&entry.id, note.as_str());
        match kept.len() {
            len if len < NOTES_MAX => kept.push(note),
            NOTES_MAX => kept.push("and more".into()),
            _ => {}
        }
    }

    fn document(&mut self, entry: &Entry, document: Document, notes: &mut Vec<String>) -> Result<(), StoreError> {
        let known = self.store.known(&document.id)?;
        let owner = match &known {
            Some((_, file)) if *file != entry.id => Some(file.as_str()),
            _ if !self.ids.insert(&document.id) => Some("this folder"),
            _ => None,
        };
        if let Some(owner) = owner {
            self.conflict = true;
            let shown = &document.id[..document.id.floor_char_boundary(100)];
            self.note(entry, format!("{shown:?}: another document of {owner} has this id"), notes);
            return Ok(());
        }
        let digest = document_digest(&document).0;
        if known.is_some_and(|(known, _)| known == digest) {
            return Ok(());
        }
        self.bytes += document.text.len();
        self.documents.push((entry.id.clone(), document));
        if self.bytes >= BATCH_BYTES || self.documents.len() >= BATCH_LEN { self.flush() } else { Ok(()) }
    }

    /// Removes what a file held before and holds no more.
    fn left_over(&mut self, path: &str) -> Result<(), StoreError> {
        self.report.documents_removed += self.store.remove_file(path, Some(&self.ids))?;
        Ok(())
    }

    fn finish(&mut self, entry: &Entry, row: FileRow) {
        self.files.push((entry.id.clone(), row));
    }

    /// Cuts the documents that wait, and commits them with the files that were read to the end.
    fn flush(&mut self) -> Result<(), StoreError> {
        let chunker = self.chunker;
        let waiting = std::mem::take(&mut self.documents);
        let cut: Vec<_> = waiting
            .into_par_iter()
            .map(|(file, document)| {
                let chunks = chunker.chunks(&document);
                (file, document, chunks)
            })
            .collect();
        let mut batch = Batch::default();
        cut.into_iter().for_each(|(file, document, chunks)| batch.put(&file, document, chunks));
        std::mem::take(&mut self.files).iter().for_each(|(path, row)| batch.file(path, row.clone()));
        self.bytes = 0;
        if batch.is_empty() {
            return Ok(());
        }
        let Applied { added, changed, taken, .. } = self.store.apply(batch)?;
        self.report.documents_added += added;
        self.report.documents_changed += changed;
        for (id, file) in taken {
            self.report.notes.add(&id, format!("another document of {file} has this id"));
        }
        Ok(())
    }
}

/// Whether a file's time is far enough back to tell the next change.
fn settled(entry: &Entry) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u128::try_from(entry.stamp.modified).is_ok_and(|modified| modified + SETTLED.as_nanos() < now.as_nanos())
}

#[cfg(test)]
mod tests;
