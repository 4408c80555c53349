//! Trains all weights of a small decoder on (prompt, response) pairs: how the embedded policy is made.
//!
//! Plain cross-entropy on the response, token mean over the batch, cosine decay to a tenth.

use folgore_config::optim::{LrSchedulerType, OptimSection};
use folgore_model::{
    ModelConfig, ModelError, Tensors,
    backend::Backend,
    decoder::{Backprop, Decoder, Ragged, Span},
    params::{Params, random_weights},
};

use crate::trainee::Trainee;

/// How long and how fast.
#[derive(Clone, Debug)]
pub struct PretrainSettings {
    /// Optimiser updates.
    pub steps: u64,
    /// Pairs of one update.
    pub batch: u64,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Updates until it is reached.
    pub warmup_steps: u64,
    /// Seed of the first weights.
    pub seed: u64,
}

/// Where a pretraining stands.
#[derive(Clone, Copy, Debug)]
pub struct PretrainProgress {
    /// Updates done.
    pub step: u64,
    /// Mean negative log-prob of a response token.
    pub loss: f64,
    /// Length of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens seen, prompts included.
    pub tokens: u64,
}

/// Trains a decoder of shape `config` from random weights on the pairs that `pair(index)` gives (token ids of prompt and
/// response) and returns its weights.
pub fn pretrain<B: Backend>(
    backend: std::sync::Arc<B>,
    config: &ModelConfig,
    settings: &PretrainSettings,
    pair: impl Fn(u64) -> (Vec<u32>, Vec<u32>),
    mut progress: impl FnMut(PretrainProgress),
) -> Result<Tensors, ModelError> {
    let initial = random_weights(config, settings.seed);
    let decoder = Decoder::load(backend.clone(), config.clone(), &initial)?;
    let mut trainee = Trainee::new(decoder, Params::full(&*backend, config, &initial)?)?;
    let optim = OptimSection {
        adam_beta2: 0.98,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        lr_scheduler_type: LrSchedulerType::Cosine,
        ..OptimSection::default()
    };
    let mut tokens = 0;
    for step in 0..settings.steps {
        let pairs: Vec<_> = (0..settings.batch).map(|i| pair(step * settings.batch + i)).collect();
        let (input, targets) = batch(&pairs);
        tokens += input.len() as u64;
        let count = targets.len() as f32;
        let pending = trainee.forward(input, targets, 1.0, Backprop::default());
        let loss = -pending.head.logprobs.iter().map(|l| f64::from(*l)).sum::<f64>() / f64::from(count);
        let slopes = vec![-1.0 / count; pending.head.logprobs.len()];
        trainee.backward(pending, &slopes);
        let grad_norm = trainee.grad_norm();
        trainee.update(&optim, learning_rate(settings, step), grad_norm);
        progress(PretrainProgress { step: step + 1, loss, grad_norm, tokens });
    }
    Ok(trainee.values())
}

/// Linear warm-up, then half a cosine down to a tenth of the peak.
fn learning_rate(settings: &PretrainSettings, step: u64) -> f64 {
    if step < settings.warmup_steps {
        return settings.learning_rate * (step + 1) as f64 / settings.warmup_steps as f64;
    }
    let done = (step - settings.warmup_steps) as f64 / (settings.steps - settings.warmup_steps).max(1) as f64;
    settings.learning_rate * (0.1 + 0.9 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
}

/// All pairs in one call; targets are the response tokens. The last token of a pair predicts nothing and is left out.
fn batch(pairs: &[(Vec<u32>, Vec<u32>)]) -> (Ragged, Vec<u32>) {
    let (mut input, mut targets) = (Ragged::default(), Vec::new());
    for (prompt, response) in pairs {
        let ids: Vec<u32> = prompt.iter().chain(response).copied().collect();
        let begin = input.tokens.len();
        input.tokens.extend_from_slice(&ids[..ids.len() - 1]);
        input.positions.extend(0..ids.len() as u32 - 1);
        input.spans.push(Span { rows: begin..input.tokens.len(), ..Span::default() });
        input.wanted.extend((prompt.len() - 1..ids.len() - 1).map(|place| (begin + place) as u32));
        targets.extend_from_slice(response);
    }
    (input, targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use folgore_model::backend::Cpu;
    use folgore_protocol::seed;

    /// Copying a token is learnt in a few updates, and the loss says so.
    #[test]
    fn a_small_decoder_learns_to_copy() {
        let config = ModelConfig {
            model_type: "llama".into(),
            vocab_size: 12,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
            max_position_embeddings: 16,
            eos_token_ids: vec![0],
            bos_token_id: None,
            variant: Default::default(),
        };
        let settings = PretrainSettings { steps: 120, batch: 32, learning_rate: 1e-2, warmup_steps: 5, seed: 1 };
        let pair = |index: u64| {
            let id = 2 + seed::below(3, index, 10) as u32;
            (vec![1, id], vec![id, 0])
        };
        let mut losses = Vec::new();
        pretrain(std::sync::Arc::new(Cpu::new()), &config, &settings, pair, |p| losses.push(p.loss)).unwrap();
        assert!(losses[0] > 2.0, "first loss {}", losses[0]);
        assert!(losses[119] < 0.05, "last loss {}", losses[119]);
    }
}
