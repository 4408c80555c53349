//! The model that is measured.

use std::sync::Arc;

use anyhow::Result;
use folgore_model::{
    ModelConfig,
    backend::{Backend, Cpu},
    decoder::{Decoder, Linear},
    lora::{LoraInit, LoraShape},
    params::Params,
};
use folgore_protocol::seed;

use super::cost::Costs;
use crate::policy;

/// Stream of the adapter and of prompts.
const SEED: u64 = 1;

/// A decoder on its threads.
pub struct Subject {
    /// The frozen base.
    pub decoder: Decoder<Cpu>,
    /// Bytes of its weights.
    pub bytes: usize,
}

impl Subject {
    /// Loads `model`, as [`Base::find`](crate::base::Base::find) takes it.
    pub fn load(model: &str, threads: usize) -> Result<Self> {
        let backend = Arc::new(Cpu::with_threads(threads));
        let files = policy::open(model)?;
        let decoder = Decoder::load(backend, files.config, &*files.tensors)?;
        let bytes = decoder.weights().bytes(decoder.backend());
        Ok(Self { decoder, bytes })
    }

    /// Its shape.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// Its backend.
    pub fn backend(&self) -> &Cpu {
        self.decoder.backend()
    }

    /// What its calls cost, with or without the adapter of [`Self::params`].
    pub fn costs(&self, adapter: bool) -> Costs {
        // an embedding of its own is looked up, not read
        let looked_up = match self.config().tie_word_embeddings {
            true => 0,
            false => self.backend().matrix_bytes(&self.decoder.weights().embed_tokens),
        };
        Costs::of(self.config(), adapter.then(shape).as_ref(), self.bytes - looked_up)
    }

    /// A fresh adapter of rank 16 on all seven linear maps.
    pub fn params(&self) -> Params<Cpu> {
        Params::lora(self.backend(), self.config(), shape(), LoraInit::Kaiming, SEED)
    }

    /// `len` token ids, other ones for another `stream`.
    pub fn ids(&self, stream: u64, len: usize) -> Vec<u32> {
        let vocab = self.config().vocab_size as u64;
        (0..len as u64).map(|i| seed::below(seed::mix(&[SEED, stream]), i, vocab) as u32).collect()
    }

    /// `wanted` tokens, or as many as a sequence may have with `more` tokens after them.
    pub fn at_most(&self, wanted: usize, more: usize) -> usize {
        wanted.min(self.config().max_position_embeddings.saturating_sub(more)).max(1)
    }
}

/// The adapter of the measurements: rank 16, scale 2, all seven linear maps.
pub fn shape() -> LoraShape {
    LoraShape {
        r: 16,
        alpha: 32.0,
        use_rslora: false,
        dropout: 0.0,
        targets: Linear::ALL.to_vec(),
        rules: Default::default(),
    }
}
