//! Where the completions come from that a reward is tested on: the record of a run, or rows of JSON.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use folgore_config::Config;
use folgore_learner::record::{Record, RecordError};
use folgore_model::tokenizer::Tokenizer;
use folgore_protocol::{Batch, GroupId, Prompt, ScoreItem, SeatKey, SegmentKind, StopReason, Task, Trajectory};

use crate::{
    commands::inspect::{with_copy, writer},
    policy,
    stream::{Row, Rows},
};

/// One completion.
pub struct Saved {
    /// Where it is from, for people.
    pub place: String,
    /// What the reward is asked.
    pub item: ScoreItem,
    /// What it got when it was made.
    pub recorded: Option<f64>,
}

/// Up to `limit` completions of the newest batches in the record of the run in `folder`, in whole groups.
pub fn of_run(folder: &Path, config: &Config, limit: usize) -> Result<Vec<Saved>> {
    if let Some(writer) = writer(folder) {
        bail!("{}: {writer} is writing this run: stop it, or wait for its end", folder.display());
    }
    let tokenizer = policy::open_tokenizer(&config.model.reference())?;
    let path = folder.join("record.redb");
    let batches = with_copy(&path, |record| newest(record, limit)).map_err(anyhow::Error::msg)?;
    let mut saved = Vec::new();
    for group in batches.iter().flat_map(|batch| &batch.groups) {
        if saved.len() >= limit {
            break;
        }
        for member in &group.members {
            saved.push(of_member(&group.task, member, &tokenizer)?);
        }
    }
    if saved.is_empty() {
        bail!("{}: the record holds no batch", path.display());
    }
    Ok(saved)
}

/// The newest batches, as many as hold `limit` completions.
fn newest(record: &Record, limit: usize) -> Result<Vec<Batch>, RecordError> {
    let snapshot = record.load()?;
    let (mut batches, mut held) = (Vec::new(), 0);
    for (step, _) in snapshot.steps.iter().rev().filter(|(_, row)| row.batch.is_some()) {
        if held >= limit {
            break;
        }
        let Some(batch) = record.batch(*step)? else { continue };
        held += batch.groups.iter().map(|group| group.members.len()).sum::<usize>();
        batches.push(batch);
    }
    Ok(batches)
}

/// What the reward was asked about `member`: the text is put together as the rollout worker does.
fn of_member(task: &Task, member: &Trajectory, tokenizer: &Tokenizer) -> Result<Saved> {
    let segments = member.rows.iter().flat_map(|row| &row.segments);
    let sampled: Vec<&[u32]> = segments.filter(|s| s.kind == SegmentKind::Sampled).map(|s| s.ids.as_slice()).collect();
    let completion: Result<String, _> = sampled.iter().map(|ids| tokenizer.decode(ids, true)).collect();
    let item = ScoreItem {
        id: member.seat,
        columns: task.columns.clone(),
        prompt: task.prompt.clone(),
        completion: completion?,
        completion_ids: sampled.concat(),
        stop_reason: member.stop_reason,
        said: folgore_protocol::trajectory::said(&member.rows, |ids| tokenizer.decode(ids, true))?,
    };
    Ok(Saved { place: format!("{} ({})", member.seat, task.id), item, recorded: member.outcome.total() })
}

/// Up to `limit` completions from rows. Rows that follow each other with the same `group`, or the same prompt where there is
/// none, are a group.
pub fn of_rows(mut rows: Rows, limit: usize) -> Result<Vec<Saved>> {
    let mut saved: Vec<Saved> = Vec::new();
    let mut last: Option<(String, SeatKey)> = None;
    while saved.len() < limit {
        let Some(row) = rows.next()? else { break };
        let place = row.place.clone();
        let (group, item) = of_row(row).with_context(|| place.clone())?;
        let id = match &last {
            Some((name, seat)) if *name == group => SeatKey { sample: seat.sample + 1, ..*seat },
            Some((_, seat)) => SeatKey { group: GroupId(seat.group.0 + 1), sample: 0, draw: 0 },
            None => SeatKey { group: GroupId(0), sample: 0, draw: 0 },
        };
        last = Some((group, id));
        saved.push(Saved { place, item: ScoreItem { id, ..item }, recorded: None });
    }
    if saved.is_empty() {
        bail!("there are no rows");
    }
    Ok(saved)
}

fn of_row(mut row: Row) -> Result<(String, ScoreItem)> {
    let completion = row.text("completion")?;
    let prompt: Prompt =
        serde_json::from_value(row.take("prompt")?).ok().context("prompt: expected a text or a list of messages")?;
    let completion_ids = if row.has("completion_ids") { row.ids("completion_ids")? } else { Vec::new() };
    let stop_reason = match row.has("stop_reason") {
        true => serde_json::from_value(row.take("stop_reason")?).context("stop_reason")?,
        false => StopReason::Eos,
    };
    let said = match row.has("said") {
        true => serde_json::from_value(row.take("said")?).context("said: expected a list of {by, text}")?,
        false => Vec::new(),
    };
    let group = match row.has("group") {
        true => row.take("group")?.to_string(),
        false => serde_json::to_string(&prompt)?,
    };
    let id = SeatKey { group: GroupId(0), sample: 0, draw: 0 };
    Ok((group, ScoreItem { id, columns: row.fields, prompt, completion, completion_ids, stop_reason, said }))
}
