//! The vectors of a store in memory.
//!
//! The store is the truth; where there are so many that a graph pays, graph and vectors lie in `vectors/` beside it as well, because a
//! graph takes long to make and because two that are made of the same vectors may miss different ones. Those who search take the
//! graph that lies there or none.

use std::{collections::HashSet, fs, io::ErrorKind};

use super::{GraphSettings, VectorIndex, Vectors as _, VectorsError};
use crate::{ChunkId, IndexError, store::Store};

/// Name of the folder in that of the store.
const FOLDER: &str = "vectors";

/// Whether `index` holds the vectors of `store`, to the bit, and no others.
fn same(store: &Store, index: &VectorIndex) -> Result<bool, IndexError> {
    let mut gone: HashSet<ChunkId> = index.chunks().into_iter().collect();
    let mut holds_all = true;
    store.each_vector(|chunk, vector| {
        gone.remove(&chunk);
        holds_all &= index.holds(chunk, vector);
    })?;
    Ok(holds_all && gone.is_empty())
}

fn filled(store: &Store, dim: usize, settings: GraphSettings) -> Result<VectorIndex, IndexError> {
    VectorIndex::filled(dim, settings, |push| Ok(store.each_vector(push)?))
}

/// Whether there are so many that searches go through a graph.
fn has_graph(store: &Store, settings: GraphSettings) -> Result<bool, IndexError> {
    Ok(store.vectors()? >= settings.from as u64)
}

/// The vectors of `store`, of `dim` numbers each.
pub(crate) fn of_store(store: &Store, dim: usize, settings: GraphSettings) -> Result<VectorIndex, IndexError> {
    let (Some(folder), true) = (store.folder(), has_graph(store, settings)?) else {
        return filled(store, dim, settings);
    };
    let behind = |why: String| IndexError::Behind { index: store.name().to_owned(), what: why };
    let index = VectorIndex::open(&folder.join(FOLDER), settings)
        .map_err(|error| behind(format!("the graph of its vectors cannot be read ({error})")))?;
    if index.dim() != dim || index.graph_name().is_none() || !same(store, &index)? {
        return Err(behind("the graph of its vectors is not of these vectors".into()));
    }
    Ok(index)
}

/// Brings the graph beside `store` to its vectors; removes it where there are too few for one. Whether there is one.
///
/// # Errors
/// If the store cannot be read, or the graph not written.
pub fn keep_graph(store: &Store, settings: GraphSettings) -> Result<bool, IndexError> {
    let Some(folder) = store.folder().map(|folder| folder.join(FOLDER)) else { return Ok(false) };
    let wanted = has_graph(store, settings)?;
    let Some(encoder) = store.encoder()?.filter(|_| wanted) else {
        return match fs::remove_dir_all(&folder) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(VectorsError::Io { path: folder, source }.into())
            }
            _ => Ok(false),
        };
    };
    // Made anew where anything changed: what is put into a graph that was read from files may be found by no search.
    let known = VectorIndex::open(&folder, settings).ok();
    if let Some(known) = known.filter(|known| known.dim() == encoder.dim && known.graph_name().is_some())
        && same(store, &known)?
    {
        return Ok(true);
    }
    filled(store, encoder.dim, settings)?.save(&folder)?;
    Ok(true)
}
