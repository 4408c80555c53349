//! Weight functions: what one token contributes to the loss, and how that moves with its log-prob.

use folgore_config::algo::{AlgoSection, LossType, TeacherLoss};

/// Log-ratios are brought into plus or minus this before `exp` (as in verl); beyond it they have no gradient.
pub(crate) const LOG_RATIO_LIMIT: f64 = 20.0;

/// The exponential of a bounded log-ratio, and its slope.
pub(crate) fn bounded_exp(log_ratio: f64) -> (f64, f64) {
    let value = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp();
    (value, if log_ratio.abs() <= LOG_RATIO_LIMIT { value } else { 0.0 })
}

/// The point at which a surrogate is evaluated.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Learner's new minus old log-prob: of the token, or the mean over its row.
    pub log_ratio: f64,
    /// The token's log-prob.
    pub logprob: f64,
    /// The same as the sampler reported it.
    pub rollout: Option<f64>,
    /// Advantage of the row.
    pub advantage: f64,
}

/// Which side of the trust region a token left, against its advantage's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is inside, or moves back to it.
    Inside,
    /// Negative advantage, and already less likely than allowed.
    Low,
    /// Positive advantage, and already more likely than allowed.
    High,
}

/// A token's contribution to the loss, before weights and averages.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// The contribution.
    pub value: f64,
    /// Its derivative by `Point::log_ratio`.
    pub by_log_ratio: f64,
    /// Its derivative by `Point::logprob`, the log-ratio held constant.
    pub by_logprob: f64,
    /// Whether it was clipped.
    pub trust: Trust,
}

/// A weight function. All are to be minimised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Surrogate {
    /// `-min(ratio * A, clip(ratio) * A)`: PPO, with dual clip and TRL's delta.
    Clipped {
        /// Lowest ratio with a gradient where A < 0.
        low: f64,
        /// Highest ratio with a gradient where A > 0.
        high: f64,
        /// Where A < 0 the value is at most `-A` times this.
        dual_clip: Option<f64>,
        /// Upper bound of the unclipped ratio, for both signs.
        delta: Option<f64>,
    },
    /// `-clip(ratio) * A * logprob` with the weight held constant: every token keeps a gradient.
    Cispo {
        /// Lower bound of the weight.
        floor: f64,
        /// Upper bound of the weight.
        cap: f64,
    },
    /// `-gate * A` with `gate = 4 / tau * sigmoid(tau * (ratio - 1))`.
    Sapo {
        /// `tau` where A > 0.
        positive: f64,
        /// `tau` elsewhere.
        negative: f64,
    },
    /// `-A * logprob`.
    Reinforce,
    /// `-keep * A * exp(d) + kl_tau * d^2` with `d` = log-prob minus the sampler's; `keep` is 0 for a token whose
    /// *probability* has moved too far in the direction of its advantage (prime-rl).
    Dppo {
        /// Largest fall of the probability where A <= 0.
        low: f64,
        /// Largest rise of the probability where A > 0.
        high: f64,
        /// Weight of the square.
        kl_tau: f64,
    },
    /// `-A * p / (p + gamma)` with the token's probability `p`, or `-A * p`: LUFFY's weight of an expert's tokens. Nobody's
    /// log-probs but the policy's own are needed, and none are clipped.
    Shaped {
        /// Where the gain is largest; none: no shaping.
        gamma: Option<f64>,
    },
    /// `-A * w / (w + beta)` with the ratio `w` to the policy that sampled the token, or `-A * w`: ExGRPO's weight of
    /// experience. None are clipped.
    ShapedRatio {
        /// Where the gain is largest; none: no shaping.
        beta: Option<f64>,
    },
    /// `-logprob`, whatever the advantage: imitation.
    Imitation,
}

impl Surrogate {
    /// The surrogate that `algo` asks for.
    pub fn of(algo: &AlgoSection) -> Self {
        match algo.loss_type {
            LossType::Cispo => Surrogate::Cispo {
                floor: algo.cispo_floor.unwrap_or(0.0),
                cap: algo.epsilon_high.unwrap_or(f64::INFINITY),
            },
            LossType::Sapo => {
                Surrogate::Sapo { positive: algo.sapo_temperature_pos, negative: algo.sapo_temperature_neg }
            }
            LossType::Reinforce => Surrogate::Reinforce,
            LossType::Dppo => {
                Surrogate::Dppo { low: algo.dppo_mask_low, high: algo.dppo_mask_high, kl_tau: algo.dppo_kl_tau }
            }
            LossType::Grpo | LossType::Gspo | LossType::Bnpo | LossType::DrGrpo | LossType::Dapo => {
                let (low, high) = match algo.loss_remove_clip {
                    true => (0.0, f64::INFINITY),
                    false => (1.0 - algo.epsilon, 1.0 + algo.epsilon_high.unwrap_or(algo.epsilon)),
                };
                Surrogate::Clipped { low, high, dual_clip: algo.dual_clip, delta: algo.delta }
            }
        }
    }

    /// The surrogate of an expert's tokens.
    pub fn of_teacher(algo: &AlgoSection) -> Self {
        match algo.off_policy.teacher_loss {
            TeacherLoss::Rl => Surrogate::Shaped { gamma: algo.off_policy.teacher_gamma },
            TeacherLoss::Sft => Surrogate::Imitation,
        }
    }

    /// The surrogate of experience.
    pub fn of_experience(algo: &AlgoSection) -> Self {
        Surrogate::ShapedRatio { beta: algo.off_policy.experience_beta }
    }

    /// Value and derivatives at `point`.
    pub fn term(&self, point: Point) -> Term {
        let a = point.advantage;
        match *self {
            Surrogate::Clipped { low, high, dual_clip, delta } => clipped(point, low, high, dual_clip, delta),
            Surrogate::Cispo { floor, cap } => {
                let (ratio, _) = bounded_exp(point.log_ratio);
                let weight = ratio.clamp(floor, cap);
                let trust = if ratio > cap && a > 0.0 { Trust::High } else { Trust::Inside };
                Term { value: -weight * a * point.logprob, by_log_ratio: 0.0, by_logprob: -weight * a, trust }
            }
            Surrogate::Sapo { positive, negative } => {
                let tau = if a > 0.0 { positive } else { negative };
                let (ratio, slope) = bounded_exp(point.log_ratio);
                let open = 1.0 / (1.0 + (-tau * (ratio - 1.0)).exp());
                let by_log_ratio = -a * 4.0 * open * (1.0 - open) * slope;
                Term { value: -a * open * 4.0 / tau, by_log_ratio, by_logprob: 0.0, trust: Trust::Inside }
            }
            Surrogate::Reinforce => {
                Term { value: -a * point.logprob, by_log_ratio: 0.0, by_logprob: -a, trust: Trust::Inside }
            }
            Surrogate::Dppo { low, high, kl_tau } => dppo(point, low, high, kl_tau),
            Surrogate::Shaped { gamma } => {
                let (value, slope) = shaped(point.logprob.exp(), gamma);
                Term { value: -a * value, by_log_ratio: 0.0, by_logprob: -a * slope, trust: Trust::Inside }
            }
            Surrogate::ShapedRatio { beta } => {
                let (ratio, moves) = bounded_exp(point.log_ratio);
                let (value, slope) = shaped(ratio, beta);
                let by_log_ratio = if moves > 0.0 { -a * slope } else { 0.0 };
                Term { value: -a * value, by_log_ratio, by_logprob: 0.0, trust: Trust::Inside }
            }
            Surrogate::Imitation => {
                Term { value: -point.logprob, by_log_ratio: 0.0, by_logprob: -1.0, trust: Trust::Inside }
            }
        }
    }
}

/// `x / (x + knee)` and its slope by the logarithm of `x`; without a knee, `x` and `x`.
fn shaped(x: f64, knee: Option<f64>) -> (f64, f64) {
    match knee {
        None => (x, x),
        Some(knee) => (x / (x + knee), knee * x / (x + knee).powi(2)),
    }
}

fn clipped(point: Point, low: f64, high: f64, dual_clip: Option<f64>, delta: Option<f64>) -> Term {
    let a = point.advantage;
    let (ratio, slope) = bounded_exp(point.log_ratio);
    let free = delta.map_or(ratio, |d| ratio.min(d));
    let (mut value, clip) = (-a * free, -a * ratio.clamp(low, high));
    let mut by_log_ratio = if free < ratio { 0.0 } else { -a * slope };
    if clip > value {
        // The clipped branch is the larger loss only where the ratio is out of bounds, hence flat.
        (value, by_log_ratio) = (clip, 0.0);
    }
    if let Some(c) = dual_clip.filter(|c| a < 0.0 && -a * c < value) {
        (value, by_log_ratio) = (-a * c, 0.0);
    }
    let trust = match a {
        a if a < 0.0 && ratio < low => Trust::Low,
        a if a > 0.0 && ratio > high => Trust::High,
        _ => Trust::Inside,
    };
    Term { value, by_log_ratio, by_logprob: 0.0, trust }
}

fn dppo(point: Point, low: f64, high: f64, kl_tau: f64) -> Term {
    let a = point.advantage;
    let rollout = point.rollout.unwrap_or(point.logprob);
    let d = point.logprob - rollout;
    let moved = point.logprob.exp() - rollout.exp();
    let trust = match a {
        a if a > 0.0 && moved > high => Trust::High,
        a if a <= 0.0 && moved < -low => Trust::Low,
        _ => Trust::Inside,
    };
    let (ratio, slope) = if trust == Trust::Inside { bounded_exp(d) } else { (0.0, 0.0) };
    let value = -a * ratio + kl_tau * d * d;
    Term { value, by_log_ratio: 0.0, by_logprob: -a * slope + 2.0 * kl_tau * d, trust }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(log_ratio: f64, advantage: f64) -> Point {
        Point { log_ratio, logprob: -1.0, rollout: Some(-1.0), advantage }
    }

    #[test]
    fn the_clip_acts_only_where_the_advantage_wants_to_go_further() {
        let s = Surrogate::Clipped { low: 0.8, high: 1.2, dual_clip: None, delta: None };
        for (log_ratio, advantage, trust) in [
            (0.5, 1.0, Trust::High),
            (0.5, -1.0, Trust::Inside),
            (-0.5, 1.0, Trust::Inside),
            (-0.5, -1.0, Trust::Low),
            (0.1, 1.0, Trust::Inside),
        ] {
            let term = s.term(at(log_ratio, advantage));
            assert_eq!(term.trust, trust, "{log_ratio} {advantage}");
            assert_eq!(term.by_log_ratio == 0.0, trust != Trust::Inside);
        }
    }

    #[test]
    fn dual_clip_binds_one_sign_and_delta_both() {
        let dual = Surrogate::Clipped { low: 0.8, high: 1.2, dual_clip: Some(3.0), delta: None };
        let delta = Surrogate::Clipped { low: 0.8, high: 1.2, dual_clip: None, delta: Some(3.0) };
        for s in [dual, delta] {
            let term = s.term(at(2.0, -1.0));
            assert_eq!((term.value, term.by_log_ratio), (3.0, 0.0));
            let inside = s.term(at(1.0, -1.0));
            assert!((inside.by_log_ratio - 1f64.exp()).abs() < 1e-12);
        }
    }

    #[test]
    fn a_ratio_beyond_all_bounds_stays_finite() {
        for s in [
            Surrogate::Clipped { low: 0.8, high: 1.2, dual_clip: None, delta: None },
            Surrogate::Cispo { floor: 0.0, cap: 5.0 },
            Surrogate::Sapo { positive: 1.0, negative: 1.05 },
            Surrogate::Reinforce,
            Surrogate::Dppo { low: 0.2, high: 0.2, kl_tau: 1e-3 },
            Surrogate::ShapedRatio { beta: Some(0.1) },
            Surrogate::ShapedRatio { beta: None },
        ] {
            for log_ratio in [-1e4, 1e4] {
                let point = Point { rollout: Some(-1.0 - log_ratio), ..at(log_ratio, -1.0) };
                let term = s.term(point);
                assert!((term.value + term.by_log_ratio + term.by_logprob).is_finite(), "{s:?} {log_ratio}");
            }
        }
    }
}
