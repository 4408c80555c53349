//! How fast plain bytes travel from the server, before anything else does.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use folgore_actors::Links;
use folgore_protocol::{Digest, seed};
use tokio::time::Instant;

/// Gets, by one reader or by all at once; the best counts, because machines are shared.
pub const GETS: u32 = 5;

/// Bytes that do not compress, the same for the same seed.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).flat_map(|i| seed::bits(seed, i).to_le_bytes());
    words.take(len).collect()
}

/// Puts something of `len` bytes to be read.
pub async fn put(links: &Links, len: usize, seed: u64) -> Result<Digest> {
    let bytes: Arc<[u8]> = bytes(len, seed::mix(&[seed, 1])).into();
    links.blob.put(bytes).await.context("an object for the wire")
}

/// Bytes a second of one reader.
pub async fn one_reader(links: &Links, digest: Digest, len: usize) -> Result<f64> {
    let mut best = Duration::MAX;
    for _ in 0..GETS {
        let begin = Instant::now();
        links.blob.get(digest).await?;
        best = best.min(begin.elapsed());
    }
    Ok(len as f64 / best.as_secs_f64().max(1e-9))
}
