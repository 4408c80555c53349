//! `folgore reward test`: a reward over saved completions, before it is trained with.
//!
//! Each request passes through the same door as in a run, with as many completions as the reward needs: one, or a group.

mod figures;
mod saved;
mod told;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use folgore_config::{Config, RewardSpec, load, load_text};
use folgore_protocol::{Outcome, ScoreRequest};
use folgore_reward::{Reward, Scope, host};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    cli::{
        ConfigArgs, StreamArgs,
        reward::{RewardCommand, RewardTestArgs},
    },
    commands::train::load_config,
    run_dir,
    stream::{Rows, quietly},
    telemetry,
};
use figures::{Agreement, Distribution, Failure, Latency, failures};
use saved::Saved;

/// Runs the command.
pub fn run(command: RewardCommand) -> Result<()> {
    let RewardCommand::Test(args) = command;
    let (limit, folder) = (args.limit as usize, folder(&args)?);
    let config = config(&args, folder.as_deref())?;
    let of_config = || {
        config
            .as_ref()
            .map(|config| config.reward.clone())
            .context("name the reward to test with --reward, or a run with --run")
    };
    let specs = args.reward.as_deref().map_or_else(of_config, named)?;
    // what rewards elsewhere print is for whoever writes them
    telemetry::log_to(std::io::stderr, "off,folgore_reward::external::child=info");
    let reward = crate::reward::build_here(&specs)?;
    let second = args.second.as_deref().map(|text| named(text).context("--second")).transpose()?;
    let second = second.map(|specs| crate::reward::build_here(&specs)).transpose()?;
    let (source, saved) = match (&folder, &config) {
        (Some(folder), Some(config)) => (format!("run {}", folder.display()), saved::of_run(folder, config, limit)?),
        _ => from_file(&args, limit)?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let first = runtime.block_on(test(reward, &saved, &args))?;
    let second = second.map(|reward| runtime.block_on(test(reward, &saved, &args))).transpose()?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    let report = Report::of(source, &saved, first, second);
    let text = if args.json { format!("{:#}\n", serde_json::to_value(&report)?) } else { told::text(&report, &saved) };
    quietly(text.as_bytes())?;
    let failed = report.failed();
    if failed > 0 && !args.allow_failures {
        bail!("{failed} scores are missing; --allow-failures ends well all the same");
    }
    Ok(())
}

fn folder(args: &RewardTestArgs) -> Result<Option<PathBuf>> {
    args.run.as_ref().map(|name| run_dir::find(&args.output_dir, name)).transpose()
}

/// The configuration: the run's own with what is given on top, or what is given; none if nothing is.
fn config(args: &RewardTestArgs, folder: Option<&Path>) -> Result<Option<Config>> {
    let mut given = args.given.clone();
    if let Some(folder) = folder {
        given.insert(0, folder.join("config.yaml").display().to_string());
    }
    if given.is_empty() {
        return Ok(None);
    }
    load_config(&ConfigArgs { given, seed: None, model: None, adapter: None }).map(Some)
}

/// The rewards that `text` names: a rule, a function `file.py:function`, a file, or YAML.
fn named(text: &str) -> Result<Vec<RewardSpec>> {
    let is_file = Path::new(text).is_file() || [".yaml", ".yml", ".json"].iter().any(|end| text.ends_with(end));
    let (name, yaml) = match text {
        _ if is_file => (text, std::fs::read_to_string(text).with_context(|| text.to_owned())?),
        _ if text.trim_start().starts_with(['{', '[']) => ("--reward", text.to_owned()),
        python if python.contains(".py:") => {
            let name = python.rsplit(':').next().unwrap_or_default();
            ("--reward", serde_json::json!({ "name": name, "python": python }).to_string())
        }
        rule => return Ok(vec![RewardSpec::held(rule)]),
    };
    let value: serde_json::Value = serde_norway::from_str(&yaml).with_context(|| name.to_owned())?;
    let list = match value {
        serde_json::Value::Object(map) if map.contains_key("reward") => {
            return Ok(load(&[name], &[] as &[&str])?.config.reward);
        }
        serde_json::Value::Array(list) => list,
        one => vec![one],
    };
    // JSON is YAML: the configuration's own reader checks it, key by key.
    let wrapped = serde_json::json!({ "reward": list }).to_string();
    Ok(load_text(name, &wrapped, &[] as &[&str])?.config.reward)
}

fn from_file(args: &RewardTestArgs, limit: usize) -> Result<(String, Vec<Saved>)> {
    let input = args.input.clone().filter(|path| path.as_os_str() != "-");
    let source = input.as_ref().map_or_else(|| "standard input".into(), |path| path.display().to_string());
    let rows = Rows::open(&StreamArgs { input, output: None })?;
    Ok((source, saved::of_rows(rows, limit)?))
}

/// What a reward gave for each completion, in order, and how long requests took.
pub struct Tested {
    name: String,
    outcomes: Vec<Outcome>,
    times: Vec<Duration>,
}

/// Asks `reward` about all of `saved`.
async fn test(reward: Arc<dyn Reward>, saved: &[Saved], args: &RewardTestArgs) -> Result<Tested> {
    let permits = Arc::new(Semaphore::new(args.concurrency as usize));
    let budget_ms = u64::from(args.deadline_s) * 1000;
    let mut asked = JoinSet::new();
    for (place, items) in requests(saved, reward.scope()) {
        let permit = permits.clone().acquire_owned().await?;
        let (reward, request) = (reward.clone(), ScoreRequest { items, scope: reward.scope(), budget_ms });
        asked.spawn(async move {
            let begin = Instant::now();
            let reply = host::score(reward, request).await;
            drop(permit);
            (place, reply, begin.elapsed())
        });
    }
    let (mut scored, mut times) = (Vec::with_capacity(saved.len()), Vec::new());
    while let Some(done) = asked.join_next().await {
        let (place, reply, time) = done?;
        times.push(time);
        scored.extend(reply.outcomes.into_iter().zip(place..).map(|((_, outcome), place)| (place, outcome)));
    }
    scored.sort_by_key(|(place, _)| *place);
    let outcomes = scored.into_iter().map(|(_, outcome)| outcome).collect();
    Ok(Tested { name: reward.name().to_owned(), outcomes, times })
}

/// The requests, each with the place of its first completion: one each, or a group each.
fn requests(saved: &[Saved], scope: Scope) -> Vec<(usize, Vec<folgore_protocol::ScoreItem>)> {
    let together = |a: &Saved, b: &Saved| scope == Scope::Group && a.item.id.group == b.item.id.group;
    let chunks = saved.chunk_by(together);
    let mut place = 0;
    let request = |chunk: &[Saved]| {
        place += chunk.len();
        (place - chunk.len(), chunk.iter().map(|saved| saved.item.clone()).collect())
    };
    chunks.map(request).collect()
}

/// What one reward came to.
#[derive(serde::Serialize)]
pub struct Figures {
    reward: String,
    scores: Option<Distribution>,
    /// Distributions of the parts, where there are several.
    parts: Vec<(String, Distribution)>,
    failures: Vec<Failure>,
    latency_ms: Latency,
}

/// What the test came to.
#[derive(serde::Serialize)]
pub struct Report {
    source: String,
    completions: usize,
    #[serde(flatten)]
    first: Figures,
    /// Scores that are not those of the record.
    recorded: Option<Recorded>,
    second: Option<Figures>,
    agreement: Option<Agreement>,
}

/// How the scores compare with those that the completions got when they were made.
#[derive(serde::Serialize)]
pub struct Recorded {
    compared: usize,
    differ: usize,
    largest: f64,
}

impl Figures {
    fn of(tested: &Tested) -> Self {
        let totals: Vec<f64> = tested.outcomes.iter().filter_map(Outcome::total).collect();
        Self {
            reward: tested.name.clone(),
            scores: Distribution::of(&totals),
            parts: parts(&tested.outcomes),
            failures: failures(&tested.outcomes),
            latency_ms: Latency::of(&tested.times),
        }
    }

    fn failed(&self) -> usize {
        self.failures.iter().map(|failure| failure.count).sum()
    }
}

fn parts(outcomes: &[Outcome]) -> Vec<(String, Distribution)> {
    let mut values: std::collections::BTreeMap<&str, Vec<f64>> = Default::default();
    for outcome in outcomes {
        let Outcome::Scored { parts, .. } = outcome else { continue };
        parts.iter().for_each(|part| values.entry(&part.name).or_default().push(part.value));
    }
    if values.len() < 2 {
        return Vec::new();
    }
    values.into_iter().filter_map(|(name, values)| Some((name.to_owned(), Distribution::of(&values)?))).collect()
}

impl Report {
    fn of(source: String, saved: &[Saved], first: Tested, second: Option<Tested>) -> Self {
        let totals: Vec<Option<f64>> = first.outcomes.iter().map(Outcome::total).collect();
        let recorded = saved.iter().zip(&totals).filter_map(|(saved, total)| Some((saved.recorded?, (*total)?)));
        let differences: Vec<f64> = recorded.map(|(then, now)| (then - now).abs()).collect();
        let recorded = (!differences.is_empty()).then(|| Recorded {
            compared: differences.len(),
            differ: differences.iter().filter(|d| **d > 0.0).count(),
            largest: differences.iter().copied().fold(0.0, f64::max),
        });
        let agreement = second.as_ref().map(|second| {
            let both = totals.iter().zip(&second.outcomes).enumerate();
            let both: Vec<_> = both.filter_map(|(i, (a, b))| Some((i, (*a)?, b.total()?))).collect();
            Agreement::of(&both)
        });
        Self {
            source,
            completions: saved.len(),
            first: Figures::of(&first),
            recorded,
            second: second.as_ref().map(Figures::of),
            agreement,
        }
    }

    /// Scores that are missing, of both rewards.
    fn failed(&self) -> usize {
        self.first.failed() + self.second.as_ref().map_or(0, Figures::failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reward_is_named_by_rule_text_file_or_configuration() {
        let names = |text: &str| named(text).unwrap().into_iter().map(|s| (s.name, s.weight)).collect::<Vec<_>>();
        let one = [("math".to_owned(), 1.0)];
        assert_eq!(names("math"), one);
        assert_eq!(names("{name: math}"), one);
        let two = [("math".to_owned(), 1.0), ("numeric".to_owned(), 0.5)];
        assert_eq!(names("[{name: math}, {name: numeric, weight: 0.5}]"), two);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.yaml");
        for text in
            ["- name: math\n- {name: numeric, weight: 0.5}\n", "reward: [{name: math}, {name: numeric, weight: 0.5}]"]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(names(path.to_str().unwrap()), two, "{text}");
        }
        let refused = format!("{:#}", named("{name: math, wieght: 2}").unwrap_err());
        assert!(refused.contains("wieght"), "{refused}");
        assert!(format!("{:#}", named("missing.yaml").unwrap_err()).contains("missing.yaml"));
    }
}
