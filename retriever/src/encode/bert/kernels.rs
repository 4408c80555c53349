//! What BERT computes between its matrix products: attention, layer norms, GELU. Each is compiled for what the processor has.

use rayon::prelude::*;

/// Numbers that go side by side.
const LANES: usize = 16;
/// Rows of attention that go over the keys together.
const ROWS: usize = 4;

/// Compiles `$body` for AVX-512, for AVX2 and for any processor, and takes the best that this one has.
macro_rules! compiled {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) = $body:ident) => {
        $(#[$doc])*
        fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,fma")]
                fn wide($($arg: $type),*) {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn narrow($($arg: $type),*) {
                    $body::<true>($($arg),*)
                }
                if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl") {
                    // SAFETY: the processor has what the function is compiled for.
                    return unsafe { wide($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { narrow($($arg),*) };
                }
            }
            $body::<false>($($arg),*)
        }
    };
}

/// `a * b + c`, in one rounding where the processor can. Not for closures that go to an iterator: one that is not taken into the function
/// that is compiled for the processor makes a call of each.
#[inline(always)]
fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// e^x for x up to 88; 0 below -87. Relative error under 3e-7. Without a branch, so that lanes go side by side.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // adding it rounds to a whole number, which then stands in the lowest bits
    let clamped = x.max(-87.0);
    let shifted = fma::<FUSED>(clamped, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = fma::<FUSED>(n, 2.121_944_4e-4, fma::<FUSED>(n, -(355.0 / 512.0), clamped));
    let mut p = 1.388_888_9e-3;
    for coefficient in [8.333_334e-3, 4.166_666_6e-2, 1.666_666_7e-1, 0.5, 1.0, 1.0] {
        p = fma::<FUSED>(p, r, coefficient);
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { p * power }
}

/// GELU as BERT has it, `x * Φ(x)`; the error function by Abramowitz and Stegun 7.1.26, exact to 1.5e-7.
#[inline(always)]
fn gelu<const FUSED: bool>(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / fma::<FUSED>(0.327_591_1, z, 1.0);
    let mut p = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = fma::<FUSED>(p, t, coefficient);
    }
    // 1 - |erf|: what is left of the smaller side
    let rest = p * t * exp::<FUSED>(-z * z);
    0.5 * x * if x < 0.0 { rest } else { 2.0 - rest }
}

#[inline(always)]
fn gelu_all<const FUSED: bool>(x: &mut [f32]) {
    for x in x {
        *x = gelu::<FUSED>(*x);
    }
}

#[inline(always)]
fn sum(x: impl Iterator<Item = [f32; LANES]>) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for block in x {
        for lane in 0..LANES {
            lanes[lane] += block[lane];
        }
    }
    lanes.iter().sum()
}

/// `x = norm(x + more) * weight + bias` for each row; rows are of a multiple of [`LANES`] numbers or a little slower.
#[inline(always)]
fn norm_rows<const FUSED: bool>(x: &mut [f32], more: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let width = weight.len();
    for (x, more) in x.chunks_exact_mut(width).zip(more.chunks_exact(width)) {
        x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
        let (blocks, rest) = x.as_chunks::<LANES>();
        let mean = (sum(blocks.iter().copied()) + rest.iter().sum::<f32>()) / width as f32;
        let square = |x: f32| (x - mean) * (x - mean);
        let spread = sum(blocks.iter().map(|b| b.map(square))) + rest.iter().copied().map(square).sum::<f32>();
        let scale = 1.0 / (spread / width as f32 + eps).sqrt();
        for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
            *x = fma::<FUSED>((*x - mean) * scale, *weight, *bias);
        }
    }
}

/// Sums over `i` of `left[row][i] * right[i][first + lane]`, for [`ROWS`] rows and [`LANES`] columns at a time, in registers; `right`
/// has rows of `stride` numbers.
#[inline(always)]
fn tile<const FUSED: bool>(left: [&[f32]; ROWS], right: &[f32], stride: usize, first: usize) -> [[f32; LANES]; ROWS] {
    let mut sums = [[0.0f32; LANES]; ROWS];
    let count = left[0].len();
    let left = left.map(|row| &row[..count]);
    for i in 0..count {
        let column: &[f32; LANES] = right[i * stride + first..].first_chunk().expect("rows are of whole lanes");
        for row in 0..ROWS {
            for lane in 0..LANES {
                sums[row][lane] = fma::<FUSED>(left[row][i], column[lane], sums[row][lane]);
            }
        }
    }
    sums
}

/// Scores to weights that sum to 1; what is beyond `count` becomes 0.
#[inline(always)]
fn softmax<const FUSED: bool>(scores: &mut [f32], count: usize, scale: f32) {
    scores[count..].fill(f32::NEG_INFINITY);
    let (blocks, _) = scores.as_chunks_mut::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for block in &*blocks {
        for lane in 0..LANES {
            most[lane] = if block[lane] > most[lane] { block[lane] } else { most[lane] };
        }
    }
    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    for block in &mut *blocks {
        for lane in 0..LANES {
            block[lane] = exp::<FUSED>((block[lane] - most) * scale);
        }
    }
    let share = 1.0 / sum(blocks.iter().copied());
    for block in blocks {
        for lane in 0..LANES {
            block[lane] *= share;
        }
    }
}

/// One head of one sequence: `q` and `out` are [rows, dim], `keys` [dim, padded], `values` [count, stride], both of whole lanes; `scores`
/// is room for [`ROWS`] rows of `padded` numbers.
#[inline(always)]
fn attend_head<const FUSED: bool>(head: Head<'_>, out: &mut [f32], scores: &mut [f32]) {
    let Head { q, keys, values, dim, count, scale } = head;
    let (padded, stride) = (keys.len() / dim, dim.next_multiple_of(LANES));
    for (q, out) in q.chunks(ROWS * dim).zip(out.chunks_mut(ROWS * dim)) {
        // the last rows again where fewer are left: a fixed number stays in registers
        let last = q.len() / dim - 1;
        let rows = std::array::from_fn(|row| &q[row.min(last) * dim..][..dim]);
        for first in (0..padded).step_by(LANES) {
            for (scores, sums) in scores.chunks_exact_mut(padded).zip(tile::<FUSED>(rows, keys, padded, first)) {
                scores[first..][..LANES].copy_from_slice(&sums);
            }
        }
        for scores in scores.chunks_exact_mut(padded) {
            softmax::<FUSED>(scores, count, scale);
        }
        let weights = std::array::from_fn(|row| &scores[row * padded..][..count]);
        for first in (0..dim).step_by(LANES) {
            let width = LANES.min(dim - first);
            for (out, sums) in out.chunks_exact_mut(dim).zip(tile::<FUSED>(weights, values, stride, first)) {
                out[first..][..width].copy_from_slice(&sums[..width]);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Head<'a> {
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    dim: usize,
    count: usize,
    scale: f32,
}

compiled!(fn gelu_part(x: &mut [f32]) = gelu_all);
compiled!(fn norm_part(x: &mut [f32], more: &[f32], weight: &[f32], bias: &[f32], eps: f32) = norm_rows);
compiled!(fn attend_part(head: Head<'_>, out: &mut [f32], scores: &mut [f32]) = attend_head);

/// Numbers that a thread takes at once.
const PIECE: usize = 16 * 1024;

/// GELU of each number.
pub(super) fn gelu_in_place(x: &mut [f32]) {
    x.par_chunks_mut(PIECE).for_each(gelu_part);
}

/// Layer norm of `x + more`, row by row, in place.
pub(super) fn add_and_norm(x: &mut [f32], more: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let piece = (PIECE / weight.len()).max(1) * weight.len();
    let pieces = x.par_chunks_mut(piece).zip(more.par_chunks(piece));
    pieces.for_each(|(x, more)| norm_part(x, more, weight, bias, eps));
}

/// Where a sequence lies among the rows of a batch, and how many of its tokens are seen: from its first on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) seen: usize,
}

/// Attention of every token of a span to its seen ones, into rows of `heads * dim`. Rows of `qkv` hold a query, a key and a value of
/// `heads * dim` each.
pub(super) fn attention(qkv: &[f32], spans: &[Span], heads: usize, dim: usize, out: &mut [f32]) {
    let width = heads * dim;
    let tasks: Vec<(Span, usize)> = spans.iter().flat_map(|span| (0..heads).map(|head| (*span, head))).collect();
    let scale = 1.0 / (dim as f32).sqrt();
    let one = |(span, head): &(Span, usize)| {
        let part =
            |which: usize, row: usize| &qkv[(span.first + row) * 3 * width + which * width + head * dim..][..dim];
        let (padded, stride) = (span.seen.next_multiple_of(LANES), dim.next_multiple_of(LANES));
        let mut keys = vec![0.0; dim * padded];
        let mut values = vec![0.0; span.seen * stride];
        for row in 0..span.seen {
            part(1, row).iter().enumerate().for_each(|(d, x)| keys[d * padded + row] = *x);
            values[row * stride..][..dim].copy_from_slice(part(2, row));
        }
        let mut q = Vec::with_capacity(span.rows * dim);
        (0..span.rows).for_each(|row| q.extend_from_slice(part(0, row)));
        let (mut out, mut scores) = (vec![0.0; span.rows * dim], vec![0.0; ROWS * padded]);
        attend_part(Head { q: &q, keys: &keys, values: &values, dim, count: span.seen, scale }, &mut out, &mut scores);
        out
    };
    let parts: Vec<Vec<f32>> = tasks.par_iter().map(one).collect();
    for ((span, head), part) in tasks.iter().zip(parts) {
        for (row, part) in part.chunks_exact(dim).enumerate() {
            out[(span.first + row) * width + head * dim..][..dim].copy_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its series, in f64.
    fn erf(x: f64) -> f64 {
        let mut term = x;
        let mut sum = x;
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn curves_are_those_of_their_definitions() {
        for i in -500..=500 {
            let x = i as f32 / 100.0;
            let wide = f64::from(x);
            let expected = wide * 0.5 * (1.0 + erf(wide / 2f64.sqrt()));
            let mut got = [x];
            gelu_in_place(&mut got);
            assert!((f64::from(got[0]) - expected).abs() < 1e-6, "gelu({x}): {} for {expected}", got[0]);
            assert!((gelu::<false>(x) - got[0]).abs() < 1e-6);
            let exact = (wide * 15.0).exp();
            assert!((f64::from(exp::<false>(x * 15.0)) / exact - 1.0).abs() < 1e-5, "exp({})", x * 15.0);
        }
        assert_eq!(exp::<false>(-1000.0), 0.0);
    }

    #[test]
    fn attention_is_that_of_its_definition() {
        let (heads, dim) = (3, 5);
        let width = heads * dim;
        let number = |i: usize| ((i * 2654435761) % 1009) as f32 / 400.0 - 1.2;
        let qkv: Vec<f32> = (0..40 * 3 * width).map(number).collect();
        let spans = [
            Span { first: 0, rows: 1, seen: 1 },
            Span { first: 1, rows: 33, seen: 33 },
            Span { first: 34, rows: 6, seen: 4 },
        ];
        let mut got = vec![f32::NAN; 40 * width];
        attention(&qkv, &spans, heads, dim, &mut got);
        for span in spans {
            for (row, head) in
                (span.first..span.first + span.rows).flat_map(|row| (0..heads).map(move |head| (row, head)))
            {
                let at =
                    |which: usize, row: usize, d: usize| f64::from(qkv[(row * 3 + which) * width + head * dim + d]);
                let seen = span.first..span.first + span.seen;
                let score =
                    |key: usize| (0..dim).map(|d| at(0, row, d) * at(1, key, d)).sum::<f64>() / (dim as f64).sqrt();
                let weights: Vec<f64> = seen.clone().map(|key| score(key).exp()).collect();
                for d in 0..dim {
                    let sum: f64 = seen.clone().zip(&weights).map(|(key, weight)| weight * at(2, key, d)).sum();
                    let expected = sum / weights.iter().sum::<f64>();
                    assert!(
                        (f64::from(got[row * width + head * dim + d]) - expected).abs() < 1e-5,
                        "row {row}, head {head}"
                    );
                }
            }
        }
    }
}
