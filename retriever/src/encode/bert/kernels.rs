//! What BERT computes between its matrix products: soft-max, layer norms, GELU. Each is compiled for what the processor has. The bias of
//! a product is added here, by whoever reads it next.

use std::sync::{Mutex, PoisonError};

use folgore_model::backend::{Backend as _, Cpu};

use super::Norm;

/// Numbers that go side by side.
const LANES: usize = 16;

/// Compiles `$body` for AVX-512, for AVX2 and for any processor, and takes the best that this one has.
macro_rules! compiled {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),*) = $body:ident) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) {
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
    // not `max`, which would look for NaN
    let clamped = if x > -87.0 { x } else { -87.0 };
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
fn gelu_rows<const FUSED: bool>(x: &mut [f32], bias: &[f32]) {
    for x in x.chunks_exact_mut(bias.len()) {
        for (x, bias) in x.iter_mut().zip(bias) {
            *x = gelu::<FUSED>(*x + bias);
        }
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
    fold(lanes, |a, b| a + b)
}

/// All lanes made into one, half of them with the other half: four steps, where one after the other would be fifteen.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}

/// `x = norm(x + more + bias)` for each row; rows are of a multiple of [`LANES`] numbers or a little slower.
#[inline(always)]
fn norm_rows<const FUSED: bool>(x: &mut [f32], more: &[f32], bias: &[f32], norm: &Norm, eps: f32) {
    let width = bias.len();
    for (x, more) in x.chunks_exact_mut(width).zip(more.chunks_exact(width)) {
        for ((x, more), bias) in x.iter_mut().zip(more).zip(bias) {
            *x += more + bias;
        }
        let (blocks, rest) = x.as_chunks::<LANES>();
        let mean = (sum(blocks.iter().copied()) + rest.iter().sum::<f32>()) / width as f32;
        let square = |x: f32| (x - mean) * (x - mean);
        let spread = sum(blocks.iter().map(|b| b.map(square))) + rest.iter().copied().map(square).sum::<f32>();
        let scale = 1.0 / (spread / width as f32 + eps).sqrt();
        for ((x, weight), bias) in x.iter_mut().zip(&norm.weight).zip(&norm.bias) {
            *x = fma::<FUSED>((*x - mean) * scale, *weight, *bias);
        }
    }
}

/// Scores to weights that sum to 1; what is beyond `count` becomes 0.
#[inline(always)]
fn softmax<const FUSED: bool>(scores: &mut [f32], count: usize) {
    scores[count..].fill(f32::NEG_INFINITY);
    let (blocks, _) = scores.as_chunks_mut::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for block in &*blocks {
        for lane in 0..LANES {
            most[lane] = if block[lane] > most[lane] { block[lane] } else { most[lane] };
        }
    }
    let most = fold(most, |a, b| if a > b { a } else { b });
    for block in &mut *blocks {
        for lane in 0..LANES {
            block[lane] = exp::<FUSED>(block[lane] - most);
        }
    }
    let share = 1.0 / sum(blocks.iter().copied());
    for block in blocks {
        for lane in 0..LANES {
            block[lane] *= share;
        }
    }
}

/// [`softmax`] of rows of `padded` numbers.
#[inline(always)]
fn softmax_each<const FUSED: bool>(scores: &mut [f32], padded: usize, count: usize) {
    for scores in scores.chunks_exact_mut(padded) {
        softmax::<FUSED>(scores, count);
    }
}

compiled!(fn gelu_part(x: &mut [f32], bias: &[f32]) = gelu_rows);
compiled!(fn norm_part(x: &mut [f32], more: &[f32], bias: &[f32], norm: &Norm, eps: f32) = norm_rows);
compiled!(
    /// Rows of `padded` scores, a multiple of [`LANES`], to weights that sum to 1; what is beyond `count` becomes 0.
    pub(super) fn softmax_rows(scores: &mut [f32], padded: usize, count: usize) = softmax_each
);

/// Numbers that a thread takes at once.
const PIECE: usize = 16 * 1024;

/// Runs `task` on the pieces of `x`, each of `size` numbers but for the last, side by side where that pays: `work` is a guess of the whole
/// in nanoseconds of one core.
pub(super) fn split(cpu: &Cpu, x: &mut [f32], size: usize, work: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
    let pieces: Vec<Mutex<&mut [f32]>> = x.chunks_mut(size.max(1)).map(Mutex::new).collect();
    cpu.together(pieces.len(), work, &|i| task(i, &mut pieces[i].lock().unwrap_or_else(PoisonError::into_inner)));
}

/// GELU of `x + bias`, row by row, in place.
pub(super) fn add_and_gelu(cpu: &Cpu, x: &mut [f32], bias: &[f32]) {
    let (piece, work) = ((PIECE / bias.len()).max(1) * bias.len(), x.len());
    split(cpu, x, piece, work, |_, x| gelu_part(x, bias));
}

/// Layer norm of `x + more + bias`, row by row, in place.
pub(super) fn add_and_norm(cpu: &Cpu, x: &mut [f32], more: &[f32], bias: &[f32], norm: &Norm, eps: f32) {
    let (piece, work) = ((PIECE / bias.len()).max(1) * bias.len(), x.len());
    split(cpu, x, piece, work, |i, x| norm_part(x, &more[i * piece..][..x.len()], bias, norm, eps));
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
            let mut got = [x - 0.25];
            gelu_part(&mut got, &[0.25]);
            assert!((f64::from(got[0]) - expected).abs() < 1e-6, "gelu({x}): {} for {expected}", got[0]);
            assert!((gelu::<false>(x) - got[0]).abs() < 1e-6);
            let exact = (wide * 15.0).exp();
            assert!((f64::from(exp::<false>(x * 15.0)) / exact - 1.0).abs() < 1e-5, "exp({})", x * 15.0);
        }
        assert_eq!(exp::<false>(-1000.0), 0.0);
    }
}
