//! Where all randomness comes from: a seed is a hash of what the thing is, so that a rerun is a rerun.
//!
//! There is no generator with state: number `index` of stream `seed` is a pure function of both, which makes a draw
//! independent of the order in which rows are computed, of the batch they share and of a restart.

use crate::ids::SeatKey;

/// Mixes parts into one seed (SplitMix64 finaliser over a running state; not cryptographic).
pub fn mix(parts: &[u64]) -> u64 {
    parts
        .iter()
        .fold(0x9e37_79b9_7f4a_7c15, |state, part| finalise(state ^ finalise(part.wrapping_add(0x632b_e59b_d9b4_e019))))
}

/// Seed of one seat: what the sample is, hence the same on every machine and after every restart.
pub fn seat(run_seed: u64, key: SeatKey) -> u64 {
    mix(&[run_seed, key.group.0, u64::from(key.sample), u64::from(key.draw)])
}

/// Draws number `index` of stream `seed`: 64 uniform bits.
pub fn bits(seed: u64, index: u64) -> u64 {
    finalise(seed ^ finalise(index.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x2545_f491_4f6c_dd1d)))
}

/// Draws number `index` of stream `seed`, uniform in [0, 1) with 24 bits: every value is exact in f32.
pub fn uniform(seed: u64, index: u64) -> f32 {
    (bits(seed, index) >> 40) as f32 / (1u32 << 24) as f32
}

/// Draws number `index` of stream `seed`, uniform in `0..bound`.
///
/// # Panics
/// If `bound` is 0.
pub fn below(seed: u64, index: u64, bound: u64) -> u64 {
    assert!(bound > 0, "seed::below needs a positive bound");
    ((u128::from(bits(seed, index)) * u128::from(bound)) >> 64) as u64
}

/// Draws number `index` of stream `seed` from the standard normal distribution (Box-Muller).
pub fn normal(seed: u64, index: u64) -> f32 {
    let u = 1.0 - f64::from(uniform(seed, 2 * index));
    let v = f64::from(uniform(seed, 2 * index + 1));
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// Shuffles `items` (Fisher-Yates) as stream `seed` says.
pub fn shuffle<T>(seed: u64, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(seed, i as u64, i as u64 + 1) as usize);
    }
}

fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_fills_the_unit_interval_evenly() {
        let n = 100_000;
        let mean = (0..n).map(|i| f64::from(uniform(7, i))).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.005, "mean {mean}");
        assert!((0..n).all(|i| (0.0..1.0).contains(&uniform(7, i))));
    }

    #[test]
    fn neighbouring_seeds_and_parts_do_not_collide() {
        let mut seen: Vec<u64> = (0..200).flat_map(|a| (0..200).map(move |b| mix(&[a, b]))).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 40_000);
    }

    #[test]
    fn normal_has_mean_zero_and_deviation_one() {
        let xs: Vec<f64> = (0..50_000).map(|i| f64::from(normal(3, i))).collect();
        let mean = xs.iter().sum::<f64>() / xs.len() as f64;
        let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64;
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.03, "mean {mean} var {var}");
    }
}
