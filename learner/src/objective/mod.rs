//! The objective as a pure function: log-probs and advantages of rows in, a loss and its gradient by log-prob out.
//!
//! Every method of the GRPO family is one sum over trained tokens,
//!
//! ```text
//! loss = sum over rows i and tokens t of  c_i * (k_i * w_it * L_it  +  beta * KL_it)
//! ```
//!
//! with a [`Surrogate`] `L` chosen by the token's source, a weight `w` for a sampler that is not the learner
//! ([`correction`]), a row that may be dropped (`k`), a divergence from the reference ([`divergence`]) and the average
//! that `c` stands for ([`Normaliser`]). Because `c` comes from counts of the whole optimiser batch, the sum may be
//! formed in any number of parts. Further methods are further surrogates.
//!
//! What the policy did not sample for this step has a surrogate of its own (an expert's tokens, experience), and no part in what
//! compares policies: neither correction nor divergence, and no ratio of a row.
//!
//! Sums are formed in f64. Where the mask is off, nothing is read and the gradient is exactly 0.

pub mod correction;
pub mod divergence;
mod normaliser;
mod request;
mod stats;
mod surrogate;

use folgore_config::algo::{AlgoSection, ImportanceSamplingLevel, OffPolicy};
use folgore_protocol::trajectory::Source;

pub use correction::Correction;
pub use divergence::Divergence;
pub use normaliser::{Aggregation, Counts, Normaliser};
pub use request::{Flag, LossReply, LossRequest, RequestError, evaluate_json};
pub use stats::{Stats, Tally};
pub use surrogate::{Point, Surrogate, Term, Trust};

/// What an objective cannot be evaluated on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ObjectiveError {
    /// The settings contradict each other.
    #[error("{0}")]
    Config(String),
    /// A column is as long as the row is not.
    #[error("row {row}: expected {expected} values of {column}, as many as log-probs, got {got}")]
    Length {
        /// Place of the row.
        row: usize,
        /// Name of the column.
        column: &'static str,
        /// Number of log-probs.
        expected: usize,
        /// Number of values.
        got: usize,
    },
    /// A column that the settings need is not there.
    #[error("row {row}: {why} needs {column}, which the row has not")]
    Missing {
        /// Place of the row.
        row: usize,
        /// Name of the column.
        column: &'static str,
        /// The setting that needs it.
        why: &'static str,
    },
    /// A trained token with a value that is no finite number.
    #[error("row {row}, token {token}: expected a finite {column}, got {value}")]
    NonFinite {
        /// Place of the row.
        row: usize,
        /// Place of the token in the row.
        token: usize,
        /// What is not finite: a column, or `loss`.
        column: &'static str,
        /// The value.
        value: f64,
    },
}

impl ObjectiveError {
    /// True if numbers are to blame, and not settings or shapes: the update may be skipped, and the run goes on.
    pub fn is_non_finite(&self) -> bool {
        matches!(self, ObjectiveError::NonFinite { .. })
    }
}

/// One row: facts about its tokens, all slices equally long.
#[derive(Clone, Copy, Debug)]
pub struct RowInput<'a> {
    /// Where its tokens come from.
    pub sources: &'a [Source],
    /// Log-probs under the weights that are being trained.
    pub logprobs: &'a [f64],
    /// Log-probs under the weights that the batch began with; none: `logprobs` themselves, held constant.
    pub old: Option<&'a [f64]>,
    /// Log-probs under the reference; needed if `beta` is above 0.
    pub reference: Option<&'a [f64]>,
    /// Log-probs that the sampler reported; none: the sampler is the learner, and nothing is corrected. Those of experience
    /// are from then; an expert has none, and they are not read.
    pub rollout: Option<&'a [f64]>,
    /// True where the token is trained on.
    pub mask: &'a [bool],
    /// Advantage of the whole row.
    pub advantage: f64,
    /// Tokens that count in the average, of all rows of the rollout that the row belongs to; none: it is the only one.
    pub whole: Option<usize>,
}

/// What came of some rows of an optimiser batch. Losses, gradients and statistics of its parts add up.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// These rows' share of the loss.
    pub loss: f64,
    /// Gradient of the loss by each log-prob, row by row.
    pub grads: Vec<Vec<f64>>,
    /// For the metrics.
    pub stats: Stats,
}

/// An objective, ready to be evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    on_policy: Surrogate,
    teacher: Surrogate,
    experience: Surrogate,
    off_policy: OffPolicy,
    teacher_weight: f64,
    level: ImportanceSamplingLevel,
    divergence: Option<Divergence>,
    correction: Option<Correction>,
    off_policy_mask: Option<f64>,
    aggregation: Aggregation,
}

impl Objective {
    /// The objective of `algo`; `max_completion_length` stands in for `loss_scale_factor` where that is none.
    pub fn new(algo: &AlgoSection, max_completion_length: u32) -> Result<Self, ObjectiveError> {
        algo.validate().map_err(ObjectiveError::Config)?;
        Ok(Self {
            on_policy: Surrogate::of(algo),
            teacher: Surrogate::of_teacher(algo),
            experience: Surrogate::of_experience(algo),
            teacher_weight: algo.off_policy.teacher_weight,
            off_policy: algo.off_policy.clone(),
            level: algo.importance_level(),
            divergence: Divergence::of(algo),
            correction: Correction::of(algo),
            off_policy_mask: algo.off_policy_mask_threshold,
            aggregation: Aggregation::of(algo, max_completion_length)?,
        })
    }

    /// The objective as it is in `step`, which counts from 1.
    #[must_use]
    pub fn at_step(self, step: u64) -> Self {
        Self { teacher_weight: self.off_policy.teacher_weight_at(step), ..self }
    }

    /// True if an expert's tokens are imitated: then they are counted apart.
    pub fn imitates(&self) -> bool {
        self.teacher == Surrogate::Imitation
    }

    /// True if rows need log-probs under the reference.
    pub fn needs_reference(&self) -> bool {
        self.divergence.is_some()
    }

    /// True if a row with advantage 0 has a gradient all the same.
    pub fn moves_at_zero_advantage(&self) -> bool {
        self.divergence.is_some() || matches!(self.on_policy, Surrogate::Dppo { kl_tau, .. } if kl_tau > 0.0)
    }

    /// The average over an optimiser batch of which `counts` are the counts.
    pub fn normaliser(&self, counts: Counts) -> Normaliser {
        Normaliser::new(self.aggregation, counts)
    }

    /// Loss, gradient and statistics of `rows`, a part or the whole of the batch that `normaliser` was made for.
    pub fn evaluate(&self, rows: &[RowInput<'_>], normaliser: &Normaliser) -> Result<Evaluation, ObjectiveError> {
        let mut out = Evaluation { loss: 0.0, grads: Vec::with_capacity(rows.len()), stats: Stats::default() };
        for (index, row) in rows.iter().enumerate() {
            let row = Live::check(self, index, row)?;
            let mut sum = Sum { loss: 0.0, grad: vec![0.0; row.length] };
            if !row.tokens.is_empty() {
                self.add_surrogate(&row, normaliser, &mut sum, &mut out.stats);
                self.add_divergence(&row, normaliser, &mut sum, &mut out.stats);
                row.tokens.iter().for_each(|t| out.stats.token(t));
                sum.expect_finite(index)?;
            }
            out.loss += sum.loss;
            out.grads.push(sum.grad);
        }
        Ok(out)
    }

    fn add_surrogate(&self, row: &Live, normaliser: &Normaliser, sum: &mut Sum, stats: &mut Stats) {
        let fresh = || row.tokens.iter().filter(|t| t.source == Source::OnPolicy);
        let n = fresh().count();
        let by_row = self.level == ImportanceSamplingLevel::Sequence;
        let mean_ratio = fresh().map(Token::log_ratio).sum::<f64>() / n as f64;
        let weights = self.correction.as_ref().map(|c| c.weights(&row.tokens, stats));
        let keep = self.keeps(row);
        let c = self.coefficient(row, normaliser);
        let (mut slope_of_mean, mut first) = (0.0, true);
        for (i, token) in row.tokens.iter().enumerate() {
            let (surrogate, c, by_row) = match token.source {
                Source::OnPolicy => (&self.on_policy, c, by_row),
                Source::Replay => (&self.experience, c, false),
                Source::Teacher if self.imitates() => {
                    (&self.teacher, normaliser.of_imitated() * self.teacher_weight, false)
                }
                Source::Teacher => (&self.teacher, c * self.teacher_weight, false),
            };
            let log_ratio = if by_row { mean_ratio } else { token.log_ratio() };
            let point = Point { log_ratio, logprob: token.lp, rollout: token.rollout, advantage: row.advantage };
            let term = surrogate.term(point);
            if token.source == Source::OnPolicy && (!by_row || std::mem::take(&mut first)) {
                stats.ratio(log_ratio, &term);
            }
            let weight = weights.as_ref().map_or(1.0, |w| w[i]);
            // A dropped token is skipped, not multiplied with 0, which would make NaN of an infinite term.
            if weight == 0.0 || !keep && token.source == Source::OnPolicy {
                continue;
            }
            sum.loss += c * weight * term.value;
            sum.grad[token.at] += c * weight * term.by_logprob;
            if by_row {
                slope_of_mean += c * weight * term.by_log_ratio;
            } else {
                sum.grad[token.at] += c * weight * term.by_log_ratio;
            }
        }
        if by_row {
            fresh().for_each(|t| sum.grad[t.at] += slope_of_mean / n as f64);
        }
        stats.row(row.tokens.len(), !keep);
    }

    fn coefficient(&self, row: &Live, normaliser: &Normaliser) -> f64 {
        let own = row.tokens.iter().filter(|t| self.counts(t.source)).count();
        normaliser.coefficient(own, row.whole.unwrap_or(own))
    }

    /// True if tokens of `source` count in the average of the loss.
    pub fn counts(&self, source: Source) -> bool {
        source != Source::Teacher || !self.imitates()
    }

    fn add_divergence(&self, row: &Live, normaliser: &Normaliser, sum: &mut Sum, stats: &mut Stats) {
        let Some(divergence) = &self.divergence else { return };
        let c = self.coefficient(row, normaliser);
        let fresh = row.tokens.iter().filter(|t| t.source == Source::OnPolicy);
        for (token, reference) in fresh.filter_map(|t| Some((t, t.reference?))) {
            let (kl, slope) = divergence.value_and_slope(token.lp, reference);
            sum.loss += c * divergence.beta * kl;
            sum.grad[token.at] += c * divergence.beta * slope;
            stats.kl.add(kl);
        }
    }

    /// False for a row with negative advantage that has become too unlikely since it was sampled.
    fn keeps(&self, row: &Live) -> bool {
        let Some(threshold) = self.off_policy_mask else { return true };
        let fresh = row.tokens.iter().filter(|t| t.source == Source::OnPolicy);
        let (sum, n) =
            fresh.fold((0.0, 0), |(sum, n), t| (sum + t.rollout.map_or(0.0, |rollout| rollout - t.lp), n + 1));
        row.advantage >= 0.0 || n == 0 || sum / f64::from(n) <= threshold
    }
}

/// Loss and gradient of one row.
struct Sum {
    loss: f64,
    grad: Vec<f64>,
}

impl Sum {
    fn expect_finite(&self, row: usize) -> Result<(), ObjectiveError> {
        let bad = self.grad.iter().copied().enumerate().find(|(_, g)| !g.is_finite());
        match bad.or((!self.loss.is_finite()).then_some((0, self.loss))) {
            None => Ok(()),
            Some((token, value)) => Err(ObjectiveError::NonFinite { row, token, column: "loss", value }),
        }
    }
}

/// A trained token: the numbers that were checked to be finite.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    /// Place in the row.
    at: usize,
    source: Source,
    lp: f64,
    old: f64,
    reference: Option<f64>,
    rollout: Option<f64>,
}

impl Token {
    fn log_ratio(&self) -> f64 {
        self.lp - self.old
    }
}

/// A row of which only the trained tokens are left.
struct Live {
    length: usize,
    advantage: f64,
    whole: Option<usize>,
    tokens: Vec<Token>,
}

impl Live {
    fn check(objective: &Objective, index: usize, row: &RowInput<'_>) -> Result<Self, ObjectiveError> {
        let length = row.logprobs.len();
        let fits = |column, got| match got {
            Some(got) if got != length => Err(ObjectiveError::Length { row: index, column, expected: length, got }),
            _ => Ok(()),
        };
        fits("mask", Some(row.mask.len()))?;
        fits("sources", Some(row.sources.len()))?;
        fits("old", row.old.map(<[f64]>::len))?;
        fits("ref", row.reference.map(<[f64]>::len))?;
        fits("rollout", row.rollout.map(<[f64]>::len))?;
        let needs = |column, why| Err(ObjectiveError::Missing { row: index, column, why });
        if objective.divergence.is_some() && row.reference.is_none() {
            return needs("ref", "algo.beta above 0");
        }
        if row.rollout.is_none() && matches!(objective.on_policy, Surrogate::Dppo { .. }) {
            return needs("rollout", "algo.loss_type dppo");
        }
        if row.rollout.is_none() && objective.off_policy_mask.is_some() {
            return needs("rollout", "algo.off_policy_mask_threshold");
        }
        let reference = row.reference.filter(|_| objective.divergence.is_some());
        let mut tokens = Vec::new();
        for at in (0..length).filter(|at| row.mask[*at]) {
            let read = |column, values: &[f64]| match values[at] {
                value if value.is_finite() => Ok(value),
                value => Err(ObjectiveError::NonFinite { row: index, token: at, column, value }),
            };
            let (source, lp) = (row.sources[at], read("logprobs", row.logprobs)?);
            let rollout = match (source, row.rollout) {
                (Source::Teacher, _) | (Source::OnPolicy, None) => None,
                (Source::Replay, None) => return needs("rollout", "experience"),
                (_, Some(values)) => Some(read("rollout", values)?),
            };
            let old = match source {
                Source::OnPolicy => row.old.map_or(Ok(lp), |v| read("old", v))?,
                Source::Teacher => lp,
                Source::Replay => rollout.unwrap_or(lp),
            };
            let reference = reference.map(|v| read("ref", v)).transpose()?;
            tokens.push(Token { at, source, lp, old, reference, rollout });
        }
        if !row.advantage.is_finite() {
            let column = "advantage";
            return Err(ObjectiveError::NonFinite { row: index, token: 0, column, value: row.advantage });
        }
        Ok(Self { length, advantage: row.advantage, whole: row.whole, tokens })
    }
}
