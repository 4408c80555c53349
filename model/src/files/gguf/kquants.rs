//! The K blocks of GGUF: 256 numbers, parted into groups whose scales are numbers of a few bits themselves.
//!
//! Bytes are shared by numbers that lie 32 (or 64) apart: the comments of each decoder say which.

use super::blocks::{Parts, half_at};

/// Numbers in one block.
pub(super) const QK_K: usize = 256;

/// Two bits of number `i`: each run of 32 bytes holds four runs of 32 numbers, the first in the lowest bits.
fn pair(packed: &[u8], i: usize) -> u8 {
    packed[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// Four bits of number `i`: each run of 32 bytes holds two runs of 32 numbers.
fn nibble(packed: &[u8], i: usize) -> u8 {
    packed[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

/// One bit of number `i`: 32 bytes hold eight runs of 32 numbers.
fn bit(packed: &[u8], i: usize) -> u8 {
    packed[i % 32] >> (i / 32) & 1
}

/// x = d s q - dmin m, with s and m of four bits for each 16 numbers, q of two bits.
pub(super) fn q2_k(block: &[u8; 84]) -> Parts<QK_K, 16> {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    Parts {
        codes: std::array::from_fn(|i| pair(qs, i) as i8),
        scales: std::array::from_fn(|group| d * f32::from(scales[group] & 15)),
        least: Some(std::array::from_fn(|group| -(dmin * f32::from(scales[group] >> 4)))),
    }
}

/// x = d s q, with s of six bits and a sign for each 16 numbers; q has two bits, and is 4 less where its third bit is not set.
pub(super) fn q3_k(block: &[u8; 110]) -> Parts<QK_K, 16> {
    let (high, qs, scales, d) = (&block[..32], &block[32..96], &block[96..108], half_at(block, 108));
    let scale = |group: usize| {
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let top = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        d * (f32::from(low | top << 4) - 32.0)
    };
    let codes = std::array::from_fn(|i| pair(qs, i) as i8 - (bit(high, i) ^ 1) as i8 * 4);
    Parts { codes, scales: std::array::from_fn(scale), least: None }
}

/// The eight scales and minima of six bits that Q4_K and Q5_K pack into twelve bytes.
pub(super) fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => {
            let low = packed[group + 4];
            (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
        }
    }
}

/// d s of each 32 numbers, and what is added to them: dmin m less than nothing.
fn scales(block: &[u8]) -> ([f32; 8], Option<[f32; 8]>) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let of = |group: usize| scale_and_min(&block[4..16], group);
    (
        std::array::from_fn(|group| d * f32::from(of(group).0)),
        Some(std::array::from_fn(|group| -(dmin * f32::from(of(group).1)))),
    )
}

/// x = d s q - dmin m, with q of four bits.
pub(super) fn q4_k(block: &[u8; 144]) -> Parts<QK_K, 8> {
    let (scales, least) = scales(block);
    Parts { codes: std::array::from_fn(|i| nibble(&block[16..], i) as i8), scales, least }
}

/// x = d s q - dmin m, with q of five bits, the fifth apart.
pub(super) fn q5_k(block: &[u8; 176]) -> Parts<QK_K, 8> {
    let ((scales, least), high, low) = (scales(block), &block[16..48], &block[48..]);
    Parts { codes: std::array::from_fn(|i| (nibble(low, i) | bit(high, i) << 4) as i8), scales, least }
}

/// x = d s (q - 32), with s of eight bits for each 16 numbers, q of six: four in runs of 64 bytes, two apart.
pub(super) fn q6_k(block: &[u8; 210]) -> Parts<QK_K, 16> {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    let code = |i: usize| {
        let four = low[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        (four | pair(high, i) << 4) as i8 - 32
    };
    Parts {
        codes: std::array::from_fn(code),
        scales: std::array::from_fn(|group| d * f32::from(scales[group] as i8)),
        least: None,
    }
}
