//! One optimiser step: a batch of trajectories in, changed weights and metrics out.
//!
//! Advantages, packing, forward, objective, backward, AdamW: the parts are elsewhere, their order is here. With one update
//! per batch the policy that the batch began with is the one being trained, and its log-probs need no pass of their own.

use std::num::NonZeroUsize;

use folgore_config::{algo::AlgoSection, optim::OptimSection};
use folgore_model::{
    backend::Backend,
    decoder::{self, Backprop, Dropout, Ragged},
};
use folgore_protocol::{Batch, seed};

use crate::{
    advantage::{self, NonFiniteReward},
    metrics::{self, Metrics},
    objective::{Objective, ObjectiveError, Stats},
    packing::{Columns, Flat, PackError, PackedBatch, pack, split_groups},
    schedule::{NonFiniteGuard, Schedule, Verdict},
    trainee::Trainee,
};

/// What a step needs to know besides the batch.
#[derive(Clone, Debug)]
pub struct StepSettings {
    /// The objective.
    pub algo: AlgoSection,
    /// The optimiser.
    pub optim: OptimSection,
    /// Longest completion, for the objectives that divide by it.
    pub max_completion_length: u32,
    /// The temperature that the batch was sampled with.
    pub temperature: f32,
    /// Most tokens in one call of the model.
    pub max_tokens_per_micro_batch: usize,
    /// Layers whose activations are computed again together in the backward; none: all are kept.
    pub recompute: Option<NonZeroUsize>,
    /// Adapter dropout.
    pub lora_dropout: f32,
    /// The run's seed.
    pub seed: u64,
}

/// Why a batch cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A reward is no number.
    #[error(transparent)]
    Reward(#[from] NonFiniteReward),
    /// A trajectory is not as it has to be.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The objective refuses its input.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// Several updates in a row were unusable.
    #[error(
        "step {step}: loss {loss}, gradient norm {grad_norm}: {in_a_row} updates in a row were not finite; lower optim.learning_rate"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// Last loss.
        loss: f64,
        /// Last norm.
        grad_norm: f64,
        /// How many.
        in_a_row: u32,
    },
}

/// What came of a step.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Under TRL's names, times and speeds not among them.
    pub metrics: Metrics,
    /// Tokens that went through the decoder, prompts counted once.
    pub tokens_trained: u64,
}

/// Trains on `batch`.
pub fn train_step<B: Backend>(
    trainee: &mut Trainee<B>,
    batch: &Batch,
    settings: &StepSettings,
    schedule: &Schedule,
    guard: &mut NonFiniteGuard,
) -> Result<StepReport, StepError> {
    let StepSettings { algo, optim, .. } = settings;
    let advantages = advantage::of_batch(algo, batch)?;
    let flat = Flat::of(batch, &advantages, algo.mask_truncated_completions, algo.mask_observations)?;
    let objective = Objective::new(algo, settings.max_completion_length)?.at_step(batch.step);
    let parts = split_groups(flat.groups, (algo.steps_per_generation as usize).min(flat.groups.max(1)))?;
    let mut step = Step { flat: &flat, objective: &objective, settings, batch_step: batch.step, tokens: 0, calls: 0 };

    let forwarded: Vec<usize> = parts.iter().flat_map(|part| step.rows(&flat.rows_of(part.clone()))).collect();
    let (mut old, mut reference) = (None, None);
    if algo.updates_per_batch() > 1 {
        old = Some(
            step.frozen(&forwarded, |input, targets| trainee.logprobs(input, targets, settings.temperature).logprobs),
        );
    }
    if objective.needs_reference() {
        reference = Some(step.frozen(&forwarded, |input, targets| {
            trainee.reference_logprobs(input, targets, settings.temperature).logprobs
        }));
    }

    let (mut losses, mut norms, mut stats, mut entropy) = (Vec::new(), Vec::new(), Stats::default(), (0.0, 0u64));
    let mut learning_rate = 0.0;
    for _ in 0..algo.num_iterations {
        for part in &parts {
            let part = flat.rows_of(part.clone());
            let update = match step.gradient(trainee, &part, old.as_deref(), reference.as_deref()) {
                // the weights are suspect, not the batch: the guard decides
                Err(error) if error.is_non_finite() => Update { loss: f64::NAN, ..Update::default() },
                other => other?,
            };
            let grad_norm = trainee.grad_norm();
            learning_rate = schedule.learning_rate(trainee.updates());
            match guard.judge(update.loss, grad_norm) {
                Verdict::Apply => trainee.update(optim, learning_rate, grad_norm),
                Verdict::Skip => trainee.zero_grad(),
                Verdict::Stop => {
                    let in_a_row = crate::schedule::MAX_NON_FINITE;
                    return Err(StepError::NotFinite { step: batch.step, loss: update.loss, grad_norm, in_a_row });
                }
            }
            losses.push(update.loss);
            norms.push(grad_norm);
            stats.merge(&update.stats);
            entropy = (entropy.0 + update.entropy.0, entropy.1 + update.entropy.1);
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let mut metrics = metrics::of_step(batch, &stats, (entropy.1 > 0).then(|| entropy.0 / entropy.1 as f64));
    metrics.insert("loss".into(), mean(&losses));
    metrics.insert("grad_norm".into(), mean(&norms));
    metrics.insert("learning_rate".into(), learning_rate);
    Ok(StepReport { metrics, tokens_trained: step.tokens })
}

/// The batch on its way through the decoder.
struct Step<'a> {
    flat: &'a Flat,
    objective: &'a Objective,
    settings: &'a StepSettings,
    batch_step: u64,
    tokens: u64,
    calls: u64,
}

/// One update's gradient, as far as it is not in the trainee.
#[derive(Default)]
struct Update {
    loss: f64,
    stats: Stats,
    /// Sum over trained tokens, and their number.
    entropy: (f64, u64),
}

impl Step<'_> {
    /// The rows of `part` that need a forward. If none has a gradient, one row runs all the same, so that the log-probs of
    /// sampler and learner are compared in every step.
    fn rows(&self, part: &[usize]) -> Vec<usize> {
        let (always, imitates) = (self.objective.moves_at_zero_advantage(), self.objective.imitates());
        let moving = self.flat.with_gradient(part, always, imitates);
        if moving.is_empty() {
            self.flat.with_gradient(part, true, false).into_iter().take(1).collect()
        } else {
            moving
        }
    }

    /// What the policy did not sample for this step goes in calls of its own: the rest may be found where it was sampled.
    fn calls(&self, rows: &[usize]) -> Vec<PackedBatch> {
        let (fresh, other): (Vec<usize>, Vec<usize>) = rows.iter().partition(|row| self.flat.is_fresh(**row));
        let most = self.settings.max_tokens_per_micro_batch;
        [fresh, other].iter().filter(|rows| !rows.is_empty()).flat_map(|rows| pack(self.flat, rows, most)).collect()
    }

    /// Log-probs of `rows` by flat token, from a pass that nothing is learnt from; 0 where a token has none.
    fn frozen(&self, rows: &[usize], logprobs: impl Fn(&Ragged, &[u32]) -> Vec<f32>) -> Vec<f64> {
        let mut column = vec![0.0; self.flat.mask.len()];
        for call in self.calls(rows) {
            let ids: Vec<u32> = call.targets.iter().map(|t| t.id).collect();
            let places: Vec<usize> = call.targets.iter().map(|t| t.token).collect();
            for (place, logprob) in places.into_iter().zip(logprobs(&ragged(call), &ids)) {
                column[place] = f64::from(logprob);
            }
        }
        column
    }

    /// Puts log-probs that are computed here in place of those of the shortest of `rows`: what is recalled is what the sampler
    /// reported, so nothing would tell if the sampler had computed it wrongly.
    fn compute_shortest<B: Backend>(&self, trainee: &Trainee<B>, rows: &[usize], logprobs: &mut [f64]) {
        let Some(shortest) = rows.iter().copied().min_by_key(|row| self.flat.rows[*row].ids.len()) else { return };
        let computed = self
            .frozen(&[shortest], |input, targets| trainee.logprobs(input, targets, self.settings.temperature).logprobs);
        let tokens = self.flat.rows[shortest].tokens.clone();
        logprobs[tokens.clone()].copy_from_slice(&computed[tokens]);
    }

    /// Adds the gradient of the loss over the rows of `part`.
    fn gradient<B: Backend>(
        &mut self,
        trainee: &mut Trainee<B>,
        part: &[usize],
        old: Option<&[f64]>,
        reference: Option<&[f64]>,
    ) -> Result<Update, ObjectiveError> {
        let whole = self.objective.normaliser(self.flat.counts(part, self.objective));
        let calls = self.calls(&self.rows(part));
        let micro_batches = calls.len();
        let mut update = Update::default();
        let mut logprobs = vec![0.0; self.flat.mask.len()];
        let mut slopes = vec![0.0; self.flat.mask.len()];
        let mut compared = false;
        for call in calls {
            let rows = call.rows.clone();
            let (ids, places): (Vec<u32>, Vec<usize>) = call.targets.iter().map(|t| (t.id, t.token)).unzip();
            self.tokens += call.tokens.len() as u64;
            let pending = trainee.forward(ragged(call), ids, self.settings.temperature, self.how());
            for (i, place) in places.iter().enumerate() {
                logprobs[*place] = f64::from(pending.head.logprobs[i]);
                if self.flat.mask[*place] {
                    update.entropy.0 += f64::from(pending.head.entropy[i]);
                    update.entropy.1 += 1;
                }
            }
            if pending.recalled && !compared {
                self.compute_shortest(trainee, &rows, &mut logprobs);
                compared = true;
            }
            let filled;
            let rollout = if self.settings.algo.mask_observations {
                &self.flat.rollout
            } else {
                filled = self.flat.rollout_or(old.unwrap_or(&logprobs));
                &filled
            };
            let columns = Columns { logprobs: &logprobs, old, reference, rollout: Some(rollout) };
            let normaliser = whole.for_micro_batch(self.flat.counts(&rows, self.objective), micro_batches);
            let evaluation = self.objective.evaluate(&self.flat.inputs(&rows, columns, self.objective), &normaliser)?;
            update.loss += evaluation.loss;
            update.stats.merge(&evaluation.stats);
            self.flat.scatter(&rows, &evaluation, &mut slopes);
            let dlogprobs: Vec<f32> = places.iter().map(|place| slopes[*place] as f32).collect();
            trainee.backward(pending, &dlogprobs);
        }
        Ok(update)
    }

    fn how(&mut self) -> Backprop {
        self.calls += 1;
        let p = self.settings.lora_dropout;
        let dropout =
            (p > 0.0).then(|| Dropout { p, seed: seed::mix(&[self.settings.seed, self.batch_step, self.calls]) });
        Backprop { recompute: self.settings.recompute, dropout }
    }
}

fn ragged(call: PackedBatch) -> Ragged {
    let span = |s: crate::packing::Span| decoder::Span {
        start: s.prefix.iter().map(ExactSizeIterator::len).sum(),
        rows: s.rows,
        prefix: s.prefix,
        ..decoder::Span::default()
    };
    Ragged {
        tokens: call.tokens,
        positions: call.positions,
        spans: call.spans.into_iter().map(span).collect(),
        wanted: call.wanted,
    }
}
