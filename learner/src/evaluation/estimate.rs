//! avg@k, pass@k and maj@k over questions, each with its 95 % interval.
//!
//! A question has `n` scored answers, of which `c` are right. Its value is
//! - avg@n: `c / n`;
//! - pass@k: `1 - C(n - c, k) / C(n, k)`, the chance that k of the n answers, drawn without putting back, hold a right one. That is
//!   unbiased, which `1 - (1 - c / n)^k` is not (Chen et al. 2021, "Evaluating Large Language Models Trained on Code");
//! - maj@k: the answers in the order of their samples are cut into whole blocks of k; in each block the answer that most of them gave is
//!   elected, and the value is the share of the blocks whose elected answer is right. Every block is a fresh draw of k, so this is
//!   unbiased, and nothing has to be drawn again by chance. Of answers with equally many votes the one that was given first is
//!   elected, and an answer is right if the first that gave it is: what a user would be handed (verl's `maj@k` does the same).
//!   Who gave no answer does not vote; a block without any votes is wrong.
//!
//! The figure is the mean over the questions that have as many scored answers as it takes; how many these are stands beside it.
//!
//! **The interval** is Wilson's score interval (1927) with the effective sample size of a clustered sample, as Dean and Pagano (2015,
//! "Evaluating confidence interval methods for binomial proportions in clustered surveys") found to hold its coverage: questions are
//! the sample, answers to one question are not independent. With mean `p` and variance `s2` (over m, around `p`) of the m questions'
//! values, `n_eff = m p (1 - p) / s2`, which is at least m because no values within 0 and 1 vary more than zeros and ones do, and
//! is held to at most the number of draws that were made. For values of 0 and 1 it is m: Wilson's own interval. Unlike a normal one it
//! stays within 0 and 1, and has a width where all are right or none is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The standard normal deviate that leaves 2.5 % on each side.
const Z: f64 = 1.959_963_984_540_054;

/// A mean over questions with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean, 0 to 1.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Questions that it is the mean of.
    pub questions: u32,
}

impl Estimate {
    /// The mean of `values`, each the value of a question within 0 and 1 that `draws` of all questions together went into; none if
    /// there are none.
    pub fn of(values: &[f64], draws: u64) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let m = values.len() as f64;
        let p = (values.iter().sum::<f64>() / m).clamp(0.0, 1.0);
        let variance = values.iter().map(|v| (v - p).powi(2)).sum::<f64>() / m;
        let most = (draws as f64).max(m);
        let effective =
            if variance > 0.0 { (m * p * (1.0 - p) / variance).clamp(m, most) } else { most_alike(p, m, most) };
        let (low, high) = wilson(p, effective);
        Some(Self { value: p, low, high, questions: values.len() as u32 })
    }
}

/// The effective size where all questions have the same value: their number where all are right or none is, for nothing is seen
/// of how answers to one question go together; else every draw counts.
fn most_alike(p: f64, questions: f64, draws: f64) -> f64 {
    if p > 0.0 && p < 1.0 { draws } else { questions }
}

/// Wilson's interval for a share of `p` among `n`.
fn wilson(p: f64, n: f64) -> (f64, f64) {
    let z2 = Z * Z;
    let centre = p + z2 / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    // rounding must not put the share outside of its own interval
    (((centre - half) / scale).clamp(0.0, p), ((centre + half) / scale).clamp(p, 1.0))
}

/// One scored answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn<'a> {
    /// True if it is right.
    pub right: bool,
    /// What it answers, as its reward reads it: empty where it gives no answer, none where the reward reads none.
    pub answer: Option<&'a str>,
}

/// The estimates of an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Estimates {
    /// Answers asked for to each question: the n of avg@n.
    pub samples: u32,
    /// Share of right answers, question by question; none if nothing was scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avg: Option<Estimate>,
    /// pass@k by k.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pass: BTreeMap<u32, Estimate>,
    /// maj@k by k; empty where the reward reads no answers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub maj: BTreeMap<u32, Estimate>,
}

impl Estimates {
    /// Those of `questions`, which hold their scored answers in the order of their samples, for each k of `ks`.
    pub fn of(questions: &[Vec<Drawn>], samples: u32, ks: &[u32]) -> Self {
        let votes = questions.iter().flatten().any(|drawn| drawn.answer.is_some());
        let over = |least: usize, value: fn(&[Drawn], usize) -> f64| {
            let asked: Vec<&Vec<Drawn>> = questions.iter().filter(|q| q.len() >= least).collect();
            let values: Vec<f64> = asked.iter().map(|q| value(q, least)).collect();
            Estimate::of(&values, asked.iter().map(|q| (q.len() / least) as u64).sum())
        };
        let by_k = |value: fn(&[Drawn], usize) -> f64| {
            let ks = ks.iter().filter(|k| **k > 0);
            ks.filter_map(|&k| Some((k, over(k as usize, value)?))).collect::<BTreeMap<u32, Estimate>>()
        };
        Self {
            samples,
            avg: over(1, |drawn, _| right(drawn) as f64 / drawn.len() as f64),
            pass: by_k(|drawn, k| pass_at(drawn.len(), right(drawn), k)),
            maj: if votes { by_k(maj_at) } else { BTreeMap::new() },
        }
    }

    /// All of them by name: `avg@n`, then `pass@k` and `maj@k` for each k.
    pub fn named(&self) -> impl Iterator<Item = (String, Estimate)> + '_ {
        let avg = self.avg.iter().map(|e| (format!("avg@{}", self.samples), *e));
        let pass = self.pass.iter().map(|(k, e)| (format!("pass@{k}"), *e));
        avg.chain(pass).chain(self.maj.iter().map(|(k, e)| (format!("maj@{k}"), *e)))
    }
}

fn right(drawn: &[Drawn]) -> usize {
    drawn.iter().filter(|d| d.right).count()
}

/// The chance that k of n answers, c of them right, hold a right one.
fn pass_at(n: usize, c: usize, k: usize) -> f64 {
    if n - c < k {
        return 1.0;
    }
    1.0 - (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

fn maj_at(drawn: &[Drawn], k: usize) -> f64 {
    let blocks = drawn.chunks_exact(k);
    let count = blocks.len() as f64;
    blocks.filter(|block| elected(block).is_some_and(|d| d.right)).count() as f64 / count
}

/// The first of the answers that were given most often; the first of those where several were.
fn elected<'a, 'b>(block: &'b [Drawn<'a>]) -> Option<&'b Drawn<'a>> {
    let said = |d: &Drawn<'a>| d.answer.filter(|answer| !answer.is_empty());
    let mut best: Option<(usize, &Drawn)> = None;
    for (at, drawn) in block.iter().enumerate() {
        let Some(answer) = said(drawn) else { continue };
        if block[..at].iter().any(|earlier| said(earlier) == Some(answer)) {
            continue;
        }
        let votes = block[at..].iter().filter(|other| said(other) == Some(answer)).count();
        if best.is_none_or(|(most, _)| votes > most) {
            best = Some((votes, drawn));
        }
    }
    best.map(|(_, drawn)| drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 5e-5, "{a} is not {b}");
    }

    /// `R` is the right answer `r`, other capitals are right in other words, small letters are wrong answers, `-` gives none.
    fn drawn(text: &str) -> Vec<Drawn<'_>> {
        let one = |(at, letter): (usize, char)| {
            let answer = if letter == '-' { "" } else { &text[at..=at] };
            Drawn { right: letter.is_ascii_uppercase(), answer: Some(answer) }
        };
        text.char_indices().map(one).collect()
    }

    fn of(texts: &[&str], ks: &[u32]) -> Estimates {
        let questions: Vec<Vec<Drawn>> = texts.iter().map(|text| drawn(text)).collect();
        Estimates::of(&questions, texts[0].len() as u32, ks)
    }

    #[test]
    fn pass_at_k_is_the_estimator_of_chen_et_al() {
        // 1 - C(3,2)/C(5,2) = 1 - 3/10
        near(pass_at(5, 2, 2), 0.7);
        // 1 - C(8,4)/C(10,4) = 1 - 70/210
        near(pass_at(10, 2, 4), 2.0 / 3.0);
        assert_eq!(pass_at(10, 0, 4), 0.0);
        assert_eq!(pass_at(10, 7, 4), 1.0, "no four of them are all wrong");
        assert_eq!(pass_at(10, 10, 1), 1.0);
        near(pass_at(10, 3, 1), 0.3);
        assert_eq!((pass_at(4, 1, 4), pass_at(4, 0, 4)), (1.0, 0.0), "with k = n: is any right?");
        // the one right answer of 4096 is among 64; the factorials would not fit
        assert!((pass_at(4096, 1, 64) - 64.0 / 4096.0).abs() < 1e-12);
    }

    #[test]
    fn the_majority_is_elected_and_ties_go_to_who_spoke_first() {
        let maj = |text: &str| maj_at(&drawn(text), text.len());
        assert_eq!(maj("aRR"), 1.0);
        assert_eq!(maj("aaR"), 0.0);
        assert_eq!(maj("Ra"), 1.0, "a tie: the first");
        assert_eq!(maj("aR"), 0.0, "a tie: the first");
        assert_eq!(maj("abRRba"), 0.0, "two of each: a was first");
        assert_eq!(maj("--R"), 1.0, "who gave none does not vote");
        assert_eq!(maj("---"), 0.0, "nobody voted");
        assert_eq!(maj("-a-"), 0.0);
        // whole blocks of two: aR, RR, ba; the last is left over
        near(maj_at(&drawn("aRRRbaR"), 2), 1.0 / 3.0);
        // one answer that is right at first and wrong later, as where its form counts too: the first decides
        let mut mixed = drawn("RRa");
        mixed[1].right = false;
        assert_eq!(maj_at(&mixed, 3), 1.0);
    }

    #[test]
    fn figures_are_means_over_questions() {
        let found = of(&["RRaa", "aaaR", "RRRR", "aaab"], &[1, 2, 4]);
        near(found.avg.unwrap().value, 7.0 / 16.0);
        near(found.pass[&1].value, 7.0 / 16.0);
        // 1 - C(2,2)/C(4,2) = 5/6; 1 - C(3,2)/C(4,2) = 1/2; 1; 0
        near(found.pass[&2].value, (5.0 / 6.0 + 0.5 + 1.0) / 4.0);
        near(found.pass[&4].value, 0.75);
        // blocks of two: RR aa -> 1/2; aa aR -> 0; 1; 0
        near(found.maj[&2].value, 1.5 / 4.0);
        // RRaa is a tie, R first
        near(found.maj[&4].value, 0.5);
        let names: Vec<String> = found.named().map(|(name, _)| name).collect();
        assert_eq!(names, ["avg@4", "pass@1", "pass@2", "pass@4", "maj@1", "maj@2", "maj@4"]);
    }

    #[test]
    fn a_question_that_lacks_answers_is_left_out_where_they_are_needed() {
        let found = of(&["RR", "a", ""], &[2]);
        let counted = |e: Estimate| (e.value, e.questions);
        assert_eq!(counted(found.avg.unwrap()), (0.5, 2));
        assert_eq!(counted(found.pass[&2]), (1.0, 1));
        assert_eq!(of(&["", ""], &[1]).avg, None);
        assert!(of(&["RR"], &[4]).pass.is_empty(), "more than was drawn");
    }

    #[test]
    fn without_answers_to_vote_on_there_is_no_majority() {
        let silent: Vec<Drawn> = [true, false].iter().map(|&right| Drawn { right, answer: None }).collect();
        let found = Estimates::of(&[silent], 2, &[2]);
        assert!(found.maj.is_empty() && found.pass[&2].value == 1.0);
        let mute = Estimates::of(&[drawn("--")], 2, &[2]);
        assert_eq!(mute.maj[&2].value, 0.0, "the reward reads answers, the policy gives none");
    }

    #[test]
    fn the_interval_of_zeros_and_ones_is_that_of_wilson() {
        // 7 of 10, and 0 of 10, as tables have them
        let values = |ones: usize, n: usize| (0..n).map(|i| f64::from(u8::from(i < ones))).collect::<Vec<_>>();
        let e = Estimate::of(&values(7, 10), 10).unwrap();
        near(e.value, 0.7);
        near(e.low, 0.39678);
        near(e.high, 0.89221);
        let none = Estimate::of(&values(0, 10), 80).unwrap();
        assert_eq!((none.value, none.low), (0.0, 0.0));
        near(none.high, 0.27753);
        let all = Estimate::of(&values(10, 10), 80).unwrap();
        assert_eq!((all.value, all.high), (1.0, 1.0));
        near(all.low, 0.72247);
    }

    #[test]
    fn shares_within_questions_narrow_the_interval_by_what_is_seen_of_their_variance() {
        // m = 4, p = 1/2, variance 1/16: 4 * 1/4 / (1/16) = 16 effective draws of 16
        let e = Estimate::of(&[0.25, 0.75, 0.25, 0.75], 16).unwrap();
        let (low, high) = wilson(0.5, 16.0);
        assert_eq!((e.low, e.high), (low, high));
        // 1.95996 * sqrt(1/64 + 3.84146/1024) / (1 + 3.84146/16) = 0.2728 / 1.2401 = 0.2200 on both sides
        near(low, 0.5 - 0.2200);
        near(high, 0.5 + 0.2200);
        // no more than were drawn: 8
        let held = Estimate::of(&[0.25, 0.75, 0.25, 0.75], 8).unwrap();
        assert_eq!((held.low, held.high), wilson(0.5, 8.0));
        // questions that go one way or the other count once each, however often they were asked
        let split = Estimate::of(&[0.0, 1.0, 0.0, 1.0], 64).unwrap();
        assert_eq!((split.low, split.high), wilson(0.5, 4.0));
        // all alike in the middle: the draws
        let alike = Estimate::of(&[0.5, 0.5], 16).unwrap();
        assert_eq!((alike.low, alike.high), wilson(0.5, 16.0));
    }
}
