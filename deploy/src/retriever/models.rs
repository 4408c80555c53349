//! Encoders and rerankers by their names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use folgore_retriever::{
    encode::{Encoder, Hashed, Sentence},
    rerank::{self, Reranker},
};

use crate::base;

/// The encoder that needs no files.
const HASHED: &str = "hashed";

/// A model, and the name that opens it again: on this machine its whole path, on the hub with its commit.
pub struct Named<M: ?Sized> {
    /// The name.
    pub name: String,
    /// The model.
    pub model: Arc<M>,
}

/// The encoder that `name` names: `hashed`, a folder as sentence-transformers saves it, or a name on the hub.
///
/// # Errors
/// If it is none of these, or cannot be had.
pub fn encoder(name: &str) -> Result<Named<dyn Encoder>> {
    if name == HASHED {
        return Ok(Named { name: name.to_owned(), model: Arc::new(Hashed::default()) });
    }
    let (name, folder) = found(name)?;
    Ok(Named { model: Arc::new(Sentence::open(&folder)?), name })
}

/// The reranker that `name` names: the folder of a cross-encoder or of a ColBERT, or a name on the hub.
///
/// # Errors
/// If it is none of these, or cannot be had.
pub fn reranker(name: &str) -> Result<Named<dyn Reranker>> {
    let (name, folder) = found(name)?;
    Ok(Named { model: rerank::open(&folder)?, name })
}

/// The name that names the same for ever; a path stays as it was given.
///
/// # Errors
/// If it is of nothing.
pub fn pinned(name: &str) -> Result<String> {
    if name == HASHED {
        return Ok(name.to_owned());
    }
    Ok(base::encoder(name)?.hub.map_or_else(|| name.to_owned(), |hub| hub.to_string()))
}

/// The folder of a model; none for the encoder that needs no files.
///
/// # Errors
/// If the name is of nothing.
pub fn folder(name: &str) -> Result<Option<PathBuf>> {
    if name == HASHED {
        return Ok(None);
    }
    Ok(Some(base::encoder(name)?.path))
}

fn found(name: &str) -> Result<(String, PathBuf)> {
    let found = base::encoder(name)?;
    let name = match found.hub {
        Some(hub) => hub.to_string(),
        None => whole(&found.path)?,
    };
    Ok((name, found.path))
}

/// A path that is the same from everywhere.
fn whole(path: &Path) -> Result<String> {
    let whole = path.canonicalize().with_context(|| path.display().to_string())?;
    let name = whole.to_str().with_context(|| format!("{}: expected a path in UTF-8", whole.display()))?;
    Ok(name.to_owned())
}
