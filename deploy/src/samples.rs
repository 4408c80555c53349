//! `samples/`: a few completions of each step and evaluation, as text, chosen by their place and never by their score.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use folgore_learner::evaluation::Evaluated;
use folgore_model::{files::atomic::write_atomic, tokenizer::Tokenizer};
use folgore_protocol::{Batch, EvalItem, EvalSummary, Outcome, Prompt, SegmentKind, StopReason, Trajectory};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Name of the folder in a run's folder.
pub const FOLDER: &str = "samples";
/// Samples of each way of answering that an evaluation keeps.
const EVAL_SAMPLES: usize = 12;

/// One completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The step that trained on it, or whose policy was evaluated.
    pub step: u64,
    /// Group, sample and draw.
    pub seat: String,
    /// Id of the task.
    pub task_id: String,
    /// `greedy` or `sampled`, in an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoding: Option<String>,
    /// The question, as text; none where it is not known.
    pub prompt: Option<String>,
    /// What the policy said, all its turns.
    pub completion: String,
    /// The same with what it was told in between; none if it was told nothing, or in an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub episode: Option<String>,
    /// The score; none if there is none.
    pub reward: Option<f64>,
    /// What the rules gave, by name.
    pub parts: Map<String, Value>,
    /// Why there is no score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unscored: Option<String>,
    /// Why the last turn ended.
    pub stop_reason: StopReason,
}

impl Sample {
    /// All that came after the question.
    pub fn answer(&self) -> &str {
        self.episode.as_deref().unwrap_or(&self.completion)
    }
}

/// Writes samples as text.
pub struct Samples<'a> {
    folder: PathBuf,
    tokenizer: &'a Tokenizer,
}

impl<'a> Samples<'a> {
    /// Stands on the folder of a run.
    pub fn new(run: &Path, tokenizer: &'a Tokenizer) -> Self {
        Self { folder: run.join(FOLDER), tokenizer }
    }

    /// Writes `step-<n>.jsonl`: the first member of each group, then the second, up to `most`. Returns what was written.
    pub fn step(&self, batch: &Batch, most: usize) -> Result<Vec<Sample>> {
        let longest = batch.groups.iter().map(|g| g.members.len()).max().unwrap_or(0);
        let seats = (0..longest).flat_map(|i| batch.groups.iter().filter_map(move |g| Some((g, g.members.get(i)?))));
        let sample = |(group, member): (&folgore_protocol::GroupRecord, &Trajectory)| {
            let said = self.sample(
                batch.step,
                member.seat.to_string(),
                &group.task.id,
                Some(&group.task.prompt),
                &ids_of(member, &[SegmentKind::Sampled]),
                &member.outcome,
                member.stop_reason,
            )?;
            let told = !ids_of(member, &[SegmentKind::Observed]).is_empty();
            let all = told.then(|| ids_of(member, &[SegmentKind::Sampled, SegmentKind::Observed]));
            let episode = all.map(|ids| self.tokenizer.decode(&ids, true)).transpose()?;
            anyhow::Ok(Sample { episode, ..said })
        };
        let samples = seats.take(most).map(sample).collect::<Result<Vec<_>>>()?;
        self.write(&format!("step-{}.jsonl", batch.step), &samples)?;
        Ok(samples)
    }

    /// Writes `eval-<when>.jsonl`: the first answers of each kind. `prompt` gives the question of a task.
    pub fn evaluation(&self, evaluated: &Evaluated, prompt: impl Fn(&str) -> Option<Prompt>) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for (decoding, summary) in [("greedy", &evaluated.greedy), ("sampled", &evaluated.sampled)] {
            for item in summary.as_ref().map(first_answers).unwrap_or_default() {
                let question = prompt(&item.task_id);
                let ids = &item.completion_ids;
                let mut sample = self.sample(
                    evaluated.step,
                    item.seat.to_string(),
                    &item.task_id,
                    question.as_ref(),
                    ids,
                    &item.outcome,
                    item.stop_reason,
                )?;
                sample.decoding = Some(decoding.into());
                samples.push(sample);
            }
        }
        self.write(&format!("eval-{}.jsonl", evaluated.when), &samples)?;
        Ok(samples)
    }

    fn sample(
        &self,
        step: u64,
        seat: String,
        task_id: &str,
        prompt: Option<&Prompt>,
        ids: &[u32],
        outcome: &Outcome,
        stop_reason: StopReason,
    ) -> Result<Sample> {
        let (parts, unscored) = match outcome {
            Outcome::Scored { parts, .. } => (parts.iter().map(|p| (p.name.clone(), p.value.into())).collect(), None),
            Outcome::Unscorable { reason } => (Map::new(), Some(format!("cannot be judged: {reason}"))),
            Outcome::Error { reason } => (Map::new(), Some(format!("the reward failed: {reason}"))),
            Outcome::Unjudged { .. } => (Map::new(), Some("not judged yet".to_owned())),
        };
        Ok(Sample {
            step,
            seat,
            task_id: task_id.to_owned(),
            decoding: None,
            prompt: prompt.map(prompt_text),
            completion: self.tokenizer.decode(ids, true)?,
            episode: None,
            reward: outcome.total(),
            parts,
            unscored,
            stop_reason,
        })
    }

    fn write(&self, name: &str, samples: &[Sample]) -> Result<()> {
        let mut text = String::new();
        for sample in samples {
            text.push_str(&serde_json::to_string(sample)?);
            text.push('\n');
        }
        std::fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        Ok(write_atomic(&self.folder.join(name), text.as_bytes())?)
    }
}

/// The first answer to each of the first questions.
fn first_answers(summary: &EvalSummary) -> Vec<&EvalItem> {
    summary.items.iter().filter(|item| item.seat.sample == 0).take(EVAL_SAMPLES).collect()
}

/// The ids of some kinds in the last row of the trajectory: a template that rewrites history begins a new one.
fn ids_of(trajectory: &Trajectory, kinds: &[SegmentKind]) -> Vec<u32> {
    let segments = trajectory.rows.last().map(|row| row.segments.as_slice()).unwrap_or_default();
    segments.iter().filter(|s| kinds.contains(&s.kind)).flat_map(|s| s.ids.iter().copied()).collect()
}

/// A prompt for people.
pub fn prompt_text(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Messages(messages) => {
            let lines: Vec<String> = messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect();
            lines.join("\n")
        }
    }
}

/// The samples in the file `name` of a run; none if there is no such file. A line that is no sample is left out.
pub fn read(run: &Path, name: &str) -> Vec<Sample> {
    let text = std::fs::read_to_string(run.join(FOLDER).join(name)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Names of the files of steps, the newest step first.
pub fn step_files(run: &Path) -> Vec<(u64, String)> {
    let entries = std::fs::read_dir(run.join(FOLDER)).into_iter().flatten().filter_map(Result::ok);
    let name = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let step = name.strip_prefix("step-")?.strip_suffix(".jsonl")?.parse().ok()?;
        Some((step, name))
    };
    let mut files: Vec<(u64, String)> = entries.filter_map(name).collect();
    files.sort_unstable_by(|a, b| b.cmp(a));
    files
}
