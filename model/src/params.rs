//! What trains: master values in f32 with their gradients and the optimiser's moments, either an adapter or all weights.

use folgore_protocol::seed;
use rayon::prelude::*;

use crate::{
    HostTensor, ModelConfig, ModelError, NormForm, TensorSource, Tensors,
    backend::{AdamW, Backend},
    decoder::{Linear, Weights, tensors},
    lora::{Adapter, LoraInit, LoraShape},
    moments::Moments,
};

/// One trained tensor.
pub struct Param<B: Backend> {
    /// Name: `model.layers.0.self_attn.q_proj.lora_A`, or the checkpoint's name where all weights train.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Master values.
    pub value: B::Buf,
    /// Gradient, added to by every backward.
    pub grad: B::Buf,
    moments: Moments<B>,
}

/// Which weights train.
#[derive(Clone, Debug, PartialEq)]
pub enum Trains {
    /// An adapter of this shape.
    Lora(Box<LoraShape>),
    /// All weights (small models).
    Full,
}

/// All trained tensors.
pub struct Params<B: Backend> {
    pub(crate) list: Vec<Param<B>>,
    trains: Trains,
    /// By layer and map, where A of its adapter lies; B follows it.
    lora_slots: Vec<[Option<usize>; 7]>,
    layers: usize,
    tied: bool,
}

impl<B: Backend> Params<B> {
    /// A fresh adapter: A drawn from stream `seed`, B zero.
    pub fn lora(backend: &B, config: &ModelConfig, shape: LoraShape, init: LoraInit, seed: u64) -> Self {
        let tensors = shape.tensors(config).into_iter().enumerate().map(|(i, (name, [rows, columns]))| {
            let values = if i % 2 == 0 {
                init_a(init, columns, rows, seed::mix(&[seed, i as u64]))
            } else {
                vec![0.0; rows * columns]
            };
            (name, HostTensor::f32([rows, columns], values))
        });
        let list = tensors.map(|(name, tensor)| param(backend, name, &tensor)).collect();
        Self::of_adapter(list, config, shape)
    }

    /// An adapter read from `tensors`. Check them first with [`Adapter::load`].
    pub fn lora_from(
        backend: &B,
        config: &ModelConfig,
        shape: LoraShape,
        tensors: &Tensors,
    ) -> Result<Self, ModelError> {
        let names = shape.tensors(config).into_iter().map(|(name, _)| name);
        let list = names
            .map(|name| Ok(param(backend, name.clone(), &tensors.tensor(&name)?)))
            .collect::<Result<_, ModelError>>()?;
        Ok(Self::of_adapter(list, config, shape))
    }

    fn of_adapter(list: Vec<Param<B>>, config: &ModelConfig, shape: LoraShape) -> Self {
        let mut lora_slots = vec![[None; 7]; config.num_hidden_layers];
        for (place, (layer, linear, _)) in shape.modules(config.num_hidden_layers).into_iter().enumerate() {
            lora_slots[layer][linear as usize] = Some(2 * place);
        }
        let (layers, tied) = (config.num_hidden_layers, config.tie_word_embeddings);
        Self { list, trains: Trains::Lora(Box::new(shape)), lora_slots, layers, tied }
    }

    /// All weights, read from `source`.
    pub fn full(backend: &B, config: &ModelConfig, source: &dyn TensorSource) -> Result<Self, ModelError> {
        if !config.variant.is_llama() {
            return Err(ModelError::Unsupported {
                place: config.model_type.clone(),
                what: "training of all weights".into(),
                hint: ": it is there for the llama family alone; train an adapter".into(),
            });
        }
        let list = tensors(config)
            .into_iter()
            .map(|(name, _)| Ok(param(backend, name.clone(), &source.tensor(&name)?)))
            .collect::<Result<_, ModelError>>()?;
        let (layers, tied) = (config.num_hidden_layers, config.tie_word_embeddings);
        Ok(Self { list, trains: Trains::Full, lora_slots: Vec::new(), layers, tied })
    }

    /// What trains.
    pub fn trains(&self) -> &Trains {
        &self.trains
    }

    /// The tensors, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = &Param<B>> {
        self.list.iter()
    }

    /// Number of trained weights.
    pub fn count(&self) -> usize {
        self.list.iter().map(|p| p.shape.iter().product::<usize>()).sum()
    }

    /// Sets all gradients to 0.
    pub fn zero_grad(&mut self, backend: &B) {
        for p in &mut self.list {
            backend.fill_zero(&mut p.grad);
        }
    }

    /// L2 norm of all gradients together.
    pub fn grad_norm(&self, backend: &B) -> f64 {
        self.list.iter().map(|p| backend.sum_of_squares(&p.grad)).sum::<f64>().sqrt()
    }

    /// One AdamW step on every tensor. Norm weights are not decayed.
    pub fn step(&mut self, backend: &B, settings: &AdamW) {
        for p in &mut self.list {
            let weight_decay = if p.shape.len() > 1 { settings.weight_decay } else { 0.0 };
            p.moments.step(backend, &mut p.value, &p.grad, &AdamW { weight_decay, ..*settings });
        }
    }

    /// Writes the adapter's values into `adapter`, which has the same shape.
    pub fn write_adapter(&self, backend: &B, adapter: &mut Adapter<B>) {
        for layer in 0..self.layers {
            for linear in Linear::ALL {
                let (Some(slot), Some(pair)) = (self.lora_slot(layer, linear), adapter.pair_mut(layer, linear)) else {
                    continue;
                };
                let scale = pair.scale;
                backend.set_matrix(&mut pair.a, &self.list[slot].value, 1.0);
                backend.set_matrix(&mut pair.b, &self.list[slot + 1].value, scale);
            }
        }
    }

    /// Writes all values into `weights` (all-weights training).
    pub fn write_weights(&self, backend: &B, weights: &mut Weights<B>) {
        let Some(slots) = self.full_slots() else { return };
        let value = |slot: usize| &self.list[slot].value;
        let vector = |slot: usize| backend.upload(&backend.download(value(slot)));
        backend.set_matrix(&mut weights.embed_tokens, value(slots.embed), 1.0);
        for (i, layer) in weights.layers.iter_mut().enumerate() {
            let slots = slots.layer(i);
            layer.attention_norm = vector(slots.input_layernorm);
            layer.feed_forward_norm = vector(slots.post_attention_layernorm);
            for linear in Linear::ALL {
                backend.set_matrix(&mut layer.linears[linear as usize], value(slots.linear(linear)), 1.0);
            }
        }
        weights.norm = vector(slots.norm);
        if let Some(head) = &mut weights.lm_head {
            backend.set_matrix(head, value(slots.head), 1.0);
        }
    }

    /// The values, on the host.
    pub fn values(&self, backend: &B) -> Tensors {
        self.download(backend, |p| &p.value)
    }

    /// The gradients, on the host.
    pub fn grads(&self, backend: &B) -> Tensors {
        self.download(backend, |p| &p.grad)
    }

    /// The optimiser's moments, on the host, named `<tensor>.m` and `<tensor>.v`; where they are codes, their scales are
    /// `<tensor>.m.absmax` and `<tensor>.v.absmax`.
    pub fn moments(&self, backend: &B) -> Tensors {
        self.list.iter().flat_map(|p| p.moments.download(backend, &p.name, &p.shape)).collect()
    }

    /// Takes moments back, as [`Params::moments`] gave them.
    pub fn set_moments(&mut self, backend: &B, moments: &Tensors) -> Result<(), ModelError> {
        self.list.iter_mut().try_for_each(|p| p.moments.upload(backend, &p.name, &p.shape, moments))
    }

    /// Keeps the moments of all but small tensors in eight bits from now on; to be called before the first step, because it forgets
    /// those that there are.
    pub fn code_moments(&mut self, backend: &B) {
        for p in &mut self.list {
            p.moments = Moments::coded(backend, backend.len(&p.value));
        }
    }

    /// Index of A of one map; B follows it. None where nothing trains.
    pub(crate) fn lora_slot(&self, layer: usize, linear: Linear) -> Option<usize> {
        self.lora_slots.get(layer)?[linear as usize]
    }

    pub(crate) fn full_slots(&self) -> Option<FullSlots> {
        let norm = 1 + PER_LAYER * self.layers;
        let head = if self.tied { 0 } else { norm + 1 };
        (self.trains == Trains::Full).then_some(FullSlots { embed: 0, norm, head })
    }

    fn download(&self, backend: &B, which: impl Fn(&Param<B>) -> &B::Buf) -> Tensors {
        let tensor = |p: &Param<B>| (p.name.clone(), HostTensor::f32(p.shape.clone(), backend.download(which(p))));
        self.list.iter().map(tensor).collect()
    }
}

/// Tensors of a layer where all weights train: two norms, seven maps.
const PER_LAYER: usize = 9;

/// Where the tensors lie in the list when all weights train.
#[derive(Clone, Copy)]
pub(crate) struct FullSlots {
    pub(crate) embed: usize,
    pub(crate) norm: usize,
    pub(crate) head: usize,
}

/// The same for one layer.
#[derive(Clone, Copy)]
pub(crate) struct LayerSlots {
    pub(crate) input_layernorm: usize,
    pub(crate) post_attention_layernorm: usize,
}

impl FullSlots {
    pub(crate) fn layer(self, index: usize) -> LayerSlots {
        let begin = self.embed + 1 + PER_LAYER * index;
        LayerSlots { input_layernorm: begin, post_attention_layernorm: begin + 1 }
    }
}

impl LayerSlots {
    pub(crate) fn linear(self, linear: Linear) -> usize {
        self.post_attention_layernorm + 1 + linear as usize
    }
}

fn param<B: Backend>(backend: &B, name: String, tensor: &HostTensor) -> Param<B> {
    let values = tensor.to_f32();
    let (grad, moments) = (backend.zeros(values.len()), Moments::new(backend, values.len()));
    Param { name, shape: tensor.shape.clone(), value: backend.upload(&values), grad, moments }
}

fn init_a(init: LoraInit, inner: usize, rows: usize, seed: u64) -> Vec<f32> {
    let count = (rows * inner) as u64;
    match init {
        LoraInit::Kaiming => {
            let bound = 1.0 / (inner as f32).sqrt();
            (0..count).map(|i| (2.0 * seed::uniform(seed, i) - 1.0) * bound).collect()
        }
        LoraInit::Gaussian => (0..count).map(|i| seed::normal(seed, i) / rows as f32).collect(),
    }
}

/// Random weights for a model of a shape (normal, deviation 0.02, norms 1, biases 0): where training from nothing begins.
#[derive(Clone, Debug)]
pub struct RandomWeights {
    config: ModelConfig,
    seed: u64,
}

impl RandomWeights {
    /// Weights for a model of shape `config` from stream `seed`.
    pub fn new(config: ModelConfig, seed: u64) -> Self {
        Self { config, seed }
    }
}

impl TensorSource for RandomWeights {
    fn tensor(&self, name: &str) -> Result<HostTensor, ModelError> {
        let (place, shape) = place_of(&self.config, name)?;
        let stream = seed::mix(&[self.seed, place as u64]);
        let count = shape.iter().product::<usize>();
        let values = match shape.len() {
            1 => vec![at_first(&self.config, name); count],
            _ => (0..count).into_par_iter().map(|j| 0.02 * seed::normal(stream, j as u64)).collect(),
        };
        Ok(HostTensor::f32(shape, values))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        tensors(&self.config).into_iter().find(|(n, _)| n == name).map(|(_, shape)| shape)
    }

    fn names(&self) -> Vec<String> {
        tensors(&self.config).into_iter().map(|(name, _)| name).collect()
    }
}

/// Number of the tensor `name`, which names the stream that it is drawn from, and its shape.
pub(crate) fn place_of(config: &ModelConfig, name: &str) -> Result<(usize, Vec<usize>), ModelError> {
    let missing = || ModelError::Missing { what: format!("tensor {name}"), place: "random weights".into() };
    let mut list = tensors(config).into_iter().enumerate();
    list.find(|(_, (n, _))| n == name).map(|(place, (_, shape))| (place, shape)).ok_or_else(missing)
}

/// The numbers of a norm or a bias before any training: a norm changes nothing.
pub(crate) fn at_first(config: &ModelConfig, name: &str) -> f32 {
    let changes_nothing = !name.ends_with(".bias") && config.variant.norm_form == NormForm::Weight;
    f32::from(u8::from(changes_nothing))
}

/// All of [`RandomWeights`] at once.
pub fn random_weights(config: &ModelConfig, seed: u64) -> Tensors {
    let source = RandomWeights::new(config.clone(), seed);
    source.names().into_iter().filter_map(|name| Some((name.clone(), source.tensor(&name).ok()?))).collect()
}
