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
}
