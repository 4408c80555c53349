//! A policy as files for others: base and adapter merged into a Hugging Face folder or a GGUF file, or the adapter alone as GGUF.
//!
//! [`Merged`] makes one tensor of the policy at a time, so that no second copy of the model is ever in memory. What is written
//! here is read back by [`crate::files`]; whether it still is the policy is for the caller to see.

mod adapter_gguf;
mod config_text;
mod folder;
mod gguf;
mod shape;
mod vocabulary;

use std::collections::BTreeMap;

use rayon::prelude::*;

pub use adapter_gguf::{read as read_adapter_gguf, write as write_adapter_gguf};
pub use folder::{Precision, write as write_folder, write_nf4, write_tokenizer};
pub use gguf::{Quant, write as write_gguf};
pub use shape::{as_gguf, differences};

use crate::{
    HostTensor, ModelConfig, ModelError, TensorSource, Tensors,
    files::{fault, peft::AdapterFile},
};

/// The weights of a policy: those of its base, plus what its adapter adds, computed when they are asked for.
pub struct Merged<'a> {
    base: &'a dyn TensorSource,
    adapter: Option<&'a AdapterFile>,
    /// Factor of the adapter's product, by the module that it belongs to.
    scales: BTreeMap<String, f32>,
}

impl<'a> Merged<'a> {
    /// `adapter`, which has to fit a model of shape `config`, on `base`; without one the base itself.
    pub fn new(
        base: &'a dyn TensorSource,
        config: &ModelConfig,
        adapter: Option<&'a AdapterFile>,
    ) -> Result<Self, ModelError> {
        let mut scales = BTreeMap::new();
        if let Some(file) = adapter {
            file.validate("adapter", config)?;
            let shape = file.config.shape();
            for (layer, linear, rank) in shape.modules(config.num_hidden_layers) {
                scales.insert(linear.module(layer), rank.scale);
            }
        }
        Ok(Self { base, adapter, scales })
    }
}

impl TensorSource for Merged<'_> {
    fn tensor(&self, name: &str) -> Result<HostTensor, ModelError> {
        let tensor = self.base.tensor(name)?;
        let (Some(adapter), Some(module)) = (self.adapter, name.strip_suffix(".weight")) else { return Ok(tensor) };
        let Some(scale) = self.scales.get(module) else { return Ok(tensor) };
        let mut values = tensor.to_f32();
        add(&mut values, &tensor.shape, &adapter.tensors, module, *scale)?;
        if let Some(magnitude) = adapter.magnitude(module) {
            give_rows_norms(&mut values, &magnitude.to_f32());
        }
        Ok(HostTensor::f32(tensor.shape, values))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.base.names()
    }
}

/// Adds `scale · B A` to `values` of `shape` [out, in]; the sum of each product is formed before it is added.
fn add(values: &mut [f32], shape: &[usize], tensors: &Tensors, module: &str, scale: f32) -> Result<(), ModelError> {
    let side = |name: &str| {
        let name = format!("{module}.{name}");
        tensors.get(&name).ok_or_else(|| fault::missing("adapter", format!("tensor {name}")))
    };
    let (a, b) = (side("lora_A")?, side("lora_B")?);
    let [_, inner] = shape[..] else { return Err(fault::invalid("base", module, "a matrix", format!("{shape:?}"))) };
    let r = a.shape.first().copied().unwrap_or(0);
    let (a, b) = (a.to_f32(), b.to_f32());
    values.par_chunks_mut(inner).zip(b.par_chunks(r)).for_each(|(row, b)| {
        let mut sum = vec![0.0f32; inner];
        for (a, b) in a.chunks(inner).zip(b) {
            let factor = scale * b;
            sum.iter_mut().zip(a).for_each(|(s, a)| *s += factor * a);
        }
        row.iter_mut().zip(sum).for_each(|(w, s)| *w += s);
    });
    Ok(())
}

/// Scales each row to the norm that `magnitude` says (DoRA, Liu et al. 2024).
fn give_rows_norms(values: &mut [f32], magnitude: &[f32]) {
    let width = values.len() / magnitude.len().max(1);
    values.par_chunks_mut(width.max(1)).zip(magnitude).for_each(|(row, magnitude)| {
        let norm = row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt();
        let factor = if norm > 0.0 { (f64::from(*magnitude) / norm) as f32 } else { 0.0 };
        row.iter_mut().for_each(|w| *w *= factor);
    });
}
