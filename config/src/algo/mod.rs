//! `algo`: the objective. Names are TRL's where TRL has one, else verl's; formulas are in the crate `learner`.

mod off_policy;

use serde::{Deserialize, Serialize};

pub use off_policy::{Baseline, OffPolicy, TeacherLoss};

use crate::Problems;

/// How the rewards of one group become advantages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageEstimator {
    /// Reward minus the group's mean, divided as `scale_rewards` says.
    #[default]
    #[serde(alias = "grpo")]
    Group,
    /// Reward minus the mean of the other members; `scale_rewards` has no part in it.
    Rloo,
    /// Reward minus mean, divided by the mean; zero where the mean is not positive.
    MaxRl,
}

/// What centred rewards are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The sample deviation of the group.
    #[default]
    Group,
    /// The sample deviation of all rewards of the batch.
    Batch,
    /// Nothing (Dr. GRPO).
    None,
}

/// How the parts of a reward become one advantage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MultiObjectiveAggregation {
    /// The weighted sum is what is normalised.
    #[default]
    SumThenNormalize,
    /// Each part is normalised within its group, then summed, then normalised over the batch.
    NormalizeThenSum,
}

/// The surrogate of a token and the way tokens are averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Clipped ratio; mean over rows of the mean over a row's tokens.
    Grpo,
    /// `grpo` with `importance_sampling_level: sequence`.
    Gspo,
    /// Clipped ratio; mean over the tokens of a micro-batch, hence dependent on micro-batching.
    Bnpo,
    /// Clipped ratio; sum over tokens divided by rows and by a constant length.
    DrGrpo,
    /// Clipped ratio; mean over all tokens of the optimiser step.
    #[default]
    Dapo,
    /// Log-prob weighted with the capped ratio, which is held constant; mean over all tokens.
    Cispo,
    /// Soft gate on the ratio; averaged like `grpo`.
    Sapo,
    /// Log-prob times advantage; mean over rows of the sum over a row's tokens.
    Reinforce,
    /// Ratio to the sampler where the probability has not moved out of a trust region; mean over all tokens.
    Dppo,
}

/// Averaging of tokens under verl's names, in place of the one that `loss_type` brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossAggMode {
    /// Mean over all tokens of the optimiser step.
    #[serde(alias = "token-mean")]
    TokenMean,
    /// Mean over rows that have tokens, of the mean over a row's tokens.
    #[serde(alias = "seq-mean-token-mean")]
    SeqMeanTokenMean,
    /// Mean over rows that have tokens, of the sum over a row's tokens.
    #[serde(alias = "seq-mean-token-sum")]
    SeqMeanTokenSum,
    /// The previous one divided by `loss_scale_factor`.
    #[serde(alias = "seq-mean-token-sum-norm")]
    SeqMeanTokenSumNorm,
    /// Sum over all tokens divided by `loss_scale_factor`, and not by rows: as LUFFY's and ExGRPO's scripts have it.
    #[serde(alias = "sum-norm")]
    SumNorm,
    /// Sum over rollouts of the mean over the tokens of all rows of a rollout, divided by the rows that have tokens: a rollout
    /// weighs the same however many turns it took (Agent Lightning).
    #[serde(alias = "per-rollout-mean")]
    PerRolloutMean,
}

/// Whether the importance ratio belongs to a token or to its whole row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportanceSamplingLevel {
    /// One ratio for each token.
    #[default]
    Token,
    /// The geometric mean over the row's tokens (GSPO).
    Sequence,
}

/// Estimator of the divergence from the reference; `d` is the reference's log-prob minus the policy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `-d`.
    K1,
    /// `|d|`.
    Abs,
    /// `d^2 / 2`.
    K2,
    /// `exp(d) - d - 1`.
    #[default]
    K3,
    /// Value of `k1`, gradient of `k2`.
    #[serde(rename = "k1+")]
    K1Plus,
    /// Value of `k3`, gradient of `k2`.
    #[serde(rename = "k3+")]
    K3Plus,
}

/// What makes up for a sampler whose probabilities differ from the learner's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportanceSamplingCorrection {
    /// Nothing.
    None,
    /// Each token is weighted with its ratio, brought into the bounds.
    TokenTruncate,
    /// Each token is weighted with its ratio, or with 0 outside the bounds.
    TokenMask,
    /// Each row is weighted with its ratio, brought into the bounds.
    SequenceTruncate,
    /// Each row is weighted with its ratio, or with 0 outside the bounds.
    #[default]
    SequenceMask,
}

/// The section `algo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlgoSection {
    /// How rewards become advantages.
    pub advantage_estimator: AdvantageEstimator,
    /// What centred rewards are divided by.
    pub scale_rewards: ScaleRewards,
    /// Added to the deviation that rewards are divided by.
    pub advantage_eps: f64,
    /// How several rewards become one.
    pub multi_objective_aggregation: MultiObjectiveAggregation,
    /// The surrogate and how its tokens are averaged.
    pub loss_type: LossType,
    /// Averages tokens otherwise than `loss_type` does.
    pub loss_agg_mode: Option<LossAggMode>,
    /// The constant of `dr_grpo`, `seq_mean_token_sum_norm` and `sum_norm`; none: `rollout.max_completion_length`.
    pub loss_scale_factor: Option<f64>,
    /// Ratio by token or by row.
    pub importance_sampling_level: ImportanceSamplingLevel,
    /// The ratio is clipped below `1 - epsilon`.
    pub epsilon: f64,
    /// The ratio is clipped above `1 + epsilon_high`; none: `epsilon`. With `cispo` the largest weight itself, and owed.
    pub epsilon_high: Option<f64>,
    /// Clips no ratio at all, as LUFFY's and ExGRPO's scripts do.
    pub loss_remove_clip: bool,
    /// verl's `clip_ratio_c`: the loss of a token with negative advantage is at most this times its size.
    pub dual_clip: Option<f64>,
    /// TRL's `delta`: the unclipped ratio is at most this, for both signs of the advantage.
    pub delta: Option<f64>,
    /// The smallest weight of `cispo`; none: no floor, as in TRL. verl's form is `1 - epsilon`, with `1 + epsilon_high` above.
    pub cispo_floor: Option<f64>,
    /// Temperature of the gate of `sapo` where the advantage is positive.
    pub sapo_temperature_pos: f64,
    /// Temperature of the gate of `sapo` elsewhere.
    pub sapo_temperature_neg: f64,
    /// `dppo` drops a token with negative advantage whose probability fell by more than this.
    pub dppo_mask_low: f64,
    /// `dppo` drops a token with positive advantage whose probability rose by more than this.
    pub dppo_mask_high: f64,
    /// Weight of the squared log-ratio to the sampler in `dppo`.
    pub dppo_kl_tau: f64,
    /// Weight of the divergence from the reference; 0 needs no reference.
    pub beta: f64,
    /// How that divergence is estimated.
    pub kl_estimator: KlEstimator,
    /// Bounds the estimate of one token, which has no gradient beyond; verl's is 10, TRL has none.
    pub kl_clamp: Option<f64>,
    /// Correction for a sampler that differs from the learner.
    pub importance_sampling_correction: ImportanceSamplingCorrection,
    /// Lower bound of its ratio.
    pub importance_sampling_clip_min: Option<f64>,
    /// Upper bound of its ratio.
    pub importance_sampling_clip_max: f64,
    /// Drops a row with negative advantage whose tokens became less likely than this since they were sampled (mean of
    /// sampler's minus learner's log-prob).
    pub off_policy_mask_threshold: Option<f64>,
    /// Leaves out groups whose rewards are all equal, and draws others in their place.
    pub dynamic_sampling: bool,
    /// Most batches that are drawn to fill one step with `dynamic_sampling`; 0: no limit.
    pub max_generation_batches: u32,
    /// Trains on no token of a completion that was cut off.
    pub mask_truncated_completions: bool,
    /// Trains on no token that the policy was told during an episode (passages that it searched for): they are in no loss,
    /// divergence, entropy or average. False shows what that is good for.
    pub mask_observations: bool,
    /// How often each batch is trained on.
    pub num_iterations: u32,
    /// Optimiser updates that one pass over a batch is divided into (verl's mini-batches); whole groups in each.
    pub steps_per_generation: u32,
    /// Tokens that the policy did not sample for this step.
    pub off_policy: OffPolicy,
}

impl Default for AlgoSection {
    fn default() -> Self {
        Self {
            advantage_estimator: AdvantageEstimator::Group,
            scale_rewards: ScaleRewards::Group,
            advantage_eps: 1e-4,
            multi_objective_aggregation: MultiObjectiveAggregation::SumThenNormalize,
            loss_type: LossType::Dapo,
            loss_agg_mode: None,
            loss_scale_factor: None,
            importance_sampling_level: ImportanceSamplingLevel::Token,
            epsilon: 0.2,
            epsilon_high: None,
            loss_remove_clip: false,
            dual_clip: None,
            delta: None,
            cispo_floor: None,
            sapo_temperature_pos: 1.0,
            sapo_temperature_neg: 1.05,
            dppo_mask_low: 0.2,
            dppo_mask_high: 0.2,
            dppo_kl_tau: 1e-3,
            beta: 0.0,
            kl_estimator: KlEstimator::K3,
            kl_clamp: None,
            importance_sampling_correction: ImportanceSamplingCorrection::SequenceMask,
            importance_sampling_clip_min: None,
            importance_sampling_clip_max: 3.0,
            off_policy_mask_threshold: None,
            dynamic_sampling: false,
            max_generation_batches: 10,
            mask_truncated_completions: false,
            mask_observations: true,
            num_iterations: 1,
            steps_per_generation: 1,
            off_policy: OffPolicy::default(),
        }
    }
}

/// Names that [`AlgoSection::preset`] knows.
pub const ALGO_PRESETS: [&str; 9] = ["grpo", "dapo", "dr_grpo", "gspo", "cispo", "sapo", "luffy", "exgrpo", "hybrid"];

/// What `algo: NAME` stands for, with full names of settings: the section, and for methods that learn from more than their own samples an
/// expert's trace in each group (`luffy`), replayed successes (`exgrpo`), or both (`hybrid`). None if the name is not in [`ALGO_PRESETS`].
pub fn method(name: &str) -> Option<Vec<(String, serde_json::Value)>> {
    let section = serde_json::to_value(AlgoSection::preset(name)?).expect("a section is plain data");
    let serde_json::Value::Object(section) = section else { return None };
    let mut all: Vec<_> = section.into_iter().map(|(key, value)| (format!("algo.{key}"), value)).collect();
    if ["luffy", "hybrid"].contains(&name) {
        all.push(("traces.per_group".into(), 1.into()));
    }
    if ["exgrpo", "hybrid"].contains(&name) {
        all.push(("replay.experience.enabled".into(), true.into()));
    }
    Some(all)
}

impl AlgoSection {
    /// The settings that a method's authors or its main implementation use; none if the name is not in [`ALGO_PRESETS`].
    ///
    /// They differ from the defaults in what makes the method, and in nothing else.
    pub fn preset(name: &str) -> Option<Self> {
        let base = Self::default();
        Some(match name {
            "grpo" => Self { loss_type: LossType::Grpo, beta: 0.04, ..base },
            "dapo" => Self {
                loss_type: LossType::Dapo,
                epsilon_high: Some(0.28),
                dual_clip: Some(10.0),
                advantage_eps: 1e-6,
                dynamic_sampling: true,
                ..base
            },
            "dr_grpo" => Self { loss_type: LossType::DrGrpo, scale_rewards: ScaleRewards::None, ..base },
            "gspo" => Self {
                loss_type: LossType::Gspo,
                epsilon: 3e-4,
                epsilon_high: Some(4e-4),
                steps_per_generation: 4,
                ..base
            },
            "cispo" => Self { loss_type: LossType::Cispo, epsilon_high: Some(5.0), ..base },
            "sapo" => Self { loss_type: LossType::Sapo, ..base },
            // As their scripts have it, but divided by rows, so that the scale does not hang on the size of a batch, and with
            // the clip of what is on-policy, which the papers have.
            "luffy" | "exgrpo" | "hybrid" => {
                Self { loss_type: LossType::DrGrpo, scale_rewards: ScaleRewards::None, ..base }
            }
            _ => return None,
        })
    }

    /// Whether the ratio belongs to a token or a row; `gspo` means rows.
    pub fn importance_level(&self) -> ImportanceSamplingLevel {
        match self.loss_type {
            LossType::Gspo => ImportanceSamplingLevel::Sequence,
            _ => self.importance_sampling_level,
        }
    }

    /// Optimiser updates made of one batch.
    pub fn updates_per_batch(&self) -> u64 {
        u64::from(self.num_iterations) * u64::from(self.steps_per_generation)
    }

    /// Checks ranges and contradictions; the error names the first key, what it takes and what it was given.
    pub fn validate(&self) -> Result<(), String> {
        let mut problems = Problems::default();
        self.check(problems.section("algo"));
        problems.errors.first().map_or(Ok(()), |p| Err(p.to_string()))
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        self.check_ratio(p);
        self.check_reference_and_sampler(p);
        non_negative(p, "advantage_eps", self.advantage_eps);
        if let Some(factor) = self.loss_scale_factor {
            positive(p, "loss_scale_factor", factor);
        }
        p.expect(self.num_iterations > 0, "num_iterations", "at least 1", self.num_iterations);
        p.expect(self.steps_per_generation > 0, "steps_per_generation", "at least 1", self.steps_per_generation);
        self.off_policy.check(p);
        let by_group = self.advantage_estimator == AdvantageEstimator::Group
            && self.multi_objective_aggregation == MultiObjectiveAggregation::SumThenNormalize;
        let split = self.off_policy.baseline == Baseline::OnPolicy;
        let want = "all, unless advantage_estimator is group and multi_objective_aggregation sum_then_normalize";
        p.expect(by_group || !split, "off_policy.baseline", want, "on_policy");
    }

    fn check_ratio(&self, p: &mut Problems) {
        let cispo = self.loss_type == LossType::Cispo;
        p.expect(self.epsilon > 0.0 && self.epsilon <= 1.0, "epsilon", "above 0 and at most 1", self.epsilon);
        match self.epsilon_high {
            None => p.expect(!cispo, "epsilon_high", "the largest weight, as 5.0, with loss_type cispo", "none"),
            Some(high) => positive(p, "epsilon_high", high),
        }
        if let Some(floor) = self.cispo_floor {
            let cap = self.epsilon_high.unwrap_or(f64::INFINITY);
            p.expect(floor >= 0.0 && floor < cap, "cispo_floor", "0 or more and below epsilon_high", floor);
        }
        if let Some(c) = self.dual_clip {
            p.expect(c > 1.0 && c.is_finite(), "dual_clip", "above 1", c);
        }
        if let Some(delta) = self.delta {
            let bound = 1.0 + self.epsilon_high.unwrap_or(self.epsilon);
            p.expect(cispo || delta > bound, "delta", "above 1 + epsilon_high", delta);
        }
        positive(p, "sapo_temperature_pos", self.sapo_temperature_pos);
        positive(p, "sapo_temperature_neg", self.sapo_temperature_neg);
        non_negative(p, "dppo_mask_low", self.dppo_mask_low);
        non_negative(p, "dppo_mask_high", self.dppo_mask_high);
        non_negative(p, "dppo_kl_tau", self.dppo_kl_tau);

        let sequence = self.importance_level() == ImportanceSamplingLevel::Sequence;
        let by_token = matches!(self.loss_type, LossType::Reinforce | LossType::Dppo);
        p.expect(
            !(sequence && by_token),
            "importance_sampling_level",
            "token with loss_type reinforce or dppo",
            "sequence",
        );
        let clipped = !by_token && !matches!(self.loss_type, LossType::Cispo | LossType::Sapo);
        let removed = self.loss_remove_clip;
        p.expect(!(removed && self.dual_clip.is_some()), "dual_clip", "none with loss_remove_clip", "a value");
        p.warn(!clipped && removed, "loss_remove_clip", "has no effect with this loss_type");
        p.warn(!clipped && self.dual_clip.is_some(), "dual_clip", "has no effect with this loss_type");
        p.warn(!clipped && self.delta.is_some(), "delta", "has no effect with this loss_type");
        p.warn(
            clipped && sequence && self.epsilon > 0.05,
            "epsilon",
            "the ratio of a whole row seldom leaves so wide a range; 3e-4 is usual at sequence level",
        );
    }

    fn check_reference_and_sampler(&self, p: &mut Problems) {
        non_negative(p, "beta", self.beta);
        if let Some(clamp) = self.kl_clamp {
            positive(p, "kl_clamp", clamp);
        }
        positive(p, "importance_sampling_clip_max", self.importance_sampling_clip_max);
        if let Some(min) = self.importance_sampling_clip_min {
            let max = self.importance_sampling_clip_max;
            let fits = min >= 0.0 && min < max;
            p.expect(fits, "importance_sampling_clip_min", "0 or more and below importance_sampling_clip_max", min);
        }
        if let Some(threshold) = self.off_policy_mask_threshold {
            positive(p, "off_policy_mask_threshold", threshold);
        }
    }
}

fn positive(p: &mut Problems, key: &str, got: f64) {
    p.expect(got > 0.0 && got.is_finite(), key, "a number above 0", got);
}

fn non_negative(p: &mut Problems, key: &str, got: f64) {
    p.expect(got >= 0.0 && got.is_finite(), key, "0 or more", got);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid_and_is_what_its_name_says() {
        for name in ALGO_PRESETS {
            let algo = AlgoSection::preset(name).unwrap();
            assert_eq!(algo.validate(), Ok(()), "{name}");
            let loss = if ["luffy", "exgrpo", "hybrid"].contains(&name) { "dr_grpo" } else { name };
            assert_eq!(serde_json::to_value(algo.loss_type).unwrap(), loss);
        }
        assert_eq!(AlgoSection::preset("ppo"), None);
        assert_eq!(AlgoSection::preset("gspo").unwrap().importance_level(), ImportanceSamplingLevel::Sequence);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key() {
        let base = AlgoSection::default;
        for (bad, key) in [
            (AlgoSection { loss_type: LossType::Cispo, ..base() }, "algo.epsilon_high"),
            (AlgoSection { epsilon: 0.0, ..base() }, "algo.epsilon:"),
            (AlgoSection { epsilon: f64::NAN, ..base() }, "algo.epsilon:"),
            (AlgoSection { dual_clip: Some(1.0), ..base() }, "algo.dual_clip"),
            (AlgoSection { delta: Some(1.1), ..base() }, "algo.delta"),
            (AlgoSection { beta: -0.1, ..base() }, "algo.beta"),
            (AlgoSection { importance_sampling_clip_min: Some(3.0), ..base() }, "algo.importance_sampling_clip_min"),
            (AlgoSection { num_iterations: 0, ..base() }, "algo.num_iterations"),
            (AlgoSection { steps_per_generation: 0, ..base() }, "algo.steps_per_generation"),
            (
                AlgoSection {
                    loss_type: LossType::Reinforce,
                    importance_sampling_level: ImportanceSamplingLevel::Sequence,
                    ..base()
                },
                "algo.importance_sampling_level",
            ),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(key), "{error:?} does not begin with {key:?}");
        }
    }

    #[test]
    fn names_are_those_of_the_field_and_unknown_keys_are_refused() {
        let text = "{loss_type: dr_grpo, kl_estimator: k3+, loss_agg_mode: seq-mean-token-sum, scale_rewards: none, \
                    importance_sampling_correction: token_truncate, advantage_estimator: grpo}";
        let algo: AlgoSection = serde_norway::from_str(text).unwrap();
        assert_eq!(algo.loss_type, LossType::DrGrpo);
        assert_eq!(algo.kl_estimator, KlEstimator::K3Plus);
        assert_eq!(algo.loss_agg_mode, Some(LossAggMode::SeqMeanTokenSum));
        assert_eq!(algo.scale_rewards, ScaleRewards::None);
        assert_eq!(algo.importance_sampling_correction, ImportanceSamplingCorrection::TokenTruncate);
        let error = serde_norway::from_str::<AlgoSection>("{epsilon_hgih: 0.3}").unwrap_err().to_string();
        assert!(error.contains("epsilon_hgih"), "{error}");
    }
}
