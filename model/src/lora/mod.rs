//! Low-rank adapters: `y = W x + s · B (A (dropout x))` with A [r, in], B [out, r] and s = alpha / r, or alpha / √r with
//! rsLoRA (Hu et al. 2021; Kalajdzievski 2023).

mod rules;

use std::collections::BTreeMap;

pub use rules::{Modules, Pattern, Rules};

use crate::{
    HostTensor, ModelConfig, ModelError, Tensors,
    backend::{Backend, MatrixData},
    decoder::Linear,
};

/// Which linear maps carry an adapter, and its size.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraShape {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Scale by alpha / √r instead of alpha / r.
    pub use_rslora: bool,
    /// Share of inputs dropped while learning.
    pub dropout: f32,
    /// The maps, in the order of the forward pass.
    pub targets: Vec<Linear>,
    /// Which of them do not, or with another rank or alpha.
    pub rules: Rules,
}

/// One map's share in an adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rank {
    /// Rank.
    pub r: usize,
    /// Factor of the product.
    pub scale: f32,
}

/// How A begins; B always begins at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraInit {
    /// Uniform in ±1/√in (Kaiming with a = √5), PEFT's default.
    #[default]
    Kaiming,
    /// Normal with deviation 1/r.
    Gaussian,
}

impl LoraShape {
    /// Factor of the adapter's share, where no rule says otherwise.
    pub fn scale(&self) -> f32 {
        self.scale_of(self.r, self.alpha)
    }

    fn scale_of(&self, r: usize, alpha: f32) -> f32 {
        if self.use_rslora { alpha / (r as f32).sqrt() } else { alpha / r as f32 }
    }

    /// The share of one map of one layer; none if it carries no adapter.
    pub fn rank(&self, layer: usize, linear: Linear) -> Option<Rank> {
        let module = linear.module(layer);
        if !self.targets.contains(&linear) || !self.rules.carries(layer, &module) {
            return None;
        }
        let r = self.rules.r(&module).unwrap_or(self.r);
        Some(Rank { r, scale: self.scale_of(r, self.rules.alpha(&module).unwrap_or(self.alpha)) })
    }

    /// All maps that carry an adapter in a model of `layers` layers, layer by layer.
    pub fn modules(&self, layers: usize) -> Vec<(usize, Linear, Rank)> {
        let each = (0..layers).flat_map(|layer| self.targets.iter().map(move |linear| (layer, *linear)));
        each.filter_map(|(layer, linear)| Some((layer, linear, self.rank(layer, linear)?))).collect()
    }

    /// Number of weights in a model of shape `config`.
    pub fn parameters(&self, config: &ModelConfig) -> usize {
        self.tensors(config).into_iter().map(|(_, [rows, columns])| rows * columns).sum()
    }

    /// Names and shapes of all tensors, A before B, layer by layer.
    pub fn tensors(&self, config: &ModelConfig) -> Vec<(String, [usize; 2])> {
        let mut list = Vec::new();
        for (layer, target, Rank { r, .. }) in self.modules(config.num_hidden_layers) {
            let (out, inner) = target.shape(config);
            list.push((format!("{}.lora_A", target.module(layer)), [r, inner]));
            list.push((format!("{}.lora_B", target.module(layer)), [out, r]));
        }
        list
    }
}

/// One map's adapter on a device.
pub struct LoraPair<B: Backend> {
    /// A, [r, in].
    pub a: B::Matrix,
    /// s·B, [out, r]: the scale is folded in.
    pub b: B::Matrix,
    /// Rank.
    pub r: usize,
    /// s.
    pub scale: f32,
}

/// An adapter on a device: what one policy adds to the base.
pub struct Adapter<B: Backend> {
    layers: Vec<[Option<LoraPair<B>>; 7]>,
}

impl<B: Backend> Adapter<B> {
    /// Puts `tensors`, named as [`LoraShape::tensors`] says, on the device. Refuses a missing or foreign name, a wrong shape
    /// and a number that is not finite.
    pub fn load(backend: &B, config: &ModelConfig, shape: &LoraShape, tensors: &Tensors) -> Result<Self, ModelError> {
        let invalid = |what: String, expected: String, got: String| ModelError::Invalid {
            place: "adapter".into(),
            what,
            expected,
            got,
        };
        let expected: BTreeMap<String, [usize; 2]> = shape.tensors(config).into_iter().collect();
        if let Some(name) = tensors.keys().find(|name| !expected.contains_key(*name)) {
            return Err(invalid(format!("tensor {name}"), "only tensors of this model's targets".into(), "it".into()));
        }
        let take = |name: &str| -> Result<Vec<f32>, ModelError> {
            let missing = || ModelError::Missing { what: format!("tensor {name}"), place: "adapter".into() };
            let tensor: &HostTensor = tensors.get(name).ok_or_else(missing)?;
            if tensor.shape != expected[name] {
                let (want, got) = (format!("{:?}", expected[name]), format!("{:?}", tensor.shape));
                return Err(invalid(format!("shape of {name}"), want, got));
            }
            let values = tensor.to_f32();
            match values.iter().find(|v| !v.is_finite()) {
                None => Ok(values),
                Some(v) => Err(invalid(format!("values of {name}"), "finite numbers".into(), v.to_string())),
            }
        };
        let mut adapter = Self { layers: Vec::new() };
        for layer in 0..config.num_hidden_layers {
            let mut pairs: [Option<LoraPair<B>>; 7] = Default::default();
            for target in &shape.targets {
                let Some(Rank { r, scale }) = shape.rank(layer, *target) else { continue };
                let (out, inner) = target.shape(config);
                let a = take(&format!("{}.lora_A", target.module(layer)))?;
                let scaled: Vec<f32> =
                    take(&format!("{}.lora_B", target.module(layer)))?.into_iter().map(|v| v * scale).collect();
                pairs[*target as usize] = Some(LoraPair {
                    a: backend.matrix(MatrixData::F32(&a), r, inner),
                    b: backend.matrix(MatrixData::F32(&scaled), out, r),
                    r,
                    scale,
                });
            }
            adapter.layers.push(pairs);
        }
        Ok(adapter)
    }

    /// The pair on one map, if it carries one.
    pub fn pair(&self, layer: usize, linear: Linear) -> Option<&LoraPair<B>> {
        self.layers.get(layer)?[linear as usize].as_ref()
    }

    /// The pair on one map, to change it.
    pub fn pair_mut(&mut self, layer: usize, linear: Linear) -> Option<&mut LoraPair<B>> {
        self.layers.get_mut(layer)?[linear as usize].as_mut()
    }

    /// Bytes on the device.
    pub fn bytes(&self, backend: &B) -> usize {
        let pairs = self.layers.iter().flatten().flatten();
        pairs.map(|p| backend.matrix_bytes(&p.a) + backend.matrix_bytes(&p.b)).sum()
    }
}
