//! [`Simd`] on AVX2 and FMA: sixteen lanes are two registers.

use std::arch::{asm, x86_64::*};

use super::simd::Simd;
use crate::backend::{
    exp::{HIGHEST, LN2_HI, LN2_LO, LOG2E, LOWEST, POWERS},
    lanes::LANES,
};

/// Proof that the processor has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Makes the token.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Two registers of eight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair(__m256, __m256);

/// [`crate::backend::exp`], step by step, on eight lanes.
///
/// # Safety
/// The processor has AVX2 and FMA.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn exp8(x: __m256) -> __m256 {
    let set = |v: f32| _mm256_set1_ps(v);
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(x, set(LOG2E)));
    let r = _mm256_fmadd_ps(n, set(-LN2_LO), _mm256_fmadd_ps(n, set(-LN2_HI), x));
    let mut p = set(POWERS[0]);
    for coefficient in &POWERS[1..] {
        p = _mm256_fmadd_ps(p, r, set(*coefficient));
    }
    let e = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r), set(1.0));
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    let bias = _mm256_set1_epi32(127);
    let low = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
    let high = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias)));
    let e = _mm256_mul_ps(_mm256_mul_ps(e, low), high);
    let overflow = _mm256_cmp_ps::<_CMP_GT_OQ>(x, set(HIGHEST));
    let underflow = _mm256_cmp_ps::<_CMP_LT_OQ>(x, set(LOWEST));
    _mm256_andnot_ps(underflow, _mm256_blendv_ps(e, set(f32::INFINITY), overflow))
}

/// [`Simd::look_up`] for eight outputs, a code a byte: bytes of numbers are looked up, sixteen in each half, and put together.
///
/// # Safety
/// The processor has AVX2.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn look_up8<const SHORT: bool>(table: [__m256i; 4], codes: __m256i) -> [__m256; 4] {
    // in each half four outputs of an input together, instead of four inputs of an output
    let by_inputs = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    let codes = _mm256_shuffle_epi8(codes, by_inputs);
    let words = |first: __m256i, second: __m256i| {
        let (first, second) = (_mm256_shuffle_epi8(first, codes), _mm256_shuffle_epi8(second, codes));
        (_mm256_unpacklo_epi8(first, second), _mm256_unpackhi_epi8(first, second))
    };
    let zero = _mm256_setzero_si256();
    let low = if SHORT { (zero, zero) } else { words(table[0], table[1]) };
    let high = words(table[2], table[3]);
    [
        _mm256_castsi256_ps(_mm256_unpacklo_epi16(low.0, high.0)),
        _mm256_castsi256_ps(_mm256_unpackhi_epi16(low.0, high.0)),
        _mm256_castsi256_ps(_mm256_unpacklo_epi16(low.1, high.1)),
        _mm256_castsi256_ps(_mm256_unpackhi_epi16(low.1, high.1)),
    ]
}

/// [`Simd::whole`] for eight outputs.
///
/// # Safety
/// The processor has AVX2.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn whole8<const HIGH: bool>(words: __m256i) -> [__m256; 4] {
    let words = if HIGH { _mm256_srli_epi32::<16>(words) } else { words };
    [
        _mm256_cvtepi32_ps(_mm256_and_si256(words, _mm256_set1_epi32(15))),
        _mm256_cvtepi32_ps(_mm256_and_si256(words, _mm256_set1_epi32(15 << 4))),
        _mm256_cvtepi32_ps(_mm256_and_si256(words, _mm256_set1_epi32(15 << 8))),
        _mm256_cvtepi32_ps(_mm256_and_si256(words, _mm256_set1_epi32(15 << 12))),
    ]
}

/// Turns a block of eight by eight.
///
/// # Safety
/// The processor has AVX2; all places of both blocks are valid.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn transpose8(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    // SAFETY: the caller's promise.
    let row = |r: usize| unsafe { _mm256_loadu_ps(from.add(r * from_row)) };
    let pairs = [0, 2, 4, 6].map(|r| (row(r), row(r + 1)));
    let low = pairs.map(|(a, b)| _mm256_unpacklo_ps(a, b));
    let high = pairs.map(|(a, b)| _mm256_unpackhi_ps(a, b));
    let quads = |q: [__m256; 4], r: usize| {
        (_mm256_shuffle_ps::<0x44>(q[r], q[r + 1]), _mm256_shuffle_ps::<0xee>(q[r], q[r + 1]))
    };
    let columns = |r: usize| {
        let ((a, b), (c, d)) = (quads(low, r), quads(high, r));
        [a, b, c, d]
    };
    let (top, bottom) = (columns(0), columns(2));
    for j in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_ps(to.add(j * to_row), _mm256_permute2f128_ps::<0x20>(top[j], bottom[j]));
            _mm256_storeu_ps(to.add((j + 4) * to_row), _mm256_permute2f128_ps::<0x31>(top[j], bottom[j]));
        }
    }
}

// SAFETY of every block below: an `Avx2` exists only where its maker vouched for the instruction set; pointers are the
// caller's promise.
impl Simd for Avx2 {
    type F = Pair;
    /// The first bytes of the numbers in either half, their second ones, and so on.
    type Table = [__m256i; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        unsafe { Pair(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn read(self, from: *const f32) -> Pair {
        unsafe { Pair(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn write(self, to: *mut f32, x: Pair) {
        unsafe {
            _mm256_storeu_ps(to, x.0);
            _mm256_storeu_ps(to.add(8), x.1);
        }
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        unsafe { Pair(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        unsafe { Pair(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        unsafe { Pair(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        unsafe { Pair(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        unsafe { Pair(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        // the instruction gives its second operand unless the first is greater
        unsafe { Pair(_mm256_max_ps(b.0, a.0), _mm256_max_ps(b.1, a.1)) }
    }
    #[inline(always)]
    fn exp(self, x: Pair) -> Pair {
        unsafe { Pair(exp8(x.0), exp8(x.1)) }
    }
    #[inline(always)]
    fn lanes(self, x: Pair) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has room for both registers.
        unsafe { self.write(lanes.as_mut_ptr(), x) };
        lanes
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        unsafe {
            transpose8(from, from_row, to, to_row);
            transpose8(from.add(8), from_row, to.add(8 * to_row), to_row);
            transpose8(from.add(8 * from_row), from_row, to.add(8), to_row);
            transpose8(from.add(8 * from_row + 8), from_row, to.add(8 * to_row + 8), to_row);
        }
    }
    #[inline(always)]
    fn table(self, values: &[f32; 16]) -> Self::Table {
        let bytes = |byte: usize| {
            let bytes = values.map(|value| value.to_le_bytes()[byte]);
            // SAFETY: sixteen bytes are there.
            unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
        };
        [bytes(0), bytes(1), bytes(2), bytes(3)]
    }
    #[inline(always)]
    unsafe fn look_up<const SHORT: bool>(self, table: Self::Table, codes: *const u8) -> [Pair; 4] {
        unsafe {
            let (both, low) = (_mm256_loadu_si256(codes.cast()), _mm256_set1_epi8(15));
            let first = look_up8::<SHORT>(table, _mm256_and_si256(both, low));
            let second = look_up8::<SHORT>(table, _mm256_and_si256(_mm256_srli_epi16::<4>(both), low));
            [Pair(first[0], second[0]), Pair(first[1], second[1]), Pair(first[2], second[2]), Pair(first[3], second[3])]
        }
    }
    #[inline(always)]
    unsafe fn whole<const HIGH: bool>(self, codes: *const u8) -> [Pair; 4] {
        unsafe {
            let (first, second) = (_mm256_loadu_si256(codes.cast()), _mm256_loadu_si256(codes.add(32).cast()));
            let (first, second) = (whole8::<HIGH>(first), whole8::<HIGH>(second));
            [Pair(first[0], second[0]), Pair(first[1], second[1]), Pair(first[2], second[2]), Pair(first[3], second[3])]
        }
    }
    #[inline(always)]
    unsafe fn read_bf16(self, from: *const u16) -> Pair {
        unsafe {
            let wide = |from: *const u16| {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            };
            Pair(wide(from), wide(from.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn read_i8(self, from: *const i8) -> Pair {
        unsafe {
            let wide = |from: *const i8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())));
            Pair(wide(from), wide(from.add(8)))
        }
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
