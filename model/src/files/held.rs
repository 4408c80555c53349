//! A base in fewer bits than its files have: coded as it is read, so that everybody who reads it, an export too, sees the numbers
//! that are trained on.

use folgore_protocol::Digest;
use serde::Serialize;

use super::{ModelFiles, fault};
use crate::{
    Footprint, HostTensor, ModelError, TensorSource,
    decoder::Linear,
    quant::{Coded, Codes, nf4},
};

/// How the matrices of a base are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Rounded to bfloat16, but for those in codes.
    pub bf16: bool,
    /// The linear maps of all layers in NF4, unless the file has them so already.
    pub nf4: Option<NestedScales>,
}

/// Whether the scales of blocks are coded themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NestedScales(pub bool);

impl ModelFiles {
    /// The same model held as `how` says: another one, with a digest of its own.
    pub fn held(self, how: Held) -> Self {
        if how == Held::default() {
            return self;
        }
        let digest = Digest::of(format!("{} {}", self.digest, serde_json::json!(how)).as_bytes());
        Self { tensors: Box::new(Source { files: self.tensors, how }), digest, ..self }
    }
}

struct Source {
    files: Box<dyn TensorSource + Send + Sync>,
    how: Held,
}

/// The length of NF4's blocks for the matrix `name` with rows of `row` weights.
pub(crate) fn nf4_block(name: &str, row: usize) -> Result<usize, ModelError> {
    nf4::block_of(row).ok_or_else(|| {
        let what = format!("tensor {name} in NF4");
        fault::unsupported("the base", what, &format!("rows of {row} are no multiple of 32"))
    })
}

/// True for the weights of a linear map of a layer.
pub fn is_linear(name: &str) -> bool {
    let module = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')?.1.strip_suffix(".weight"));
    module.is_some_and(|module| Linear::ALL.iter().any(|linear| linear.path() == module))
}

impl TensorSource for Source {
    fn tensor(&self, name: &str) -> Result<HostTensor, ModelError> {
        if let Some(coded) = self.coded(name)? {
            let shape = self.shape(name).unwrap_or_default();
            return Ok(HostTensor::f32(shape, coded.decoded()));
        }
        if self.how.bf16 { self.files.rounded(name) } else { self.files.tensor(name) }
    }

    fn coded(&self, name: &str) -> Result<Option<Coded>, ModelError> {
        let coded = self.files.coded(name)?;
        let in_nf4 = |coded: &Coded| matches!(&coded.codes, Codes::Four { table, .. } if *table == nf4::CODES);
        let there = coded.as_ref().is_some_and(in_nf4);
        match self.how.nf4 {
            Some(NestedScales(nested)) if !there && is_linear(name) => {
                let tensor = self.files.tensor(name)?;
                let block = nf4_block(name, tensor.shape.last().copied().unwrap_or(0))?;
                Ok(Some(nf4::encode(&tensor.into_f32(), block, nested)))
            }
            _ => Ok(coded),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.files.shape(name)
    }

    fn footprint(&self, name: &str) -> Option<Footprint> {
        let (inner, shape) = (self.files.footprint(name)?, self.files.shape(name)?);
        let &[out, row] = shape.as_slice() else { return Some(inner) };
        let count = out * row;
        if let Some(NestedScales(nested)) = self.how.nf4.filter(|_| is_linear(name)) {
            // a file that has it in NF4 already keeps its scales, which are about as large
            let held = nf4::bytes(count, nf4::block_of(row).unwrap_or(nf4::BLOCK), nested) as u64;
            return Some(Footprint { held, loading: inner.loading.max(4 * count as u64 + 2 * held) });
        }
        match self.how.bf16 && inner == Footprint::f32(count) {
            true => Some(self.files.footprint_rounded(name)?),
            false => Some(inner),
        }
    }

    fn names(&self) -> Vec<String> {
        self.files.names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_maps_are_told_by_their_names() {
        assert!(
            is_linear("model.layers.11.self_attn.q_proj.weight") && is_linear("model.layers.0.mlp.down_proj.weight")
        );
        for other in ["lm_head.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.bias"]
        {
            assert!(!is_linear(other), "{other}");
        }
    }
}
