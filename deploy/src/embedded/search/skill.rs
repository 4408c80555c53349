//! What the policy can do with real countries while it is taught: to ask well and to read right, both greedily.
//!
//! Only the countries that are asked about in training are looked at; the others are for the end of a run.

use std::{collections::BTreeMap, ops::Range};

use anyhow::Result;
use folgore_dataset::{
    Side,
    countries::{Field, asked, countries, countries_of, passages, prompted},
};
use folgore_model::{
    backend::Cpu,
    decoder::{Decoder, Ragged, Span},
    tokenizer::Tokenizer,
};

use super::{
    trace::{INTENT, answering, information, searching},
    world::Library,
};

/// One country in so many is looked at.
const EVERY: usize = 5;
/// Sequences of one forward.
const AT_ONCE: usize = 32;

/// Episodes in which everything goes well, with the places where that shows.
pub struct Examination {
    episodes: Vec<Episode>,
}

struct Episode {
    field: Field,
    tokens: Vec<u32>,
    /// The query, and the quote with the answer, each with its closing tag.
    query: Range<usize>,
    quote: Range<usize>,
}

impl Examination {
    /// Episodes in the tokens of `tokenizer`.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let library = Library::new(passages(countries()));
        let mut episodes = Vec::new();
        for country in countries_of(Side::Train).iter().step_by(EVERY) {
            for (phrasing, field) in Field::ALL.into_iter().enumerate() {
                let question = prompted(&asked(field, &country.name, phrasing as u64));
                let query = format!("{} {}", country.name, field.name());
                let mut tokens = tokenizer.encode_trusted(&question)?;
                let turn = tokenizer.encode_trusted(&searching(INTENT, &query))?;
                let open = tokenizer.id("<search>").and_then(|id| turn.iter().position(|t| *t == id)).unwrap_or(0);
                let asked = tokens.len() + open + 1..tokens.len() + turn.len();
                tokens.extend(turn);
                for part in information(&library.search(&query)) {
                    tokens.extend(tokenizer.encode_trusted(&part)?);
                }
                let begin = tokens.len() + 1; // after the tag
                tokens.extend(tokenizer.encode_trusted(&answering(field.name(), &country.fact(field)))?);
                let quote = begin..tokens.len();
                episodes.push(Episode { field, tokens, query: asked, quote });
            }
        }
        Ok(Self { episodes })
    }

    /// Shares of queries and of answers that `decoder` would write greedily.
    pub fn of(&self, decoder: &Decoder<Cpu>) -> String {
        let (mut queries, mut read) = (0.0, BTreeMap::<Field, f64>::new());
        for episodes in self.episodes.chunks(AT_ONCE) {
            for (episode, (query, quote)) in episodes.iter().zip(right(decoder, episodes)) {
                queries += f64::from(query);
                *read.entry(episode.field).or_default() += f64::from(quote);
            }
        }
        let all = self.episodes.len() as f64;
        let fields: Vec<String> = read.iter().map(|(f, n)| format!("{} {:.2}", f.name(), 6.0 * n / all)).collect();
        let total: f64 = read.values().sum();
        format!("           query {:.2}  read {:.2}  ({})", queries / all, total / all, fields.join(", "))
    }
}

/// For each episode whether the likeliest tokens are those of its query and of its quote.
fn right(decoder: &Decoder<Cpu>, episodes: &[Episode]) -> Vec<(bool, bool)> {
    let mut input = Ragged::default();
    for Episode { tokens, query, quote, .. } in episodes {
        let begin = input.tokens.len();
        input.tokens.extend_from_slice(tokens);
        input.positions.extend(0..tokens.len() as u32);
        input.spans.push(Span { rows: begin..input.tokens.len(), ..Span::default() });
        input.wanted.extend(query.clone().chain(quote.clone()).map(|place| (begin + place - 1) as u32));
    }
    let logits = decoder.logits(&decoder.forward_only(&input, None));
    let mut rows = logits.chunks(decoder.config().vocab_size).map(likeliest);
    let mut all = |episode: &Episode, places: &Range<usize>| {
        // every row is taken, also after one that differs
        places.clone().filter(|place| rows.next() != Some(episode.tokens[*place] as usize)).count() == 0
    };
    episodes.iter().map(|e| (all(e, &e.query), all(e, &e.quote))).collect()
}

fn likeliest(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0)
}
