//! What the engine needs of a model, and the decoder as one.

use std::sync::Arc;

use folgore_model::{
    backend::{Backend, SampleSpec, Sampled},
    decoder::{Decoder, KvCache, Lineage, Ragged, Recall, Span},
    lora::Adapter,
};
use folgore_protocol::PolicyId;

/// Rows of a call that a learner is going to ask for.
#[derive(Clone, Copy)]
pub struct KeptRows<'a> {
    /// Their policy.
    pub policy: PolicyId,
    /// By row of the call; none: nobody asks for it.
    pub lineages: &'a [Option<Lineage>],
}

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
    /// Computes `input`, writes its keys to the cache and returns the hidden states of its wanted rows. Rows with a lineage,
    /// all of the policy that is named, are kept for a learner, where there is one.
    fn forward(&mut self, input: &Ragged, adapters: &[Self::Adapter], kept: Option<KeptRows<'_>>) -> Self::Hidden;
    /// True if rows of `policy` are to be kept.
    fn keeps(&self, _policy: PolicyId) -> bool {
        false
    }
    /// Takes note, for a learner, of what the head said of a token sampled at `temperature`.
    fn keep_score(&self, _policy: PolicyId, _lineage: Lineage, _temperature: f32, _sampled: Sampled) {}
    /// Samples a token for each row of `hidden`.
    fn sample(&self, hidden: &Self::Hidden, specs: &[SampleSpec]) -> Vec<Sampled>;
    /// Entropies, in nats, of the distributions that the tokens at `places` of `ids` come from; none of them is the first. Nothing is
    /// kept in the cache.
    fn entropies(&self, ids: &[u32], places: &[u32], adapter: &Self::Adapter, temperature: f32) -> Vec<f32>;
    /// Copies hidden states to the host.
    fn download(&self, hidden: &Self::Hidden) -> Vec<f32>;
    /// Copies hidden states to the device.
    fn upload(&self, rows: &[f32]) -> Self::Hidden;
}

/// A decoder with a cache of its own; the weights are shared.
pub struct DecoderModel<B: Backend> {
    decoder: Decoder<B>,
    cache: KvCache<B>,
    recall: Option<Arc<Recall<B>>>,
}

impl<B: Backend> DecoderModel<B> {
    /// Gives `decoder` a cache of `blocks` blocks.
    pub fn new(decoder: Decoder<B>, blocks: usize) -> Self {
        let cache = decoder.cache(blocks);
        Self { decoder, cache, recall: None }
    }

    /// Keeps what a learner with the same `recall` would have to compute again.
    pub fn with_recall(self, recall: Option<Arc<Recall<B>>>) -> Self {
        Self { recall, ..self }
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

    fn forward(&mut self, input: &Ragged, adapters: &[Self::Adapter], kept: Option<KeptRows<'_>>) -> B::Buf {
        let (Some(recall), Some(KeptRows { policy, lineages })) = (&self.recall, kept) else {
            return self.decoder.forward(input, adapters, &mut self.cache);
        };
        recall.forward(&self.decoder, input, adapters, &mut self.cache, policy, lineages)
    }

    fn keeps(&self, policy: PolicyId) -> bool {
        self.recall.as_ref().is_some_and(|recall| recall.wants(policy))
    }

    fn keep_score(&self, policy: PolicyId, lineage: Lineage, temperature: f32, sampled: Sampled) {
        if let Some(recall) = &self.recall {
            recall.keep_score(policy, lineage, temperature, sampled);
        }
    }

    fn sample(&self, hidden: &B::Buf, specs: &[SampleSpec]) -> Vec<Sampled> {
        self.decoder.sample(hidden, specs)
    }

    fn entropies(&self, ids: &[u32], places: &[u32], adapter: &Self::Adapter, temperature: f32) -> Vec<f32> {
        let Some(last) = places.iter().max() else { return Vec::new() };
        let read = *last as usize;
        let span = Span { rows: 0..read, ..Span::default() };
        let input = Ragged {
            tokens: ids[..read].to_vec(),
            positions: (0..read as u32).collect(),
            spans: vec![span],
            wanted: places.iter().map(|place| place - 1).collect(),
        };
        let targets: Vec<u32> = places.iter().map(|place| ids[*place as usize]).collect();
        let hidden = self.decoder.forward_only(&input, adapter.as_deref());
        self.decoder.logprobs(&hidden, &targets, temperature).entropy
    }

    fn download(&self, hidden: &B::Buf) -> Vec<f32> {
        self.decoder.backend().download(hidden)
    }

    fn upload(&self, rows: &[f32]) -> B::Buf {
        self.decoder.backend().upload(rows)
    }
}
