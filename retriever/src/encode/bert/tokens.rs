//! Texts to the tokens of a BERT.

use std::path::Path;

use folgore_protocol::Digest;
use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use super::super::EncodeError;

/// A text, or a pair of texts, as the model sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    /// With the special ones.
    pub(crate) ids: Vec<u32>,
    /// For each, which text of a pair it is of.
    pub(crate) kinds: Vec<u32>,
    /// How many of them, from the first on, others look at.
    pub(crate) seen: usize,
}

/// `tokenizer.json` of a folder.
#[derive(Clone)]
pub(crate) struct Vocabulary {
    /// Cuts off what is too long.
    tokenizer: Tokenizer,
    /// Does not.
    uncut: Tokenizer,
    place: String,
    /// Of the file.
    digest: Digest,
    size: u32,
    kinds: u32,
}

impl Vocabulary {
    /// Texts are cut to `max_tokens`; `size` and `kinds` are those of the model.
    pub(crate) fn open(folder: &Path, max_tokens: usize, size: usize, kinds: usize) -> Result<Self, EncodeError> {
        let fault = |what: String| EncodeError { encoder: folder.display().to_string(), what };
        let bytes = std::fs::read(folder.join("tokenizer.json")).map_err(|e| fault(format!("tokenizer.json: {e}")))?;
        let digest = Digest::of(&bytes);
        let mut uncut = Tokenizer::from_bytes(bytes).map_err(|e| fault(format!("tokenizer.json: {e}")))?;
        // Files come with the settings that they were last used with.
        uncut.with_padding(None);
        uncut.with_truncation(None).map_err(|e| fault(e.to_string()))?;
        let mut tokenizer = uncut.clone();
        let cut = TruncationParams {
            max_length: max_tokens,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: TruncationDirection::Right,
        };
        tokenizer.with_truncation(Some(cut)).map_err(|e| fault(e.to_string()))?;
        let place = folder.display().to_string();
        Ok(Self { tokenizer, uncut, place, digest, size: size as u32, kinds: kinds as u32 })
    }

    /// Names the file.
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    fn fault(&self, what: impl ToString) -> EncodeError {
        EncodeError { encoder: self.place.clone(), what: what.to_string() }
    }

    fn tokens(&self, encoding: &tokenizers::Encoding) -> Result<Tokens, EncodeError> {
        let (ids, kinds) = (encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec());
        if let Some(id) = ids.iter().find(|id| **id >= self.size) {
            return Err(self.fault(format!("token {id} of a vocabulary of {}", self.size)));
        }
        if let Some(kind) = kinds.iter().find(|kind| **kind >= self.kinds) {
            return Err(self.fault(format!("token type {kind} of {}", self.kinds)));
        }
        Ok(Tokens { seen: ids.len(), ids, kinds })
    }

    /// With special tokens, of which there is one at least.
    fn whole(&self, encodings: &[tokenizers::Encoding]) -> Result<Vec<Tokens>, EncodeError> {
        let tokens: Vec<Tokens> = encodings.iter().map(|encoding| self.tokens(encoding)).collect::<Result<_, _>>()?;
        match tokens.iter().any(|tokens| tokens.ids.is_empty()) {
            true => Err(self.fault("tokenizer.json: adds no special tokens, so that a text may have none at all")),
            false => Ok(tokens),
        }
    }

    /// Each text by itself.
    pub(crate) fn texts(&self, texts: &[&str]) -> Result<Vec<Tokens>, EncodeError> {
        let encodings = self.tokenizer.encode_batch_fast(texts.to_vec(), true).map_err(|e| self.fault(e))?;
        self.whole(&encodings)
    }

    /// `first` with each of `seconds`.
    pub(crate) fn pairs(&self, first: &str, seconds: &[&str]) -> Result<Vec<Tokens>, EncodeError> {
        let pairs: Vec<(&str, &str)> = seconds.iter().map(|second| (first, *second)).collect();
        let encodings = self.tokenizer.encode_batch_fast(pairs, true).map_err(|e| self.fault(e))?;
        self.whole(&encodings)
    }

    /// The ids of a text without special ones, all of them.
    pub(crate) fn plain(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let encoding = self.uncut.encode_fast(text, false).map_err(|e| self.fault(e))?;
        Ok(self.tokens(&encoding)?.ids)
    }

    /// The id of a token.
    pub(crate) fn id(&self, token: &str) -> Result<u32, EncodeError> {
        let known = self.uncut.token_to_id(token).filter(|id| *id < self.size);
        known.ok_or_else(|| self.fault(format!("token {token} is not in the vocabulary")))
    }
}
