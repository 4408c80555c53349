//! Codes that are whole numbers of four bits, times scales of few bits, plus least numbers: GGUF's Q4_1 and Q4_K.
//!
//! A number is `fl(fl(code * scale) + least)`. Where the product has no more than 24 bits it is exact, and one fused operation gives
//! the bits of two. Codes are multiplied by 16^j where they lie in a word, scales by its inverse: both exactly, so nobody shifts.

use super::{
    coded::{CodedPanels, NUMBERS},
    panels::{Panels, bytes_ahead},
    simd::Simd,
};
use crate::quant::{Coded, Codes, Scales};

/// Inputs whose codes are a word of each output.
const OCTET: usize = 8;
/// Bits of a scale that have to be zero for its products with codes to be exact.
const SPARE: u32 = 15;
/// Magnitudes of scales: far from where exponents end.
const SCALES: std::ops::Range<f32> = 1e-25..1e25;

/// True if [`Exact`] gives the numbers of `coded`.
pub(super) fn holds(coded: &Coded) -> bool {
    let (Codes::Four { table, .. }, Scales::Plain(scales), Some(_)) = (&coded.codes, &coded.scales, &coded.least)
    else {
        return false;
    };
    // by their bits, because a zero that is less than zero would become the other one
    let whole = table.iter().enumerate().all(|(code, number)| (code as f32).to_bits() == number.to_bits());
    whole && coded.block.is_multiple_of(OCTET) && scales.iter().all(exact)
}

/// True if products of `scale` and codes are exact, also where the scale was divided by a power of 16.
fn exact(scale: &f32) -> bool {
    scale.to_bits() == 0 || scale.to_bits() & SPARE == 0 && SCALES.contains(&scale.abs())
}

/// Writes the code of input `i` of a block to its codes, for the output in `lane`: they are zero before.
pub(super) fn put(to: &mut [u8], lane: usize, i: usize, code: u8) {
    to[i / OCTET * NUMBERS + lane * size_of::<u32>() + i % OCTET / 2] |= code << (i % 2 * 4);
}

/// The numbers of such a matrix. A record is scales, least numbers, and a cache line of codes for eight inputs, as [`Simd::whole`] has
/// them.
#[derive(Clone, Copy)]
pub(super) struct Exact<'a> {
    matrix: &'a CodedPanels,
    /// Where the records begin.
    records: *const u8,
    /// Bytes ahead of its own use that memory is asked for.
    ahead: usize,
}

impl<'a> Exact<'a> {
    /// `matrix`, whose records are such.
    pub(super) fn new(matrix: &'a CodedPanels) -> Self {
        Self { matrix, records: matrix.start(), ahead: 0 }
    }
}

impl<S: Simd> Panels<S> for Exact<'_> {
    const STEP: usize = OCTET;
    const PAIRED: bool = true;
    /// The codes, their scales over 1, 16, 256 and 4096, and their least numbers.
    type Shared = (*const u8, [S::F; 4], S::F);

    #[inline(always)]
    fn block(self) -> usize {
        self.matrix.block
    }
    #[inline(always)]
    unsafe fn shared(self, s: S, panel: usize, block: usize) -> Self::Shared {
        // SAFETY: the caller promises that there is such a block.
        unsafe {
            let at = self.records.add((panel * self.matrix.blocks + block) * self.matrix.record);
            s.prefetch(at.wrapping_add(self.ahead).cast());
            s.prefetch(at.wrapping_add(self.ahead + NUMBERS).cast());
            let (scales, least) = (s.read(at.cast()), s.read(at.add(NUMBERS).cast()));
            let [a, b, c] = [1.0 / 16.0, 1.0 / 256.0, 1.0 / 4096.0];
            let scales = [scales, s.mul(scales, s.splat(a)), s.mul(scales, s.splat(b)), s.mul(scales, s.splat(c))];
            (at.add(2 * NUMBERS), scales, least)
        }
    }
    #[inline(always)]
    unsafe fn step(self, s: S, shared: Self::Shared, panel: usize, i: usize, mut take: impl FnMut(usize, S::F)) {
        // SAFETY: the caller's promise.
        unsafe { self.steps(s, &[shared], panel, i, |_, j, number| take(j, number)) }
    }
    #[inline(always)]
    unsafe fn steps<const P: usize>(
        self,
        s: S,
        shared: &[Self::Shared; P],
        _first: usize,
        i: usize,
        mut take: impl FnMut(usize, usize, S::F),
    ) {
        let line = i / OCTET * NUMBERS;
        let mut values = [[s.splat(0.0); 4]; P];
        // SAFETY: the caller's promise.
        unsafe {
            for p in 0..P {
                s.prefetch(shared[p].0.wrapping_add(line + self.ahead).cast());
                values[p] = s.whole::<false>(shared[p].0.add(line));
            }
            for j in 0..4 {
                for p in 0..P {
                    take(p, j, s.fma(values[p][j], shared[p].1[j], shared[p].2));
                }
            }
            for p in 0..P {
                values[p] = s.whole::<true>(shared[p].0.add(line));
            }
            for j in 0..4 {
                for p in 0..P {
                    take(p, 4 + j, s.fma(values[p][j], shared[p].1[j], shared[p].2));
                }
            }
        }
    }
    #[inline(always)]
    fn for_tile(self, group: usize, _tile: usize, _tiles: usize, _k: usize) -> Self {
        Self { ahead: bytes_ahead(group * self.matrix.blocks * self.matrix.record), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_exact_as_long_as_their_last_bits_are_zero_and_their_exponents_moderate() {
        let half = |bits: u16| half::f16::from_bits(bits).to_f32();
        // every scale that GGUF can hold in two bytes, but for zero below zero
        assert!((0..0x7c00).all(|bits| exact(&half(bits)) && (bits == 0 || exact(&-half(bits)))));
        assert!(!exact(&-0.0), "-0 * code is -0, and the sum with a least number of -0 would differ");
        let one = 1.0f32.to_bits();
        assert!(
            exact(&f32::from_bits(one + 16)) && !exact(&f32::from_bits(one + 8)) && !exact(&f32::from_bits(one + 1))
        );
        assert!(!exact(&f32::INFINITY) && !exact(&f32::NAN) && !exact(&2f32.powi(100)) && !exact(&2f32.powi(-100)));
        for scale in [half(0x3c01), half(1), half(0x7bff)] {
            for code in 0..16u8 {
                let wide = f64::from(scale) * f64::from(code);
                assert_eq!(f64::from(scale * f32::from(code)), wide, "{scale} * {code}");
            }
        }
    }

    #[test]
    fn only_tables_of_whole_numbers_hold() {
        let coded = |table: [f32; 16]| Coded {
            codes: Codes::Four { packed: vec![0; 16], table },
            scales: Scales::Plain(vec![0.5]),
            least: Some(vec![1.0]),
            block: 32,
            len: 32,
        };
        let whole: [f32; 16] = std::array::from_fn(|code| code as f32);
        assert!(holds(&coded(whole)));
        assert!(!holds(&coded(whole.map(|number| if number == 0.0 { -0.0 } else { number }))));
        assert!(!holds(&coded(whole.map(|number| number - 8.0))));
    }
}
