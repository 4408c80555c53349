//! What the engine needs of a model, and the decoder as one.

use std::sync::Arc;

use folgore_model::{
    backend::{Backend, SampleSpec, Sampled},
    decoder::{Decoder, KvCache, Ragged},
    lora::Adapter,
};

/// A model with its key-value cache. A row's result must not depend on the other rows of a call.
pub trait Model: Send {
    /// Weights of one policy, cheap to clone.
    type Adapter: Clone + Send + 'static;
    /// Last hidden states, on the device.
    type Hidden;

    /// Longest sequence.
    fn context(&self) -> usize;
    /// Number of token ids.
    fn vocab_size(&self) -> usize;
    /// Ids that end a generation.
    fn eos_ids(&self) -> &[u32];
    /// Blocks of the cache.
    fn blocks(&self) -> usize;
    /// Copies whole cache blocks (from, to).
    fn copy_blocks(&mut self, copies: &[(u32, u32)]);
    /// Computes `input`, writes its keys to the cache and returns the hidden states of its wanted rows.
    fn forward(&mut self, input: &Ragged, adapters: &[Self::Adapter]) -> Self::Hidden;
    /// Samples a token for each row of `hidden`.
    fn sample(&self, hidden: &Self::Hidden, specs: &[SampleSpec]) -> Vec<Sampled>;
    /// Copies hidden states to the host.
    fn download(&self, hidden: &Self::Hidden) -> Vec<f32>;
    /// Copies hidden states to the device.
    fn upload(&self, rows: &[f32]) -> Self::Hidden;
}

/// A decoder with a cache of its own; the weights are shared.
pub struct DecoderModel<B: Backend> {
    decoder: Decoder<B>,
    cache: KvCache<B>,
}

impl<B: Backend> DecoderModel<B> {
    /// Gives `decoder` a cache of `blocks` blocks.
    pub fn new(decoder: Decoder<B>, blocks: usize) -> Self {
        let cache = decoder.cache(blocks);
        Self { decoder, cache }
    }
}

impl<B: Backend> Model for DecoderModel<B> {
    type Adapter = Option<Arc<Adapter<B>>>;
    type Hidden = B::Buf;

    fn context(&self) -> usize {
        self.decoder.config().max_position_embeddings
    }

    fn vocab_size(&self) -> usize {
        self.decoder.config().vocab_size
    }

    fn eos_ids(&self) -> &[u32] {
        &self.decoder.config().eos_token_ids
    }

    fn blocks(&self) -> usize {
        self.cache.blocks()
    }

    fn copy_blocks(&mut self, copies: &[(u32, u32)]) {
        self.decoder.copy_blocks(&mut self.cache, copies);
    }

    fn forward(&mut self, input: &Ragged, adapters: &[Self::Adapter]) -> B::Buf {
        self.decoder.forward(input, adapters, &mut self.cache)
    }

    fn sample(&self, hidden: &B::Buf, specs: &[SampleSpec]) -> Vec<Sampled> {
        self.decoder.sample(hidden, specs)
    }

    fn download(&self, hidden: &B::Buf) -> Vec<f32> {
        self.decoder.backend().download(hidden)
    }

    fn upload(&self, rows: &[f32]) -> B::Buf {
        self.decoder.backend().upload(rows)
    }
}
