//! The block types of GGUF that are served, and their decoding to f32.

use half::{bf16, f16};

use crate::files::safetensors::le_chunks;

/// A served block type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q8_0,
}

/// All that are served, for messages.
pub(crate) const SERVED: &str = "F32, F16, BF16, Q8_0, Q4_0 and Q4_1";

/// Numbers in one quantised block.
const QK: usize = 32;

impl Block {
    /// The type with number `kind`; its name, if it is not served.
    pub(crate) fn from_number(kind: u32) -> Result<Self, String> {
        Ok(match kind {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            30 => Self::Bf16,
            _ => {
                return Err(NAMES
                    .iter()
                    .find(|(k, _)| *k == kind)
                    .map_or(format!("number {kind}"), |(_, n)| (*n).into()));
            }
        })
    }

    /// (numbers, bytes) of one block.
    pub(crate) fn size(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (QK, 2 + QK / 2),
            Self::Q4_1 => (QK, 4 + QK / 2),
            Self::Q8_0 => (QK, 2 + QK),
        }
    }

    /// Bytes of a tensor of `shape`: rows are whole blocks. None if they are not, or on overflow.
    pub(crate) fn bytes(self, shape: &[usize]) -> Option<usize> {
        let (numbers, bytes) = self.size();
        let row = *shape.last()?;
        let count = shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size))?;
        if row.is_multiple_of(numbers) { (count / numbers).checked_mul(bytes) } else { None }
    }

    /// Decodes whole blocks.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let blocks = bytes.chunks_exact(self.size().1);
        match self {
            Self::F32 => le_chunks(bytes, f32::from_le_bytes),
            Self::F16 => le_chunks(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => le_chunks(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Self::Q8_0 => blocks.flat_map(q8_0).collect(),
            Self::Q4_0 => blocks.flat_map(q4_0).collect(),
            Self::Q4_1 => blocks.flat_map(q4_1).collect(),
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// x = d q
fn q8_0(block: &[u8]) -> [f32; QK] {
    let d = half_at(block, 0);
    std::array::from_fn(|i| d * f32::from(block[2 + i] as i8))
}

/// x = d (q - 8); the low halves of the bytes come first, then the high ones.
fn q4_0(block: &[u8]) -> [f32; QK] {
    let d = half_at(block, 0);
    std::array::from_fn(|i| d * (f32::from(nibble(&block[2..], i)) - 8.0))
}

/// x = d q + m
fn q4_1(block: &[u8]) -> [f32; QK] {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    std::array::from_fn(|i| d * f32::from(nibble(&block[4..], i)) + m)
}

fn nibble(packed: &[u8], i: usize) -> u8 {
    if i < QK / 2 { packed[i] & 15 } else { packed[i - QK / 2] >> 4 }
}

/// Names of the types of ggml that are not served.
const NAMES: &[(u32, &str)] = &[
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
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
        ];
        for (ours, theirs) in pairs {
            let (numbers, bytes) = ours.size();
            assert_eq!((numbers, bytes), (theirs.block_size(), theirs.type_size()));
            // exponents are kept small, so that no number is infinite or NaN
            let data: Vec<u8> =
                (0..64 * bytes as u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8 & 0xbb).collect();
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
        assert_eq!(Block::from_number(12), Err("Q4_K".into()));
        assert_eq!(Block::from_number(77), Err("number 77".into()));
    }
}
