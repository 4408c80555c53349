//! 4-bit weights: codes for the quantiles of a normal distribution, over the largest magnitude of each block of consecutive
//! weights. Byte for byte bitsandbytes'.
//!
//! The scales may be coded themselves (double quantisation): `dynamic` codes of their distance from their mean, 256 to a scale.
//! Then a weight takes 4.127 bits, and 4.5 without.

use super::{
    dynamic::{self, NESTED_BLOCK},
    scaled,
};

/// Usual length of a block.
pub const BLOCK: usize = 64;

/// What the codes of NF4 stand for, ascending.
pub const CODES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Weights in 4 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4 {
    /// Two codes a byte, the first in the high half.
    pub packed: Vec<u8>,
    /// The scale of each block.
    pub scales: Scales,
    /// Weights in a block.
    pub block: usize,
    /// How many weights there are.
    pub len: usize,
    /// What the codes stand for: [`CODES`], but for a file that says otherwise (FP4).
    pub codes: [f32; 16],
}

/// The largest magnitude of each block.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// As they are.
    Plain(Vec<f32>),
    /// Coded: `map[codes[i]] * largest[i / block] + offset`.
    Nested {
        /// One a block of weights.
        codes: Vec<u8>,
        /// One for `block` codes.
        largest: Vec<f32>,
        /// The mean of the scales.
        offset: f32,
        /// Codes that share a number of `largest`.
        block: usize,
        /// What the codes stand for.
        map: Box<[f32; 256]>,
    },
}

impl Scales {
    /// Codes `scales`.
    pub fn nested(scales: &[f32]) -> Self {
        let sum: f64 = scales.iter().map(|x| f64::from(*x)).sum();
        let offset = (sum / scales.len().max(1) as f64) as f32;
        let distances: Vec<f32> = scales.iter().map(|x| x - offset).collect();
        let map = &*dynamic::SIGNED;
        let (codes, largest) = dynamic::encode(&distances, map, NESTED_BLOCK);
        Self::Nested { codes, largest, offset, block: NESTED_BLOCK, map: Box::new(*map) }
    }

    /// The scale of block `i`.
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[i],
            Self::Nested { codes, largest, offset, block, map } => {
                dynamic::decode(codes, largest, map, *block, i) + offset
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(scales) => scales.len(),
            Self::Nested { codes, .. } => codes.len(),
        }
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain(scales) => size_of_val(&scales[..]),
            Self::Nested { codes, largest, map, .. } => codes.len() + size_of_val(&largest[..]) + size_of_val(&map[..]),
        }
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Nf4 {
    /// Codes `values` in blocks of `block` (at least 1), which may run across the ends of rows; with `nested`, their scales too.
    pub fn encode(values: &[f32], block: usize, nested: bool) -> Self {
        let mut packed = Vec::with_capacity(values.len().div_ceil(2));
        let mut scales = Vec::with_capacity(values.len().div_ceil(block));
        let mut high = None;
        let mut push = |code: u8| match high.take() {
            None => high = Some(code << 4),
            Some(first) => packed.push(first | code),
        };
        for chunk in values.chunks(block) {
            let (scale, numbers) = scaled(chunk, block);
            numbers.for_each(|x| push(nearest(x)));
            scales.push(scale);
        }
        if !values.len().is_multiple_of(2) {
            push(nearest(0.0));
        }
        let scales = if nested { Scales::nested(&scales) } else { Scales::Plain(scales) };
        Self { packed, scales, block, len: values.len(), codes: CODES }
    }

    /// Decodes `out.len()` weights from the one at place `from` on.
    pub fn decode(&self, from: usize, out: &mut [f32]) {
        let (mut at, mut rest) = (from, out);
        while !rest.is_empty() {
            let block = at / self.block;
            let scale = self.scales.get(block);
            let many = rest.len().min((block + 1) * self.block - at);
            let (now, later) = rest.split_at_mut(many);
            for (i, x) in now.iter_mut().enumerate() {
                let byte = self.packed[(at + i) / 2];
                let code = if (at + i).is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                *x = self.codes[usize::from(code)] * scale;
            }
            (at, rest) = (at + many, later);
        }
    }

    /// All weights.
    pub fn decoded(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len];
        self.decode(0, &mut out);
        out
    }
}

/// The code of the number that is nearest to `x`; between two, of the lower one.
fn nearest(x: f32) -> u8 {
    CODES.windows(2).filter(|pair| x > (pair[0] + pair[1]) / 2.0).count() as u8
}
