//! Chunks of a store into vectors: those that lack one are encoded, and what is gone has taken its vector with it.
//!
//! A number of vectors is a transaction. What was cut off goes on where it was; until it is done, who wants to rank by vectors is told so.

use std::sync::Arc;

use crate::{
    ChunkId, IndexError,
    chunk::{ChunkSettings, ChunkSettingsError, Chunker},
    encode::Encoder,
    store::{EncoderRow, Store},
};

/// Chunks that are encoded together: enough to put those of like length side by side.
const TOGETHER: usize = 64;
/// Vectors of a transaction: what a kill may cost.
const BATCH: usize = 512;
/// Tokens of a chunk at most, unless somebody asks for another size.
const MAX_TOKENS: usize = 256;

/// Cuts documents for `encoder`, in its tokens; without one, in tokens of no tokenizer in particular. A chunk has `max_tokens` at most:
/// without it 256, or three quarters of what the encoder looks at, so that title and header have room; `min_tokens` is an eighth of that.
///
/// # Errors
/// If the sizes mean nothing, or the encoder would not look at all of a chunk.
pub fn chunker(
    encoder: Option<&Arc<dyn Encoder>>,
    max_tokens: Option<usize>,
    min_tokens: Option<usize>,
) -> Result<Chunker, ChunkSettingsError> {
    let seen = encoder.map_or(usize::MAX, |encoder| encoder.passage_tokens());
    let max_tokens = max_tokens.unwrap_or(MAX_TOKENS.min(seen / 4 * 3));
    let min_tokens = min_tokens.unwrap_or(max_tokens / 8);
    match encoder {
        None => Chunker::new(ChunkSettings { max_tokens, min_tokens, ..ChunkSettings::default() }),
        Some(encoder) if max_tokens > seen => {
            Err(ChunkSettingsError::Unseen { max: max_tokens, encoder: encoder.name().to_owned(), seen })
        }
        Some(encoder) => {
            let (settings, counter) =
                (ChunkSettings { max_tokens, min_tokens, counter: encoder.counter() }, encoder.clone());
            Chunker::counting(settings, Arc::new(move |text| counter.count_tokens(text)))
        }
    }
}

/// Makes the vectors that chunks of `store` lack, whose encoder was said to be `encoder` ([`Store::set_encoder`]); how many they were.
/// `progress` is shown how many chunks have one, and how many chunks there are.
///
/// # Errors
/// If the store cannot be written, says another encoder, or a text cannot be encoded. What was made until then stays.
pub fn encode(store: &Store, encoder: &dyn Encoder, progress: &mut dyn FnMut(u64, u64)) -> Result<u64, IndexError> {
    let row = expect(store, encoder)?;
    let (there, all) = (store.vectors()?, store.counts()?.chunks);
    let (mut from, mut made, mut waiting) = (0, 0, Vec::new());
    while there + made < all {
        progress(there + made, all);
        let chunks = store.without_vector(from, TOGETHER)?;
        let Some(last) = chunks.last() else { break };
        from = last.id.saturating_add(1);
        let texts: Vec<String> = chunks.iter().map(|chunk| chunk.ranked()).collect();
        let vectors = encoder.encode_passages(&texts.iter().map(String::as_str).collect::<Vec<_>>())?;
        waiting.extend(chunks.iter().map(|chunk| chunk.id).zip(vectors));
        made += chunks.len() as u64;
        if waiting.len() >= BATCH {
            keep(store, &row, &mut waiting)?;
        }
    }
    keep(store, &row, &mut waiting)?;
    progress(there + made, all);
    Ok(made)
}

fn keep(store: &Store, row: &EncoderRow, waiting: &mut Vec<(ChunkId, Vec<f32>)>) -> Result<(), IndexError> {
    if !waiting.is_empty() {
        store.keep_vectors(row, waiting)?;
        waiting.clear();
    }
    Ok(())
}

/// What `store` says of its encoder, if that is `encoder`.
pub(crate) fn expect(store: &Store, encoder: &dyn Encoder) -> Result<EncoderRow, IndexError> {
    let index = || store.name().to_owned();
    let row = store.encoder()?.ok_or_else(|| IndexError::NoVectors(index()))?;
    if row.is(encoder) {
        return Ok(row);
    }
    let given = EncoderRow::of(encoder.name(), encoder);
    Err(IndexError::OtherEncoder { index: index(), made_by: Box::new(row), given: Box::new(given) })
}
