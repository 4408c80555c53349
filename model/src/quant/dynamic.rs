//! The dynamic 8-bit code: numbers of a block over its largest magnitude, with few digits near 1 and a wide range near 0.
//!
//! In a block whose largest magnitude is `s`, a number of magnitude `10^-(d+1) s` to `10^-d s`, d from 0 to 6, is off by at most
//! `0.45 * 2^d / 64 * 10^-d s`, in the map without signs by half of that: 0.7 % and 0.35 % of `s` at most. What is smaller is off
//! by at most `4.5e-7 s`. So it is as long as `s` is at least 1e-38.

use std::sync::LazyLock;

use super::scaled;

/// Numbers that share a scale.
pub const BLOCK: usize = 256;

/// What codes stand for.
#[derive(Debug)]
pub struct Map {
    /// The number of each code, ascending.
    pub numbers: [f32; 256],
    /// Up to where each number is taken.
    bounds: [f32; 255],
}

/// One decade after another from 1e-6, in each twice as many numbers as before, on both sides of 0, and 1. There is no -1.
pub static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(true));
/// The same for what is never negative: twice as many numbers in each decade. Nothing above 0 is coded as 0, where bitsandbytes
/// takes the nearest: a second moment of 0 beside a first one that is not makes an update without bounds.
pub static UNSIGNED: LazyLock<Map> = LazyLock::new(|| {
    let mut map = Map::new(false);
    map.bounds[0] = 0.0;
    map
});

impl Map {
    fn new(signed: bool) -> Self {
        let mut values = vec![0.0, 1.0];
        for decade in 0..7u32 {
            let count = if signed { 1 << decade } else { 2 << decade };
            let bounds = linspace(0.1, 1.0, count + 1);
            let power = 10f64.powi(decade as i32 - 6);
            for pair in bounds.windows(2) {
                let middle = (pair[0] + pair[1]) / 2.0;
                // torch multiplies by a Python number in f32
                let value = power as f32 * middle;
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let (mut numbers, mut bounds) = ([0.0; 256], [0.0; 255]);
        numbers.copy_from_slice(&values);
        bounds.iter_mut().zip(numbers.windows(2)).for_each(|(bound, pair)| *bound = (pair[0] + pair[1]) / 2.0);
        Self { numbers, bounds }
    }

    /// The code of the nearest number, of two that are as near the lower one.
    #[inline(always)]
    fn nearest(&self, x: f32) -> u8 {
        self.bounds.partition_point(|bound| *bound < x) as u8
    }

    /// Writes the codes of a block and returns its scale.
    #[inline(always)]
    pub(crate) fn encode(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let (scale, numbers) = scaled(values, BLOCK);
        codes.iter_mut().zip(numbers).for_each(|(code, x)| *code = self.nearest(x));
        scale
    }

    /// Writes the numbers of a block.
    #[inline(always)]
    pub(crate) fn decode(&self, codes: &[u8], scale: f32, values: &mut [f32]) {
        values.iter_mut().zip(codes).for_each(|(value, code)| *value = self.numbers[usize::from(*code)] * scale);
    }
}

/// torch's: from both ends to the middle, each number rounded once.
fn linspace(from: f32, to: f32, count: usize) -> Vec<f32> {
    let step = (to - from) / (count - 1) as f32;
    let half = count / 2;
    let at =
        |i: usize| if i < half { step.mul_add(i as f32, from) } else { step.mul_add(-((count - 1 - i) as f32), to) };
    (0..count).map(at).collect()
}

/// Numbers in codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// One a number.
    pub codes: Vec<u8>,
    /// One for [`BLOCK`] codes: the largest magnitude of the block.
    pub scales: Vec<f32>,
}

impl Blocks {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self { codes: vec![0; len], scales: vec![0.0; len.div_ceil(BLOCK)] }
    }

    /// Codes `values`.
    pub fn encode(values: &[f32], map: &Map) -> Self {
        let mut blocks = Self::zeros(values.len());
        let each = values.chunks(BLOCK).zip(blocks.codes.chunks_mut(BLOCK)).zip(&mut blocks.scales);
        each.for_each(|((values, codes), scale)| *scale = map.encode(values, codes));
        blocks
    }

    /// The numbers.
    pub fn decode(&self, map: &Map) -> Vec<f32> {
        let mut values = vec![0.0; self.codes.len()];
        let each = values.chunks_mut(BLOCK).zip(self.codes.chunks(BLOCK)).zip(&self.scales);
        each.for_each(|((values, codes), scale)| map.decode(codes, *scale, values));
        values
    }
}

/// The number at place `i` of codes in blocks of `block`.
pub fn decode(codes: &[u8], scales: &[f32], map: &[f32; 256], block: usize, i: usize) -> f32 {
    map[usize::from(codes[i])] * scales[i / block]
}

#[cfg(test)]
mod tests {
    use folgore_protocol::seed;

    use super::*;

    /// The bound that the head of this file states.
    fn bound(x: f32, largest: f32, signed: bool) -> f64 {
        let (x, s) = (f64::from(x.abs()), f64::from(largest));
        let decade = (0..7).find(|d| x >= 10f64.powi(-d - 1) * s);
        let half = if signed { 1.0 } else { 0.5 };
        decade.map_or(4.5e-7 * s, |d| half * 0.45 * 2f64.powi(d) / 64.0 * 10f64.powi(-d) * s)
    }

    #[test]
    fn numbers_in_codes_are_off_by_no_more_than_the_bound() {
        let mut most = [0.0f64; 2];
        for case in 0..400u64 {
            // from a short block of one to three blocks, of magnitudes over many decades, the largest of either sign
            let count = 1 + seed::below(case, 0, 700) as usize;
            let spread = 0.5 * (case % 10) as f32;
            let size = 10f32.powi((case % 31) as i32 - 18);
            let stream = seed::mix(&[case, 1]);
            let values: Vec<f32> = (0..count as u64)
                .map(|i| size * seed::normal(stream, 2 * i) * 10f32.powf(spread * seed::normal(stream, 2 * i + 1)))
                .collect();
            for (map, signed) in [(&*SIGNED, true), (&*UNSIGNED, false)] {
                let values: Vec<f32> = if signed { values.clone() } else { values.iter().map(|x| x.abs()).collect() };
                let blocks = Blocks::encode(&values, map);
                for (i, (back, x)) in blocks.decode(map).iter().zip(&values).enumerate() {
                    let (largest, error) = (blocks.scales[i / BLOCK], (f64::from(*back) - f64::from(*x)).abs());
                    // six digits: the numbers of the map and the division are rounded too
                    let limit = bound(*x, largest, signed) * 1.00001 + 1e-7 * f64::from(x.abs());
                    assert!(
                        error <= limit,
                        "case {case}: {x:e} is {back:e}, largest {largest:e}: {error:e} > {limit:e}"
                    );
                    assert!(signed || *x == 0.0 || *back > 0.0, "case {case}: {x:e} became 0");
                    most[usize::from(signed)] = most[usize::from(signed)].max(error / f64::from(largest));
                }
            }
        }
        // and no less than the bound says, or it would be another code
        assert!(most[0] > 0.0033 && most[1] > 0.0066, "{most:?}");
    }

    #[test]
    fn zeros_stay_zeros() {
        for map in [&*SIGNED, &*UNSIGNED] {
            assert_eq!(Blocks::zeros(300).decode(map), [0.0; 300]);
            assert_eq!(Blocks::encode(&[0.0; 300], map).decode(map), [0.0; 300]);
        }
    }
}
