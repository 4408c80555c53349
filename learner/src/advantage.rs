//! Rewards of groups into advantages. Formulas are those of TRL and verl; deviations are sample deviations (n - 1).
//!
//! An unscored member has no part in the statistics and gets advantage 0. A group whose rewards are all equal gets
//! zeros, and not the rounding error of its mean. A group of one has mean 0 and deviation 1, as in verl.
//!
//! A trajectory counts once, however many rows its turns made. Rewards are used as they were given, in f64; Agent Lightning keeps them
//! in bfloat16, where 0.1 is 0.10009765625.

use folgore_config::algo::{AdvantageEstimator, AlgoSection, Baseline, MultiObjectiveAggregation, ScaleRewards};
use folgore_protocol::{
    batch::Batch,
    score::Outcome,
    trajectory::{Source, Trajectory},
};

/// A reward that cannot be trained on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("group {group}, member {member}: expected a finite reward, got {value}")]
pub struct NonFiniteReward {
    /// Place of the group in the batch.
    pub group: usize,
    /// Place of the member in the group.
    pub member: usize,
    /// The reward.
    pub value: f64,
}

/// Rewards by group and member; none where a member has no score.
pub type Rewards = [Vec<Option<f64>>];

/// Advantages of a batch, by group and member, from the totals or the parts of its outcomes as `algo` says.
pub fn of_batch(algo: &AlgoSection, batch: &Batch) -> Result<Vec<Vec<f64>>, NonFiniteReward> {
    match algo.multi_objective_aggregation {
        MultiObjectiveAggregation::SumThenNormalize => {
            let rewards: Vec<_> = batch.groups.iter().map(|g| g.rewards()).collect();
            let fresh = |m: &Trajectory| m.source() == Source::OnPolicy;
            let fresh: Vec<Vec<bool>> = batch.groups.iter().map(|g| g.members.iter().map(fresh).collect()).collect();
            of_sourced_rewards(algo, &rewards, &fresh)
        }
        MultiObjectiveAggregation::NormalizeThenSum => normalize_then_sum(algo, &parts(batch)),
    }
}

/// Advantages of rewards, by group and member.
pub fn of_rewards(algo: &AlgoSection, rewards: &Rewards) -> Result<Vec<Vec<f64>>, NonFiniteReward> {
    of_sourced_rewards(algo, rewards, &[])
}

/// Advantages of rewards, by group and member, where only those members may be the baseline that are `fresh`: sampled by the
/// policy for this step. What `fresh` does not tell of is.
pub fn of_sourced_rewards(
    algo: &AlgoSection,
    rewards: &Rewards,
    fresh: &[Vec<bool>],
) -> Result<Vec<Vec<f64>>, NonFiniteReward> {
    check(rewards)?;
    let all: Vec<f64> = rewards.iter().flatten().copied().flatten().collect();
    let batch = Moments::of(&all);
    let is_fresh = |g: usize, m: usize| fresh.get(g).and_then(|group| group.get(m)).copied().unwrap_or(true);
    let group = |(g, rewards): (usize, &Vec<Option<f64>>)| match algo.off_policy.baseline {
        Baseline::OnPolicy if (0..rewards.len()).any(|m| !is_fresh(g, m)) => {
            of_split_group(algo, rewards, |m| is_fresh(g, m))
        }
        _ => of_group(algo, rewards, &batch),
    };
    Ok(rewards.iter().enumerate().map(group).collect())
}

/// Against mean and deviation of the `fresh` members alone; a deviation of 0 counts as 1 (LUFFY's `grpo_split`).
fn of_split_group(algo: &AlgoSection, group: &[Option<f64>], fresh: impl Fn(usize) -> bool) -> Vec<f64> {
    let scored: Vec<f64> = (0..group.len()).filter(|m| fresh(*m)).filter_map(|m| group[m]).collect();
    let Moments { mean, std } = Moments::of(&scored);
    let divisor = match algo.scale_rewards {
        ScaleRewards::None => 1.0,
        _ if std == 0.0 => 1.0 + algo.advantage_eps,
        _ => std + algo.advantage_eps,
    };
    group.iter().map(|reward| reward.map_or(0.0, |reward| (reward - mean) / divisor)).collect()
}

/// True if a group can teach something: it has one scored member, or two that differ (DAPO's dynamic sampling).
pub fn has_signal(rewards: &[Option<f64>]) -> bool {
    let scored: Vec<f64> = rewards.iter().copied().flatten().collect();
    scored.len() == 1 || !all_equal(&scored)
}

/// Mean and sample deviation of some numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    /// Mean; 0 of nothing.
    pub mean: f64,
    /// Sample deviation; exactly 0 where all numbers are equal, and 0 of fewer than two.
    pub std: f64,
}

impl Moments {
    pub(crate) fn of(xs: &[f64]) -> Self {
        let n = xs.len() as f64;
        let mean = if xs.is_empty() { 0.0 } else { xs.iter().sum::<f64>() / n };
        let std =
            if all_equal(xs) { 0.0 } else { (xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt() };
        Self { mean, std }
    }
}

fn all_equal(xs: &[f64]) -> bool {
    xs.windows(2).all(|w| w[0] == w[1])
}

fn check(rewards: &Rewards) -> Result<(), NonFiniteReward> {
    for (group, members) in rewards.iter().enumerate() {
        for (member, value) in members.iter().enumerate() {
            if let Some(value) = value.filter(|v| !v.is_finite()) {
                return Err(NonFiniteReward { group, member, value });
            }
        }
    }
    Ok(())
}

fn of_group(algo: &AlgoSection, group: &[Option<f64>], batch: &Moments) -> Vec<f64> {
    let scored: Vec<f64> = group.iter().copied().flatten().collect();
    let n = scored.len() as f64;
    let (mean, std) = match scored.len() {
        1 => (0.0, 1.0),
        _ if all_equal(&scored) => return vec![0.0; group.len()],
        _ => {
            let m = Moments::of(&scored);
            (m.mean, m.std)
        }
    };
    let factor = match (algo.advantage_estimator, algo.scale_rewards) {
        (AdvantageEstimator::Rloo, _) => n / (n - 1.0).max(1.0),
        // The mean of one reward is that reward, so that MaxRL learns nothing from a group of one.
        (AdvantageEstimator::MaxRl, _) if n == 1.0 || mean <= 0.0 => 0.0,
        (AdvantageEstimator::MaxRl, _) => 1.0 / mean,
        (AdvantageEstimator::Group, ScaleRewards::Group) => 1.0 / (std + algo.advantage_eps),
        (AdvantageEstimator::Group, ScaleRewards::Batch) => {
            let std = if batch.std > 0.0 { batch.std } else { 1.0 };
            1.0 / (std + algo.advantage_eps)
        }
        (AdvantageEstimator::Group, ScaleRewards::None) => 1.0,
    };
    group.iter().map(|r| r.map_or(0.0, |r| (r - mean) * factor)).collect()
}

/// One reward function over a batch.
struct PartColumn {
    name: String,
    weight: f64,
    values: Vec<Vec<Option<f64>>>,
}

/// The parts of a batch's outcomes as columns, in the order in which their names first appear.
fn parts(batch: &Batch) -> Vec<PartColumn> {
    let mut columns: Vec<PartColumn> = Vec::new();
    for (g, group) in batch.groups.iter().enumerate() {
        for (m, member) in group.members.iter().enumerate() {
            let Outcome::Scored { parts, .. } = &member.outcome else { continue };
            for part in parts {
                let column = match columns.iter().position(|c| c.name == part.name) {
                    Some(known) => known,
                    None => {
                        let values = batch.groups.iter().map(|g| vec![None; g.members.len()]).collect();
                        columns.push(PartColumn { name: part.name.clone(), weight: part.weight, values });
                        columns.len() - 1
                    }
                };
                columns[column].values[g][m] = Some(part.value);
            }
        }
    }
    columns
}

/// TRL's `normalize_then_sum`: each function is a z-score in its group; their weighted sum is a z-score in the batch.
fn normalize_then_sum(algo: &AlgoSection, columns: &[PartColumn]) -> Result<Vec<Vec<f64>>, NonFiniteReward> {
    let z_score = AlgoSection { advantage_eps: algo.advantage_eps, ..AlgoSection::default() };
    let mut sums: Vec<Vec<Option<f64>>> =
        columns.first().map_or(Vec::new(), |c| c.values.iter().map(|g| vec![None; g.len()]).collect());
    for column in columns {
        let normal = of_rewards(&z_score, &column.values)?;
        for (g, group) in column.values.iter().enumerate() {
            for m in (0..group.len()).filter(|m| group[*m].is_some()) {
                *sums[g][m].get_or_insert(0.0) += column.weight * normal[g][m];
            }
        }
    }
    let scored: Vec<f64> = sums.iter().flatten().copied().flatten().collect();
    let batch = Moments::of(&scored);
    let z = |sum: f64| if batch.std > 0.0 { (sum - batch.mean) / (batch.std + algo.advantage_eps) } else { 0.0 };
    Ok(sums.iter().map(|group| group.iter().map(|s| s.map_or(0.0, z)).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rewards_give_exact_zeros_also_where_their_mean_is_rounded() {
        let rewards = vec![vec![Some(0.1); 3], vec![Some(0.0), None, Some(1.0)]];
        for estimator in [AdvantageEstimator::Group, AdvantageEstimator::Rloo, AdvantageEstimator::MaxRl] {
            for scale_rewards in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
                let algo = AlgoSection { advantage_estimator: estimator, scale_rewards, ..AlgoSection::default() };
                let a = of_rewards(&algo, &rewards).unwrap();
                assert_eq!(a[0], [0.0; 3]);
                assert_eq!(a[1][1], 0.0);
                assert!(a[1][0] < 0.0 && a[1][2] > 0.0);
            }
        }
        assert!(!has_signal(&[Some(0.1), None, Some(0.1)]));
        assert!(!has_signal(&[]) && !has_signal(&[None]) && has_signal(&[None, Some(0.1)]));
    }

    #[test]
    fn nothing_scored_is_no_error_and_a_reward_that_is_no_number_is() {
        let algo = AlgoSection::default();
        assert_eq!(of_rewards(&algo, &[vec![None, None]]).unwrap(), [[0.0, 0.0]]);
        let error = of_rewards(&algo, &[vec![Some(1.0)], vec![None, Some(f64::NAN)]]).unwrap_err();
        assert_eq!((error.group, error.member), (1, 1));
    }

    #[test]
    fn parts_are_normalised_before_they_are_summed() {
        // Part a alone separates group 0, part b alone group 1; b's scale of 100 must not outweigh a.
        let columns = [("a", 1.0, [[1.0, 0.0], [1.0, 1.0]]), ("b", 1.0, [[50.0, 50.0], [0.0, 100.0]])].map(
            |(name, weight, values)| PartColumn {
                name: name.into(),
                weight,
                values: values.iter().map(|g| g.iter().map(|v| Some(*v)).collect()).collect(),
            },
        );
        let a = normalize_then_sum(&AlgoSection::default(), &columns).unwrap();
        assert!((a[0][0] - 0.866).abs() < 1e-3 && (a[1][1] - 0.866).abs() < 1e-3, "{a:?}");
        assert!((a[0][0] + a[0][1]).abs() < 1e-9 && (a[1][0] + a[1][1]).abs() < 1e-9);
    }
}
