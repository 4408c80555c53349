//! Metrics of a step under TRL's names, from a batch and from what the objective saw.

use std::collections::BTreeMap;

use folgore_protocol::{
    batch::{Batch, GroupRecord},
    score::Outcome,
    trajectory::{Source, Trajectory},
};

use crate::{advantage::Moments, objective::Stats};

/// Numbers of a step by name, in the order of the names.
pub type Metrics = BTreeMap<String, f64>;

/// The metrics of a step: those of its batch, those of its objective, and the entropy of the policy where it was
/// measured (mean over trained tokens, in nats).
pub fn of_step(batch: &Batch, stats: &Stats, entropy: Option<f64>) -> Metrics {
    let mut metrics = of_batch(batch);
    stats.metrics(&mut metrics);
    metrics.extend(entropy.map(|e| ("entropy".to_owned(), e)));
    metrics
}

/// The metrics that a batch has before it is trained on.
pub fn of_batch(batch: &Batch) -> Metrics {
    let mut metrics = Metrics::new();
    rewards(batch, &mut metrics);
    completions(batch, &mut metrics);
    staleness(batch, &mut metrics);
    given(batch, &mut metrics);
    sources(batch, &mut metrics);
    metrics.insert("filtered_groups".into(), f64::from(batch.filtered_groups));
    if batch.passed_over > 0 {
        metrics.insert("curriculum/passed_over".into(), f64::from(batch.passed_over));
    }
    metrics
}

/// What the policy sampled for this step: metrics tell how it does, and not what it was given.
fn members(batch: &Batch) -> impl Iterator<Item = &Trajectory> {
    batch.groups.iter().flat_map(fresh)
}

fn fresh(group: &GroupRecord) -> impl Iterator<Item = &Trajectory> {
    group.members.iter().filter(|member| member.source() == Source::OnPolicy)
}

/// Members that are an expert's or the policy's own of before, where a batch has any.
fn given(batch: &Batch, into: &mut Metrics) {
    for (source, name) in [(Source::Teacher, "traces"), (Source::Replay, "experience")] {
        let members = batch.groups.iter().flat_map(|g| &g.members).filter(|m| m.source() == source);
        let members: Vec<&Trajectory> = members.collect();
        let rewards: Vec<f64> = members.iter().filter_map(|m| m.outcome.total()).collect();
        if !members.is_empty() {
            into.insert(format!("{name}/members"), members.len() as f64);
            into.insert(format!("{name}/reward"), Moments::of(&rewards).mean);
        }
        if source == Source::Replay && !members.is_empty() {
            let made_by = |m: &&Trajectory| {
                m.rows.iter().flat_map(|r| &r.segments).flat_map(|s| s.policies.iter()).map(|p| p.step).min()
            };
            let ages: Vec<f64> =
                members.iter().filter_map(made_by).map(|step| batch.step.saturating_sub(step + 1) as f64).collect();
            into.insert(format!("{name}/age"), Moments::of(&ages).mean);
        }
    }
}

/// Sources that are told of in a step: a column may hold another word in each row.
const SOURCES: usize = 64;

/// Rewards and lengths by where questions come from (the column `data_source`, which mixed sources write).
fn sources(batch: &Batch, into: &mut Metrics) {
    let mut of_source: BTreeMap<&str, Vec<&GroupRecord>> = BTreeMap::new();
    for group in &batch.groups {
        if let Some(name) = group.task.columns.get("data_source").and_then(serde_json::Value::as_str) {
            of_source.entry(name).or_default().push(group);
        }
    }
    for (name, groups) in of_source.into_iter().take(SOURCES) {
        let members = || groups.iter().flat_map(|group| fresh(group));
        let rewards: Vec<f64> = members().filter_map(|member| member.outcome.total()).collect();
        let lengths: Vec<f64> = members().map(length).collect();
        let mut put = |what: &str, value: f64| into.insert(format!("sources/{name}/{what}"), value);
        put("groups", groups.len() as f64);
        if !rewards.is_empty() {
            let Moments { mean, std } = Moments::of(&rewards);
            put("reward", mean);
            put("reward_std", std);
        }
        if !lengths.is_empty() {
            put("mean_length", Moments::of(&lengths).mean);
        }
    }
}

/// Tokens that were sampled, in all rows of a trajectory.
fn length(trajectory: &Trajectory) -> f64 {
    trajectory.rows.iter().map(|row| row.sampled_len()).sum::<usize>() as f64
}

fn rewards(batch: &Batch, into: &mut Metrics) {
    let groups: Vec<Vec<f64>> = batch
        .groups
        .iter()
        .map(|g| fresh(g).filter_map(|member| member.outcome.total()).collect())
        .filter(|g: &Vec<f64>| !g.is_empty())
        .collect();
    let all: Vec<f64> = groups.concat();
    if !all.is_empty() {
        let deviations: Vec<f64> = groups.iter().map(|g| Moments::of(g).std).collect();
        let flat = deviations.iter().filter(|s| **s == 0.0).count();
        into.insert("reward".into(), Moments::of(&all).mean);
        into.insert("reward_std".into(), Moments::of(&deviations).mean);
        into.insert("frac_reward_zero_std".into(), flat as f64 / groups.len() as f64);
    }
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let (mut unscorable, mut errors) = (0u32, 0u32);
    for member in members(batch) {
        match &member.outcome {
            Outcome::Scored { parts: own, .. } => {
                own.iter().for_each(|p| parts.entry(&p.name).or_default().push(p.value));
            }
            Outcome::Unscorable { .. } => unscorable += 1,
            Outcome::Error { .. } => errors += 1,
            Outcome::Unjudged { .. } => {}
        }
    }
    for (name, values) in parts {
        let Moments { mean, std } = Moments::of(&values);
        into.insert(format!("rewards/{name}/mean"), mean);
        into.insert(format!("rewards/{name}/std"), std);
    }
    // Members of a batch have scores; what had none is told by the draws.
    let draws = &batch.draws;
    into.insert("reward/unscorable".into(), f64::from(unscorable) + draws.unscorable as f64);
    into.insert("reward/error".into(), f64::from(errors) + draws.errors as f64);
    into.insert("reward/error_share".into(), draws.error_share().unwrap_or(0.0));
    into.insert("reward/unscored_groups".into(), f64::from(batch.unscored_groups));
    into.insert("rollout/unplayed".into(), draws.unplayed as f64);
    into.insert("rollout/refilled".into(), draws.refilled as f64);
}

/// Lengths count sampled tokens of all rows of a trajectory; a terminated one was not cut off.
fn completions(batch: &Batch, into: &mut Metrics) {
    let all: Vec<f64> = members(batch).map(length).collect();
    if all.is_empty() {
        return;
    }
    let terminated: Vec<f64> = members(batch).filter(|t| !t.stop_reason.truncated()).map(length).collect();
    let mut put = |name: &str, value: f64| into.insert(format!("completions/{name}"), value);
    put("mean_length", Moments::of(&all).mean);
    put("min_length", all.iter().copied().fold(f64::INFINITY, f64::min));
    put("max_length", all.iter().copied().fold(0.0, f64::max));
    put("clipped_ratio", 1.0 - terminated.len() as f64 / all.len() as f64);
    if !terminated.is_empty() {
        put("mean_terminated_length", Moments::of(&terminated).mean);
        put("min_terminated_length", terminated.iter().copied().fold(f64::INFINITY, f64::min));
        put("max_terminated_length", terminated.iter().copied().fold(0.0, f64::max));
    }
}

/// Steps between the policy that a trajectory's oldest token came from and the one that the step begins with.
fn staleness(batch: &Batch, into: &mut Metrics) {
    let newest = batch.step.saturating_sub(1);
    let ages: Vec<f64> =
        members(batch).filter_map(|t| t.oldest_policy_step()).map(|step| newest.saturating_sub(step) as f64).collect();
    if !ages.is_empty() {
        into.insert("staleness/mean".into(), Moments::of(&ages).mean);
        into.insert("staleness/max".into(), ages.iter().copied().fold(0.0, f64::max));
    }
}
