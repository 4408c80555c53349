//! The decoder: one forward for sampling and for learning, and its backward.
//!
//! Input is ragged: rows of tokens in any number of sequences, no padding. A [`Span`] is the part of one sequence that a call
//! computes; its earlier keys lie in the cache (sampling) or are other rows of the same call (learning, where a group's
//! prompt is computed once). Both go through the same attention over blocks of [`backend::BLOCK`](crate::backend::BLOCK)
//! keys that start at the beginning of the sequence, so a row's bits are the same in both.

pub(crate) mod families;
mod fingerprint;
mod forward;
mod layout;
mod load;
mod parts;
mod recall;
mod rope;
mod train;
mod weights;

pub use forward::KvCache;
pub use recall::{Lineage, Recall, Recalled};
pub(crate) use rope::rope_factors;
pub use train::{Backprop, Dropout, Tape};
pub use weights::{LayerWeights, Linear, Norm, Weights, tensors};

use std::{ops::Range, sync::Arc};

use rope::Rope;

use crate::{
    ModelConfig, ModelError, TensorSource,
    backend::{Backend, KvPrecision},
};

/// The rows that one call computes for one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Span {
    /// Rows of the call, in the order of the sequence.
    pub rows: Range<usize>,
    /// Number of earlier keys of the sequence: place of the first row.
    pub start: usize,
    /// Cache blocks of the sequence, enough for `start + rows.len()` keys. Empty in a learning call.
    pub table: Vec<u32>,
    /// Learning only: the rows of this call that hold the earlier keys, in the order of the sequence; together `start` long.
    pub prefix: Vec<Range<usize>>,
    /// Index into the call's adapters.
    pub adapter: usize,
}

/// A batch without padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ragged {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Place of each row in its sequence.
    pub positions: Vec<u32>,
    /// Which rows belong together; they cover all rows, in order, without overlap.
    pub spans: Vec<Span>,
    /// Rows whose last hidden state is wanted; may repeat.
    pub wanted: Vec<u32>,
}

impl Ragged {
    /// Several whole sequences, the hidden state of every row wanted: the form of scoring and of tests.
    pub fn whole(sequences: &[&[u32]]) -> Self {
        let mut ragged = Self::default();
        for ids in sequences {
            let begin = ragged.tokens.len();
            ragged.tokens.extend_from_slice(ids);
            ragged.positions.extend(0..ids.len() as u32);
            ragged.spans.push(Span { rows: begin..begin + ids.len(), ..Span::default() });
        }
        ragged.wanted = (0..ragged.tokens.len() as u32).collect();
        ragged
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    fn check(&self, config: &ModelConfig, adapters: usize) {
        assert_eq!(self.tokens.len(), self.positions.len(), "ragged batch: tokens and positions");
        let mut next = 0;
        for span in &self.spans {
            assert_eq!(span.rows.start, next, "ragged batch: spans must cover the rows in order");
            assert!(span.adapter < adapters.max(1), "ragged batch: adapter {} of {adapters}", span.adapter);
            next = span.rows.end;
        }
        assert_eq!(next, self.tokens.len(), "ragged batch: rows covered by spans");
        let vocab = config.vocab_size as u32;
        assert!(self.tokens.iter().all(|id| *id < vocab), "ragged batch: a token id outside the vocabulary of {vocab}");
        let limit = config.max_position_embeddings as u32;
        assert!(self.positions.iter().all(|p| *p < limit), "ragged batch: a position outside the context of {limit}");
    }
}

/// A decoder with its frozen weights on a backend. Cloning shares the weights.
pub struct Decoder<B: Backend> {
    backend: Arc<B>,
    config: Arc<ModelConfig>,
    weights: Arc<Weights<B>>,
    rope: Arc<Rope<B>>,
    kv: KvPrecision,
}

impl<B: Backend> Clone for Decoder<B> {
    fn clone(&self) -> Self {
        Self {
            backend: self.backend.clone(),
            config: self.config.clone(),
            weights: self.weights.clone(),
            rope: self.rope.clone(),
            kv: self.kv,
        }
    }
}

impl<B: Backend> Decoder<B> {
    /// Reads the weights that `config` asks for.
    pub fn load(backend: Arc<B>, config: ModelConfig, source: &dyn TensorSource) -> Result<Self, ModelError> {
        let weights = load::load(&*backend, &config, source)?;
        let rope = Arc::new(Rope::new(&*backend, &config));
        Ok(Self { backend, config: Arc::new(config), weights: Arc::new(weights), rope, kv: KvPrecision::F32 })
    }

    /// Computes with keys and values of `precision` from now on, in sampling and in learning alike, and makes caches of it.
    pub fn with_kv(mut self, precision: KvPrecision) -> Self {
        self.kv = precision;
        self
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device.
    pub fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    /// The weights.
    pub fn weights(&self) -> &Weights<B> {
        &self.weights
    }

    /// The weights, to change them (all-weights training). None while somebody else shares them.
    pub fn weights_mut(&mut self) -> Option<&mut Weights<B>> {
        Arc::get_mut(&mut self.weights)
    }
}
