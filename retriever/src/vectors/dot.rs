//! The dot product of two vectors.

/// Numbers added side by side.
const LANES: usize = 16;

/// `Σ a[i] * b[i]` over the shorter of both. Its last bits depend on the processor, never on what else is computed.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { dot_avx512(a, b) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { dot_avx2(a, b) };
        }
    }
    one::<false>(a, b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn dot_avx512(a: &[f32], b: &[f32]) -> f32 {
    one::<true>(a, b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    one::<true>(a, b)
}

/// Four sums of sixteen lanes, so that none waits for its last addition; the lanes are folded in a fixed order.
#[inline(always)]
fn one<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let add = |sum: f32, x: f32, y: f32| if FUSED { x.mul_add(y, sum) } else { sum + x * y };
    let mut sums = [[0.0f32; LANES]; 4];
    let (wide_a, rest_a) = a.as_chunks::<{ 4 * LANES }>();
    let (wide_b, rest_b) = b[..a.len().min(b.len())].as_chunks::<{ 4 * LANES }>();
    for (x, y) in wide_a.iter().zip(wide_b) {
        for (part, sum) in sums.iter_mut().enumerate() {
            for lane in 0..LANES {
                sum[lane] = add(sum[lane], x[part * LANES + lane], y[part * LANES + lane]);
            }
        }
    }
    let [mut sum, second, third, fourth] = sums;
    for lane in 0..LANES {
        sum[lane] = (sum[lane] + second[lane]) + (third[lane] + fourth[lane]);
    }
    for (i, (&x, &y)) in rest_a.iter().zip(rest_b).enumerate() {
        sum[i % LANES] = add(sum[i % LANES], x, y);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sum[lane] += sum[lane + half];
        }
    }
    sum[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_those_of_their_definition_for_every_length() {
        for length in [1, 3, 15, 16, 17, 63, 64, 65, 384, 1000] {
            let number = |i: usize| ((i * 2654435761) % 1000) as f32 / 500.0 - 1.0;
            let (a, b): (Vec<f32>, Vec<f32>) = (0..length).map(|i| (number(i), number(i + 7))).unzip();
            let exact: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            for got in [dot(&a, &b), one::<false>(&a, &b)] {
                assert!((f64::from(got) - exact).abs() < 1e-4, "{length}");
            }
        }
    }
}
