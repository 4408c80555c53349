//! What an evaluation saw, as sums that add up over micro-batches.

use folgore_protocol::trajectory::Source;

use super::{Term, Token, Trust, surrogate::bounded_exp};
use crate::metrics::Metrics;

/// Count, sum and extremes of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The smallest; infinite of none.
    pub min: f64,
    /// The largest; minus infinite of none.
    pub max: f64,
}

impl Default for Tally {
    fn default() -> Self {
        Self { count: 0, sum: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Tally {
    /// Adds a number.
    pub fn add(&mut self, x: f64) {
        self.merge(&Tally { count: 1, sum: x, min: x, max: x });
    }

    /// Adds the numbers of another tally.
    pub fn merge(&mut self, other: &Tally) {
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The mean; none of none.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// Facts about the tokens of an evaluation. A token is a trained token that the policy sampled for this step, but for the two
/// tallies of those that it did not; with sequence-level ratios, ratios and clips
/// are counted by row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Divergence from the reference, before `beta`.
    pub kl: Tally,
    /// Ratio of new to old probability.
    pub ratio: Tally,
    /// Old minus new log-prob: how far the update has come.
    pub update_kl: Tally,
    /// 1 where clipped below.
    pub clip_low: Tally,
    /// 1 where clipped above.
    pub clip_high: Tally,
    /// Size of the difference between the sampler's and the learner's old log-prob.
    pub sampling_difference: Tally,
    /// Divergence of the learner's old policy from the sampler's (k3).
    pub mismatch_kl: Tally,
    /// Weights of the sampler correction.
    pub correction: Tally,
    /// Trained tokens of a row.
    pub tokens: Tally,
    /// 1 for a row that the off-policy mask dropped.
    pub dropped: Tally,
    /// Probabilities of an expert's tokens.
    pub teacher_prob: Tally,
    /// Ratio of the probabilities of experience, now to then.
    pub experience_ratio: Tally,
}

impl Stats {
    /// Adds the facts of another part of the batch.
    pub fn merge(&mut self, other: &Stats) {
        self.kl.merge(&other.kl);
        self.ratio.merge(&other.ratio);
        self.update_kl.merge(&other.update_kl);
        self.clip_low.merge(&other.clip_low);
        self.clip_high.merge(&other.clip_high);
        self.sampling_difference.merge(&other.sampling_difference);
        self.mismatch_kl.merge(&other.mismatch_kl);
        self.correction.merge(&other.correction);
        self.tokens.merge(&other.tokens);
        self.dropped.merge(&other.dropped);
        self.teacher_prob.merge(&other.teacher_prob);
        self.experience_ratio.merge(&other.experience_ratio);
    }

    /// The metrics, under TRL's names where it has one; what was not measured is left out.
    pub fn metrics(&self, into: &mut Metrics) {
        let mut put = |name: &str, value: Option<f64>| {
            if let Some(value) = value {
                into.insert(name.to_owned(), value);
            }
        };
        let low = |t: &Tally| (t.count > 0).then_some(t.min);
        let high = |t: &Tally| (t.count > 0).then_some(t.max);
        put("kl", self.kl.mean());
        put("clip_ratio/low_mean", self.clip_low.mean());
        put("clip_ratio/high_mean", self.clip_high.mean());
        put("clip_ratio/region_mean", self.clip_low.mean().zip(self.clip_high.mean()).map(|(l, h)| l + h));
        put("ratio/mean", self.ratio.mean());
        put("ratio/min", low(&self.ratio));
        put("ratio/max", high(&self.ratio));
        put("update_kl", self.update_kl.mean());
        put("sampling/sampling_logp_difference/mean", self.sampling_difference.mean());
        put("sampling/sampling_logp_difference/max", high(&self.sampling_difference));
        put("sampling/importance_sampling_ratio/mean", self.correction.mean());
        put("sampling/importance_sampling_ratio/min", low(&self.correction));
        put("sampling/importance_sampling_ratio/max", high(&self.correction));
        put("mismatch/kl", self.mismatch_kl.mean());
        put("mismatch/logp_abs_diff", self.sampling_difference.mean());
        put("mismatch/logp_abs_max", high(&self.sampling_difference));
        put("off_policy_masked", self.dropped.mean());
        put("off_policy/teacher_prob", self.teacher_prob.mean());
        put("off_policy/experience_ratio", self.experience_ratio.mean());
        let counted = |t: &Tally| (t.count > 0).then_some(t.count as f64);
        put("off_policy/teacher_tokens", counted(&self.teacher_prob));
        put("off_policy/experience_tokens", counted(&self.experience_ratio));
    }

    pub(super) fn token(&mut self, token: &Token) {
        match token.source {
            Source::OnPolicy => {}
            Source::Teacher => return self.teacher_prob.add(token.lp.exp()),
            Source::Replay => return self.experience_ratio.add(bounded_exp(token.log_ratio()).0),
        }
        self.update_kl.add(token.old - token.lp);
        if let Some(rollout) = token.rollout {
            let d = token.old - rollout;
            self.sampling_difference.add(d.abs());
            self.mismatch_kl.add(bounded_exp(d).0 - d - 1.0);
        }
    }

    pub(super) fn ratio(&mut self, log_ratio: f64, term: &Term) {
        self.ratio.add(bounded_exp(log_ratio).0);
        self.clip_low.add(f64::from(term.trust == Trust::Low));
        self.clip_high.add(f64::from(term.trust == Trust::High));
    }

    pub(super) fn row(&mut self, tokens: usize, dropped: bool) {
        self.tokens.add(tokens as f64);
        self.dropped.add(f64::from(dropped));
    }
}
