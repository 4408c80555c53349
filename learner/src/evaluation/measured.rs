//! One way of answering, measured: shares, means, and how sure they are.

use std::collections::BTreeMap;

use folgore_protocol::{EvalItem, EvalSummary, GroupId, Outcome};
use serde::{Deserialize, Serialize};

use super::{CORRECT, Estimates, estimate::Drawn};

/// What one way of answering came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Share of the scored answers that are right; none if none was scored.
    pub accuracy: Option<f64>,
    /// Standard error of `accuracy`; answers to one question are not independent, so it is that of the questions' means.
    pub accuracy_se: Option<f64>,
    /// Mean reward of the scored answers.
    pub mean_reward: Option<f64>,
    /// Standard error of `mean_reward`, likewise.
    pub mean_reward_se: Option<f64>,
    /// Share of the questions with at least one right answer among however many were scored.
    pub any_correct: Option<f64>,
    /// Questions.
    pub questions: usize,
    /// Answers asked for.
    pub answers: usize,
    /// Answers with a score.
    pub scored: usize,
    /// Share of the answers that were cut off.
    pub truncated: f64,
    /// Mean number of tokens of an answer.
    pub mean_length: f64,
    /// avg@n, pass@k and maj@k with their intervals.
    #[serde(default)]
    pub estimates: Estimates,
}

impl Measured {
    /// What tells how good the answers are, with its standard error: the accuracy, or the mean reward where rewards are
    /// `graded`.
    pub fn figure(&self, graded: bool) -> Option<(f64, Option<f64>)> {
        if graded {
            return Some((self.mean_reward?, self.mean_reward_se));
        }
        Some((self.accuracy?, self.accuracy_se))
    }

    /// Measures an evaluation, with pass@k and maj@k for each of `ks`.
    pub fn of(summary: &EvalSummary, ks: &[u32]) -> Self {
        let mut questions = BTreeMap::<GroupId, Question>::new();
        for item in &summary.items {
            questions.entry(item.seat.group).or_default().take(item);
        }
        let n = summary.items.len();
        let share = |count: usize| if n == 0 { 0.0 } else { count as f64 / n as f64 };
        Self {
            accuracy: summary.share_reaching(CORRECT),
            accuracy_se: standard_error(questions.values().map(|q| q.right.as_slice())),
            mean_reward: summary.mean_reward(),
            mean_reward_se: standard_error(questions.values().map(|q| q.rewards.as_slice())),
            any_correct: summary.tasks_reaching(CORRECT),
            questions: questions.len(),
            answers: summary.expected as usize,
            scored: summary.items.iter().filter(|item| item.outcome.total().is_some()).count(),
            truncated: share(summary.items.iter().filter(|item| item.stop_reason.truncated()).count()),
            mean_length: share(summary.items.iter().map(|item| item.completion_ids.len()).sum()),
            estimates: {
                let asked = summary.expected.checked_div(questions.len() as u32).unwrap_or(0);
                let drawn: Vec<Vec<Drawn>> = questions.into_values().map(|q| q.drawn).collect();
                Estimates::of(&drawn, asked, ks)
            },
        }
    }

    /// Its numbers, by name, as a line of `metrics.jsonl` shows them.
    pub fn numbers(&self) -> Vec<(String, f64)> {
        let plain = [
            ("accuracy", self.accuracy),
            ("mean_reward", self.mean_reward),
            ("truncated", Some(self.truncated)),
            ("mean_length", Some(self.mean_length)),
        ];
        let mut numbers: Vec<(String, f64)> =
            plain.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        for (name, e) in self.estimates.named() {
            let below = [("ci95_low", e.low), ("ci95_high", e.high), ("questions", f64::from(e.questions))];
            numbers.extend(below.map(|(leaf, value)| (format!("{name}/{leaf}"), value)));
            numbers.push((name, e.value));
        }
        numbers
    }
}

/// The scored answers to one question, in the order of their samples.
#[derive(Default)]
struct Question<'a> {
    rewards: Vec<f64>,
    right: Vec<f64>,
    drawn: Vec<Drawn<'a>>,
}

impl<'a> Question<'a> {
    fn take(&mut self, item: &'a EvalItem) {
        if let Outcome::Scored { total, answer, .. } = &item.outcome {
            let right = *total >= CORRECT;
            self.rewards.push(*total);
            self.right.push(f64::from(right));
            self.drawn.push(Drawn { right, answer: answer.as_deref() });
        }
    }
}

/// Standard error of the mean over all values, which come in clusters (the answers to one question): the clusters' sums of
/// deviations from the mean are taken as independent (Liang and Zeger 1986, with the factor m / (m - 1)).
fn standard_error<'a>(clusters: impl Iterator<Item = &'a [f64]> + Clone) -> Option<f64> {
    let clusters = clusters.filter(|values| !values.is_empty());
    let n: usize = clusters.clone().map(<[f64]>::len).sum();
    let m = clusters.clone().count();
    if m < 2 {
        return None;
    }
    let mean = clusters.clone().flatten().sum::<f64>() / n as f64;
    let squares: f64 = clusters.map(|values| values.iter().map(|x| x - mean).sum::<f64>().powi(2)).sum();
    Some((squares * m as f64 / (m as f64 - 1.0)).sqrt() / n as f64)
}

#[cfg(test)]
mod tests {
    use folgore_protocol::{Digest, PolicyId, SeatKey, StopReason};

    use super::*;

    fn summary(totals: &[&[Option<f64>]]) -> EvalSummary {
        let item = |group: usize, sample: usize, total: Option<f64>| EvalItem {
            seat: SeatKey { group: GroupId(group as u64), sample: sample as u32, draw: 0 },
            task_id: format!("t{group}"),
            outcome: total.map_or(Outcome::Error { reason: "late".into() }, |t| Outcome::scored("exact", t)),
            completion_ids: vec![1; 3],
            stop_reason: if sample == 0 { StopReason::Eos } else { StopReason::Length },
        };
        let items: Vec<EvalItem> = totals
            .iter()
            .enumerate()
            .flat_map(|(g, members)| members.iter().enumerate().map(move |(s, total)| item(g, s, *total)))
            .collect();
        let policy = PolicyId { epoch: 0, step: 0, digest: Digest::of(b"") };
        EvalSummary { label: "x".into(), policy, expected: items.len() as u32, items }
    }

    #[test]
    fn an_evaluation_is_measured_over_scored_answers_and_clustered_by_question() {
        let m =
            Measured::of(&summary(&[&[Some(1.0), Some(1.0)], &[Some(0.0), Some(0.2)], &[Some(1.0), None]]), &[1, 2]);
        assert_eq!(
            (m.accuracy, m.any_correct, m.questions, m.answers, m.scored),
            (Some(0.6), Some(2.0 / 3.0), 3, 6, 5)
        );
        assert_eq!((m.truncated, m.mean_length), (0.5, 3.0));
        // deviations by question: 0.8, -1.2, 0.4; squares 2.24; times 3/2; root; by 5
        assert!((m.accuracy_se.unwrap() - (2.24f64 * 1.5).sqrt() / 5.0).abs() < 1e-12);
        let single = Measured::of(&summary(&[&[Some(1.0)], &[Some(0.0)], &[Some(1.0)], &[Some(1.0)]]), &[1, 2]);
        // one answer a question: the usual deviation by the root of n
        assert!((single.accuracy_se.unwrap() - (0.25f64 / 4.0).sqrt()).abs() < 1e-12);
        let none = Measured::of(&summary(&[&[None]]), &[1, 2]);
        assert_eq!((none.accuracy, none.accuracy_se, none.mean_reward, none.scored), (None, None, None, 0));
    }

    #[test]
    fn answers_that_were_voted_on_are_in_the_numbers_and_failed_ones_are_not() {
        let mut evaluated = summary(&[&[Some(1.0), Some(0.0), None], &[Some(1.0), Some(1.0), Some(0.0)]]);
        for (item, answer) in evaluated.items.iter_mut().zip(["7", "8", "8", "3", "3", "4"]) {
            item.outcome = item.outcome.clone().with_answer(Some(answer));
        }
        let m = Measured::of(&evaluated, &[2, 3]);
        let of = |name: &str| m.numbers().into_iter().find(|(found, _)| found == name).map(|(_, value)| value);
        assert_eq!((of("avg@3"), of("avg@3/questions")), (Some((0.5 + 2.0 / 3.0) / 2.0), Some(2.0)));
        // 1 and 1 - C(1,2)/C(3,2) = 1
        assert_eq!((of("pass@2"), of("pass@3"), of("pass@3/questions")), (Some(1.0), Some(1.0), Some(1.0)));
        // "7", "8": a tie, the first is right; "3", "3": right. Of three, only the second question has three answers.
        assert_eq!((of("maj@2"), of("maj@3"), of("maj@3/questions")), (Some(1.0), Some(1.0), Some(1.0)));
        assert!(of("maj@2/ci95_low").is_some_and(|low| low > 0.0 && low < 1.0));
        assert_eq!(Measured::of(&summary(&[&[Some(1.0)]]), &[1]).estimates.maj.len(), 0);
    }
}
