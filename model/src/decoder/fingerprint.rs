//! What a policy says about a fixed text: enough to tell one set of weights from another.
//!
//! The learner publishes it with each policy and every sampler computes it again after loading: equal files on a different
//! base, or kernels that compute something else, show here and not in the training.

use folgore_protocol::seed;

use super::{Decoder, Ragged};
use crate::{backend::Backend, lora::Adapter};

/// Tokens of the text.
const TOKENS: usize = 16;

impl<B: Backend> Decoder<B> {
    /// Log-probs, at temperature 1, of the tokens of a fixed text after its first.
    pub fn fingerprint(&self, adapter: Option<&Adapter<B>>) -> Vec<f32> {
        let tokens = TOKENS.min(self.config().max_position_embeddings) as u64;
        let ids: Vec<u32> = (0..tokens).map(|i| seed::below(1, i, self.config().vocab_size as u64) as u32).collect();
        let mut input = Ragged::whole(&[&ids]);
        input.wanted.pop();
        self.logprobs(&self.forward_only(&input, adapter), &ids[1..], 1.0).logprobs
    }
}
