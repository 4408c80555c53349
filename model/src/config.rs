//! The shape of a decoder: what `config.json` or GGUF metadata say, in one form.

use serde::{Deserialize, Serialize};

use crate::decoder::Linear;

/// Shape and constants of a Llama-like decoder; field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Family name (`llama`, `qwen2`, ...), for people; what is computed follows from the other fields alone.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// True if the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Ids that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Id that begins a sequence, where the family has one.
    pub bos_token_id: Option<u32>,
    /// Where the model departs from Llama.
    #[serde(default, skip_serializing_if = "Variant::is_llama")]
    pub variant: Variant,
}

/// Where a model departs from Llama; the default is Llama itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variant {
    /// How the rotary angles of [`ModelConfig::rope_theta`] are stretched.
    pub rope_scaling: RopeScaling,
    /// Layers that see only their nearest past. None: every layer sees everything.
    pub local: Option<Local>,
    /// Linear maps that add a bias, in the order of the forward pass.
    pub biases: Vec<Linear>,
    /// Each head of q and k goes through a norm of its own before it is turned.
    pub qk_norm: bool,
    /// Function of the gate in the feed-forward part.
    pub activation: Activation,
    /// How the weights of all norms are meant.
    pub norm_form: NormForm,
    /// The outputs of attention and of the feed-forward part go through a norm too, before they are added: four norms a layer.
    pub output_norms: bool,
    /// Embeddings are multiplied by it. None: 1.
    pub embedding_scale: Option<f32>,
    /// Attention scores are multiplied by it. None: 1 / sqrt(head_dim).
    pub attention_scale: Option<f32>,
    /// Logits become `cap * tanh(logit / cap)`. None: they stay.
    pub final_softcap: Option<f32>,
}

/// Layers with a sliding window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Local {
    /// Keys that a token sees, itself and those right before it.
    pub window: usize,
    /// For each layer: true if it has the window.
    pub layers: Vec<bool>,
    /// Base of the rotary angles in those layers, which are not stretched. None: angles are those of the other layers.
    pub rope_theta: Option<f32>,
}

/// How rotary frequencies are stretched to reach further than the model was first trained for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// All frequencies are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3.1: long waves are divided by `factor`, short ones stay, those between are mixed.
    Llama3 {
        /// The divisor.
        factor: f32,
        /// Waves longer than the original context divided by this are long.
        low_freq_factor: f32,
        /// Waves shorter than the original context divided by this are short.
        high_freq_factor: f32,
        /// The original context.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023): a ramp over the dimensions from untouched to divided by `factor`.
    Yarn {
        /// The divisor.
        factor: f32,
        /// Multiplies cosines and sines, so that scores grow by its square.
        attention_factor: f32,
        /// Rotations over the original context from which on a dimension stays as it is.
        beta_fast: f32,
        /// Rotations over the original context up to which a dimension is divided in full.
        beta_slow: f32,
        /// The original context.
        original_max_position_embeddings: usize,
        /// The ends of the ramp are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// Frequency `i` is divided by factor `i` (GGUF's `rope_freqs.weight`); head_dim / 2 of them.
    Factors(Vec<f32>),
}

/// Function of the gate in the feed-forward part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    #[default]
    Silu,
    /// GELU in the approximation by tanh (`gelu_pytorch_tanh`).
    GeluTanh,
}

/// How the weight of a norm is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormForm {
    /// The norm is multiplied by it.
    #[default]
    Weight,
    /// The norm is multiplied by one plus it (Gemma).
    OnePlusWeight,
}

impl Variant {
    /// True if the model is as Llama is.
    pub fn is_llama(&self) -> bool {
        *self == Self::default()
    }

    /// Takes back a window that no sequence of `context` tokens can reach, so that equal models have equal shapes.
    pub(crate) fn forget_idle_window(&mut self, context: usize) {
        let same_angles = self.local.as_ref().is_some_and(|local| local.rope_theta.is_none());
        let idle = |local: &Local| local.layers.iter().all(|l| !l) || (local.window >= context && same_angles);
        self.local = self.local.take().filter(|local| !idle(local));
    }
}

impl ModelConfig {
    /// The shape of SmolLM2-135M: the yardstick of the benchmarks.
    pub fn smollm2_135m() -> Self {
        Self {
            model_type: "llama".into(),
            vocab_size: 49_152,
            hidden_size: 576,
            intermediate_size: 1_536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 100_000.0,
            tie_word_embeddings: true,
            max_position_embeddings: 8_192,
            eos_token_ids: vec![2],
            bos_token_id: Some(1),
            variant: Variant::default(),
        }
    }

    /// Factor of attention scores.
    pub fn attention_scale(&self) -> f32 {
        self.variant.attention_scale.unwrap_or_else(|| 1.0 / (self.head_dim as f32).sqrt())
    }

    /// Keys that a token sees in layer `layer`, itself among them. None: all up to itself.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let local = self.variant.local.as_ref()?;
        local.layers.get(layer).copied().unwrap_or(false).then_some(local.window)
    }

    /// True if linear map `linear` adds a bias.
    pub fn has_bias(&self, linear: Linear) -> bool {
        self.variant.biases.contains(&linear)
    }
}
