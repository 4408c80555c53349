//! The moments that AdamW keeps of one tensor: in f32, or in codes of eight bits as bitsandbytes keeps them.

use crate::{
    HostData, HostTensor, ModelError, Tensors,
    backend::{AdamW, Backend},
    quant::dynamic::{BLOCK, Blocks},
};

/// Numbers from which on a tensor's moments are coded; those of smaller ones weigh nothing and stay as they are.
pub const CODED_FROM: usize = 4096;

/// Moments of one tensor.
pub(crate) enum Moments<B: Backend> {
    /// Eight bytes a number.
    F32 { m: B::Buf, v: B::Buf },
    /// Two bytes a number and eight a block.
    Coded { m: B::Codes, v: B::Codes },
}

impl<B: Backend> Moments<B> {
    /// Moments of `len` numbers before the first step.
    pub(crate) fn new(backend: &B, len: usize) -> Self {
        Self::F32 { m: backend.zeros(len), v: backend.zeros(len) }
    }

    /// The same in eight bits.
    pub(crate) fn coded(backend: &B, len: usize) -> Self {
        let zeros = || backend.upload_codes(Blocks::zeros(len));
        if len < CODED_FROM { Self::new(backend, len) } else { Self::Coded { m: zeros(), v: zeros() } }
    }

    pub(crate) fn step(&mut self, backend: &B, value: &mut B::Buf, grad: &B::Buf, settings: &AdamW) {
        match self {
            Self::F32 { m, v } => backend.adamw(value, grad, m, v, settings),
            Self::Coded { m, v } => backend.adamw_8bit(value, grad, m, v, settings),
        }
    }

    /// Both on the host, as `<name>.m` and `<name>.v`; where they are codes, their scales as `<name>.m.absmax`.
    pub(crate) fn download(&self, backend: &B, name: &str, shape: &[usize]) -> Vec<(String, HostTensor)> {
        let numbers =
            |suffix: &str, x: &B::Buf| vec![(format!("{name}.{suffix}"), HostTensor::f32(shape, backend.download(x)))];
        let codes = |suffix: &str, x: &B::Codes| {
            let Blocks { codes, scales } = backend.download_codes(x);
            let codes = HostTensor { shape: shape.to_vec(), data: HostData::U8(codes) };
            let scales = HostTensor::f32([scales.len()], scales);
            vec![(format!("{name}.{suffix}"), codes), (format!("{name}.{suffix}.absmax"), scales)]
        };
        match self {
            Self::F32 { m, v } => [numbers("m", m), numbers("v", v)].concat(),
            Self::Coded { m, v } => [codes("m", m), codes("v", v)].concat(),
        }
    }

    /// Takes both back from what [`Moments::download`] gave for the tensor `name`.
    pub(crate) fn upload(
        &mut self,
        backend: &B,
        name: &str,
        shape: &[usize],
        from: &Tensors,
    ) -> Result<(), ModelError> {
        let numbers = |suffix: &str| {
            let read = read(from, &format!("{name}.{suffix}"), shape, "f32", |data| match data {
                HostData::F32(values) => Some(values),
                _ => None,
            });
            Ok::<_, ModelError>(backend.upload(&read?))
        };
        let codes = |suffix: &str| {
            let codes = read(from, &format!("{name}.{suffix}"), shape, "codes of eight bits", |data| match data {
                HostData::U8(codes) => Some(codes),
                _ => None,
            })?;
            let blocks = [codes.len().div_ceil(BLOCK)];
            let scales = read(from, &format!("{name}.{suffix}.absmax"), &blocks, "f32", |data| match data {
                HostData::F32(values) => Some(values),
                _ => None,
            })?;
            Ok::<_, ModelError>(backend.upload_codes(Blocks { codes, scales }))
        };
        *self = match self {
            Self::F32 { .. } => Self::F32 { m: numbers("m")?, v: numbers("v")? },
            Self::Coded { .. } => Self::Coded { m: codes("m")?, v: codes("v")? },
        };
        Ok(())
    }
}

/// The numbers or codes of one tensor, with shape and kind checked.
fn read<T>(
    from: &Tensors,
    name: &str,
    shape: &[usize],
    kind: &str,
    take: impl Fn(HostData) -> Option<Vec<T>>,
) -> Result<Vec<T>, ModelError> {
    let wrong = |what: &str, expected: String, got: String| ModelError::Invalid {
        place: "optimiser state".into(),
        what: format!("{what} of {name}"),
        expected,
        got,
    };
    let missing = || ModelError::Missing { what: format!("tensor {name}"), place: "optimiser state".into() };
    let tensor = from.get(name).ok_or_else(missing)?;
    if tensor.shape != shape {
        return Err(wrong("shape", format!("{shape:?}"), format!("{:?}", tensor.shape)));
    }
    let got = tensor.data.kind();
    take(tensor.data.clone()).ok_or_else(|| wrong("type", kind.into(), got.into()))
}
