//! How a token is chosen from a row of logits, and the log-sum-exp over chunks of the vocabulary: the definitions that
//! all backends share.

use std::ops::Range;

use super::{SampleSpec, exp, lanes};

/// Columns of the vocabulary that are reduced at once. Part of the definition of the log-sum-exp, hence fixed.
pub(crate) const CHUNK: usize = 2048;

/// What a chunk of logits, or several merged, adds to the soft-max: maximum, sum of `e = exp(z - max)`, sum of `e * z`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stats {
    /// Largest logit; negative infinity when there is none.
    pub max: f32,
    /// Sum of exponentials relative to `max`.
    pub sum: f32,
    /// Sum of exponentials times logits.
    pub weighted: f32,
}

impl Stats {
    /// Nothing yet.
    pub(crate) const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0 };

    /// Adds the chunk that follows.
    pub(crate) fn merge(&mut self, next: Self) {
        if next.max == f32::NEG_INFINITY {
            return;
        }
        if self.max == f32::NEG_INFINITY {
            *self = next;
            return;
        }
        let max = if next.max > self.max { next.max } else { self.max };
        let (a, b) = (exp(self.max - max), exp(next.max - max));
        self.sum = self.sum * a + next.sum * b;
        self.weighted = self.weighted * a + next.weighted * b;
        self.max = max;
    }

    /// log-sum-exp.
    pub(crate) fn lse(&self) -> f32 {
        self.max + self.sum.ln()
    }

    /// Entropy of the distribution in nats.
    pub(crate) fn entropy(&self) -> f32 {
        self.lse() - self.weighted / self.sum
    }
}

/// The statistics of one chunk, in scalar form: the definition.
pub(crate) fn chunk_stats(z: &[f32]) -> Stats {
    let max = z.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    if max == f32::NEG_INFINITY {
        // all cut away, or nothing but NaN: the NaN has to stay visible
        return if z.iter().any(|z| z.is_nan()) {
            Stats { max: f32::NAN, sum: f32::NAN, weighted: f32::NAN }
        } else {
            Stats::EMPTY
        };
    }
    Stats {
        max,
        sum: lanes::sum(z.iter().map(|z| exp(z - max))),
        weighted: lanes::sum_of_products(z.iter().map(|z| (exp(z - max), z.max(f32::MIN)))),
    }
}

/// Index of the first maximum.
pub(crate) fn argmax(z: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in z.iter().enumerate() {
        if *value > z[best] {
            best = i;
        }
    }
    best
}

/// True if `spec` neither penalises nor cuts, so that the draw is from the distribution whose log-probs are reported.
pub(crate) fn is_plain(spec: &SampleSpec) -> bool {
    let cut = spec.top_k > 0 || spec.top_p < 1.0 || spec.min_p > 0.0;
    let penalised = spec.repetition_penalty != 1.0 && !spec.seen.is_empty();
    !penalised && (!cut || spec.temperature == 0.0)
}

/// Applies the repetition penalty to raw logits, once for every distinct id.
pub(crate) fn penalise(logits: &mut [f32], spec: &SampleSpec) {
    if spec.repetition_penalty == 1.0 {
        return;
    }
    let mut seen = spec.seen.clone();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        let logit = &mut logits[id as usize];
        *logit = if *logit > 0.0 { *logit / spec.repetition_penalty } else { *logit * spec.repetition_penalty };
    }
}

/// Sets to negative infinity what top-k, then top-p, then min-p leave out, in the order and by the rules of Hugging Face
/// `transformers`: ties of the k-th value stay, at least one token stays.
pub(crate) fn cut(z: &mut [f32], spec: &SampleSpec) {
    if spec.top_k > 0 && (spec.top_k as usize) < z.len() {
        let mut order = z.to_vec();
        let (_, kth, _) = order.select_nth_unstable_by(spec.top_k as usize - 1, |a, b| b.total_cmp(a));
        let kth = *kth;
        z.iter_mut().filter(|z| **z < kth).for_each(|z| *z = f32::NEG_INFINITY);
    }
    if spec.top_p < 1.0 {
        cut_top_p(z, spec.top_p);
    }
    if spec.min_p > 0.0 {
        let max = z[argmax(z)];
        z.iter_mut().filter(|z| exp(**z - max) < spec.min_p).for_each(|z| *z = f32::NEG_INFINITY);
    }
}

/// Keeps the most probable tokens up to and including the one with which their probability reaches `top_p`.
fn cut_top_p(z: &mut [f32], top_p: f32) {
    let max = z[argmax(z)];
    let weight = |z: f32| f64::from(exp(z - max));
    let total: f64 = z.iter().map(|z| weight(*z)).sum();
    let wanted = f64::from(top_p) * total;
    // Sorting the whole vocabulary is slow, and the kept tokens are nearly always within a few nats of the best.
    let mut candidates: Vec<u32> = Vec::new();
    for reach in [2.0, 5.0, 10.0, 20.0, f32::INFINITY] {
        candidates = (0..z.len() as u32).filter(|i| z[*i as usize] >= max - reach).collect();
        if candidates.iter().map(|i| weight(z[*i as usize])).sum::<f64>() > wanted {
            break;
        }
    }
    candidates.sort_unstable_by(|a, b| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b)));
    let mut before = 0.0;
    let mut kept = 0;
    while kept < candidates.len() && (kept == 0 || before < wanted) {
        before += weight(z[candidates[kept] as usize]);
        kept += 1;
    }
    let mut keep = candidates[..kept].to_vec();
    keep.sort_unstable();
    let mut next = keep.into_iter().peekable();
    for (i, z) in z.iter_mut().enumerate() {
        if next.peek() == Some(&(i as u32)) {
            next.next();
        } else {
            *z = f32::NEG_INFINITY;
        }
    }
}

/// Inverse distribution function in order of token ids: the first id at which the running weight passes `uniform` of the
/// total. `chunks` are the statistics of each [`CHUNK`] of the row, `z` gives the logits of a chunk's columns, and `weigh` makes of each
/// `exp` of what it lies above a maximum.
pub(crate) fn draw(
    chunks: &[Stats],
    uniform: f32,
    z: impl Fn(Range<usize>) -> Vec<f32>,
    weigh: impl Fn(&mut [f32], f32),
    vocab: usize,
) -> usize {
    let max = chunks.iter().fold(f32::NEG_INFINITY, |a, c| if c.max > a { c.max } else { a });
    let share = |c: &Stats| if c.sum > 0.0 { f64::from(c.sum) * f64::from(exp(c.max - max)) } else { 0.0 };
    let total: f64 = chunks.iter().map(share).sum();
    let target = f64::from(uniform) * total;
    let mut passed = 0.0;
    // the last chunk with any weight, for when rounding leaves the target at the very end
    let mut chosen = (0, f64::NEG_INFINITY);
    for (c, chunk) in chunks.iter().enumerate() {
        let weight = share(chunk);
        if weight > 0.0 {
            chosen = (c, passed);
        }
        passed += weight;
        if passed > target {
            break;
        }
    }
    let (c, passed) = chosen;
    let columns = c * CHUNK..((c + 1) * CHUNK).min(vocab);
    let mut weights = z(columns.clone());
    weigh(&mut weights, max);
    let place = draw_within(&weights, passed, target).unwrap_or_else(|| argmax(&z(columns.clone())));
    place + columns.start
}

/// Weights of logits relative to `max`, in scalar form: the definition.
pub(crate) fn weigh(z: &mut [f32], max: f32) {
    z.iter_mut().for_each(|z| *z = exp(*z - max));
}

/// The first of a chunk's columns at which the running weight passes `target`, or the last with any weight; none if none has.
fn draw_within(weights: &[f32], mut passed: f64, target: f64) -> Option<usize> {
    for (i, weight) in weights.iter().enumerate() {
        passed += f64::from(*weight);
        if passed > target {
            return Some(i);
        }
    }
    weights.iter().rposition(|weight| *weight > 0.0)
}
