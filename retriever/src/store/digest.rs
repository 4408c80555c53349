//! What names a document, and a corpus.

use folgore_protocol::Digest;
use sha2::{Digest as _, Sha256};

use super::{DIGEST, DOCUMENTS, Handle, META, Store, StoreError, rows};
use crate::{Document, store::rows::DocumentRow};

/// Names a document by all that its reader gave.
pub fn document_digest(document: &Document) -> Digest {
    let Document { id, title, text, kind, metadata } = document;
    let mut hash = Sha256::new();
    let mut part = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    [id, title, text].into_iter().for_each(|text| part(text));
    part(&format!("{kind:?}"));
    metadata.iter().for_each(|(key, value)| {
        part(key);
        part(value);
    });
    Digest(hash.finalize().into())
}

impl Store {
    /// Names the documents and how they are cut, whatever order they came in.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn digest(&self) -> Result<Digest, StoreError> {
        let known = self.named(|| {
            let read = self.begin_read()?;
            let row = read.open_table(META)?.get(DIGEST)?;
            Ok(row.map(|row| rows::decode(row.value())).transpose()?.map(Digest))
        })?;
        if let Some(digest) = known {
            return Ok(digest);
        }
        let digest = self.compute_digest()?;
        if matches!(self.handle, Handle::Whole(_)) {
            self.write(|write| {
                write.open_table(META)?.insert(DIGEST, rows::encode(&digest.0)?.as_slice())?;
                Ok(())
            })?;
        }
        Ok(digest)
    }

    /// The table is in the order of ids.
    fn compute_digest(&self) -> Result<Digest, StoreError> {
        use redb::ReadableTable as _;
        self.named(|| {
            let mut hash = Sha256::new();
            hash.update(rows::encode(&self.settings)?);
            for entry in self.begin_read()?.open_table(DOCUMENTS)?.iter()? {
                let row: DocumentRow = rows::decode(entry?.1.value())?;
                hash.update(row.digest);
            }
            Ok(Digest(hash.finalize().into()))
        })
    }
}
