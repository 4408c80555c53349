//! Estimators of the divergence from the reference, from the log-probs of the sampled token alone.

use folgore_config::algo::{AlgoSection, KlEstimator};

use super::surrogate::LOG_RATIO_LIMIT;

/// The divergence term of an objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// Its weight.
    pub beta: f64,
    /// Its estimator.
    pub estimator: KlEstimator,
    /// Bound of one token's value, both ways; none: unbounded, as in TRL.
    pub clamp: Option<f64>,
}

impl Divergence {
    /// The divergence that `algo` asks for; none with `beta: 0`.
    pub fn of(algo: &AlgoSection) -> Option<Self> {
        (algo.beta > 0.0).then_some(Self { beta: algo.beta, estimator: algo.kl_estimator, clamp: algo.kl_clamp })
    }

    /// Estimate for one token, before `beta`, and its derivative by the policy's log-prob.
    pub fn value_and_slope(&self, logprob: f64, reference: f64) -> (f64, f64) {
        let d = reference - logprob;
        let inside = self.clamp.is_none() || d.abs() <= LOG_RATIO_LIMIT;
        let bounded = if self.clamp.is_some() { d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT) } else { d };
        let k3 = || bounded.exp() - bounded - 1.0;
        let (value, slope) = match self.estimator {
            KlEstimator::K1 => (-d, 1.0),
            KlEstimator::Abs => (d.abs(), if d <= 0.0 { 1.0 } else { -1.0 }),
            KlEstimator::K2 => (0.5 * d * d, -d),
            KlEstimator::K3 => (k3(), if inside { 1.0 - bounded.exp() } else { 0.0 }),
            // Straight through: the value of one, the gradient of the square, which is unbiased on policy.
            KlEstimator::K1Plus => (-d, -d),
            KlEstimator::K3Plus => (k3(), -d),
        };
        let straight_through = matches!(self.estimator, KlEstimator::K1Plus | KlEstimator::K3Plus);
        match self.clamp {
            Some(c) if value.abs() > c => (value.clamp(-c, c), if straight_through { slope } else { 0.0 }),
            _ => (value, slope),
        }
    }
}
