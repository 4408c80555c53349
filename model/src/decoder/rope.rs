//! Rotary angles: the frequencies of a model, stretched where it says so, and the tables of their cosines and sines.

use std::f64::consts::PI;

use crate::{ModelConfig, RopeScaling, backend::Backend};

/// The tables of a model's layers, each [max_position_embeddings, head_dim]: cosines of the first half, then sines.
pub(super) struct Rope<B: Backend> {
    all: B::Buf,
    /// Of the layers with a window, where they have angles of their own.
    local: Option<B::Buf>,
}

impl<B: Backend> Rope<B> {
    pub(super) fn new(backend: &B, config: &ModelConfig) -> Self {
        let (frequencies, factor) = stretched(config);
        let local = config.variant.local.as_ref().and_then(|local| local.rope_theta);
        Self {
            all: backend.upload(&table(config, &frequencies, factor)),
            local: local.map(|theta| backend.upload(&table(config, &frequencies_of(config.head_dim, theta), 1.0))),
        }
    }

    /// The table of a layer, which has a window or not.
    pub(super) fn of(&self, windowed: bool) -> &B::Buf {
        self.local.as_ref().filter(|_| windowed).unwrap_or(&self.all)
    }
}

fn frequencies_of(head_dim: usize, theta: f32) -> Vec<f64> {
    (0..head_dim / 2).map(|i| f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

/// What each frequency is divided by, where that differs between them and the angles are all that is scaled.
pub(crate) fn rope_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    match &config.variant.rope_scaling {
        RopeScaling::Factors(factors) => Some(factors.clone()),
        RopeScaling::Llama3 { .. } => {
            let plain = frequencies_of(config.head_dim, config.rope_theta);
            Some(plain.iter().zip(stretched(config).0).map(|(plain, f)| (plain / f) as f32).collect())
        }
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Yarn { .. } => None,
    }
}

/// Frequencies after scaling, and the factor of cosines and sines.
fn stretched(config: &ModelConfig) -> (Vec<f64>, f64) {
    let mut list = frequencies_of(config.head_dim, config.rope_theta);
    let mut attention = 1.0;
    match &config.variant.rope_scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => list.iter_mut().for_each(|f| *f /= f64::from(*factor)),
        RopeScaling::Factors(factors) => list.iter_mut().zip(factors).for_each(|(f, factor)| *f /= f64::from(*factor)),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let context = *original_max_position_embeddings as f64;
            let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
            for f in &mut list {
                // how many waves the original context held; the share that stays grows with it
                let waves = context * *f / (2.0 * PI);
                let stays = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                *f *= stays + (1.0 - stays) / f64::from(*factor);
            }
        }
        RopeScaling::Yarn { factor, attention_factor, .. } => {
            attention = f64::from(*attention_factor);
            for (f, stays) in list.iter_mut().zip(yarn_ramp(config)) {
                *f *= stays + (1.0 - stays) / f64::from(*factor);
            }
        }
    }
    (list, attention)
}

/// YaRN: the share of each frequency that stays as it is.
fn yarn_ramp(config: &ModelConfig) -> Vec<f64> {
    let RopeScaling::Yarn { beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } =
        &config.variant.rope_scaling
    else {
        return Vec::new();
    };
    let dim = config.head_dim as f64;
    let context = *original_max_position_embeddings as f64;
    // the dimension that turns so often over the original context
    let place =
        |turns: f32| dim * (context / (f64::from(turns) * 2.0 * PI)).ln() / (2.0 * f64::from(config.rope_theta).ln());
    let (mut low, mut high) = (place(*beta_fast), place(*beta_slow));
    if *truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    (0..config.head_dim / 2).map(|i| 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect()
}

/// Angles in f64, since a position of some thousands times a frequency near 1 loses the fraction in f32.
fn table(config: &ModelConfig, frequencies: &[f64], factor: f64) -> Vec<f32> {
    let mut table = Vec::with_capacity(config.max_position_embeddings * config.head_dim);
    for position in 0..config.max_position_embeddings {
        let angles = || frequencies.iter().map(|f| position as f64 * f);
        table.extend(angles().map(|angle| (angle.cos() * factor) as f32));
        table.extend(angles().map(|angle| (angle.sin() * factor) as f32));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stays(scaling: RopeScaling) -> Vec<f64> {
        let mut config = ModelConfig::smollm2_135m();
        (config.head_dim, config.rope_theta) = (64, 500_000.0);
        let plain = stretched(&config).0;
        config.variant.rope_scaling = scaling;
        stretched(&config).0.iter().zip(plain).map(|(f, plain)| f / plain).collect()
    }

    #[test]
    fn scaling_leaves_short_waves_and_divides_long_ones() {
        assert!(stays(RopeScaling::Linear { factor: 4.0 }).iter().all(|s| (s - 0.25).abs() < 1e-12));
        let llama3 = stays(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        });
        // waves of 2048 tokens and less stay, those of 8192 and more are divided
        let wave = |i: usize| 2.0 * PI * 500_000f64.powf(i as f64 / 32.0);
        for (i, share) in llama3.iter().enumerate() {
            match wave(i) {
                w if w < 2048.0 => assert!((share - 1.0).abs() < 1e-12, "{i}"),
                w if w > 8192.0 => assert!((share - 0.125).abs() < 1e-12, "{i}"),
                _ => assert!((0.125..1.0).contains(share), "{i}"),
            }
        }
        let yarn = stays(RopeScaling::Yarn {
            factor: 4.0,
            attention_factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position_embeddings: 8192,
            truncate: true,
        });
        assert!(yarn.is_sorted_by(|a, b| a >= b) && yarn[0] == 1.0 && (yarn[31] - 0.25).abs() < 1e-12);
        let factors: Vec<f32> = (1..=32).map(|i| i as f32).collect();
        assert!((stays(RopeScaling::Factors(factors))[1] - 0.5).abs() < 1e-12);
    }
}
