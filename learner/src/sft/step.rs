//! One optimiser update: cross-entropy of what is learnt, a mean over all its tokens of the batch, whatever calls they are computed in.

use std::num::NonZeroUsize;

use folgore_config::optim::OptimSection;
use folgore_model::{
    backend::Backend,
    decoder::{Backprop, Dropout},
};
use folgore_protocol::seed;

use super::{
    encode::Sequence,
    evaluate::Evaluation,
    pack::{Call, pack},
};
use crate::{
    schedule::{MAX_NON_FINITE, NonFiniteGuard, Schedule, Verdict},
    trainee::Trainee,
};

/// What an update needs to know besides its batch.
#[derive(Clone, Debug)]
pub struct SftSettings {
    /// The optimiser.
    pub optim: OptimSection,
    /// Most tokens in one call of the model; 0: a call for each sequence.
    pub max_tokens_per_micro_batch: usize,
    /// Layers whose activations are computed again together in the backward; none: all are kept.
    pub recompute: Option<NonZeroUsize>,
    /// Adapter dropout.
    pub lora_dropout: f32,
    /// The run's seed.
    pub seed: u64,
}

/// What came of an update.
#[derive(Clone, Debug, PartialEq)]
pub struct SftUpdate {
    /// The learnt tokens under the weights that the update began with.
    pub scores: Evaluation,
    /// Length of the gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Tokens that went through the decoder.
    pub tokens: u64,
    /// False if the update was left out because it was no number.
    pub applied: bool,
}

/// Several updates in a row were unusable.
#[derive(Debug, thiserror::Error)]
#[error(
    "step {step}: loss {loss}, gradient norm {grad_norm}: {MAX_NON_FINITE} updates in a row were not finite; lower optim.learning_rate"
)]
pub struct NotFinite {
    /// The step.
    pub step: u64,
    /// Last loss.
    pub loss: f64,
    /// Last norm.
    pub grad_norm: f64,
}

/// Mean cross-entropy's slope by the log-prob of each of `tokens` tokens.
pub fn slope(tokens: usize) -> f32 {
    -1.0 / tokens as f32
}

/// Adds the gradient of the mean cross-entropy of `batch` to that of `trainee`; `step` is the stream of its dropout. Gives the scores
/// and the tokens that were computed.
pub fn gradient<B: Backend>(
    trainee: &mut Trainee<B>,
    batch: &[&Sequence],
    step: u64,
    settings: &SftSettings,
) -> (Evaluation, u64) {
    let calls = pack(batch, settings.max_tokens_per_micro_batch);
    let slope = slope(calls.iter().map(|call| call.targets.len()).sum());
    let (mut scores, mut tokens) = (Evaluation::default(), 0);
    for (number, Call { input, targets, parts }) in calls.into_iter().enumerate() {
        tokens += input.len() as u64;
        let p = settings.lora_dropout;
        let dropout = (p > 0.0).then(|| Dropout { p, seed: seed::mix(&[settings.seed, step, number as u64 + 1]) });
        let slopes = vec![slope; targets.len()];
        let pending = trainee.forward(input, targets, 1.0, Backprop { recompute: settings.recompute, dropout });
        for (place, targets) in parts {
            scores.add(&batch[place].source, &pending.head, targets);
        }
        trainee.backward(pending, &slopes);
    }
    (scores, tokens)
}

/// Trains on `batch`, which is that of `step`.
///
/// # Errors
/// If too many updates in a row are no numbers.
pub fn sft_step<B: Backend>(
    trainee: &mut Trainee<B>,
    batch: &[&Sequence],
    step: u64,
    settings: &SftSettings,
    schedule: &Schedule,
    guard: &mut NonFiniteGuard,
) -> Result<SftUpdate, NotFinite> {
    let (scores, tokens) = gradient(trainee, batch, step, settings);
    let (loss, grad_norm) = (scores.all().loss(), trainee.grad_norm());
    let learning_rate = schedule.learning_rate(trainee.updates());
    let verdict = guard.judge(loss, grad_norm);
    match verdict {
        Verdict::Apply => trainee.update(&settings.optim, learning_rate, grad_norm),
        Verdict::Skip => trainee.zero_grad(),
        Verdict::Stop => return Err(NotFinite { step, loss, grad_norm }),
    }
    trainee.decoder().backend().trim();
    Ok(SftUpdate { scores, grad_norm, learning_rate, tokens, applied: verdict == Verdict::Apply })
}
