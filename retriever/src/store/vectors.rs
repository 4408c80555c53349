//! Vectors of chunks. A vector goes in the transaction in which its chunk goes, so that what is there is never of something else; what
//! lacks is chunks without one.

use folgore_protocol::Digest;
use redb::{ReadableTable as _, ReadableTableMetadata as _};
use serde::{Deserialize, Serialize};

use super::{
    CHUNKS, ChunkText, DOCUMENTS, ENCODER, META, Store, StoreError, VECTORS,
    rows::{self, ChunkRow, DocumentRow, RowError},
};
use crate::{ChunkId, encode::Encoder};

/// What makes the vectors of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderRow {
    /// What opens it again: the name that a user gave it.
    pub name: String,
    /// Names what it computes ([`Encoder::digest`]).
    pub digest: Digest,
    /// Numbers of a vector.
    pub dim: usize,
}

impl EncoderRow {
    /// Of `encoder`, which `name` opens again.
    pub fn of(name: &str, encoder: &dyn Encoder) -> Self {
        Self { name: name.to_owned(), digest: encoder.digest(), dim: encoder.dim() }
    }

    /// Whether `encoder` makes the same vectors.
    pub fn is(&self, encoder: &dyn Encoder) -> bool {
        (self.digest, self.dim) == (encoder.digest(), encoder.dim())
    }
}

impl Store {
    /// What makes its vectors; none if it has none.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn encoder(&self) -> Result<Option<EncoderRow>, StoreError> {
        self.named(|| {
            let row = self.begin_read()?.open_table(META)?.get(ENCODER)?;
            Ok(row.map(|row| rows::decode(row.value())).transpose()?)
        })
    }

    /// Says what makes its vectors from now on; those of another encoder go.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn set_encoder(&self, encoder: Option<&EncoderRow>) -> Result<(), StoreError> {
        let before = self.encoder()?;
        if before.as_ref() == encoder {
            return Ok(());
        }
        let made = |row: &EncoderRow| (row.digest, row.dim);
        let same = before.as_ref().map(made) == encoder.map(made);
        self.write(|write| {
            let mut meta = write.open_table(META)?;
            match encoder {
                Some(row) => meta.insert(ENCODER, rows::encode(row)?.as_slice())?,
                None => meta.remove(ENCODER)?,
            };
            if !same {
                write.delete_table(VECTORS)?;
                write.open_table(VECTORS)?;
            }
            Ok(())
        })
    }

    /// Vectors that are there.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn vectors(&self) -> Result<u64, StoreError> {
        self.named(|| Ok(self.begin_read()?.open_table(VECTORS)?.len()?))
    }

    /// The first `limit` chunks from `from` on that have no vector.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn without_vector(&self, from: ChunkId, limit: usize) -> Result<Vec<ChunkText>, StoreError> {
        self.named(|| {
            let read = self.begin_read()?;
            let (documents, vectors) = (read.open_table(DOCUMENTS)?, read.open_table(VECTORS)?);
            let mut found = Vec::new();
            for entry in read.open_table(CHUNKS)?.range(from..)? {
                if found.len() == limit {
                    break;
                }
                let (id, row) = entry?;
                let id = id.value();
                if vectors.get(id)?.is_some() {
                    continue;
                }
                let row: ChunkRow = rows::decode(row.value())?;
                let document = documents.get(row.document.as_str())?;
                let document = document.ok_or_else(|| RowError::Damaged(format!("chunk {id} has no document")))?;
                let document: DocumentRow = rows::decode(document.value())?;
                found.push(ChunkText::new(id, row, &document));
            }
            Ok(found)
        })
    }

    /// Keeps vectors of `encoder`; chunks that have gone meanwhile are left out.
    ///
    /// # Errors
    /// If the disk fails, the store has vectors of another encoder, a length is wrong, or a number is not finite.
    pub fn keep_vectors(&self, encoder: &EncoderRow, vectors: &[(ChunkId, Vec<f32>)]) -> Result<(), StoreError> {
        let wrong = |reason: String| {
            Err(StoreError::Vectors { name: self.name.clone(), encoder: encoder.name.clone(), reason })
        };
        if self.encoder()?.as_ref() != Some(encoder) {
            return wrong("the index has those of another encoder".into());
        }
        let dim = encoder.dim;
        if let Some((chunk, vector)) = vectors.iter().find(|(_, vector)| vector.len() != dim) {
            return wrong(format!("chunk {chunk}: {} numbers, expected {dim}", vector.len()));
        }
        if let Some((chunk, _)) = vectors.iter().find(|(_, vector)| !vector.iter().all(|x| x.is_finite())) {
            return wrong(format!("chunk {chunk}: a number is not finite"));
        }
        self.write(|write| {
            let mut table = write.open_table(VECTORS)?;
            let chunks = write.open_table(CHUNKS)?;
            for (chunk, vector) in vectors {
                if chunks.get(chunk)?.is_some() {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    table.insert(chunk, bytes.as_slice())?;
                }
            }
            Ok(())
        })
    }

    /// Shows every vector, in the order of chunks.
    ///
    /// # Errors
    /// If the disk fails, or a vector is not as long as its encoder's are.
    pub fn each_vector(&self, mut show: impl FnMut(ChunkId, &[f32])) -> Result<(), StoreError> {
        let Some(EncoderRow { dim, .. }) = self.encoder()? else { return Ok(()) };
        self.named(|| {
            let mut vector = Vec::with_capacity(dim);
            for entry in self.begin_read()?.open_table(VECTORS)?.iter()? {
                let (id, bytes) = entry?;
                let (id, bytes) = (id.value(), bytes.value());
                if bytes.len() != dim.saturating_mul(4) {
                    let what = format!("vector of chunk {id}: {} bytes, expected {dim} numbers", bytes.len());
                    return Err(RowError::Damaged(what).into());
                }
                vector.clear();
                vector.extend(bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)));
                show(id, &vector);
            }
            Ok(())
        })
    }
}
