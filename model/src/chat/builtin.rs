//! Chat templates to choose by name, for models that have none or were made for another.
//!
//! Each ends what the assistant said with a token that ends a generation, so that a policy trained with it stops. What a template has
//! no form for (tool calls, in the plain ones) it refuses rather than leaves out.

use crate::{ModelError, tokenizer::Tokenizer};

/// A template of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// What it is chosen by.
    pub name: &'static str,
    /// Its source.
    pub source: &'static str,
    /// Added tokens that a tokenizer has to have for it.
    tokens: &'static [&'static str],
    /// The token that ends a turn, where that is not the tokenizer's own `eos_token`.
    end: Option<&'static str>,
}

/// All of them.
const ALL: [Builtin; 6] = [
    Builtin {
        name: "chatml",
        source: include_str!("templates/chatml.jinja"),
        tokens: &["<|im_start|>", "<|im_end|>"],
        end: Some("<|im_end|>"),
    },
    Builtin { name: "alpaca", source: include_str!("templates/alpaca.jinja"), tokens: &[], end: None },
    Builtin { name: "llama2", source: include_str!("templates/llama2.jinja"), tokens: &[], end: None },
    Builtin {
        name: "llama3",
        source: include_str!("templates/llama3.jinja"),
        tokens: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        end: Some("<|eot_id|>"),
    },
    Builtin { name: "mistral", source: include_str!("templates/mistral.jinja"), tokens: &[], end: None },
    Builtin {
        name: "gemma",
        source: include_str!("templates/gemma.jinja"),
        tokens: &["<start_of_turn>", "<end_of_turn>"],
        end: Some("<end_of_turn>"),
    },
];

impl Builtin {
    /// The template called `name`.
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|template| template.name == name)
    }

    /// All names, with commas.
    pub fn names() -> String {
        ALL.map(|template| template.name).join(", ")
    }

    /// The id in `tokenizer` that ends a turn.
    ///
    /// # Errors
    /// If it has not the tokens that the template writes; the error names the templates that it has the tokens for.
    pub fn end(&self, tokenizer: &Tokenizer) -> Result<u32, ModelError> {
        if let Some(end) = self.end_in(tokenizer) {
            return Ok(end);
        }
        let missing: Vec<_> = self.tokens.iter().filter(|token| !has(tokenizer, token)).copied().collect();
        let missing = if missing.is_empty() { "a token that ends a text".to_owned() } else { missing.join(", ") };
        let fitting: Vec<_> = ALL.iter().filter(|t| t.end_in(tokenizer).is_some()).map(|t| t.name).collect();
        let fitting =
            if fitting.is_empty() { "no other does either".into() } else { format!("{} fit", fitting.join(", ")) };
        Err(ModelError::Template(format!("{}: this model's tokenizer lacks {missing}; {fitting}", self.name)))
    }

    fn end_in(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let all = self.tokens.iter().all(|token| has(tokenizer, token));
        let end = || match self.end {
            Some(token) => tokenizer.id(token),
            None => tokenizer.eos_ids().first().copied().filter(|id| tokenizer.added_tokens().contains_key(id)),
        };
        all.then(end).flatten()
    }
}

fn has(tokenizer: &Tokenizer, token: &str) -> bool {
    tokenizer.id(token).is_some_and(|id| tokenizer.added_tokens().contains_key(&id))
}
