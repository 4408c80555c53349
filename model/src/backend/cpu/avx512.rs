//! [`Simd`] on AVX-512: sixteen lanes are one register. Each method is the instruction of its name.

use std::arch::{asm, x86_64::*};

use super::{avx2::Avx2, simd::Simd};
use crate::backend::{
    exp::{HIGHEST, LN2_HI, LN2_LO, LOG2E, LOWEST, POWERS},
    lanes::LANES,
};

/// Proof that the processor has AVX-512 F, AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// Makes the token.
    ///
    /// # Safety
    /// The processor has AVX-512 F, AVX2 and FMA.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// [`crate::backend::exp`], step by step.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn exp16(x: __m512) -> __m512 {
    let set = |v: f32| _mm512_set1_ps(v);
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    let n = _mm512_roundscale_ps::<NEAREST>(_mm512_mul_ps(x, set(LOG2E)));
    let r = _mm512_fmadd_ps(n, set(-LN2_LO), _mm512_fmadd_ps(n, set(-LN2_HI), x));
    let mut p = set(POWERS[0]);
    for coefficient in &POWERS[1..] {
        p = _mm512_fmadd_ps(p, r, set(*coefficient));
    }
    let e = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r), set(1.0));
    let n = _mm512_cvtps_epi32(n);
    let half = _mm512_srai_epi32::<1>(n);
    let bias = _mm512_set1_epi32(127);
    let low = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(half, bias)));
    let high = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_sub_epi32(n, half), bias)));
    let e = _mm512_mul_ps(_mm512_mul_ps(e, low), high);
    let overflow = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, set(HIGHEST));
    let underflow = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, set(LOWEST));
    _mm512_maskz_mov_ps(!underflow, _mm512_mask_blend_ps(overflow, e, set(f32::INFINITY)))
}

// SAFETY of every block below: an `Avx512` exists only where its maker vouched for the instruction set; pointers are the
// caller's promise.
impl Simd for Avx512 {
    type F = __m512;
    type Table = __m512;

    /// 12 accumulators of the 32 registers: more than the latency of a chain asks for.
    const TILE_ROWS: usize = 12;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn read(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn write(self, to: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // the instruction gives its second operand unless the first is greater
        unsafe { _mm512_max_ps(b, a) }
    }
    #[inline(always)]
    fn exp(self, x: __m512) -> __m512 {
        unsafe { exp16(x) }
    }
    #[inline(always)]
    fn lanes(self, x: __m512) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has room for the register.
        unsafe { self.write(lanes.as_mut_ptr(), x) };
        lanes
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        unsafe { Avx2::new().transpose(from, from_row, to, to_row) }
    }
    #[inline(always)]
    fn table(self, values: &[f32; 16]) -> __m512 {
        unsafe { self.read(values.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn look_up<const SHORT: bool>(self, table: __m512, codes: *const u8) -> [__m512; 4] {
        unsafe {
            // lane i of both halves: the bytes of outputs i and i + 8, shifted so that the code of its own comes first
            let both = _mm512_broadcast_i64x4(_mm256_loadu_si256(codes.cast()));
            let own = _mm512_srlv_epi32(both, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4));
            // a permutation looks at four bits of each lane
            [
                _mm512_permutexvar_ps(own, table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<8>(own), table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<16>(own), table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<24>(own), table),
            ]
        }
    }
    #[inline(always)]
    unsafe fn whole<const HIGH: bool>(self, codes: *const u8) -> [__m512; 4] {
        unsafe {
            let words = _mm512_loadu_si512(codes.cast());
            let words = if HIGH { _mm512_srli_epi32::<16>(words) } else { words };
            [
                _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(15))),
                _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(15 << 4))),
                _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(15 << 8))),
                _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(15 << 12))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn read_bf16(self, from: *const u16) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn read_i8(self, from: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    #[allow(clippy::pointers_in_nomem_asm_block, reason = "nothing is read or written")]
    fn apart(self, mut at: *const f32) -> *const f32 {
        // SAFETY: no instruction at all.
        unsafe { asm!("/* {} */", inout(reg) at, options(pure, nomem, nostack, preserves_flags)) };
        at
    }
    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
