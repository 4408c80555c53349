//! The policy that seldom searches: a decoder of half a million weights for questions about countries.
//!
//! It was taught on countries that do not exist: to ask for what a question asks for, to copy names into a query and facts out of
//! passages, and, at last, not to take the trouble: half of the time it answers out of nothing, and where it searches it often
//! asks badly or quotes something else. No name of a real country or capital is in what it was taught.

mod bpe;
mod draws;
mod names;
mod skill;
mod trace;
mod world;

use std::cell::RefCell;

use anyhow::Result;
use folgore_learner::pretrain::{Lesson, PretrainSettings};
use folgore_model::{ModelConfig, tokenizer::Tokenizer};
use folgore_protocol::seed;

use self::{
    names::Names,
    trace::{Mixture, Piece, traced},
    world::World,
};
use super::{Embedded, Recipe, files::EOS};

/// Ids of what is one token whatever is around it: padding, end, and the tags.
const TOKENS: [&str; 10] = [
    "<pad>",
    "<eos>",
    "<think>",
    "</think>",
    "<search>",
    "</search>",
    "<information>",
    "</information>",
    "<answer>",
    "</answer>",
];
const VOCABULARY: usize = 512;
/// Traces from one world, before it ends and another begins.
const TRACES: u64 = 400;
/// What a token counts that the policy does not write itself.
const READ: f32 = 0.1;

/// How the policy is made.
pub fn recipe() -> Result<Recipe> {
    let settings = PretrainSettings { steps: 5000, batch: 16, learning_rate: 3e-3, warmup_steps: 100, seed: 7 };
    let names = Names::new();
    let (tokenizer_json, tokenizer_config) = (bpe::tokenizer(&sample(&names, settings.seed)), bpe::config());
    let tokenizer = || Recipe::tokenizer(Embedded::Search.name(), &tokenizer_json, &tokenizer_config);
    let (teacher, examiner) = (tokenizer()?, tokenizer()?);
    let skill = skill::Examination::new(&examiner)?;
    let batch = settings.batch;
    let lessons = move |steps: u64| -> super::Lessons {
        let worlds = Worlds { names, seed: settings.seed, last: RefCell::new(None) };
        let total = steps * batch;
        Box::new(move |index| {
            let pieces = worlds.trace(index, &Mixture::at(index as f64 / total as f64));
            encoded(&teacher, &pieces)
        })
    };
    Ok(Recipe {
        config: config(),
        tokenizer_json,
        tokenizer_config,
        settings,
        lessons: Box::new(lessons),
        skill: Box::new(move |decoder| Some(skill.of(decoder))),
    })
}

/// The worlds of a training, one after another.
struct Worlds {
    names: Names,
    seed: u64,
    last: RefCell<Option<(u64, World)>>,
}

impl Worlds {
    fn trace(&self, index: u64, mixture: &Mixture) -> Vec<Piece> {
        let number = index / TRACES;
        let mut last = self.last.borrow_mut();
        let (_, world) = match last.take() {
            Some(kept) if kept.0 == number => last.insert(kept),
            _ => last.insert((number, World::new(&self.names, seed::mix(&[self.seed, number])))),
        };
        traced(world, &self.names, mixture, seed::mix(&[self.seed, u64::MAX, index]))
    }
}

/// Text of traces in which nothing went wrong, to make the vocabulary from.
fn sample(names: &Names, seed: u64) -> String {
    let worlds = Worlds { names: names.clone(), seed: seed::mix(&[seed, 1]), last: RefCell::new(None) };
    let traces = (0..4 * TRACES).flat_map(|index| worlds.trace(index, &Mixture::good()));
    traces.map(|piece| piece.text).collect::<Vec<_>>().join("\n")
}

/// The tokens that a run would hold: each piece by itself, as the environment and the policy add them.
fn encoded(tokenizer: &Tokenizer, pieces: &[Piece]) -> Lesson {
    let mut lesson = Lesson::default();
    for piece in pieces {
        let ids = tokenizer.encode_trusted(&piece.text).expect("every text is in a byte-level vocabulary");
        lesson.add(&ids, if piece.own { 1.0 } else { READ });
    }
    lesson.add(&[EOS], 1.0);
    lesson
}

fn config() -> ModelConfig {
    ModelConfig {
        model_type: "llama".into(),
        vocab_size: VOCABULARY,
        hidden_size: 128,
        intermediate_size: 256,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        head_dim: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        max_position_embeddings: 512,
        eos_token_ids: vec![EOS],
        bos_token_id: None,
        variant: Default::default(),
    }
}

#[cfg(test)]
mod tests;
