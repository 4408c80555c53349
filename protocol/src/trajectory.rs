//! What a rollout worker hands in: rows of segments, token ids as they were sampled.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    generate::StopReason,
    ids::{Digest, PolicyId, SeatKey},
    job::Purpose,
    runlength::RunLength,
    score::{Outcome, Said},
};

/// Who wrote a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentKind {
    /// The question: not trained on.
    Prompt,
    /// Said as the policy: trained on. Sampled by it, or copied from an expert's trace in a row of [`Source::Teacher`].
    Sampled,
    /// Said by the environment (passages, tool results): not trained on.
    Observed,
}

/// A run of token ids of one origin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Who wrote it.
    pub kind: SegmentKind,
    /// The ids.
    pub ids: Vec<u32>,
    /// Log-prob of each id when it was sampled; as long as `ids` where a policy sampled it, else empty.
    pub logprobs: Vec<f32>,
    /// Policy that made each id; as long as `ids` where a policy sampled it, else empty.
    pub policies: RunLength<PolicyId>,
}

/// Where a row's tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Sampled by this run's policy for this step.
    OnPolicy,
    /// An expert's trace, or the beginning of one that the policy went on with.
    Teacher,
    /// The policy's own earlier success.
    Replay,
}

/// One sequence that the model saw from its first token to its last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The sequence, in order; the first segment is never empty.
    pub segments: Vec<Segment>,
    /// Where it comes from.
    pub source: Source,
}

impl Row {
    /// All ids in order.
    pub fn ids(&self) -> Vec<u32> {
        self.segments.iter().flat_map(|s| s.ids.iter().copied()).collect()
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.segments.iter().map(|s| s.ids.len()).sum()
    }

    /// True if there are no ids.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the ids of `segment`, one of this row, come from: an expert gives no log-probs.
    pub fn origin(&self, segment: &Segment) -> Source {
        match self.source {
            Source::Teacher if !segment.logprobs.is_empty() => Source::OnPolicy,
            source => source,
        }
    }

    /// Number of ids that are said as the policy.
    pub fn sampled_len(&self) -> usize {
        self.segments.iter().filter(|s| s.kind == SegmentKind::Sampled).map(|s| s.ids.len()).sum()
    }

    /// Checks what the learner relies on; the error names the segment, expected and got.
    pub fn validate(&self, vocab_size: u32) -> Result<(), String> {
        if self.segments.first().is_none_or(|s| s.ids.is_empty() || s.kind == SegmentKind::Sampled) {
            return Err("row: expected to begin with a non-empty segment that was not sampled".into());
        }
        for (i, segment) in self.segments.iter().enumerate() {
            let n = segment.ids.len();
            let copied = self.source == Source::Teacher && segment.logprobs.is_empty();
            let expected = if segment.kind == SegmentKind::Sampled && !copied { n } else { 0 };
            if segment.logprobs.len() != expected || segment.policies.len() != expected {
                return Err(format!(
                    "segment {i}: expected {expected} log-probs and policies, got {} and {}",
                    segment.logprobs.len(),
                    segment.policies.len()
                ));
            }
            if let Some(id) = segment.ids.iter().find(|id| **id >= vocab_size) {
                return Err(format!("segment {i}: token id {id} is outside the vocabulary of {vocab_size}"));
            }
            if let Some(lp) = segment.logprobs.iter().find(|lp| !lp.is_finite() || **lp > 1e-4) {
                return Err(format!("segment {i}: expected finite log-probs of at most 0, got {lp}"));
            }
        }
        if self.sampled_len() == 0 {
            return Err("row: expected at least one sampled token, got none".into());
        }
        Ok(())
    }
}

/// What was said in `rows` after the prompt, if more than the policy spoke; else nothing. `decode` turns ids into text.
///
/// # Errors
/// Those of `decode`.
pub fn said<E>(rows: &[Row], decode: impl Fn(&[u32]) -> Result<String, E>) -> Result<Vec<Said>, E> {
    let segments = || rows.iter().flat_map(|row| &row.segments).filter(|s| s.kind != SegmentKind::Prompt);
    if segments().all(|segment| segment.kind == SegmentKind::Sampled) {
        return Ok(Vec::new());
    }
    segments().map(|segment| Ok(Said { by: segment.kind, text: decode(&segment.ids)? })).collect()
}

/// The result of one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    /// Which seat it fills.
    pub seat: SeatKey,
    /// Id of the task, for logs.
    pub task_id: String,
    /// Train or evaluate, copied from the job.
    pub purpose: Purpose,
    /// The sequences. A template that rewrites history starts a new row; all rows share the outcome.
    pub rows: Vec<Row>,
    /// What the reward said.
    pub outcome: Outcome,
    /// Why the last turn ended.
    pub stop_reason: StopReason,
    /// Name of the worker that made it.
    pub worker: String,
    /// Wall milliseconds from the start of the episode to its score.
    pub duration_ms: u64,
    /// The token of the job: without it, the trajectory is somebody else's invention.
    #[serde(default)]
    pub token: String,
}

impl Trajectory {
    /// The distinct policies of the tokens that were sampled for this seat, in order. Experience is older, and meant to be.
    pub fn policies(&self) -> Vec<PolicyId> {
        let distinct: BTreeSet<PolicyId> = self.fresh().map(|(policy, _)| *policy).collect();
        distinct.into_iter().collect()
    }

    /// Policies of what was sampled for this seat.
    fn fresh(&self) -> impl Iterator<Item = &(PolicyId, u32)> {
        let rows = self.rows.iter().filter(|row| row.source != Source::Replay);
        rows.flat_map(|row| &row.segments).flat_map(|segment| segment.policies.runs())
    }

    /// The source that its rows share: on-policy unless one of them is another's.
    pub fn source(&self) -> Source {
        self.rows.iter().map(|row| row.source).find(|source| *source != Source::OnPolicy).unwrap_or(Source::OnPolicy)
    }

    /// Tells the ids said in it from those of others: 64 bits of SHA-256.
    pub fn fingerprint(&self) -> u64 {
        let mut bytes = Vec::new();
        for segment in self.rows.iter().flat_map(|row| &row.segments).filter(|s| s.kind == SegmentKind::Sampled) {
            segment.ids.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
            bytes.extend(u32::MAX.to_le_bytes());
        }
        let Digest(sum) = Digest::of(&bytes);
        u64::from_le_bytes(std::array::from_fn(|i| sum[i]))
    }

    /// All ids that the policy sampled, turn after turn.
    pub fn completion_ids(&self) -> Vec<u32> {
        let sampled = self.rows.iter().flat_map(|row| &row.segments).filter(|s| s.kind == SegmentKind::Sampled);
        sampled.flat_map(|segment| segment.ids.iter().copied()).collect()
    }

    /// Step of the oldest policy that made any of its tokens: what staleness is counted from.
    pub fn oldest_policy_step(&self) -> Option<u64> {
        self.fresh().map(|(policy, _)| policy.step).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(ids: &[u32], logprobs: &[f32]) -> Segment {
        let policy = PolicyId { epoch: 0, step: 3, digest: Digest::of(b"") };
        let policies = RunLength::of(policy, ids.len() as u32);
        Segment { kind: SegmentKind::Sampled, ids: ids.to_vec(), logprobs: logprobs.to_vec(), policies }
    }

    fn row(segments: Vec<Segment>) -> Row {
        let prompt =
            Segment { kind: SegmentKind::Prompt, ids: vec![1, 2], logprobs: vec![], policies: RunLength::default() };
        Row { segments: std::iter::once(prompt).chain(segments).collect(), source: Source::OnPolicy }
    }

    #[test]
    fn a_row_is_checked_before_it_is_believed() {
        assert_eq!(row(vec![sampled(&[3], &[-0.5])]).validate(4), Ok(()));
        for (bad, want) in [
            (row(vec![sampled(&[4], &[-0.5])]), "outside the vocabulary"),
            (row(vec![sampled(&[3], &[f32::NAN])]), "finite"),
            (row(vec![sampled(&[3], &[0.5])]), "at most 0"),
            (row(vec![sampled(&[3], &[])]), "expected 1 log-probs"),
            (row(vec![]), "at least one sampled"),
        ] {
            let error = bad.validate(4).unwrap_err();
            assert!(error.contains(want), "{error:?} does not say {want:?}");
        }
    }
}
