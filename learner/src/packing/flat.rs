//! A batch as rows and one flat list of sampled tokens.

use std::ops::Range;

use folgore_protocol::{
    batch::Batch,
    trajectory::{Row, SegmentKind, Source, Trajectory},
};

use super::PackError;
use crate::objective::{Counts, Evaluation, Objective, RowInput};

/// One row of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct FlatRow {
    /// Place of its group in the batch.
    pub group: usize,
    /// Place of its trajectory in the group.
    pub member: usize,
    /// All ids up to the last sampled one; what follows that one is predicted by nothing.
    pub ids: Vec<u32>,
    /// Ids before the first sampled one: the part that rows may share. At least 1.
    pub prompt: usize,
    /// Places of the sampled ids in `ids`; where observations are not masked, of the observed ones between them, too.
    pub sampled: Vec<usize>,
    /// Places of these ids in the flat list; as many as `sampled`.
    pub tokens: Range<usize>,
    /// Advantage of its trajectory.
    pub advantage: f64,
}

/// A batch laid out. Rows are in the order of groups, members and rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Flat {
    /// The rows.
    pub rows: Vec<FlatRow>,
    /// By flat token: true where it is trained on.
    pub mask: Vec<bool>,
    /// By flat token: log-prob that the sampler reported; not a number where nobody sampled it.
    pub rollout: Vec<f64>,
    /// By flat token: where it comes from.
    pub sources: Vec<Source>,
    /// Groups of the batch.
    pub groups: usize,
}

/// Log-probs by flat token, as [`RowInput`] names them.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Under the weights being trained.
    pub logprobs: &'a [f64],
    /// Under the weights that the batch began with.
    pub old: Option<&'a [f64]>,
    /// Under the reference.
    pub reference: Option<&'a [f64]>,
    /// From the sampler.
    pub rollout: Option<&'a [f64]>,
}

impl Flat {
    /// Lays `batch` out. `advantages` are by group and member; with `mask_truncated` no token of a trajectory that was
    /// cut off is trained on; without `mask_observations`, what the policy was told counts like what it said.
    pub fn of(
        batch: &Batch,
        advantages: &[Vec<f64>],
        mask_truncated: bool,
        mask_observations: bool,
    ) -> Result<Self, PackError> {
        let groups = batch.groups.len();
        let mut flat = Flat { rows: Vec::new(), mask: Vec::new(), rollout: Vec::new(), sources: Vec::new(), groups };
        for (g, group) in batch.groups.iter().enumerate() {
            let given = advantages.get(g).map_or(0, Vec::len);
            if given != group.members.len() {
                return Err(PackError::Advantages { group: g, expected: group.members.len(), got: given });
            }
            for (m, member) in group.members.iter().enumerate() {
                let trained = !(mask_truncated && member.stop_reason.truncated());
                for r in 0..member.rows.len() {
                    flat.push(member, r, (g, m), advantages[g][m], trained, mask_observations)?;
                }
            }
        }
        Ok(flat)
    }

    fn push(
        &mut self,
        trajectory: &Trajectory,
        r: usize,
        (group, member): (usize, usize),
        advantage: f64,
        trained: bool,
        mask_observations: bool,
    ) -> Result<(), PackError> {
        let row: &Row = &trajectory.rows[r];
        let refuse = |reason: String| PackError::Row { seat: trajectory.seat, row: r, reason };
        let (mut ids, mut sampled, begin) = (row.ids(), Vec::new(), self.mask.len());
        let mut at = 0;
        let last_sampled = row.segments.iter().rposition(|s| s.kind == SegmentKind::Sampled);
        for (i, segment) in row.segments.iter().enumerate() {
            let n = segment.ids.len();
            if segment.kind == SegmentKind::Sampled {
                let origin = row.origin(segment);
                if origin != Source::Teacher && segment.logprobs.len() != n {
                    let got = segment.logprobs.len();
                    return Err(refuse(format!("segment {i}: expected {n} log-probs, got {got}")));
                }
                sampled.extend(at..at + n);
                match origin {
                    Source::Teacher => self.rollout.extend(std::iter::repeat_n(f64::NAN, n)),
                    _ => self.rollout.extend(segment.logprobs.iter().map(|lp| f64::from(*lp))),
                }
                self.sources.extend(std::iter::repeat_n(origin, n));
            } else if !mask_observations && segment.kind == SegmentKind::Observed && Some(i) < last_sampled {
                sampled.extend(at..at + n);
                self.rollout.extend(std::iter::repeat_n(f64::NAN, n));
                self.sources.extend(std::iter::repeat_n(Source::OnPolicy, n));
            }
            at += n;
        }
        let (Some(first), Some(last)) = (sampled.first().copied(), sampled.last().copied()) else {
            return Err(refuse("expected at least one sampled token, got none".into()));
        };
        if first == 0 {
            return Err(refuse("expected a token before the first sampled one, got none".into()));
        }
        ids.truncate(last + 1);
        self.mask.resize(begin + sampled.len(), trained);
        let tokens = begin..self.mask.len();
        self.rows.push(FlatRow { group, member, ids, prompt: first, sampled, tokens, advantage });
        Ok(())
    }

    /// What the sampler reported, with `ours` in place of what nobody sampled.
    ///
    /// # Panics
    /// If `ours` is shorter than the flat list.
    pub fn rollout_or(&self, ours: &[f64]) -> Vec<f64> {
        let reported = self.rollout.iter().enumerate();
        reported.map(|(token, lp)| if lp.is_nan() { ours[token] } else { *lp }).collect()
    }

    /// True if the policy sampled all of `row` for this step.
    pub fn is_fresh(&self, row: usize) -> bool {
        self.sources[self.rows[row].tokens.clone()].iter().all(|source| *source == Source::OnPolicy)
    }

    /// Rows of the groups `groups`, in order.
    pub fn rows_of(&self, groups: Range<usize>) -> Vec<usize> {
        (0..self.rows.len()).filter(|r| groups.contains(&self.rows[*r].group)).collect()
    }

    /// Those of `rows` that have a gradient: a trained token, and an advantage other than 0 unless
    /// `moves_at_zero_advantage`. The others need no forward pass; their tokens still count in the average.
    pub fn with_gradient(&self, rows: &[usize], moves_at_zero_advantage: bool, imitates: bool) -> Vec<usize> {
        let taught = |row: &FlatRow| imitates && self.sources[row.tokens.clone()].contains(&Source::Teacher);
        let has = |r: &usize| {
            let row = &self.rows[*r];
            (moves_at_zero_advantage || row.advantage != 0.0 || taught(row)) && self.trained(row) > 0
        };
        rows.iter().copied().filter(has).collect()
    }

    /// Counts of `rows`, for the normaliser of `objective`. A row of which all tokens are imitated is none of its rows.
    pub fn counts(&self, rows: &[usize], objective: &Objective) -> Counts {
        let split = |r: &usize| {
            let tokens = self.rows[*r].tokens.clone().filter(|t| self.mask[*t]);
            let (counted, imitated): (Vec<_>, Vec<_>) = tokens.partition(|t| objective.counts(self.sources[*t]));
            (counted.len(), imitated.len())
        };
        let split: Vec<(usize, usize)> = rows.iter().map(split).collect();
        let counted =
            split.iter().filter(|(counted, imitated)| *counted > 0 || *imitated == 0).map(|(counted, _)| *counted);
        Counts { imitated: split.iter().map(|(_, imitated)| imitated).sum(), ..Counts::of(counted) }
    }

    /// Tokens that count in the average, of all rows of the trajectory that `row` belongs to: its rows lie side by side.
    fn of_rollout(&self, row: usize, objective: &Objective) -> usize {
        let same = |other: &&FlatRow| (other.group, other.member) == (self.rows[row].group, self.rows[row].member);
        let (before, after) = self.rows.split_at(row);
        let rows = before.iter().rev().take_while(same).chain(after.iter().take_while(same));
        let tokens = rows.flat_map(|row| row.tokens.clone());
        tokens.filter(|t| self.mask[*t] && objective.counts(self.sources[*t])).count()
    }

    /// Inputs of the objective for `rows`.
    ///
    /// # Panics
    /// If a column is shorter than the flat list.
    pub fn inputs<'a>(&'a self, rows: &[usize], columns: Columns<'a>, objective: &Objective) -> Vec<RowInput<'a>> {
        let input = |r: &usize| {
            let row = &self.rows[*r];
            let t = || row.tokens.clone();
            RowInput {
                sources: &self.sources[t()],
                logprobs: &columns.logprobs[t()],
                old: columns.old.map(|v| &v[t()]),
                reference: columns.reference.map(|v| &v[t()]),
                rollout: columns.rollout.map(|v| &v[t()]),
                mask: &self.mask[t()],
                advantage: row.advantage,
                whole: Some(self.of_rollout(*r, objective)),
            }
        };
        rows.iter().map(input).collect()
    }

    /// Writes the gradient of an evaluation of `rows` into a list by flat token.
    ///
    /// # Panics
    /// If `by_token` is shorter than the flat list.
    pub fn scatter(&self, rows: &[usize], evaluation: &Evaluation, by_token: &mut [f64]) {
        for (r, grad) in rows.iter().zip(&evaluation.grads) {
            by_token[self.rows[*r].tokens.clone()].copy_from_slice(grad);
        }
    }

    fn trained(&self, row: &FlatRow) -> usize {
        self.mask[row.tokens.clone()].iter().filter(|on| **on).count()
    }
}

/// Divides `groups` groups into `parts` runs of whole groups, as even as can be: one for each optimiser update.
pub fn split_groups(groups: usize, parts: usize) -> Result<Vec<Range<usize>>, PackError> {
    if parts == 0 || parts > groups {
        return Err(PackError::TooManyParts { groups, parts });
    }
    Ok((0..parts).map(|p| p * groups / parts..(p + 1) * groups / parts).collect())
}
