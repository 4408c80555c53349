//! The block types of GGUF that are served, and their decoding to f32: bit for bit what the `gguf` package gives. The larger
//! blocks are in `kquants.rs`, encoding is in `quantise.rs`.

use half::{bf16, f16};

use super::kquants;
use crate::{
    files::safetensors::le_chunks,
    quant::{Coded, Codes, Scales},
};

/// A type of block: how numbers are coded in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are ggml's")]
pub enum Block {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// All that are served, for messages.
pub(crate) const SERVED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and Q2_K to Q6_K";

/// Numbers in one simple block.
pub(super) const QK: usize = 32;

/// Every block with ggml's number for it and its name.
const BLOCKS: [(Block, u32, &str); 13] = [
    (Block::F32, 0, "F32"),
    (Block::F16, 1, "F16"),
    (Block::Q4_0, 2, "Q4_0"),
    (Block::Q4_1, 3, "Q4_1"),
    (Block::Q5_0, 6, "Q5_0"),
    (Block::Q5_1, 7, "Q5_1"),
    (Block::Q8_0, 8, "Q8_0"),
    (Block::Q2K, 10, "Q2_K"),
    (Block::Q3K, 11, "Q3_K"),
    (Block::Q4K, 12, "Q4_K"),
    (Block::Q5K, 13, "Q5_K"),
    (Block::Q6K, 14, "Q6_K"),
    (Block::Bf16, 30, "BF16"),
];

impl Block {
    /// The type with ggml's number `kind`; its name, if it is not served.
    pub(crate) fn from_number(kind: u32) -> Result<Self, String> {
        let served = BLOCKS.iter().find(|(_, number, _)| *number == kind).map(|(block, ..)| *block);
        let name = || NAMES.iter().find(|(k, _)| *k == kind).map_or(format!("number {kind}"), |(_, n)| (*n).into());
        served.ok_or_else(name)
    }

    /// ggml's number and name.
    fn entry(self) -> (u32, &'static str) {
        BLOCKS.iter().find(|(block, ..)| *block == self).map_or((0, "F32"), |(_, number, name)| (*number, *name))
    }

    /// ggml's number.
    pub fn number(self) -> u32 {
        self.entry().0
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// (numbers, bytes) of one block.
    pub fn size(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (QK, 2 + QK / 2),
            Self::Q4_1 => (QK, 4 + QK / 2),
            Self::Q5_0 => (QK, 6 + QK / 2),
            Self::Q5_1 => (QK, 8 + QK / 2),
            Self::Q8_0 => (QK, 2 + QK),
            Self::Q2K => (kquants::QK_K, 84),
            Self::Q3K => (kquants::QK_K, 110),
            Self::Q4K => (kquants::QK_K, 144),
            Self::Q5K => (kquants::QK_K, 176),
            Self::Q6K => (kquants::QK_K, 210),
        }
    }

    /// Bytes of a tensor of `shape`: rows are whole blocks. None if they are not, or on overflow.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let (numbers, bytes) = self.size();
        let row = *shape.last()?;
        let count = shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size))?;
        if row.is_multiple_of(numbers) { (count / numbers).checked_mul(bytes) } else { None }
    }

    /// True for numbers without a scale.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Decodes whole blocks.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => le_chunks(bytes, f32::from_le_bytes),
            Self::F16 => le_chunks(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => le_chunks(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            _ => self.coded(bytes).map(|coded| coded.decoded()).unwrap_or_default(),
        }
    }

    /// The codes of whole blocks; none where the numbers are plain.
    pub fn coded(self, bytes: &[u8]) -> Option<Coded> {
        Some(match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q4_0 => apart(bytes, q4_0, Some(-8)),
            Self::Q4_1 => apart(bytes, q4_1, Some(0)),
            Self::Q5_0 => apart(bytes, q5_0, None),
            Self::Q5_1 => apart(bytes, q5_1, None),
            Self::Q8_0 => apart(bytes, q8_0, None),
            Self::Q2K => apart(bytes, kquants::q2_k, Some(0)),
            Self::Q3K => apart(bytes, kquants::q3_k, Some(-4)),
            Self::Q4K => apart(bytes, kquants::q4_k, Some(0)),
            Self::Q5K => apart(bytes, kquants::q5_k, None),
            Self::Q6K => apart(bytes, kquants::q6_k, None),
        })
    }
}

/// A block taken apart: number i is `codes[i]` times the scale of its group, plus the least number of the group.
pub(super) struct Parts<const NUMBERS: usize, const GROUPS: usize> {
    pub(super) codes: [i8; NUMBERS],
    pub(super) scales: [f32; GROUPS],
    pub(super) least: Option<[f32; GROUPS]>,
}

/// Takes block after block of `BYTES` bytes apart. Where all codes are within 16 numbers, `lowest` is the first of them.
fn apart<const BYTES: usize, const NUMBERS: usize, const GROUPS: usize>(
    bytes: &[u8],
    part: fn(&[u8; BYTES]) -> Parts<NUMBERS, GROUPS>,
    lowest: Option<i8>,
) -> Coded {
    let blocks = bytes.as_chunks::<BYTES>().0;
    let (mut packed, mut wide) = (Vec::new(), Vec::new());
    let (mut scales, mut least) = (Vec::with_capacity(blocks.len() * GROUPS), Vec::new());
    for block in blocks {
        let parts = part(block);
        match lowest {
            Some(lowest) => {
                let code = |code: i8| (code - lowest) as u8;
                packed.extend(parts.codes.as_chunks().0.iter().map(|[a, b]| code(*a) << 4 | code(*b)));
            }
            None => wide.extend(parts.codes),
        }
        scales.extend(parts.scales);
        least.extend(parts.least.into_iter().flatten());
    }
    let codes = match lowest {
        Some(lowest) => Codes::Four { packed, table: std::array::from_fn(|i| f32::from(lowest) + i as f32) },
        None => Codes::Eight(wide),
    };
    let least = Some(least).filter(|least| !least.is_empty());
    Coded { codes, scales: Scales::Plain(scales), least, block: NUMBERS / GROUPS, len: blocks.len() * NUMBERS }
}

pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// x = d q
fn q8_0(block: &[u8; 34]) -> Parts<QK, 1> {
    Parts { codes: std::array::from_fn(|i| block[2 + i] as i8), scales: [half_at(block, 0)], least: None }
}

/// x = d (q - 8); the low halves of the bytes come first, then the high ones.
fn q4_0(block: &[u8; 18]) -> Parts<QK, 1> {
    let codes = std::array::from_fn(|i| nibble(&block[2..], i) as i8 - 8);
    Parts { codes, scales: [half_at(block, 0)], least: None }
}

/// x = d q + m
fn q4_1(block: &[u8; 20]) -> Parts<QK, 1> {
    let codes = std::array::from_fn(|i| nibble(&block[4..], i) as i8);
    Parts { codes, scales: [half_at(block, 0)], least: Some([half_at(block, 2)]) }
}

/// x = d (q - 16); the fifth bits lie apart, one a number.
fn q5_0(block: &[u8; 22]) -> Parts<QK, 1> {
    let codes = std::array::from_fn(|i| (nibble(&block[6..], i) | bit(&block[2..], i) << 4) as i8 - 16);
    Parts { codes, scales: [half_at(block, 0)], least: None }
}

/// x = d q + m
fn q5_1(block: &[u8; 24]) -> Parts<QK, 1> {
    let codes = std::array::from_fn(|i| (nibble(&block[8..], i) | bit(&block[4..], i) << 4) as i8);
    Parts { codes, scales: [half_at(block, 0)], least: Some([half_at(block, 2)]) }
}

fn nibble(packed: &[u8], i: usize) -> u8 {
    if i < QK / 2 { packed[i] & 15 } else { packed[i - QK / 2] >> 4 }
}

fn bit(packed: &[u8], i: usize) -> u8 {
    packed[i / 8] >> (i % 8) & 1
}

/// Names of the types of ggml that are not served.
const NAMES: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;

    #[test]
    fn decoding_equals_candle_on_random_blocks() {
        let pairs = [
            (Block::F32, GgmlDType::F32),
            (Block::F16, GgmlDType::F16),
            (Block::Bf16, GgmlDType::BF16),
            (Block::Q4_0, GgmlDType::Q4_0),
            (Block::Q4_1, GgmlDType::Q4_1),
            (Block::Q8_0, GgmlDType::Q8_0),
            (Block::Q5_0, GgmlDType::Q5_0),
            (Block::Q5_1, GgmlDType::Q5_1),
            (Block::Q2K, GgmlDType::Q2K),
            (Block::Q3K, GgmlDType::Q3K),
            (Block::Q4K, GgmlDType::Q4K),
            (Block::Q5K, GgmlDType::Q5K),
            (Block::Q6K, GgmlDType::Q6K),
        ];
        for (ours, theirs) in pairs {
            let (numbers, bytes) = ours.size();
            assert_eq!((numbers, bytes), (theirs.block_size(), theirs.type_size()));
            // exponents are kept small, so that no number is infinite or NaN
            let data: Vec<u8> =
                (0..64 * bytes as u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8 & 0xbb).collect();
            assert_eq!(Block::from_number(ours.number()), Ok(ours));
            let reference = theirs.from_data(data.clone().into()).dequantize(64 * numbers).unwrap();
            let candle_core::CpuStorage::F32(reference) = reference else { panic!("not f32") };
            assert_eq!(ours.decode(&data), reference, "{ours:?}");
        }
    }

    #[test]
    fn sizes_are_whole_blocks_and_never_overflow() {
        assert_eq!(Block::Q4_1.bytes(&[3, 64]), Some(3 * 2 * 20));
        assert_eq!(Block::Q4_1.bytes(&[64, 3]), None);
        assert_eq!(Block::F32.bytes(&[1 << 39, 1 << 39]), None);
        assert_eq!(Block::Q4K.bytes(&[3, 512]), Some(3 * 2 * 144));
        assert_eq!(Block::Q4K.bytes(&[3, 288]), None);
        assert_eq!(Block::from_number(20), Err("IQ4_NL".into()));
        assert_eq!(Block::from_number(77), Err("number 77".into()));
    }
}
