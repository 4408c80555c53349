//! Episodes that begin with what the policy does not say itself: an expert's trace, or its own success of before.

use std::collections::VecDeque;

use folgore_protocol::{
    Measure, Measured, MeasuredRow, Past, RolloutJob, Row, SegmentKind, Source, StopReason, seed, subjects,
};

use super::{Episode, EpisodeError, PromptEncoder, Stage};
use crate::environment::Environment;

/// An expert's trace that an episode follows, turn after turn.
pub(super) struct Trace {
    turns: VecDeque<Turn>,
    /// Tokens that are still to be copied.
    left: usize,
}

/// One turn of an expert.
struct Turn {
    text: String,
    ids: Vec<u32>,
    stop_reason: StopReason,
}

/// What is copied of a turn.
pub(super) struct Copied {
    /// Its first tokens, or all of them.
    pub ids: Vec<u32>,
    /// Why it ended; none: the policy goes on with it.
    pub ended: Option<StopReason>,
}

impl Trace {
    /// The trace with these `texts`, of which the `share` is copied. The error says why it cannot be followed.
    pub(super) fn new(
        texts: &[String],
        share: f64,
        job: &RolloutJob,
        environment: &dyn Environment,
        encoder: &dyn PromptEncoder,
    ) -> Result<Self, String> {
        let most = job.sampling.max_new_tokens as usize;
        let mut turns = VecDeque::new();
        for text in texts.iter().flat_map(|text| environment.turns(text)) {
            let stopped = environment.stop().iter().chain(&job.sampling.stop).any(|stop| text.ends_with(stop.as_str()));
            let mut ids = encoder.trace(&text)?;
            if !stopped {
                ids.push(encoder.eos());
            }
            if ids.len() > most {
                return Err(format!("a turn of it has {} tokens, the policy's own have at most {most}", ids.len()));
            }
            let stop_reason = if stopped { StopReason::StopString } else { StopReason::Eos };
            turns.push_back(Turn { text, ids, stop_reason });
        }
        let all: usize = turns.iter().map(|turn| turn.ids.len()).sum();
        if all == 0 {
            return Err("it is empty".into());
        }
        Ok(Self { turns, left: ((all as f64 * share) as usize).clamp(1, all) })
    }

    /// What is copied of the next turn, which follows text that ends as `before` does; none if the policy is to speak by itself.
    pub(super) fn next(&mut self, before: &str, encoder: &dyn PromptEncoder) -> Result<Option<Copied>, String> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some(Turn { text, mut ids, stop_reason }) = self.turns.pop_front() else { return Ok(None) };
        if let Some(rest) = opened(before, &text) {
            let closing = ids.pop().filter(|_| stop_reason == StopReason::Eos);
            let whole = ids.len() + 1;
            ids = encoder.trace(rest)?;
            ids.extend(closing);
            self.left = self.left.saturating_sub(whole.saturating_sub(ids.len())).max(1);
        }
        let ended = (ids.len() <= self.left).then_some(stop_reason);
        ids.truncate(self.left);
        self.left -= ids.len();
        Ok(Some(Copied { ids, ended }))
    }
}

/// `text` without the tag that it begins with, where the template that wrote `before` has opened it already.
fn opened<'a>(before: &str, text: &'a str) -> Option<&'a str> {
    let line_ends = before.len() - before.trim_end_matches('\n').len();
    let rest = before.trim_end_matches('\n').ends_with(THINK).then(|| text.trim_start().strip_prefix(THINK))??;
    // as many line ends as the template has written
    Some((0..line_ends).fold(rest, |rest, _| rest.strip_prefix('\n').unwrap_or(rest)))
}

/// Opens what is thought.
const THINK: &str = "<think>";
/// Last tokens of a context that are looked at for it.
pub(super) const TAIL: usize = 12;

impl Stage<'_> {
    /// The success among `past` that the policy is surest of now, as an episode: no token of it is sampled again. None if there
    /// is nothing to choose from.
    pub async fn remember(&self, job: &RolloutJob, past: &[Past]) -> Result<Option<Episode>, EpisodeError> {
        let place = match past.len() {
            0 => return Ok(None),
            1 => 0,
            _ => match self.measure(job, past).await {
                Ok(entropies) => surest(&entropies),
                Err(reason) => {
                    tracing::warn!(seat = %job.seat, reason, "nobody says how sure the policy is of what it did: one is drawn");
                    seed::below(job.seed, 0, past.len() as u64) as usize
                }
            },
        };
        let Past { rows, stop_reason } = past[place].clone();
        let rows = rows.into_iter().map(|row| Row { source: Source::Replay, ..row }).collect();
        Episode::of(rows, stop_reason, self.encoder).map(Some)
    }

    /// The mean entropy of each, over all that was said in it.
    async fn measure(&self, job: &RolloutJob, past: &[Past]) -> Result<Vec<f64>, String> {
        let rows = past.iter().flat_map(|past| past.rows.iter().map(measured));
        let request =
            Measure { rows: rows.collect(), temperature: job.sampling.temperature, policy: *self.published.borrow() };
        let key = format!("{}.past", job.seat);
        let deadline = self.limits.turn_deadline;
        let answer: Result<Measured, _> =
            self.links.call_when_served(subjects::MEASURE, &request, &key, deadline).await;
        let mut means = answer.map_err(|error| error.to_string())?.rows.into_iter();
        let mut mean = |past: &Past| {
            let rows = past.rows.iter().map(|_| means.next()).collect::<Option<Vec<_>>>();
            let rows = rows.ok_or_else(|| "expected an entropy for each row".to_owned())?;
            let (sum, count) = rows.iter().fold((0.0, 0), |(sum, n), row| (sum + row.sum, n + row.tokens));
            Ok(sum / f64::from(count.max(1)))
        };
        past.iter().map(&mut mean).collect()
    }
}

/// What is measured of a row: the tokens that were said as the policy.
fn measured(row: &Row) -> MeasuredRow {
    let mut said = Vec::new();
    let mut at = 0;
    for segment in &row.segments {
        let end = at + segment.ids.len() as u32;
        if segment.kind == SegmentKind::Sampled {
            said.push(at..end);
        }
        at = end;
    }
    MeasuredRow { ids: row.ids(), said }
}

/// Place of the least; the first of equals.
fn surest(entropies: &[f64]) -> usize {
    let least = (0..entropies.len()).min_by(|a, b| entropies[*a].total_cmp(&entropies[*b]));
    least.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_the_template_opened_is_not_opened_again() {
        for (before, text, rest) in [
            ("<|assistant|><think>\n", "<think>\nA.</think>4", Some("A.</think>4")),
            ("<think>", "<think>\nA.</think>4", Some("\nA.</think>4")),
            ("<think>\n", "A.</think>4", None),
            ("assistant\n", "<think>\nA.</think>4", None),
            ("", "", None),
        ] {
            assert_eq!(opened(before, text), rest, "{before:?} {text:?}");
        }
    }

    /// `exgrpo.trajectory_entropy` of the vectors: the mean is over what was said, not over a padded length.
    #[test]
    fn the_least_mean_entropy_is_the_surest() {
        let token_entropy: [&[f64]; 2] =
            [&[0.878_281_175_269, 1.380_070_811_24, 0.529_060_794_535], &[0.119_078_940_092, 0.310_638_928_297]];
        let means = token_entropy.map(|row| row.iter().sum::<f64>() / row.len() as f64);
        assert!((means[0] - 0.929_137_593_683).abs() < 1e-9 && (means[1] - 0.214_858_934_195).abs() < 1e-9);
        assert_eq!(surest(&means), 1);
        assert_eq!(surest(&[1.0, 0.5, 0.5]), 1);
    }
}
