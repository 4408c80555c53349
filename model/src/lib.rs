//! Tokens in, log-probs and gradients out.
//!
//! [`decoder`] is the model, forward and backward, over a [`backend`]; [`lora`] is what trains; [`files`] reads and writes
//! what others read and write (safetensors, GGUF, PEFT); [`tokenizer`] and [`chat`] turn text into ids.

pub mod backend;
pub mod chat;
mod config;
pub mod decoder;
mod error;
pub mod export;
pub mod files;
pub mod lora;
mod moments;
pub mod params;
pub mod quant;
mod tensor;
pub mod tokenizer;

pub use config::{Activation, Local, ModelConfig, NormForm, RopeScaling, Variant};
pub use error::ModelError;
pub use tensor::{Footprint, HostData, HostTensor, TensorSource, Tensors};
