//! Samples of a run as sequences to imitate: rejection sampling.
//!
//! Ids are those that were sampled; what the environment said in between is read and not learnt, like the question. A trajectory of
//! several rows has one reward, which counts for all of them.

use folgore_config::sft::Truncation;
use folgore_protocol::{
    batch::GroupRecord,
    trajectory::{SegmentKind, Trajectory},
};

use super::encode::{Sequence, Tally};

/// The samples with the highest rewards.
#[derive(Clone, Debug)]
pub struct Best<'a> {
    chosen: Vec<(&'a GroupRecord, &'a Trajectory)>,
    /// How many.
    pub samples: usize,
    /// Samples with a reward.
    pub of: usize,
    /// The lowest reward among the chosen.
    pub least: f64,
}

/// The share `top` of the samples of `groups` with the highest rewards, at least one; of equal rewards the earlier ones. Samples without
/// a reward do not count.
pub fn best<'a>(groups: impl Iterator<Item = &'a GroupRecord>, top: f64) -> Best<'a> {
    let members = groups.flat_map(|group| group.members.iter().map(move |member| (group, member)));
    let scored = members.filter_map(|(group, member)| Some((member.outcome.total()?, group, member)));
    let mut scored: Vec<_> = scored.filter(|(reward, ..)| reward.is_finite()).collect();
    let of = scored.len();
    // stable, so that equal rewards stay in the order of the run
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.truncate(((of as f64 * top) as usize).max(1));
    let least = scored.last().map_or(f64::NAN, |(reward, ..)| *reward);
    let chosen: Vec<_> = scored.into_iter().map(|(_, group, member)| (group, member)).collect();
    Best { samples: chosen.len(), chosen, of, least }
}

impl Best<'_> {
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// Their rows; `source` of each is the id of its question. What became of them is added to `tally`.
    pub fn sequences(&self, max_length: usize, truncation: Truncation, tally: &mut Tally) -> Vec<Sequence> {
        let mut sequences = Vec::new();
        for (group, member) in &self.chosen {
            tally.examples += 1;
            for row in &member.rows {
                let (mut ids, mut learnt) = (Vec::new(), Vec::new());
                for segment in &row.segments {
                    ids.extend_from_slice(&segment.ids);
                    learnt.resize(ids.len(), segment.kind == SegmentKind::Sampled);
                }
                if ids.len() > max_length {
                    match truncation {
                        Truncation::KeepStart => {
                            learnt.truncate(max_length);
                            tally.truncated += 1;
                        }
                        Truncation::Drop | Truncation::Stop => {
                            tally.dropped += 1;
                            continue;
                        }
                    }
                }
                let Some(last) = learnt.iter().rposition(|on| *on).filter(|last| *last > 0) else {
                    tally.nothing_learnt += 1;
                    continue;
                };
                ids.truncate(last + 1);
                learnt.truncate(last + 1);
                let sequence =
                    Sequence { example: member.seat.to_string(), source: group.task.id.clone(), ids, learnt };
                tally.sequences += 1;
                tally.tokens += sequence.ids.len() as u64;
                tally.learnt += sequence.learnt_tokens() as u64;
                sequences.push(sequence);
            }
        }
        sequences
    }
}
