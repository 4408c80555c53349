//! The dynamic 8-bit code: numbers of a block over its largest magnitude, with few digits near 1 and a wide range near 0.

use std::sync::LazyLock;

use super::scaled;

/// Numbers that share a scale where the scales of NF4 are coded themselves.
pub const NESTED_BLOCK: usize = 256;

/// The 256 numbers that codes stand for, ascending: one decade after another from 1e-6, in each twice as many as before, on both
/// sides of 0, and 1. There is no -1.
pub static SIGNED: LazyLock<[f32; 256]> = LazyLock::new(map);

fn map() -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for decade in 0..7u32 {
        let bounds = linspace(0.1, 1.0, (1 << decade) + 1);
        let power = 10f64.powi(decade as i32 - 6);
        for pair in bounds.windows(2) {
            let middle = (pair[0] + pair[1]) / 2.0;
            // torch multiplies by a Python number in f32
            let value = power as f32 * middle;
            values.extend([value, -value]);
        }
    }
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&values);
    map
}

/// torch's: from both ends to the middle, each number rounded once.
fn linspace(from: f32, to: f32, count: usize) -> Vec<f32> {
    let step = (to - from) / (count - 1) as f32;
    let half = count / 2;
    let at =
        |i: usize| if i < half { step.mul_add(i as f32, from) } else { step.mul_add(-((count - 1 - i) as f32), to) };
    (0..count).map(at).collect()
}

/// Codes of `values` and the scale of every block of `block`. The nearest number of `map` is taken, of two that are as near the
/// lower one.
pub fn encode(values: &[f32], map: &[f32; 256], block: usize) -> (Vec<u8>, Vec<f32>) {
    let bounds: Vec<f32> = map.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
    let mut codes = Vec::with_capacity(values.len());
    let mut scales = Vec::with_capacity(values.len().div_ceil(block));
    for chunk in values.chunks(block) {
        let (scale, numbers) = scaled(chunk, block);
        codes.extend(numbers.map(|x| bounds.partition_point(|bound| *bound < x) as u8));
        scales.push(scale);
    }
    (codes, scales)
}

/// The number at place `i`.
pub fn decode(codes: &[u8], scales: &[f32], map: &[f32; 256], block: usize, i: usize) -> f32 {
    map[usize::from(codes[i])] * scales[i / block]
}
