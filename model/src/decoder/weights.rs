//! The weights of a decoder, in the order of the forward pass, under the names of the checkpoint.

use serde::{Deserialize, Serialize};

use crate::{ModelConfig, backend::Backend};

/// The seven linear maps of a layer: what LoRA may train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Linear {
    /// `self_attn.q_proj`
    QProj,
    /// `self_attn.k_proj`
    KProj,
    /// `self_attn.v_proj`
    VProj,
    /// `self_attn.o_proj`
    OProj,
    /// `mlp.gate_proj`
    GateProj,
    /// `mlp.up_proj`
    UpProj,
    /// `mlp.down_proj`
    DownProj,
}

impl Linear {
    /// All seven, in the order of the forward pass.
    pub const ALL: [Linear; 7] = [
        Linear::QProj,
        Linear::KProj,
        Linear::VProj,
        Linear::OProj,
        Linear::GateProj,
        Linear::UpProj,
        Linear::DownProj,
    ];

    /// Last part of the module path, as PEFT's `target_modules` names it.
    pub fn name(self) -> &'static str {
        self.path().rsplit('.').next().unwrap_or_default()
    }

    /// Module path within a layer.
    pub fn path(self) -> &'static str {
        match self {
            Linear::QProj => "self_attn.q_proj",
            Linear::KProj => "self_attn.k_proj",
            Linear::VProj => "self_attn.v_proj",
            Linear::OProj => "self_attn.o_proj",
            Linear::GateProj => "mlp.gate_proj",
            Linear::UpProj => "mlp.up_proj",
            Linear::DownProj => "mlp.down_proj",
        }
    }

    /// Module path in the model (`model.layers.3.mlp.up_proj`).
    pub fn module(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}", self.path())
    }

    /// (out, in) in a model of shape `config`.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let hidden = config.hidden_size;
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        match self {
            Linear::QProj => (q, hidden),
            Linear::KProj | Linear::VProj => (kv, hidden),
            Linear::OProj => (hidden, q),
            Linear::GateProj | Linear::UpProj => (config.intermediate_size, hidden),
            Linear::DownProj => (hidden, config.intermediate_size),
        }
    }
}

/// Names and shapes of all weights of a model of shape `config`, in the order of the forward pass, biases last in their layer.
pub fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut list = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        let mut push = |name: &str, shape: Vec<usize>| list.push((format!("model.layers.{layer}.{name}"), shape));
        for norm in Norm::of(config) {
            push(&format!("{}.weight", norm.path(config)), vec![norm.width(config)]);
        }
        for linear in Linear::ALL {
            let (out, inner) = linear.shape(config);
            push(&format!("{}.weight", linear.path()), vec![out, inner]);
        }
        for linear in Linear::ALL.into_iter().filter(|l| config.has_bias(*l)) {
            push(&format!("{}.bias", linear.path()), vec![linear.shape(config).0]);
        }
    }
    list.push(("model.norm.weight".into(), vec![hidden]));
    if !config.tie_word_embeddings {
        list.push(("lm_head.weight".into(), vec![config.vocab_size, hidden]));
    }
    list
}

/// The norms that a layer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Before attention.
    Attention,
    /// Before the feed-forward part.
    FeedForward,
    /// Of the output of attention, before it is added.
    AttentionOutput,
    /// Of the output of the feed-forward part, before it is added.
    FeedForwardOutput,
    /// Of each head of q.
    Q,
    /// Of each head of k.
    K,
}

impl Norm {
    /// The norms of each layer of a model of shape `config`.
    pub fn of(config: &ModelConfig) -> Vec<Norm> {
        let mut norms = vec![Norm::Attention, Norm::FeedForward];
        if config.variant.output_norms {
            norms.extend([Norm::AttentionOutput, Norm::FeedForwardOutput]);
        }
        if config.variant.qk_norm {
            norms.extend([Norm::Q, Norm::K]);
        }
        norms
    }

    /// Module path within a layer. The norm after attention has the name that elsewhere the one before the feed-forward
    /// part has.
    pub fn path(self, config: &ModelConfig) -> &'static str {
        match self {
            Norm::Attention => "input_layernorm",
            Norm::FeedForward if config.variant.output_norms => "pre_feedforward_layernorm",
            Norm::FeedForward | Norm::AttentionOutput => "post_attention_layernorm",
            Norm::FeedForwardOutput => "post_feedforward_layernorm",
            Norm::Q => "self_attn.q_norm",
            Norm::K => "self_attn.k_norm",
        }
    }

    /// Numbers of its weight.
    pub fn width(self, config: &ModelConfig) -> usize {
        match self {
            Norm::Q | Norm::K => config.head_dim,
            _ => config.hidden_size,
        }
    }
}

/// One layer. Widths of norms are those of [`Norm::width`], of biases the outputs of their maps.
pub struct LayerWeights<B: Backend> {
    /// [`Norm::Attention`].
    pub attention_norm: B::Buf,
    /// [`Norm::FeedForward`].
    pub feed_forward_norm: B::Buf,
    /// [`Norm::AttentionOutput`], where the model has it.
    pub attention_output_norm: Option<B::Buf>,
    /// [`Norm::FeedForwardOutput`], where the model has it.
    pub feed_forward_output_norm: Option<B::Buf>,
    /// [`Norm::Q`], where the model has it.
    pub q_norm: Option<B::Buf>,
    /// [`Norm::K`], where the model has it.
    pub k_norm: Option<B::Buf>,
    /// The linear maps, by [`Linear`].
    pub linears: [B::Matrix; 7],
    /// What they add, where they do, by [`Linear`].
    pub biases: [Option<B::Buf>; 7],
}

impl<B: Backend> LayerWeights<B> {
    /// The matrix of `linear`.
    pub fn linear(&self, linear: Linear) -> &B::Matrix {
        &self.linears[linear as usize]
    }

    /// The bias of `linear`, if it has one.
    pub fn bias(&self, linear: Linear) -> Option<&B::Buf> {
        self.biases[linear as usize].as_ref()
    }

    /// All vectors: norms and biases.
    fn vectors(&self) -> impl Iterator<Item = &B::Buf> {
        let norms = [&self.attention_output_norm, &self.feed_forward_output_norm, &self.q_norm, &self.k_norm];
        let maybe = norms.into_iter().chain(&self.biases).flatten();
        [&self.attention_norm, &self.feed_forward_norm].into_iter().chain(maybe)
    }
}

/// All weights.
pub struct Weights<B: Backend> {
    /// [vocab, hidden]; also the head where `lm_head` is none.
    pub embed_tokens: B::Matrix,
    /// The layers.
    pub layers: Vec<LayerWeights<B>>,
    /// Last norm, `[hidden]`.
    pub norm: B::Buf,
    /// [vocab, hidden]; none: tied to the embedding.
    pub lm_head: Option<B::Matrix>,
}

impl<B: Backend> Weights<B> {
    /// The output head.
    pub fn head(&self) -> &B::Matrix {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// Bytes on the device.
    pub fn bytes(&self, backend: &B) -> usize {
        let matrices = self.layers.iter().flat_map(|l| &l.linears).chain([&self.embed_tokens]).chain(&self.lm_head);
        let vectors = self.layers.iter().flat_map(LayerWeights::vectors).chain([&self.norm]);
        matrices.map(|m| backend.matrix_bytes(m)).sum::<usize>() + vectors.map(|v| 4 * backend.len(v)).sum::<usize>()
    }
}
