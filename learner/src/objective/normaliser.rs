//! Averages over an optimiser batch, as a coefficient for each row's sum.
//!
//! The coefficients come from counts of the *whole* batch, so that losses and gradients of its micro-batches add up to
//! those of the batch. `bnpo` is by definition the exception: it averages within a micro-batch.

use folgore_config::algo::{AlgoSection, LossAggMode, LossType};

use super::ObjectiveError;

/// How tokens are averaged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aggregation {
    /// Mean over all trained tokens.
    TokenMean,
    /// Mean over the trained tokens of a micro-batch, then over micro-batches.
    LocalTokenMean,
    /// Mean over all rows of the mean over a row's tokens; a row without tokens counts.
    RowMean,
    /// Sum over tokens, divided by all rows and by a constant.
    RowsByConstant(f64),
    /// Mean over rows that have tokens of the mean over a row's tokens, with verl's guard in the denominator.
    SeqMeanTokenMean,
    /// Sum over tokens, divided by the rows that have tokens and by a constant.
    SeqMeanTokenSum(f64),
    /// Sum over tokens, divided by a constant.
    Constant(f64),
    /// Sum over rollouts of the mean over the tokens of a rollout's rows, divided by the rows that have tokens.
    PerRolloutMean,
}

impl Aggregation {
    /// The average that `algo` asks for.
    pub fn of(algo: &AlgoSection, max_completion_length: u32) -> Result<Self, ObjectiveError> {
        let constant = || match algo.loss_scale_factor.unwrap_or(f64::from(max_completion_length)) {
            scale if scale > 0.0 => Ok(scale),
            _ => Err(ObjectiveError::Config(
                "algo.loss_scale_factor: expected a number above 0, or rollout.max_completion_length in its place"
                    .into(),
            )),
        };
        Ok(match (algo.loss_agg_mode, algo.loss_type) {
            (Some(LossAggMode::TokenMean), _) => Aggregation::TokenMean,
            (Some(LossAggMode::SeqMeanTokenMean), _) => Aggregation::SeqMeanTokenMean,
            (Some(LossAggMode::SeqMeanTokenSum), _) | (None, LossType::Reinforce) => Aggregation::SeqMeanTokenSum(1.0),
            (Some(LossAggMode::SeqMeanTokenSumNorm), _) => Aggregation::SeqMeanTokenSum(constant()?),
            (Some(LossAggMode::SumNorm), _) => Aggregation::Constant(constant()?),
            (Some(LossAggMode::PerRolloutMean), _) => Aggregation::PerRolloutMean,
            (None, LossType::Grpo | LossType::Gspo | LossType::Sapo) => Aggregation::RowMean,
            (None, LossType::Bnpo) => Aggregation::LocalTokenMean,
            (None, LossType::DrGrpo) => Aggregation::RowsByConstant(constant()?),
            (None, LossType::Dapo | LossType::Cispo | LossType::Dppo) => Aggregation::TokenMean,
        })
    }
}

/// What a batch holds, rows that are left out of the forward pass included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows.
    pub rows: usize,
    /// Rows with at least one trained token.
    pub rows_with_tokens: usize,
    /// Trained tokens.
    pub tokens: usize,
    /// Tokens that are imitated; they are in none of the other counts.
    pub imitated: usize,
}

impl Counts {
    /// Counts of rows that have so many trained tokens each.
    pub fn of(tokens_of_rows: impl IntoIterator<Item = usize>) -> Self {
        tokens_of_rows.into_iter().fold(Self::default(), |c, n| Self {
            rows: c.rows + 1,
            rows_with_tokens: c.rows_with_tokens + usize::from(n > 0),
            tokens: c.tokens + n,
            ..c
        })
    }
}

/// The average over one optimiser batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normaliser {
    aggregation: Aggregation,
    counts: Counts,
    micro_batches: usize,
}

impl Normaliser {
    /// The average over a batch with `counts`, taken as one micro-batch.
    pub fn new(aggregation: Aggregation, counts: Counts) -> Self {
        Self { aggregation, counts, micro_batches: 1 }
    }

    /// The same for one of `micro_batches` parts, itself with `local` counts: another one with `bnpo` only.
    pub fn for_micro_batch(&self, local: Counts, micro_batches: usize) -> Self {
        match self.aggregation {
            Aggregation::LocalTokenMean => Self { counts: local, micro_batches, ..*self },
            _ => *self,
        }
    }

    /// What the sum over a row's `tokens` trained tokens is multiplied with, of `whole` that all rows of its rollout have together;
    /// 0 for a row without any.
    pub fn coefficient(&self, tokens: usize, whole: usize) -> f64 {
        let Counts { rows, rows_with_tokens, tokens: all, .. } = self.counts;
        if tokens == 0 {
            return 0.0;
        }
        1.0 / match self.aggregation {
            Aggregation::TokenMean => all as f64,
            Aggregation::LocalTokenMean => (all * self.micro_batches) as f64,
            Aggregation::RowMean => (tokens * rows) as f64,
            Aggregation::RowsByConstant(constant) => rows as f64 * constant,
            Aggregation::SeqMeanTokenMean => (tokens as f64 + 1e-8) * rows_with_tokens as f64,
            Aggregation::SeqMeanTokenSum(constant) => rows_with_tokens as f64 * constant,
            Aggregation::Constant(constant) => constant,
            Aggregation::PerRolloutMean => (whole * rows_with_tokens) as f64,
        }
    }

    /// What each imitated token is multiplied with: their mean is taken over all of the batch, whatever the others' is.
    pub fn of_imitated(&self) -> f64 {
        1.0 / self.counts.imitated.max(1) as f64
    }
}
