//! Tensors on the host, as files hold them.

use std::collections::BTreeMap;

use half::bf16;

use crate::quant::Coded;

/// A tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Values.
    pub data: HostData,
}

/// Values of a [`HostTensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum HostData {
    /// f32.
    F32(Vec<f32>),
    /// bfloat16 bits.
    Bf16(Vec<u16>),
    /// Codes of eight bits, which stand for nothing without a map: an optimiser's state, never weights.
    U8(Vec<u8>),
}

impl HostData {
    /// The type in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::Bf16(_) => "bf16",
            Self::U8(_) => "codes of eight bits",
        }
    }
}

impl HostTensor {
    /// An f32 tensor.
    ///
    /// # Panics
    /// If the number of values is not the product of `shape`.
    pub fn f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), values.len(), "tensor of shape {shape:?}");
        Self { shape, data: HostData::F32(values) }
    }

    /// The first value that is infinite or no number.
    pub fn first_not_finite(&self) -> Option<f32> {
        let wide = |bits: &u16| f32::from_bits(u32::from(*bits) << 16);
        match &self.data {
            HostData::F32(values) => values.iter().copied().find(|value| !value.is_finite()),
            HostData::Bf16(bits) => bits.iter().map(wide).find(|value| !value.is_finite()),
            HostData::U8(_) => None,
        }
    }

    /// The values as f32, without a copy where they are.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self { data: HostData::F32(values), .. } => values,
            other => other.to_f32(),
        }
    }

    /// The values as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            HostData::F32(values) => values.clone(),
            HostData::Bf16(bits) => bits.iter().map(|b| f32::from_bits(u32::from(*b) << 16)).collect(),
            HostData::U8(codes) => codes.iter().map(|code| f32::from(*code)).collect(),
        }
    }
}

/// Bytes of memory that a tensor takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Once it is on the processor's device.
    pub held: u64,
    /// At most, while it is brought there: what is read, what it is turned to, and what is held.
    pub loading: u64,
}

impl Footprint {
    /// Of `count` numbers that are read as f32 and stay so.
    pub fn f32(count: usize) -> Self {
        let held = 4 * count as u64;
        Self { held, loading: 2 * held }
    }

    /// Of `count` numbers that are read as bfloat16 and stay so.
    pub fn bf16(count: usize) -> Self {
        let held = 2 * count as u64;
        Self { held, loading: 2 * held }
    }

    /// Of codes that take `held` bytes and are read as such.
    pub fn coded(held: usize) -> Self {
        let held = held as u64;
        Self { held, loading: 2 * held }
    }
}

/// Named tensors, in order of their names.
pub type Tensors = BTreeMap<String, HostTensor>;

/// Where a model's weights come from: a folder of safetensors or a GGUF file, always under Hugging Face names
/// (`model.layers.0.self_attn.q_proj.weight`) and in Hugging Face layout (q and k rows in `rotate_half` order).
pub trait TensorSource {
    /// Reads one tensor; the error names the tensor and the file.
    fn tensor(&self, name: &str) -> Result<HostTensor, crate::ModelError>;
    /// A matrix in codes of four bits, where it is held so; [`TensorSource::tensor`] decodes it.
    fn coded(&self, name: &str) -> Result<Option<Coded>, crate::ModelError> {
        let _ = name;
        Ok(None)
    }
    /// [`TensorSource::tensor`], but a matrix in f32 is rounded to bfloat16.
    fn rounded(&self, name: &str) -> Result<HostTensor, crate::ModelError> {
        let mut tensor = self.tensor(name)?;
        if let (2, HostData::F32(values)) = (tensor.shape.len(), &tensor.data) {
            tensor.data = HostData::Bf16(values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect());
        }
        Ok(tensor)
    }
    /// Shape of a tensor without reading it; none if it is not there.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
    /// The memory of a tensor, known without reading it; none if it is not there.
    fn footprint(&self, name: &str) -> Option<Footprint> {
        Some(Footprint::f32(self.shape(name)?.iter().product()))
    }
    /// The same for a matrix in f32 that [`TensorSource::rounded`] gives.
    fn footprint_rounded(&self, name: &str) -> Option<Footprint> {
        let count = self.shape(name)?.iter().product();
        let Footprint { held, .. } = Footprint::bf16(count);
        // its bytes, and the f32 numbers that they are
        Some(Footprint { held, loading: Footprint::f32(count).loading })
    }
    /// All names.
    fn names(&self) -> Vec<String>;
}

impl TensorSource for Tensors {
    fn tensor(&self, name: &str) -> Result<HostTensor, crate::ModelError> {
        self.get(name)
            .cloned()
            .ok_or_else(|| crate::ModelError::Missing { what: format!("tensor {name}"), place: "memory".into() })
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.get(name).map(|t| t.shape.clone())
    }

    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}
