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

#[cfg(test)]
mod tests {
    use folgore_protocol::{
        Digest, GroupId, Outcome, PolicyId, Prompt, Purpose, Row, RunLength, SeatKey, Segment, Source, StopReason, Task,
    };

    use super::*;

    fn segment(kind: SegmentKind, ids: &[u32]) -> Segment {
        let policy = PolicyId { epoch: 0, step: 0, digest: Digest::of(b"") };
        let sampled = kind == SegmentKind::Sampled;
        Segment {
            kind,
            ids: ids.to_vec(),
            logprobs: if sampled { vec![-1.0; ids.len()] } else { Vec::new() },
            policies: if sampled { RunLength::of(policy, ids.len() as u32) } else { RunLength::default() },
        }
    }

    /// An episode that asks, is told something, and answers.
    fn member(sample: u32, outcome: Outcome) -> Trajectory {
        let segments = vec![
            segment(SegmentKind::Prompt, &[1, 2]),
            segment(SegmentKind::Sampled, &[10 + sample, 3]),
            segment(SegmentKind::Observed, &[4, 5, 6]),
            segment(SegmentKind::Sampled, &[7]),
            segment(SegmentKind::Observed, &[8]),
        ];
        Trajectory {
            seat: SeatKey { group: GroupId(0), sample, draw: 0 },
            task_id: "t".into(),
            purpose: Purpose::Train,
            rows: vec![Row { segments, source: Source::OnPolicy }],
            outcome,
            stop_reason: StopReason::Eos,
            worker: "w".into(),
            duration_ms: 0,
            token: String::new(),
        }
    }

    #[test]
    fn the_best_are_taken_as_they_were_sampled_and_what_they_were_told_is_not_learnt() {
        let task = Task { id: "t".into(), prompt: Prompt::Text("q".into()), columns: Default::default() };
        let scored = |reward: f64| Outcome::scored("toy", reward);
        let members = vec![
            member(0, scored(0.5)),
            member(1, scored(1.0)),
            member(2, Outcome::Unscorable { reason: "no answer".into() }),
            member(3, scored(0.5)),
            member(4, scored(0.0)),
        ];
        let group = GroupRecord { id: GroupId(0), task, members };
        let (chosen, mut tally) = (best(std::iter::once(&group), 0.5), Tally::default());
        assert_eq!((chosen.samples, chosen.of, chosen.least), (2, 4, 0.5));
        let sequences = chosen.sequences(100, Truncation::Drop, &mut tally);
        let firsts: Vec<u32> = sequences.iter().map(|s| s.ids[2]).collect();
        assert_eq!(firsts, [11, 10], "by reward, then by seat");
        assert_eq!(sequences[0].ids, [1, 2, 11, 3, 4, 5, 6, 7], "what comes after the last word is nobody's");
        assert_eq!(sequences[0].learnt, [false, false, true, true, false, false, false, true]);
        assert_eq!((tally.sequences, tally.learnt), (2, 6));
        assert!(chosen.sequences(7, Truncation::Drop, &mut tally).is_empty());
        assert_eq!(chosen.sequences(7, Truncation::KeepStart, &mut tally)[0].ids, [1, 2, 11, 3]);
        assert_eq!((tally.dropped, tally.truncated), (2, 2));
        assert_eq!(best(std::iter::once(&group), 1e-9).samples, 1, "at least one");
        assert!(best(std::iter::empty(), 0.5).is_empty());
    }
}
