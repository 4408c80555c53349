//! Rows whose answer the run's own rewards refuse are not imitated (`sft.min_reward`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use folgore_config::{Config, data::OnBadRow};
use folgore_model::tokenizer::Tokenizer;
use folgore_protocol::{
    Body, Digest, Example, GroupId, Outcome, Prompt, Said, ScoreItem, ScoreRequest, SeatKey, SegmentKind, StopReason,
};
use folgore_reward::{Reward, Scope, host};
use tokio::{sync::Semaphore, task::JoinSet};

use super::rows::Rows;

/// Rows of one request, requests under way at once, and how long one may take.
const TOGETHER: usize = 64;
const AT_ONCE: usize = 4;
const BUDGET: Duration = Duration::from_secs(300);

/// Leaves those of `rows` that are to be imitated; what was left out stands in their report.
///
/// # Errors
/// If the rewards cannot be asked, one of them fails (unless bad rows are to be skipped), or no row is left.
pub fn retain(mut rows: Rows, config: &Config, tokenizer: &Tokenizer) -> Result<Rows> {
    let Some(least) = config.sft.min_reward else { return Ok(rows) };
    let reward = crate::reward::build_here(&config.reward).context("sft.min_reward")?;
    if !reward.judges_alone() {
        let name = reward.name();
        bail!(
            "sft.min_reward: reward {name} compares completions with each other: expected one that judges each by itself"
        );
    }
    let all: Vec<&Example> = rows.train.rows().chain(&rows.eval).collect();
    let outcomes = judged(reward.clone(), &all, tokenizer)?;
    let (mut left, mut failed) = (BTreeMap::<String, u64>::new(), None);
    let keep: Vec<bool> = std::iter::zip(&all, outcomes)
        .map(|(row, outcome)| {
            let reason = match outcome {
                Some(Outcome::Scored { total, .. }) if total >= least => return true,
                Some(Outcome::Scored { .. }) => format!("worth less than {least} by {}", reward.name()),
                Some(Outcome::Unscorable { reason }) => format!("cannot be judged: {reason}"),
                Some(Outcome::Error { reason }) => {
                    failed.get_or_insert_with(|| format!("row {}: {reason}", row.id));
                    format!("the reward failed: {reason}")
                }
                Some(Outcome::Unjudged { .. }) | None => "cannot be judged: it answers no question".to_owned(),
            };
            *left.entry(reason).or_default() += 1;
            false
        })
        .collect();
    if let Some(failed) = failed.filter(|_| config.data.on_bad_row == OnBadRow::Stop) {
        bail!("sft.min_reward: {failed}; data.on_bad_row=skip leaves such rows out");
    }
    let ids: Vec<&str> =
        std::iter::zip(&all, &keep).filter(|(_, keep)| **keep).map(|(row, _)| row.id.as_str()).collect();
    let digest = Digest::of(format!("{} kept {}", rows.digest.hex(), ids.join("\n")).as_bytes());
    let learnt = rows.train.len() as usize;
    let kept = |side: &[bool]| format!("{} of {}", side.iter().filter(|keep| **keep).count(), side.len());
    let mut said = format!("sft.min_reward {least}: {} rows to learn from are kept", kept(&keep[..learnt]));
    if keep.len() > learnt {
        said += &format!(", {} held out", kept(&keep[learnt..]));
    }
    let mut reasons: Vec<(&String, &u64)> = left.iter().collect();
    reasons.sort_by_key(|(_, rows)| std::cmp::Reverse(**rows));
    // rewards may have a reason of their own for each row
    let shown = reasons.len().min(SHOWN);
    reasons[..shown].iter().for_each(|(reason, rows)| said += &format!("; {rows} left out: {reason}"));
    let rest: u64 = reasons[shown..].iter().map(|(_, rows)| **rows).sum();
    if rest > 0 {
        said += &format!("; {rest} left out for other reasons");
    }
    let mut verdicts = keep.into_iter();
    let mut next = || verdicts.next().unwrap_or(false);
    if let Err(error) = rows.train.retain(|_| next()) {
        bail!("{said}: {error}");
    }
    rows.eval.retain(|_| next());
    let report = format!("{}\n{said}", rows.report);
    Ok(Rows { digest, report, judged: Some(said), ..rows })
}

/// Reasons that are told.
const SHOWN: usize = 4;

/// What `reward` says of each of `rows`; none of a row that answers nothing.
fn judged(reward: Arc<dyn Reward>, rows: &[&Example], tokenizer: &Tokenizer) -> Result<Vec<Option<Outcome>>> {
    let items = rows.iter().enumerate().filter_map(|(place, row)| item(place as u64, row, tokenizer).transpose());
    let items: Vec<ScoreItem> = items.collect::<Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut outcomes: Vec<Option<Outcome>> = vec![None; rows.len()];
    let replies = runtime.block_on(async {
        let (permits, mut asked) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
        for items in items.chunks(TOGETHER) {
            let permit = permits.clone().acquire_owned().await?;
            let request =
                ScoreRequest { items: items.to_vec(), scope: Scope::Sample, budget_ms: BUDGET.as_millis() as u64 };
            let reward = reward.clone();
            asked.spawn(async move {
                let reply = host::score(reward, request).await;
                drop(permit);
                reply
            });
        }
        anyhow::Ok(asked.join_all().await)
    })?;
    for (id, outcome) in replies.into_iter().flat_map(|reply| reply.outcomes) {
        outcomes[id.group.0 as usize] = Some(outcome);
    }
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(outcomes)
}

/// A row as a sample: what stands before the first thing that is learnt was asked, and the rest is the episode.
fn item(place: u64, row: &Example, tokenizer: &Tokenizer) -> Result<Option<ScoreItem>> {
    let (prompt, said) = match &row.body {
        Body::Text { .. } => return Ok(None),
        Body::Completion { prompt, completion } => {
            (Prompt::Text(prompt.clone()), vec![Said { by: SegmentKind::Sampled, text: completion.clone() }])
        }
        Body::Conversation { messages, learnt, .. } => {
            let first = learnt.iter().position(|on| *on).unwrap_or(messages.len());
            let said = messages[first..].iter().map(|message| {
                let by = if message.role == "assistant" { SegmentKind::Sampled } else { SegmentKind::Observed };
                let thought = message.extra.get("reasoning_content").and_then(serde_json::Value::as_str);
                let thought = thought.map_or_else(String::new, |thought| format!("<think>\n{thought}\n</think>\n\n"));
                Said { by, text: thought + &message.content }
            });
            (Prompt::Messages(messages[..first].to_vec()), said.collect())
        }
    };
    let completion: String =
        said.iter().filter(|said| said.by == SegmentKind::Sampled).map(|said| said.text.as_str()).collect();
    let completion_ids = tokenizer.encode_said(&completion).with_context(|| format!("row {}", row.id))?;
    let others_spoke = said.iter().any(|said| said.by != SegmentKind::Sampled);
    Ok(Some(ScoreItem {
        id: SeatKey { group: GroupId(place), sample: 0, draw: 0 },
        columns: row.columns.clone(),
        prompt,
        completion,
        completion_ids,
        stop_reason: StopReason::Eos,
        said: if others_spoke { said } else { Vec::new() },
    }))
}
