//! Weights in few bits: [`Coded`] is what they are, whoever coded them. [`nf4`] codes as bitsandbytes does (QLoRA, Dettmers et al.
//! 2023), [`dynamic`] the scales of its blocks (Dettmers et al. 2022); `files/gguf/blocks.rs` takes the blocks of GGUF apart.

pub mod dynamic;
pub mod nf4;

/// Weights as codes: weight i is what its code stands for, times the scale of its block, plus the least number of the block where there
/// is one. Each of the two operations rounds once.
#[derive(Clone, Debug, PartialEq)]
pub struct Coded {
    /// A code for each weight.
    pub codes: Codes,
    /// A scale for each block.
    pub scales: Scales,
    /// What is added, for each block.
    pub least: Option<Vec<f32>>,
    /// Consecutive weights that are a block.
    pub block: usize,
    /// How many weights there are.
    pub len: usize,
}

/// The codes of weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Codes {
    /// Places in a table.
    Four {
        /// Two codes a byte, the first in the high half.
        packed: Vec<u8>,
        /// What they stand for.
        table: [f32; 16],
    },
    /// The whole numbers themselves.
    Eight(Vec<i8>),
}

impl Codes {
    /// What the codes stand for from the one of weight `from` on.
    fn get(&self, from: usize, out: &mut [f32]) {
        match self {
            Self::Four { packed, table } => {
                for (i, x) in out.iter_mut().enumerate() {
                    *x = table[usize::from(nibble(packed, from + i))];
                }
            }
            Self::Eight(codes) => out.iter_mut().zip(&codes[from..]).for_each(|(x, code)| *x = f32::from(*code)),
        }
    }
}

/// Code `i` of two a byte.
pub(crate) fn nibble(packed: &[u8], i: usize) -> u8 {
    if i.is_multiple_of(2) { packed[i / 2] >> 4 } else { packed[i / 2] & 15 }
}

impl Coded {
    /// Decodes `out.len()` weights from the one at place `from` on.
    pub fn decode(&self, from: usize, out: &mut [f32]) {
        let (mut at, mut rest) = (from, out);
        while !rest.is_empty() {
            let block = at / self.block;
            let (scale, least) = (self.scales.get(block), self.least.as_ref().map(|least| least[block]));
            let many = rest.len().min((block + 1) * self.block - at);
            let (now, later) = rest.split_at_mut(many);
            self.codes.get(at, now);
            now.iter_mut().for_each(|x| *x *= scale);
            if let Some(least) = least {
                now.iter_mut().for_each(|x| *x += least);
            }
            (at, rest) = (at + many, later);
        }
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        let codes = match &self.codes {
            Codes::Four { packed, .. } => packed.len(),
            Codes::Eight(codes) => codes.len(),
        };
        codes + self.scales.bytes() + self.least.as_ref().map_or(0, |least| size_of_val(&least[..]))
    }

    /// All weights.
    pub fn decoded(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len];
        self.decode(0, &mut out);
        out
    }
}

/// What the codes of each block are multiplied by.
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
        let dynamic::Blocks { codes, scales } = dynamic::Blocks::encode(&distances, map);
        Self::Nested { codes, largest: scales, offset, block: dynamic::BLOCK, map: Box::new(map.numbers) }
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

/// The least that a block is divided by.
const SMALLEST: f32 = 1e-38;

/// The largest magnitude of a block, and its numbers over that. A block of fewer than `block` numbers, the last one, is divided;
/// the others are multiplied by the inverse, as bitsandbytes does.
fn scaled(numbers: &[f32], block: usize) -> (f32, impl Iterator<Item = f32>) {
    let largest = largest(numbers);
    let divisor = largest.max(SMALLEST);
    let (inverse, whole) = (1.0 / divisor, numbers.len() == block);
    let over = move |x: &f32| if whole { x * inverse } else { x / divisor };
    (largest, numbers.iter().map(move |x| over(x).clamp(-1.0, 1.0)))
}

/// The largest magnitude, by lanes: the largest of many does not depend on the order.
fn largest(numbers: &[f32]) -> f32 {
    let (eights, rest) = numbers.as_chunks::<8>();
    let mut most = [0.0f32; 8];
    for eight in eights {
        most.iter_mut().zip(eight).for_each(|(most, x)| *most = most.max(x.abs()));
    }
    most.iter().chain(rest).fold(0.0, |most, x| most.max(x.abs()))
}
