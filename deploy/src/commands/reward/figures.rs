//! What many scores come to: distribution, failures, latency, and how far two rewards agree. Pure functions of numbers.

use std::{collections::BTreeMap, time::Duration};

use folgore_protocol::Outcome;
use serde::Serialize;

/// Bars of a histogram.
const BARS: usize = 10;
/// Disagreements that are shown.
const SHOWN: usize = 5;
/// Reasons of failures that are told apart.
const REASONS: usize = 12;
/// Characters of a reason.
const REASON_CHARS: usize = 200;
/// Items of which every pair is compared; of more, evenly chosen ones.
const PAIRED: usize = 2000;

/// How scores are spread.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Numbers.
    pub count: usize,
    /// Mean.
    pub mean: f64,
    /// Sample deviation; 0 of one number.
    pub std: f64,
    /// The number below which this share (in hundredths) lies.
    pub quantiles: BTreeMap<u8, f64>,
    /// From the least to the greatest.
    pub histogram: Vec<Bar>,
}

/// One bar of a histogram: numbers from `from` up to `to`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bar {
    /// The least number that belongs here.
    pub from: f64,
    /// The next bar's least; equal to `from` where the bar is a single value.
    pub to: f64,
    /// Numbers in it.
    pub count: usize,
}

impl Distribution {
    /// Of `values`; none of nothing.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (n, mean) = (sorted.len() as f64, sorted.iter().sum::<f64>() / sorted.len() as f64);
        let (least, greatest) = (*sorted.first()?, *sorted.last()?);
        let square = sorted.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        let std = if least == greatest { 0.0 } else { (square / (n - 1.0)).sqrt() };
        let quantiles = [0, 5, 25, 50, 75, 95, 100].map(|share| (share, quantile(&sorted, f64::from(share) / 100.0)));
        Some(Self { count: sorted.len(), mean, std, quantiles: quantiles.into(), histogram: histogram(&sorted) })
    }
}

/// The value below which `share` of `sorted` lies, between neighbours in proportion; 0 of nothing.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * (at - low as f64),
        _ => 0.0,
    }
}

/// A bar for each value where they are few, else bars of equal width.
fn histogram(sorted: &[f64]) -> Vec<Bar> {
    let mut distinct = sorted.to_vec();
    distinct.dedup();
    let count = |from: f64, to: f64| sorted.iter().filter(|v| **v >= from && **v < to).count();
    if distinct.len() <= BARS {
        let single = |v: &f64| Bar { from: *v, to: *v, count: sorted.iter().filter(|other| *other == v).count() };
        return distinct.iter().map(single).collect();
    }
    let (least, greatest) = (sorted[0], sorted[sorted.len() - 1]);
    let edge = |i: usize| least + (greatest - least) * i as f64 / BARS as f64;
    let bar = |i: usize| {
        let (from, to) = (edge(i), edge(i + 1));
        // The greatest belongs to the last bar.
        Bar { from, to, count: count(from, if i + 1 == BARS { f64::INFINITY } else { to }) }
    };
    (0..BARS).map(bar).collect()
}

/// One reason for which there is no score.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// `error` or `unscorable`.
    pub kind: &'static str,
    /// What the reward said.
    pub reason: String,
    /// How often.
    pub count: usize,
}

/// Failures by reason, the most frequent first; rare ones beyond a bound are counted together.
pub fn failures(outcomes: &[Outcome]) -> Vec<Failure> {
    let mut counts: BTreeMap<(&'static str, String), usize> = BTreeMap::new();
    for outcome in outcomes {
        let (kind, reason) = match outcome {
            Outcome::Scored { .. } | Outcome::Unjudged { .. } => continue,
            Outcome::Unscorable { reason } => ("unscorable", reason),
            Outcome::Error { reason } => ("error", reason),
        };
        *counts.entry((kind, reason.chars().take(REASON_CHARS).collect())).or_default() += 1;
    }
    let mut failures: Vec<Failure> =
        counts.into_iter().map(|((kind, reason), count)| Failure { kind, reason, count }).collect();
    failures.sort_by_key(|failure| std::cmp::Reverse(failure.count));
    let rare = failures.split_off(failures.len().min(REASONS));
    for kind in ["error", "unscorable"] {
        let count: usize = rare.iter().filter(|failure| failure.kind == kind).map(|failure| failure.count).sum();
        if count > 0 {
            failures.push(Failure { kind, reason: "other reasons".into(), count });
        }
    }
    failures
}

/// How long requests took, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Requests.
    pub requests: usize,
    /// Half of them took no longer.
    pub p50: f64,
    /// All but a twentieth took no longer.
    pub p95: f64,
    /// The longest.
    pub max: f64,
}

impl Latency {
    /// Of `times`; zeros of nothing.
    pub fn of(times: &[Duration]) -> Self {
        let mut ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        ms.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&ms, share);
        Self { requests: ms.len(), p50: at(0.5), p95: at(0.95), max: at(1.0) }
    }
}

/// How far two rewards agree on the items that both scored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Items that both scored.
    pub count: usize,
    /// Pearson's correlation; none where one of them is constant.
    pub correlation: Option<f64>,
    /// Pairs of items to which neither gives equal scores.
    pub pairs: usize,
    /// Those that the two put in opposite order.
    pub opposite: usize,
    /// Where they differ most: places in the list of items, by the difference of their ranks.
    pub largest: Vec<Disagreement>,
}

/// One item on which two rewards differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Disagreement {
    /// Place of the item.
    pub item: usize,
    /// The first reward's score.
    pub first: f64,
    /// The second one's.
    pub second: f64,
    /// Rank with the first reward less rank with the second, as a share of all.
    pub rank_difference: f64,
}

impl Agreement {
    /// Of (place, first score, second score).
    pub fn of(items: &[(usize, f64, f64)]) -> Self {
        let (first, second): (Vec<f64>, Vec<f64>) = items.iter().map(|(_, a, b)| (*a, *b)).unzip();
        let (pairs, opposite) = ordered(&first, &second);
        let ranks: Vec<(f64, f64)> = ranks(&first).into_iter().zip(ranks(&second)).collect();
        let disagreement = |(&(item, first, second), (a, b)): (&(usize, f64, f64), &(f64, f64))| Disagreement {
            item,
            first,
            second,
            rank_difference: (a - b) / items.len().max(1) as f64,
        };
        let mut largest: Vec<Disagreement> = items.iter().zip(&ranks).map(disagreement).collect();
        largest.retain(|d| d.rank_difference != 0.0);
        largest.sort_by(|a, b| b.rank_difference.abs().total_cmp(&a.rank_difference.abs()));
        largest.truncate(SHOWN);
        Self { count: items.len(), correlation: correlation(&first, &second), pairs, opposite, largest }
    }

    /// Share of the pairs that are ordered differently; none without pairs.
    pub fn opposite_share(&self) -> Option<f64> {
        (self.pairs > 0).then(|| self.opposite as f64 / self.pairs as f64)
    }
}

fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let mean = |xs: &[f64]| xs.iter().sum::<f64>() / xs.len() as f64;
    let (ma, mb) = (mean(a), mean(b));
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(x, y)| f(x - ma, y - mb)).sum::<f64>();
    let (aa, bb, ab) = (sum(&|x, _| x * x), sum(&|_, y| y * y), sum(&|x, y| x * y));
    (aa > 0.0 && bb > 0.0).then(|| ab / (aa * bb).sqrt())
}

/// Pairs that neither ties, and those of them in opposite order.
fn ordered(a: &[f64], b: &[f64]) -> (usize, usize) {
    let every = a.len().div_ceil(PAIRED).max(1);
    let items: Vec<(f64, f64)> = a.iter().copied().zip(b.iter().copied()).step_by(every).collect();
    let (mut pairs, mut opposite) = (0, 0);
    for (i, (a1, b1)) in items.iter().enumerate() {
        for (a2, b2) in &items[i + 1..] {
            if a1 != a2 && b1 != b2 {
                pairs += 1;
                opposite += usize::from((a1 < a2) != (b1 < b2));
            }
        }
    }
    (pairs, opposite)
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut begin = 0;
    for same in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = begin as f64 + (same.len() as f64 + 1.0) / 2.0;
        same.iter().for_each(|place| ranks[*place] = rank);
        begin += same.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_says_where_its_numbers_lie() {
        let d = Distribution::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((d.count, d.mean, d.quantiles[&0], d.quantiles[&50], d.quantiles[&100]), (4, 2.5, 1.0, 2.5, 4.0));
        assert!((d.std - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(d.quantiles[&25], 1.75);
        assert_eq!(Distribution::of(&[]), None);
        assert_eq!(Distribution::of(&[0.1, 0.1, 0.1]).unwrap().std, 0.0);
    }

    #[test]
    fn few_values_have_a_bar_each_and_many_share_ten() {
        let few = Distribution::of(&[1.0, 0.0, 1.0]).unwrap().histogram;
        assert_eq!(few, [Bar { from: 0.0, to: 0.0, count: 1 }, Bar { from: 1.0, to: 1.0, count: 2 }]);
        let many: Vec<f64> = (0..=100).map(f64::from).collect();
        let bars = Distribution::of(&many).unwrap().histogram;
        assert_eq!(bars.iter().map(|b| b.count).collect::<Vec<_>>(), [10, 10, 10, 10, 10, 10, 10, 10, 10, 11]);
    }

    #[test]
    fn failures_are_counted_by_reason_and_none_is_lost() {
        let error = |reason: String| Outcome::Error { reason };
        let mut outcomes = vec![Outcome::scored("x", 1.0), Outcome::Unscorable { reason: "no gold".into() }];
        outcomes.extend((0..3).map(|_| error("late".into())));
        let found = failures(&outcomes);
        assert_eq!(found.iter().map(|f| (f.kind, f.count)).collect::<Vec<_>>(), [("error", 3), ("unscorable", 1)]);
        outcomes.extend((0..40).map(|i| error(format!("reason {i}"))));
        outcomes.extend((0..40).map(|i| Outcome::Unscorable { reason: format!("reason {i}") }));
        let found = failures(&outcomes);
        assert!(found.len() <= REASONS + 2, "{found:?}");
        assert_eq!(found.iter().map(|f| f.count).sum::<usize>(), outcomes.len() - 1);
    }

    #[test]
    fn agreement_is_measured_by_order() {
        let items: Vec<(usize, f64, f64)> = (0..10).map(|i| (i, i as f64, 2.0 * i as f64)).collect();
        let same = Agreement::of(&items);
        assert_eq!((same.pairs, same.opposite, same.largest.len()), (45, 0, 0));
        assert!((same.correlation.unwrap() - 1.0).abs() < 1e-12);
        let reversed: Vec<(usize, f64, f64)> = items.iter().map(|(i, a, b)| (*i, *a, -b)).collect();
        let reversed = Agreement::of(&reversed);
        assert_eq!((reversed.opposite_share(), reversed.largest.len()), (Some(1.0), SHOWN));
        let mut one_off = items.clone();
        one_off[9].2 = -1.0;
        let one_off = Agreement::of(&one_off);
        assert_eq!((one_off.largest[0].item, one_off.opposite), (9, 9));
        let constant: Vec<(usize, f64, f64)> = items.iter().map(|(i, a, _)| (*i, *a, 1.0)).collect();
        let constant = Agreement::of(&constant);
        assert_eq!((constant.correlation, constant.opposite_share()), (None, None));
        assert_eq!(Agreement::of(&[]).count, 0);
    }

    #[test]
    fn equal_values_share_their_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
    }

    #[test]
    fn latency_is_in_milliseconds() {
        let times: Vec<Duration> = (1..=21).map(Duration::from_millis).collect();
        let latency = Latency::of(&times);
        assert_eq!(latency.requests, 21);
        assert!(
            (latency.p50 - 11.0).abs() < 1e-9 && (latency.p95 - 20.0).abs() < 1e-9 && (latency.max - 21.0).abs() < 1e-9
        );
    }
}
