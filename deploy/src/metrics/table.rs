//! All metrics, one row each. The names of `metrics.jsonl` are TRL's where it has one, and are shown with `folgore_` before
//! them, `_` for `/`, and their unit; what a run can have no number for is left out.

use std::sync::LazyLock;

use folgore_actors::metrics::{Kind, Metric};

/// Where the values of a metric come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The number of this name in the last line of `metrics.jsonl`.
    Line(&'static str),
    /// The numbers `rewards/<name>/<what>` of that line; each rule of the reward is a label.
    Rules(&'static str),
    /// The first number of the line as a share of the second.
    Share(&'static str, &'static str),
    /// What the last evaluation measured: greedy and sampled answers are labels.
    Eval(&'static str),
    /// What the last evaluation measured of sampled answers for each k, which is a label.
    EvalAt(&'static str),
    /// A number, or a truth as 0 and 1, in the status of a service, by a JSON pointer.
    Status(&'static str, &'static str),
    /// The sum of the numbers in a list of pairs or an object there.
    Sum(&'static str, &'static str),
    /// The length of a list there.
    Length(&'static str, &'static str),
    /// A list of pairs or an object there: each name is a label of the name given last.
    Names(&'static str, &'static str, &'static str),
    /// A text there: 1 with the text as the label.
    Text(&'static str, &'static str, &'static str),
    /// A fact of the process, by its name.
    Process(&'static str),
    /// How often each service was restarted.
    Restarts,
}

/// One source of a metric, with the label that tells it from the others.
pub type Source = (Option<(&'static str, &'static str)>, Origin);

/// A metric and its sources.
#[derive(Clone, Debug)]
pub struct Row {
    /// The metric.
    pub metric: Metric,
    /// Where its values come from.
    pub sources: Vec<Source>,
}

/// The table.
pub static TABLE: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let mut rows = Vec::new();
    rows.extend(STEP.iter().map(|&(key, kind, unit, help)| row(key, kind, unit, help, &[(None, Origin::Line(key))])));
    rows.extend(REST.iter().map(|&(name, kind, unit, help, sources)| row(name, kind, unit, help, sources)));
    rows
});

fn row(key: &str, kind: Kind, unit: &'static str, help: &'static str, sources: &[Source]) -> Row {
    let unit_name = match unit {
        "s" => "_seconds",
        "By" => "_bytes",
        _ => "",
    };
    let total = if kind == Kind::Counter { "_total" } else { "" };
    let name = format!("folgore_{}{unit_name}{total}", key.replace('/', "_"));
    Row { metric: Metric { name, kind, unit, help }, sources: sources.to_vec() }
}

use Kind::{Counter, Gauge};
use Origin::{Eval, EvalAt, Length, Names, Process, Restarts, Rules, Share, Status, Sum, Text};

/// The numbers of a step, by their names in `metrics.jsonl`.
const STEP: &[(&str, Kind, &str, &str)] = &[
    ("step", Gauge, "", "Optimiser steps done"),
    ("reward", Gauge, "", "Mean reward of the step's samples"),
    ("reward_std", Gauge, "", "Standard deviation of rewards within a group, mean over groups"),
    ("frac_reward_zero_std", Gauge, "", "Share of groups whose rewards are all equal, which teach nothing"),
    ("reward/unscorable", Gauge, "", "Draws of the step's groups that the reward could not judge"),
    ("reward/error", Gauge, "", "Draws of the step's groups on which the reward failed"),
    ("reward/error_share", Gauge, "", "Share of them among those that were put to the reward"),
    ("reward/unscored_groups", Gauge, "", "Groups that were left out because a member got no score"),
    ("rollout/unplayed", Gauge, "", "Draws of the step's groups that could not be played"),
    ("rollout/refilled", Gauge, "", "Draws of the step's groups beyond the first of each seat"),
    ("filtered_groups", Gauge, "", "Groups that were left out while the step was gathered"),
    ("curriculum/passed_over", Gauge, "", "Questions that were passed over while the step was gathered"),
    ("loss", Gauge, "", "Loss; near 0 is normal for GRPO"),
    ("grad_norm", Gauge, "", "Norm of the gradient before clipping"),
    ("learning_rate", Gauge, "", "Learning rate"),
    ("entropy", Gauge, "", "Entropy of the policy per token, in nats"),
    ("kl", Gauge, "", "Divergence from the reference policy per token"),
    ("update_kl", Gauge, "", "Divergence from the policy before the step"),
    ("clip_ratio/low_mean", Gauge, "", "Share of tokens clipped below"),
    ("clip_ratio/high_mean", Gauge, "", "Share of tokens clipped above"),
    ("clip_ratio/region_mean", Gauge, "", "Share of tokens clipped"),
    ("ratio/mean", Gauge, "", "Probability ratio of new to old policy, mean over tokens"),
    ("ratio/min", Gauge, "", "Least probability ratio"),
    ("ratio/max", Gauge, "", "Greatest probability ratio"),
    ("off_policy_masked", Gauge, "", "Share of rows dropped as too far off policy"),
    ("completions/mean_length", Gauge, "", "Mean tokens of a completion"),
    ("completions/min_length", Gauge, "", "Fewest tokens of a completion"),
    ("completions/max_length", Gauge, "", "Most tokens of a completion"),
    ("completions/clipped_ratio", Gauge, "", "Share of completions that were cut off"),
    ("completions/mean_terminated_length", Gauge, "", "Mean tokens of a completion that ended by itself"),
    ("completions/min_terminated_length", Gauge, "", "Fewest tokens of a completion that ended by itself"),
    ("completions/max_terminated_length", Gauge, "", "Most tokens of a completion that ended by itself"),
    ("staleness/mean", Gauge, "", "Steps between a sample's oldest policy and the step's, mean"),
    ("staleness/max", Gauge, "", "Steps between a sample's oldest policy and the step's, greatest"),
    ("mismatch/kl", Gauge, "", "Divergence of the learner from the sampler on the same policy"),
    ("mismatch/logp_abs_diff", Gauge, "", "Difference of log-probs between sampler and learner, mean"),
    ("mismatch/logp_abs_max", Gauge, "", "Difference of log-probs between sampler and learner, greatest"),
    ("sampling/sampling_logp_difference/mean", Gauge, "", "As mismatch/logp_abs_diff, under TRL's name"),
    ("sampling/sampling_logp_difference/max", Gauge, "", "As mismatch/logp_abs_max, under TRL's name"),
    ("sampling/importance_sampling_ratio/mean", Gauge, "", "Weight that corrects for the sampler, mean"),
    ("sampling/importance_sampling_ratio/min", Gauge, "", "Weight that corrects for the sampler, least"),
    ("sampling/importance_sampling_ratio/max", Gauge, "", "Weight that corrects for the sampler, greatest"),
    ("num_tokens", Counter, "", "Tokens of prompts and completions of all steps, also of earlier launches"),
    ("tokens_sampled", Gauge, "", "Tokens that were sampled for the step"),
    ("tokens_trained", Gauge, "", "Tokens that the step learned from"),
    ("step_time", Gauge, "s", "Seconds of the step"),
    ("time/generate", Gauge, "s", "Seconds of the step that the learner waited for its batch"),
    ("time/train", Gauge, "s", "Seconds of the step that the learner learned"),
    ("perf/tokens_per_s", Gauge, "", "Tokens of the step per second of the step"),
];

/// The rest, named as it is shown, without `folgore_`, unit and `_total`.
const REST: &[(&str, Kind, &str, &str, &[Source])] = &[
    ("rewards_mean", Gauge, "", "Mean of one rule of the reward", &[(None, Rules("mean"))]),
    ("rewards_std", Gauge, "", "Standard deviation of one rule of the reward", &[(None, Rules("std"))]),
    (
        "idle_learner",
        Gauge,
        "",
        "Share of the step that the learner waited for its batch",
        &[(None, Share("time/generate", "step_time"))],
    ),
    ("eval_step", Gauge, "", "Step of the last evaluation", &[(None, Process("eval_step"))]),
    ("eval_accuracy", Gauge, "", "Share of right answers in the last evaluation", &[(None, Eval("accuracy"))]),
    ("eval_mean_reward", Gauge, "", "Mean reward in the last evaluation", &[(None, Eval("mean_reward"))]),
    ("eval_any_correct", Gauge, "", "Share of questions with a right answer", &[(None, Eval("any_correct"))]),
    ("eval_pass_at_k", Gauge, "", "pass@k of the last evaluation", &[(None, EvalAt("pass"))]),
    ("eval_maj_at_k", Gauge, "", "maj@k of the last evaluation", &[(None, EvalAt("maj"))]),
    // queues, as the coordinator sees them
    (
        "queue_waiting",
        Gauge,
        "",
        "Messages that wait in a queue",
        &[
            (Some(("queue", "jobs")), Status("coordinator", "/jobs_waiting")),
            (Some(("queue", "trajectories")), Status("coordinator", "/trajectories_waiting")),
        ],
    ),
    (
        "queue_held",
        Gauge,
        "",
        "Messages of a queue that somebody works on",
        &[
            (Some(("queue", "jobs")), Status("coordinator", "/jobs_held")),
            (Some(("queue", "trajectories")), Status("coordinator", "/trajectories_held")),
        ],
    ),
    ("jobs_issued", Counter, "", "Jobs put into the queue", &[(None, Status("coordinator", "/issued"))]),
    ("jobs_reissued", Counter, "", "Jobs issued again", &[(None, Status("coordinator", "/reissued"))]),
    ("jobs_paused", Gauge, "", "1 while no jobs are issued: enough wait", &[(None, Status("coordinator", "/paused"))]),
    (
        "jobs_redelivered",
        Counter,
        "",
        "Jobs that came to a worker here after somebody else had them",
        &[(None, Status("rollout-0", "/redelivered"))],
    ),
    // replay
    ("replay_open_step", Gauge, "", "Step whose batch is being gathered", &[(None, Status("replay", "/open_step"))]),
    ("replay_committed_step", Gauge, "", "Last step committed", &[(None, Status("replay", "/committed_step"))]),
    ("replay_open_groups", Gauge, "", "Groups that are not complete", &[(None, Status("replay", "/open_groups"))]),
    ("replay_open_seats", Gauge, "", "Seats that wait for a trajectory", &[(None, Status("replay", "/open_seats"))]),
    (
        "replay_unjudged_groups",
        Gauge,
        "",
        "Groups that wait to be judged as a whole",
        &[(None, Status("replay", "/unjudged_groups"))],
    ),
    (
        "replay_groups",
        Counter,
        "",
        "Groups that ended, by what became of them",
        &[
            (Some(("outcome", "closed")), Status("replay", "/closed_groups")),
            (Some(("outcome", "dropped")), Status("replay", "/dropped_groups")),
            (Some(("outcome", "passed_over")), Status("replay", "/passed_over")),
        ],
    ),
    (
        "questions",
        Gauge,
        "",
        "Questions that were asked, by how many of their last group succeeded; with data.curriculum",
        &[
            (Some(("succeeded", "none")), Status("replay", "/difficulty/none")),
            (Some(("succeeded", "some")), Status("replay", "/difficulty/some")),
            (Some(("succeeded", "all")), Status("replay", "/difficulty/all")),
        ],
    ),
    ("replay_trajectories", Counter, "", "Trajectories taken in", &[(None, Status("replay", "/trajectories"))]),
    (
        "replay_refused",
        Counter,
        "",
        "Trajectories refused, by reason",
        &[(None, Names("replay", "/refused", "reason"))],
    ),
    ("replay_scored", Counter, "", "Draws for training that got a score", &[(None, Status("replay", "/draws/scored"))]),
    (
        "replay_rejected",
        Counter,
        "",
        "Draws for training that were not kept, by what ended them",
        &[(None, Names("replay", "/rejected", "reason"))],
    ),
    ("replay_strikes", Gauge, "", "Strikes against workers", &[(None, Sum("replay", "/strikes"))]),
    ("replay_quarantined", Gauge, "", "Workers that are not believed", &[(None, Length("replay", "/quarantined"))]),
    // workers
    (
        "workers",
        Gauge,
        "",
        "Workers that are there",
        &[
            (Some(("kind", "rollout")), Status("watchdog", "/rollout_workers")),
            (Some(("kind", "reward")), Status("watchdog", "/reward_workers")),
        ],
    ),
    ("held_up", Gauge, "", "1 with the stage that holds the run up", &[(None, Text("watchdog", "/stage", "stage"))]),
    ("episodes_active", Gauge, "", "Episodes under way in this process", &[(None, Status("rollout-0", "/active"))]),
    (
        "episodes_waiting_for_policy",
        Gauge,
        "",
        "Episodes that wait for a newer policy",
        &[(None, Status("rollout-0", "/waiting_for_policy"))],
    ),
    (
        "episodes",
        Counter,
        "",
        "Episodes of this process by what became of them; those handed in without a score are in episodes_unscored",
        &[
            (Some(("outcome", "handed_in")), Status("rollout-0", "/trajectories")),
            (Some(("outcome", "given_back")), Status("rollout-0", "/given_back")),
            (Some(("outcome", "lost")), Status("rollout-0", "/lost")),
            (Some(("outcome", "rejected")), Status("rollout-0", "/rejected")),
        ],
    ),
    (
        "episodes_unscored",
        Counter,
        "",
        "Episodes of this process that were handed in without a score",
        &[(None, Status("rollout-0", "/unscored"))],
    ),
    (
        "sampled_tokens",
        Counter,
        "",
        "Tokens sampled in this process",
        &[(None, Status("rollout-0", "/sampled_tokens"))],
    ),
    // engine
    (
        "engine_tokens",
        Counter,
        "",
        "Tokens by how the engine came by them",
        &[
            (Some(("kind", "decode")), Status("generator", "/engine/decode_tokens")),
            (Some(("kind", "prefill")), Status("generator", "/engine/prefill_tokens")),
            (Some(("kind", "cached")), Status("generator", "/engine/cached_tokens")),
        ],
    ),
    (
        "engine_sequences",
        Gauge,
        "",
        "Sequences in the engine",
        &[
            (Some(("kind", "running")), Status("generator", "/engine/running")),
            (Some(("kind", "waiting")), Status("generator", "/engine/waiting")),
        ],
    ),
    (
        "engine_blocks",
        Gauge,
        "",
        "Blocks of the cache",
        &[
            (Some(("kind", "held")), Status("generator", "/engine/blocks_held")),
            (Some(("kind", "all")), Status("generator", "/engine/blocks")),
        ],
    ),
    (
        "engine_preemptions",
        Counter,
        "",
        "Sequences that had to give their blocks back",
        &[(None, Status("generator", "/engine/preemptions"))],
    ),
    (
        "engine_busy",
        Counter,
        "s",
        "Seconds that the engine computed; what is missing to the clock is idle/rollout",
        &[(None, Status("generator", "/busy_s"))],
    ),
    ("engine_tokens_per_s", Gauge, "", "Tokens per busy second", &[(None, Status("generator", "/tokens_per_s"))]),
    ("policy_step", Gauge, "", "Step of the policy that is served", &[(None, Status("generator", "/policy/step"))]),
    ("policy_epoch", Gauge, "", "Epoch of the policy that is served", &[(None, Status("generator", "/policy/epoch"))]),
    (
        "published_step",
        Gauge,
        "",
        "Step of the policy that the learner has published",
        &[(None, Status("learner", "/step"))],
    ),
    // reward worker
    (
        "scores",
        Counter,
        "",
        "Scores of this process by outcome",
        &[
            (Some(("outcome", "scored")), Status("reward", "/scored")),
            (Some(("outcome", "unscorable")), Status("reward", "/unscorable")),
            (Some(("outcome", "error")), Status("reward", "/errors")),
        ],
    ),
    ("score_requests", Counter, "", "Requests for scores answered", &[(None, Status("reward", "/requests"))]),
    (
        "score",
        Counter,
        "s",
        "Seconds that requests for scores took; by score_requests_total it is the mean latency",
        &[(None, Status("reward", "/seconds"))],
    ),
    // retriever worker
    (
        "searches",
        Counter,
        "",
        "Searches of this process, failed ones included",
        &[(None, Status("retriever", "/calls"))],
    ),
    ("searches_cached", Counter, "", "Searches answered from what was kept", &[(None, Status("retriever", "/cached"))]),
    (
        "searches_failed",
        Counter,
        "",
        "Searches that brought nothing but a reason",
        &[(None, Status("retriever", "/failures"))],
    ),
    ("search_passages", Counter, "", "Passages given", &[(None, Status("retriever", "/passages"))]),
    ("search_batches", Counter, "", "Batches in which searches were asked", &[(None, Status("retriever", "/batches"))]),
    (
        "search",
        Counter,
        "s",
        "Seconds that searches took; by searches_total it is the mean latency",
        &[(None, Status("retriever", "/seconds"))],
    ),
    // the process
    ("lease_epoch", Gauge, "", "Epoch under which this head writes", &[(None, Process("epoch"))]),
    ("last_step_time", Gauge, "s", "When the last step was done, since 1970", &[(None, Process("last_step_time"))]),
    ("service_restarts", Counter, "", "Restarts of a service after a failure", &[(None, Restarts)]),
    (
        "spans",
        Gauge,
        "",
        "Spans of this process: taken by the receiver, or missing (lost, or not sent yet)",
        &[
            (Some(("outcome", "taken")), Process("spans_taken")),
            (Some(("outcome", "missing")), Process("spans_missing")),
        ],
    ),
    ("build_info", Gauge, "", "1 with the version", &[(None, Process("build"))]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_those_of_prometheus_and_unique() {
        let mut names = BTreeSet::new();
        for Row { metric, sources } in TABLE.iter() {
            let Metric { name, kind, unit, help } = metric;
            assert!(name.bytes().all(|b| b == b'_' || b.is_ascii_lowercase() || b.is_ascii_digit()), "{name}");
            assert!(names.insert(name.clone()), "{name} is there twice");
            assert_eq!(*kind == Counter, name.ends_with("_total"), "{name}");
            assert!(["", "s", "By"].contains(unit) && !help.is_empty() && !sources.is_empty(), "{name}");
            // two sources of one metric without a label to tell them apart would be one series
            let labels: BTreeSet<_> = sources.iter().map(|(label, _)| label).collect();
            assert_eq!(labels.len(), sources.len(), "{name}");
        }
        for core in
            ["folgore_reward", "folgore_reward_std", "folgore_completions_mean_length", "folgore_step_time_seconds"]
        {
            assert!(names.contains(core), "{core}");
        }
    }

    /// All texts under the keys of queries.
    fn queries(value: &serde_json::Value, under: &str, found: &mut Vec<String>) {
        match value {
            serde_json::Value::String(text) if ["expr", "query"].contains(&under) => found.push(text.clone()),
            serde_json::Value::Array(list) => list.iter().for_each(|item| queries(item, under, found)),
            serde_json::Value::Object(fields) => fields.iter().for_each(|(key, value)| queries(value, key, found)),
            _ => {}
        }
    }

    /// Names, and what is selected or grouped by, in a query.
    fn words(query: &str) -> impl Iterator<Item = &str> {
        query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
    }

    #[test]
    fn every_query_of_the_dashboard_names_metrics_that_exist() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana/dashboards/folgore.json");
        let dashboard: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut asked = Vec::new();
        queries(&dashboard, "", &mut asked);
        asked.retain(|query| query != "prometheus");
        assert!(asked.len() > 40, "{}", asked.len());
        for query in &asked {
            let named: Vec<&str> = words(query).filter(|word| word.starts_with("folgore_")).collect();
            assert!(!named.is_empty(), "{query}: names no metric");
            for name in named {
                let row = TABLE.iter().find(|row| row.metric.name == name);
                let row = row.unwrap_or_else(|| panic!("{query}: there is no {name}"));
                // a counter is read by how fast it grows
                let counts = row.metric.kind == Counter && !name.contains("restarts");
                assert_eq!(counts, query.contains("rate("), "{query}");
            }
            for selected in query.split('{').skip(1).flat_map(|rest| rest.split('}').next().unwrap().split(',')) {
                let (label, value) = selected.split_once('=').unwrap();
                let value = value.trim_start_matches('~').trim_matches('"');
                let known = |row: &Row| row.sources.iter().any(|(own, _)| *own == Some((label, value)));
                let dynamic = matches!((label, value), ("run", "$run") | ("kind", "greedy" | "sampled"));
                assert!(dynamic || TABLE.iter().any(known), "{query}: nothing has {label}={value}");
            }
        }
    }
}
