//! Sixteen f32 lanes, whatever the instruction set: the one type in which kernels are written.
//!
//! A kernel is a function generic over [`Simd`], inlined into a caller that was compiled for the instruction set (see
//! [`crate::backend::cpu::isa`]). Every method is one IEEE operation per lane, so all implementations give equal bits.

use crate::backend::{
    exp,
    lanes::{self, LANES},
};

/// An instruction set: a token that only exists where the processor has it.
pub(crate) trait Simd: Copy {
    /// Sixteen lanes.
    type F: Copy;
    /// What sixteen codes stand for.
    type Table: Copy;

    /// Rows of a register tile of a product: one panel's accumulators, with registers left for what is multiplied.
    const TILE_ROWS: usize = 6;
    /// There are registers for the tiles of [`super::wide`].
    const WIDE: bool = false;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Reads sixteen numbers.
    ///
    /// # Safety
    /// `from` is valid for reads of 16 f32 (any alignment).
    unsafe fn read(self, from: *const f32) -> Self::F;
    /// Writes sixteen numbers.
    ///
    /// # Safety
    /// `to` is valid for writes of 16 f32 (any alignment).
    unsafe fn write(self, to: *mut f32, x: Self::F);
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `b` where `b > a`, else `a`.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// [`crate::backend::exp`] of every lane.
    fn exp(self, x: Self::F) -> Self::F;
    /// The lanes as numbers.
    fn lanes(self, x: Self::F) -> [f32; LANES];
    /// Asks for the cache line at `at`, which need not be valid.
    fn prefetch(self, at: *const f32);
    /// `at`, but the compiler cannot tell any more what it was computed from, and so keeps it in a register of its own.
    #[inline(always)]
    fn apart(self, at: *const f32) -> *const f32 {
        at
    }

    /// A table for [`Simd::look_up`].
    fn table(self, values: &[f32; 16]) -> Self::Table;
    /// What the codes of four inputs stand for, input by input. Four bytes belong to two outputs: byte j holds their codes of input j,
    /// that of output i in the low half and that of output i + 8 in the high half, from byte 4 i on. `SHORT`: the low halves of the
    /// table's numbers are zero.
    ///
    /// # Safety
    /// `codes` is valid for reads of 32 bytes.
    unsafe fn look_up<const SHORT: bool>(self, table: Self::Table, codes: *const u8) -> [Self::F; 4];
    /// Codes of four bits as whole numbers: those of an output are a word, that of the first input lowest, and number j is returned
    /// times 16^j. `HIGH`: the codes of the upper halves, else those of the lower ones.
    ///
    /// # Safety
    /// `codes` is valid for reads of 64 bytes.
    unsafe fn whole<const HIGH: bool>(self, codes: *const u8) -> [Self::F; 4];
    /// Reads sixteen bfloat16 numbers.
    ///
    /// # Safety
    /// `from` is valid for reads of 16 u16 (any alignment).
    unsafe fn read_bf16(self, from: *const u16) -> Self::F;

    /// Reads sixteen whole numbers.
    ///
    /// # Safety
    /// `from` is valid for reads of 16 bytes.
    unsafe fn read_i8(self, from: *const i8) -> Self::F;

    /// Turns a block of sixteen by sixteen: number (r, j) at `from + r * from_row + j` goes to `to + j * to_row + r`.
    ///
    /// # Safety
    /// All places of both blocks are valid, and the blocks do not overlap.
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        for r in 0..LANES {
            for j in 0..LANES {
                // SAFETY: the caller's promise.
                unsafe { *to.add(j * to_row + r) = *from.add(r * from_row + j) }
            }
        }
    }

    /// Reads the first sixteen of `from`.
    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::F {
        assert!(from.len() >= LANES);
        // SAFETY: the length was checked.
        unsafe { self.read(from.as_ptr()) }
    }

    /// Writes the first sixteen of `to`.
    #[inline(always)]
    fn store(self, to: &mut [f32], x: Self::F) {
        assert!(to.len() >= LANES);
        // SAFETY: the length was checked.
        unsafe { self.write(to.as_mut_ptr(), x) }
    }

    /// Reads at most sixteen numbers; the lanes beyond hold `fill`.
    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> Self::F {
        let mut lanes = [fill; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Writes as many lanes as `to` has room for, at most sixteen.
    #[inline(always)]
    fn store_part(self, to: &mut [f32], x: Self::F) {
        to.copy_from_slice(&self.lanes(x)[..to.len()]);
    }

    /// Sum of the lanes, folded as 8, 4, 2, 1.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        lanes::fold(self.lanes(x))
    }

    /// Largest lane.
    #[inline(always)]
    fn largest(self, x: Self::F) -> f32 {
        self.lanes(x).into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
}

/// Portable lanes: an array that the compiler may vectorise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = f(i);
    }
    lanes
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type Table = [f32; 16];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn read(self, from: *const f32) -> Self::F {
        // SAFETY: the caller's promise; an array of f32 is aligned as f32 is.
        unsafe { from.cast::<[f32; LANES]>().read() }
    }
    #[inline(always)]
    unsafe fn write(self, to: *mut f32, x: Self::F) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write(x) }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| if b[i] > a[i] { b[i] } else { a[i] })
    }
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        each(|i| exp(x[i]))
    }
    #[inline(always)]
    fn lanes(self, x: Self::F) -> [f32; LANES] {
        x
    }
    #[inline(always)]
    fn prefetch(self, _at: *const f32) {}
    #[inline(always)]
    fn table(self, values: &[f32; 16]) -> Self::Table {
        *values
    }
    #[inline(always)]
    unsafe fn look_up<const SHORT: bool>(self, table: Self::Table, codes: *const u8) -> [Self::F; 4] {
        // SAFETY: the caller's promise; bytes are always aligned.
        let codes = unsafe { codes.cast::<[u8; 2 * LANES]>().read() };
        std::array::from_fn(|j| each(|i| table[usize::from(codes[i % 8 * 4 + j] >> (i / 8 * 4) & 15)]))
    }
    #[inline(always)]
    unsafe fn whole<const HIGH: bool>(self, codes: *const u8) -> [Self::F; 4] {
        // SAFETY: the caller's promise; bytes are always aligned.
        let words = unsafe { codes.cast::<[[u8; 4]; LANES]>().read() }.map(u32::from_le_bytes);
        let shift = if HIGH { 16 } else { 0 };
        std::array::from_fn(|j| each(|i| (words[i] >> shift & 15 << (4 * j)) as f32))
    }
    #[inline(always)]
    unsafe fn read_bf16(self, from: *const u16) -> Self::F {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(bits[i]) << 16))
    }
    #[inline(always)]
    unsafe fn read_i8(self, from: *const i8) -> Self::F {
        // SAFETY: the caller's promise; bytes are always aligned.
        let numbers = unsafe { from.cast::<[i8; LANES]>().read() };
        each(|i| f32::from(numbers[i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{
        Isa,
        isa::{Checked, kernel},
    };

    #[inline(always)]
    fn operations_in<S: Simd>(s: S, a: &[f32], b: &[f32], out: &mut Vec<f32>) {
        let (x, y) = (s.load(a), s.load(b));
        let each = [s.add(x, y), s.sub(x, y), s.mul(x, y), s.div(x, y), s.fma(x, y, x), s.max(x, y), s.splat(a[3])];
        for v in each {
            out.extend(s.lanes(v));
        }
        out.extend([s.sum(x), s.largest(x)]);
        let codes: [u8; 2 * LANES] = std::array::from_fn(|i| (a[i % 16].to_bits() >> (i / 16 * 8)) as u8);
        let table: [f32; 16] = a[..16].try_into().unwrap();
        let short = table.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000));
        // SAFETY: there are 32 bytes of codes.
        let looked = unsafe {
            [s.look_up::<false>(s.table(&table), codes.as_ptr()), s.look_up::<true>(s.table(&short), codes.as_ptr())]
        };
        out.extend(looked.into_iter().flatten().flat_map(|v| s.lanes(v)));
        let words: [u8; 4 * LANES] = std::array::from_fn(|i| codes[i % 32].rotate_left(i as u32 / 32));
        // SAFETY: there are 64 bytes of codes.
        let whole = unsafe { [s.whole::<false>(words.as_ptr()), s.whole::<true>(words.as_ptr())] };
        out.extend(whole.into_iter().flatten().flat_map(|v| s.lanes(v)));
        let bits: [u16; LANES] = std::array::from_fn(|i| (b[i].to_bits() >> 16) as u16);
        // SAFETY: as above.
        let wide = unsafe {
            [s.read_bf16(bits.as_ptr()), s.read_i8([-128, -1, 0, 1, 127, 5, -7, 9, 1, 2, 3, 4, 5, 6, 7, 8].as_ptr())]
        };
        out.extend(wide.into_iter().flat_map(|v| s.lanes(v)));
        out.extend(s.lanes(s.load_part(&a[..5], -1.0)));
        let mut part = [0.0; 7];
        s.store_part(&mut part, y);
        out.extend(part);
    }

    kernel!(fn operations = operations_in(a: &[f32], b: &[f32], out: &mut Vec<f32>));

    #[inline(always)]
    fn exp_in<S: Simd>(s: S, x: &mut [f32]) {
        for x in x.as_chunks_mut::<LANES>().0 {
            let e = s.exp(s.load(x));
            s.store(x, e);
        }
    }

    kernel!(fn exp_all = exp_in(x: &mut [f32]));

    #[inline(always)]
    fn transpose_one<S: Simd>(s: S, from: &[f32], to: &mut [f32]) {
        assert!(from.len() >= 15 * 20 + 16 && to.len() >= 15 * 24 + 16);
        // SAFETY: the lengths were checked.
        unsafe { s.transpose(from.as_ptr(), 20, to.as_mut_ptr(), 24) }
    }

    kernel!(fn turned = transpose_one(from: &[f32], to: &mut [f32]));

    fn equal(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    #[test]
    fn every_operation_has_the_bits_of_the_scalar_one() {
        let best = Checked::new(Isa::best());
        for i in 0..2000u64 {
            let number = |j: u64| f32::from_bits(folgore_protocol::seed::bits(1, i * 64 + j) as u32);
            let (a, b): (Vec<f32>, Vec<f32>) = (0..16).map(|j| (number(j), number(j + 16))).unzip();
            let (mut got, mut want) = (Vec::new(), Vec::new());
            operations(best, &a, &b, &mut got);
            operations(Checked::new(Isa::Scalar), &a, &b, &mut want);
            for (g, w) in got.iter().zip(&want) {
                assert!(equal(*g, *w), "{g:e} {w:e} of {a:?} {b:?}");
            }
        }
    }

    #[test]
    fn vector_exp_has_the_bits_of_the_scalar_one() {
        // every 251st of all f32, NaN and infinities among them
        let all: Vec<f32> = (0..=u32::MAX / 251).map(|i| f32::from_bits(i * 251)).collect();
        let mut got = all.clone();
        exp_all(Checked::new(Isa::best()), &mut got);
        for (x, g) in all.as_chunks::<LANES>().0.as_flattened().iter().zip(&got) {
            assert!(equal(*g, exp(*x)), "exp({x:e}) is {:e}, by vectors {g:e}", exp(*x));
        }
        // and every f32 in three octaves of the range that soft-max uses
        for first in [(-1.0f32).to_bits(), (-16.0f32).to_bits(), 0.5f32.to_bits()] {
            let mut got: Vec<f32> = (first..first + (1 << 20)).map(f32::from_bits).collect();
            let want: Vec<f32> = got.iter().map(|x| exp(*x)).collect();
            exp_all(Checked::new(Isa::best()), &mut got);
            assert!(got.iter().zip(&want).all(|(g, w)| equal(*g, *w)));
        }
    }

    #[test]
    fn a_block_is_turned() {
        for isa in [Isa::Scalar, Isa::best()] {
            let from: Vec<f32> = (0..16 * 20).map(|i| i as f32).collect();
            let mut to = vec![-1.0; 16 * 24];
            turned(Checked::new(isa), &from, &mut to);
            for r in 0..16 {
                for j in 0..16 {
                    assert_eq!(to[j * 24 + r], from[r * 20 + j]);
                }
            }
            assert_eq!(to.iter().filter(|x| **x == -1.0).count(), 16 * 8);
        }
    }
}
