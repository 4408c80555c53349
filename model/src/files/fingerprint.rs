//! Which weights these are: a digest that is quick on many gigabytes.
//!
//! It covers the configuration, every tensor's name, type and shape, and of its bytes all up to 64 KiB, or else 16 blocks of
//! 4 KiB spread evenly from the first to the last. Training changes every tensor everywhere, so other weights have another
//! digest; a few numbers changed by hand may go unseen. Sharding and the order in the file do not matter.

use folgore_protocol::Digest;
use sha2::{Digest as _, Sha256};

use super::bytes::Bytes;
use crate::{ModelConfig, ModelError};

const WHOLE: usize = 64 << 10;
const BLOCK: usize = 4 << 10;
const BLOCKS: usize = 16;

/// Where the bytes of one tensor lie.
pub(crate) struct Part<'a> {
    pub(crate) kind: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: &'a Bytes,
    pub(crate) start: u64,
    pub(crate) len: usize,
}

/// The digest of `config` and of named parts, which have to come in order of their names.
pub(crate) fn fingerprint<'a>(
    config: &ModelConfig,
    parts: impl Iterator<Item = (String, Part<'a>)>,
) -> Result<Digest, ModelError> {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(config).unwrap_or_default());
    for (name, part) in parts {
        hash.update(format!("\n{name} {} {:?}\n", part.kind, part.shape));
        if part.len <= WHOLE {
            hash.update(part.bytes.read_at(part.start, part.len)?);
            continue;
        }
        for block in 0..BLOCKS {
            let offset = (part.len - BLOCK) / (BLOCKS - 1) * block;
            hash.update(part.bytes.read_at(part.start + offset as u64, BLOCK)?);
        }
    }
    Ok(Digest(hash.finalize().into()))
}
