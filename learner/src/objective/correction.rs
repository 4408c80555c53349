//! Weights that make up for a sampler whose probabilities are not the learner's (TIS, IcePop and their row forms).
//!
//! The ratio is that of the learner's *old* log-prob to the sampler's: it is a constant of the batch, not of the weights
//! being trained. Log-ratios are bounded before `exp`, sums over a row as well.

use folgore_config::algo::{AlgoSection, ImportanceSamplingCorrection};
use folgore_protocol::trajectory::Source;

use super::{Stats, Token, surrogate::bounded_exp};

/// A correction that does something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correction {
    /// One ratio for the whole row, the product of its tokens', in place of one for each token.
    pub by_row: bool,
    /// A ratio outside the bounds becomes 0, in place of the bound.
    pub masks: bool,
    /// Lower bound; none: no bound below.
    pub min: Option<f64>,
    /// Upper bound.
    pub max: f64,
}

impl Correction {
    /// The correction that `algo` asks for.
    pub fn of(algo: &AlgoSection) -> Option<Self> {
        let (by_row, masks) = match algo.importance_sampling_correction {
            ImportanceSamplingCorrection::None => return None,
            ImportanceSamplingCorrection::TokenTruncate => (false, false),
            ImportanceSamplingCorrection::TokenMask => (false, true),
            ImportanceSamplingCorrection::SequenceTruncate => (true, false),
            ImportanceSamplingCorrection::SequenceMask => (true, true),
        };
        let (min, max) = (algo.importance_sampling_clip_min, algo.importance_sampling_clip_max);
        Some(Self { by_row, masks, min, max })
    }

    /// The weight that a ratio with logarithm `log_ratio` becomes.
    pub fn weight(&self, log_ratio: f64) -> f64 {
        let (ratio, _) = bounded_exp(log_ratio);
        let bounded = ratio.min(self.max).max(self.min.unwrap_or(0.0));
        if self.masks && bounded != ratio { 0.0 } else { bounded }
    }

    /// Weights of a row's trained tokens; 1 where the sampler reported nothing, and where no sampler of this step was.
    pub(super) fn weights(&self, tokens: &[Token], stats: &mut Stats) -> Vec<f64> {
        let log_ratio = |t: &Token| t.rollout.map_or(0.0, |rollout| t.old - rollout);
        let fresh = || tokens.iter().filter(|t| t.source == Source::OnPolicy);
        if self.by_row {
            let weight = self.weight(fresh().map(log_ratio).sum());
            if fresh().next().is_some() {
                stats.correction.add(weight);
            }
            return tokens.iter().map(|t| if t.source == Source::OnPolicy { weight } else { 1.0 }).collect();
        }
        let weight = |t: &Token| if t.source == Source::OnPolicy { self.weight(log_ratio(t)) } else { 1.0 };
        fresh().for_each(|t| stats.correction.add(weight(t)));
        tokens.iter().map(weight).collect()
    }
}
