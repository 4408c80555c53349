//! One exponential for all backends.

/// 1 / ln 2.
pub(super) const LOG2E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts, the first with so few digits that a small integer times it is exact.
pub(super) const LN2_HI: f32 = 355.0 / 512.0;
pub(super) const LN2_LO: f32 = -2.121_944_4e-4;
/// Coefficients of r⁶ to r² of e^r, highest first.
pub(super) const POWERS: [f32; 5] = [1.388_888_9e-3, 8.333_334e-3, 4.166_666_6e-2, 1.666_666_7e-1, 0.5];
/// Above it e^x is infinite.
pub(super) const HIGHEST: f32 = 88.722_83;
/// Below it e^x is taken to be 0.
pub(super) const LOWEST: f32 = -87.336_54;

/// e^x in f32, written with `mul_add` alone so that every instruction set gives the same bits: range reduction by ln 2 in
/// two parts, a degree-6 polynomial, exponent by bits. Relative error below 2 units in the last place for x in [-87, 88];
/// 0 below -87.33, infinity above 88.72, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    if x > HIGHEST {
        return f32::INFINITY;
    }
    if x < LOWEST {
        return 0.0;
    }
    let n = (x * LOG2E).round_ties_even();
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    let mut p = POWERS[0];
    for coefficient in &POWERS[1..] {
        p = p.mul_add(r, *coefficient);
    }
    let e = (r * r).mul_add(p, r) + 1.0;
    // 2^n in two factors, so that n = 128 does not overflow the exponent field
    let half = (n as i32) >> 1;
    let two_to = |i: i32| f32::from_bits(((i + 127) as u32) << 23);
    e * two_to(half) * two_to(n as i32 - half)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn agrees_with_the_exact_exponential() {
        let mut worst = 0.0f64;
        for i in -870_000..=880_000 {
            let x = i as f32 / 10_000.0;
            let want = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - want) / want).abs());
        }
        assert!(worst < 2.5e-7, "worst relative error {worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
