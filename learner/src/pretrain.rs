//! Trains all weights of a small decoder on texts of which some parts count: how the embedded policies are made.
//!
//! Plain cross-entropy, a mean over the batch in which each token has its weight, cosine decay to a tenth.

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
    /// Lessons of one update.
    pub batch: u64,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Updates until it is reached.
    pub warmup_steps: u64,
    /// Seed of the first weights.
    pub seed: u64,
}

/// A text to learn from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lesson {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// How much predicting each of them counts: 0 for what is only read. That of the first has no meaning.
    pub weights: Vec<f32>,
}

impl Lesson {
    /// Adds tokens that count `weight` each.
    pub fn add(&mut self, tokens: &[u32], weight: f32) {
        self.tokens.extend_from_slice(tokens);
        self.weights.resize(self.tokens.len(), weight);
    }
}

/// Where a pretraining stands.
#[derive(Clone, Copy, Debug)]
pub struct PretrainProgress {
    /// Updates done.
    pub step: u64,
    /// Mean negative log-prob of a token, by weight.
    pub loss: f64,
    /// Length of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens read.
    pub tokens: u64,
}

/// Trains a decoder of shape `config` from random weights on what `lesson(index)` gives and returns its weights. `progress` is
/// told of every update, with the decoder as it is after it.
pub fn pretrain<B: Backend>(
    backend: std::sync::Arc<B>,
    config: &ModelConfig,
    settings: &PretrainSettings,
    lesson: impl Fn(u64) -> Lesson,
    mut progress: impl FnMut(PretrainProgress, &Decoder<B>),
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
        let lessons: Vec<_> = (0..settings.batch).map(|i| lesson(step * settings.batch + i)).collect();
        let Batch { input, targets, weights } = batch(&lessons);
        tokens += input.len() as u64;
        let total: f32 = weights.iter().sum();
        let pending = trainee.forward(input, targets, 1.0, Backprop::default());
        let slopes: Vec<f32> = weights.iter().map(|weight| -weight / total).collect();
        let loss = pending.head.logprobs.iter().zip(&slopes).map(|(l, s)| f64::from(*l) * f64::from(*s)).sum();
        trainee.backward(pending, &slopes);
        let grad_norm = trainee.grad_norm();
        trainee.update(&optim, learning_rate(settings, step), grad_norm);
        progress(PretrainProgress { step: step + 1, loss, grad_norm, tokens }, trainee.decoder());
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

struct Batch {
    input: Ragged,
    /// The tokens that count, and how much.
    targets: Vec<u32>,
    weights: Vec<f32>,
}

/// All lessons in one call. The last token of a lesson predicts nothing and is left out.
fn batch(lessons: &[Lesson]) -> Batch {
    let (mut input, mut targets, mut weights) = (Ragged::default(), Vec::new(), Vec::new());
    for Lesson { tokens, weights: own } in lessons {
        let begin = input.tokens.len();
        let read = tokens.len().saturating_sub(1);
        input.tokens.extend_from_slice(&tokens[..read]);
        input.positions.extend(0..read as u32);
        input.spans.push(Span { rows: begin..input.tokens.len(), ..Span::default() });
        for place in (1..tokens.len()).filter(|place| own[*place] > 0.0) {
            input.wanted.push((begin + place - 1) as u32);
            targets.push(tokens[place]);
            weights.push(own[place]);
        }
    }
    Batch { input, targets, weights }
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
            Lesson { tokens: vec![1, id, id, 0], weights: vec![0.0, 0.0, 1.0, 1.0] }
        };
        let mut losses = Vec::new();
        pretrain(std::sync::Arc::new(Cpu::new()), &config, &settings, pair, |p, _| losses.push(p.loss)).unwrap();
        assert!(losses[0] > 2.0, "first loss {}", losses[0]);
        assert!(losses[119] < 0.05, "last loss {}", losses[119]);
    }

    #[test]
    fn only_tokens_with_weight_are_predicted() {
        let mut lesson = Lesson::default();
        lesson.add(&[7, 8], 0.0);
        lesson.add(&[9], 0.5);
        lesson.add(&[0], 1.0);
        let Batch { input, targets, weights } = batch(&[lesson.clone(), lesson]);
        assert_eq!((input.tokens, input.wanted), (vec![7, 8, 9, 7, 8, 9], vec![1, 2, 4, 5]));
        assert_eq!((targets, weights), (vec![9, 0, 9, 0], vec![0.5, 1.0, 0.5, 1.0]));
    }
}
