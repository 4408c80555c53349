//! What trains: a decoder with its trained tensors, and the few things that a step does with them.

use std::sync::Arc;

use folgore_config::optim::{OptimSection, OptimizerName};
use folgore_model::{
    ModelError, Tensors,
    backend::{AdamW, Backend, HeadOut},
    decoder::{Backprop, Decoder, Ragged, Recall, Recalled, Tape},
    lora::Adapter,
    params::{Params, Trains},
};
use folgore_protocol::PolicyId;

use crate::schedule::clip_factor;

/// A decoder, its trained tensors and their form on the device.
pub struct Trainee<B: Backend> {
    decoder: Decoder<B>,
    params: Params<B>,
    adapter: Option<Adapter<B>>,
    reference: Option<Adapter<B>>,
    updates: u64,
    recall: Option<Arc<Recall<B>>>,
    /// What samplers know the weights by, until they change.
    published: Option<PolicyId>,
}

/// A forward that waits for its backward.
pub struct Pending<B: Backend> {
    tape: Tape<B>,
    targets: Vec<u32>,
    temperature: f32,
    /// Log-probs of the targets, and what else the head gave.
    pub head: HeadOut,
    /// `head` is what the sampler said, and not computed here.
    pub recalled: bool,
}

impl<B: Backend> Trainee<B> {
    /// Trains `params` on `decoder`. For an adapter, `initial` are its values now.
    pub fn new(decoder: Decoder<B>, params: Params<B>) -> Result<Self, ModelError> {
        let adapter = device_adapter(&decoder, &params)?;
        Ok(Self { decoder, params, adapter, reference: None, updates: 0, recall: None, published: None })
    }

    /// Takes rows from `recall` that a sampler in this process computed, instead of computing them again.
    pub fn with_recall(self, recall: Option<Arc<Recall<B>>>) -> Self {
        Self { recall, ..self }
    }

    /// Takes note that samplers know the weights as they are now by `policy`.
    pub fn published(&mut self, policy: PolicyId) {
        self.published = Some(policy);
    }

    /// Keeps the optimiser's moments as `optimizer` does, from the first update on.
    pub fn optimize_with(&mut self, optimizer: OptimizerName) {
        match optimizer {
            OptimizerName::AdamwTorch => {}
            OptimizerName::Adamw8bit => self.params.code_moments(self.decoder.backend()),
        }
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder<B> {
        &self.decoder
    }

    /// The trained tensors.
    pub fn params(&self) -> &Params<B> {
        &self.params
    }

    /// Optimiser updates applied.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Makes today's values the reference of the KL term (`initial_adapter`); without it the reference is the base.
    pub fn keep_reference(&mut self) -> Result<(), ModelError> {
        self.reference = device_adapter(&self.decoder, &self.params)?;
        Ok(())
    }

    /// Takes optimiser state back from a checkpoint.
    pub fn restore(&mut self, moments: &Tensors, updates: u64) -> Result<(), ModelError> {
        self.params.set_moments(self.decoder.backend(), moments)?;
        self.updates = updates;
        Ok(())
    }

    /// Log-probs of `targets` after the wanted rows of `input`, kept for a backward.
    pub fn forward(&self, input: Ragged, targets: Vec<u32>, temperature: f32, how: Backprop) -> Pending<B> {
        let (mut tape, head) = match self.recalled(&input, how) {
            Some((recall, rows)) => {
                let head = recall.scores(&rows, &input.wanted, &targets, temperature);
                (self.decoder.recalled(input, rows, how.recompute), head)
            }
            None => {
                if let Some(recall) = &self.recall {
                    recall.release();
                }
                (self.decoder.forward_train(input, self.adapter.as_ref(), how), None)
            }
        };
        let recalled = head.is_some();
        let head = head.unwrap_or_else(|| match self.adapter {
            Some(_) => self.decoder.score(&mut tape, &targets, temperature),
            None => self.decoder.logprobs(tape.hidden(), &targets, temperature),
        });
        Pending { tape, targets, temperature, head, recalled }
    }

    /// The rows of `input`, if a sampler computed them all with the weights as they are now.
    fn recalled(&self, input: &Ragged, how: Backprop) -> Option<(&Recall<B>, Recalled<B>)> {
        let recall = self.recall.as_deref()?;
        let policy = self.published.filter(|_| how.dropout.is_none() && recall.every() == how.recompute)?;
        Some((recall, recall.find(policy, input)?))
    }

    /// The same log-probs, with nothing kept: `old` before several updates.
    pub fn logprobs(&self, input: &Ragged, targets: &[u32], temperature: f32) -> HeadOut {
        self.decoder.logprobs(&self.decoder.forward_only(input, self.adapter.as_ref()), targets, temperature)
    }

    /// The same log-probs under the reference.
    pub fn reference_logprobs(&self, input: &Ragged, targets: &[u32], temperature: f32) -> HeadOut {
        self.decoder.logprobs(&self.decoder.forward_only(input, self.reference.as_ref()), targets, temperature)
    }

    /// Adds the gradients of one forward, given dL/dlogprob of each target.
    pub fn backward(&mut self, pending: Pending<B>, dlogprobs: &[f32]) {
        let Pending { tape, targets, temperature, head, .. } = pending;
        let adapter = self.adapter.as_ref();
        self.decoder.backward(tape, adapter, &targets, temperature, &head.lse, dlogprobs, &mut self.params);
    }

    /// L2 norm of the gradient gathered so far.
    pub fn grad_norm(&self) -> f64 {
        self.params.grad_norm(self.decoder.backend())
    }

    /// Forgets the gradient.
    pub fn zero_grad(&mut self) {
        self.params.zero_grad(self.decoder.backend());
    }

    /// One AdamW update with the gathered gradient, clipped; the gradient is forgotten.
    ///
    /// # Panics
    /// If all weights train and the decoder is shared: all-weights training owns its decoder.
    pub fn update(&mut self, optim: &OptimSection, learning_rate: f64, grad_norm: f64) {
        self.updates += 1;
        self.published = None;
        if let Some(recall) = &self.recall {
            recall.clear();
        }
        let settings = AdamW {
            lr: learning_rate as f32,
            beta1: optim.adam_beta1 as f32,
            beta2: optim.adam_beta2 as f32,
            eps: optim.adam_epsilon as f32,
            weight_decay: optim.weight_decay as f32,
            grad_scale: clip_factor(grad_norm, optim.max_grad_norm) as f32,
            step: self.updates,
        };
        let backend = self.decoder.backend().clone();
        self.params.step(&*backend, &settings);
        self.params.zero_grad(&*backend);
        match &mut self.adapter {
            Some(adapter) => self.params.write_adapter(&*backend, adapter),
            None => {
                let weights = self.decoder.weights_mut().expect("all-weights training owns its decoder");
                self.params.write_weights(&*backend, weights);
            }
        }
    }

    /// Log-probs of a fixed text: what samplers check a published policy by.
    pub fn fingerprint(&self) -> Vec<f32> {
        self.decoder.fingerprint(self.adapter.as_ref())
    }

    /// The trained values, on the host.
    pub fn values(&self) -> Tensors {
        self.params.values(self.decoder.backend())
    }

    /// The optimiser's moments, on the host.
    pub fn moments(&self) -> Tensors {
        self.params.moments(self.decoder.backend())
    }
}

fn device_adapter<B: Backend>(decoder: &Decoder<B>, params: &Params<B>) -> Result<Option<Adapter<B>>, ModelError> {
    match params.trains() {
        Trains::Full => Ok(None),
        Trains::Lora(shape) => {
            let backend = &**decoder.backend();
            Adapter::load(backend, decoder.config(), shape, &params.values(backend)).map(Some)
        }
    }
}
