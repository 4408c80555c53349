//! Cuts documents into chunks: where they are built to be cut, and into the sizes that an embedder takes.
//!
//! A reader of one kind (`prose`, `markdown`, `code`) says which segments a text has, what encloses what (`outline`) and
//! where a segment can be cut (`pieces`); the rest is the same for all. Time is linear in the text whatever it holds,
//! and nothing here recurses.

mod code;
mod languages;
mod markdown;
mod outline;
mod pieces;
mod prose;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Chunk, Document, Kind};
use outline::Outline;
use pieces::Measure;

/// How large chunks are, in tokens. Part of the corpus digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChunkSettings {
    /// No chunk is larger, but for rows of a corpus, which are never cut. From 16 on.
    pub max_tokens: usize,
    /// Smaller neighbours become one, where that fits. At most half of `max_tokens`.
    pub min_tokens: usize,
    /// Name of what counts tokens: [`APPROXIMATE`], or the digest of a tokenizer.
    pub counter: String,
}

/// The counter that needs no tokenizer.
pub const APPROXIMATE: &str = "approximate";

impl Default for ChunkSettings {
    fn default() -> Self {
        Self { max_tokens: 256, min_tokens: 32, counter: APPROXIMATE.into() }
    }
}

/// Sizes that mean nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkSettingsError {
    /// No text fits into such chunks.
    #[error("chunks of at most {0} tokens: expected at least 16")]
    Max(usize),
    /// Both sizes cannot hold at once.
    #[error("chunks of at least {min} tokens: expected at most half of the {max} that they may have")]
    Min {
        /// What was asked for.
        min: usize,
        /// The largest size.
        max: usize,
    },
    /// An encoder would not look at the end of such chunks.
    #[error("chunks of at most {max} tokens: the encoder {encoder} looks at {seen} tokens of a passage")]
    Unseen {
        /// What was asked for.
        max: usize,
        /// Its name.
        encoder: String,
        /// What it looks at.
        seen: usize,
    },
    /// The settings name a counter, and another one is there.
    #[error("chunks counted by {0:?}: the counter of that name has to be given")]
    Counter(String),
}

/// Counts the tokens of a text: about additive, so that the parts of a text are not larger than the whole.
pub type TokenCounter = Arc<dyn Fn(&str) -> usize + Send + Sync>;

/// Cuts documents.
#[derive(Clone)]
pub struct Chunker {
    settings: ChunkSettings,
    counter: TokenCounter,
}

impl Default for Chunker {
    fn default() -> Self {
        Self { settings: ChunkSettings::default(), counter: Arc::new(approximate) }
    }
}

impl Chunker {
    /// Cuts into `settings`, with the counter that needs no tokenizer.
    ///
    /// # Errors
    /// If the sizes mean nothing, or name another counter.
    pub fn new(settings: ChunkSettings) -> Result<Self, ChunkSettingsError> {
        if settings.counter != APPROXIMATE {
            return Err(ChunkSettingsError::Counter(settings.counter));
        }
        Self::counting(settings, Arc::new(approximate))
    }

    /// Cuts into `settings`, whose `counter` names what `counter` does.
    ///
    /// # Errors
    /// If the sizes mean nothing.
    pub fn counting(settings: ChunkSettings, counter: TokenCounter) -> Result<Self, ChunkSettingsError> {
        let (min, max) = (settings.min_tokens, settings.max_tokens);
        match () {
            () if max < 16 => Err(ChunkSettingsError::Max(max)),
            () if min > max / 2 => Err(ChunkSettingsError::Min { min, max }),
            () => Ok(Self { settings, counter }),
        }
    }

    /// How it cuts.
    pub fn settings(&self) -> &ChunkSettings {
        &self.settings
    }

    /// The chunks of a document, in order. Put end to end they leave out nothing but white space; none is empty.
    pub fn chunks(&self, document: &Document) -> Vec<Chunk> {
        let text = document.text.as_str();
        let measure = Measure { text, counter: &*self.counter, max: self.settings.max_tokens };
        let (outline, pieces): (Outline, Box<dyn Fn(usize, usize) -> Vec<pieces::Piece> + '_>) = match document.kind {
            Kind::Passage => return whole(text),
            Kind::Prose => (Outline::flat(text.len()), Box::new(|start, end| prose::pieces(measure, start, end))),
            Kind::Markdown => (markdown::outline(text), Box::new(|start, end| markdown::pieces(measure, start, end))),
            Kind::Code(language) => {
                let lines = code::Lines::of(measure);
                let outline = code::outline(text, language, &lines, &self.settings);
                (outline, Box::new(move |start, end| lines.pieces(measure, start, end)))
            }
        };
        outline.chunks(text, &self.settings, pieces)
    }
}

/// The one chunk of a passage.
fn whole(text: &str) -> Vec<Chunk> {
    let start = text.len() - text.trim_start().len();
    let end = text.trim_end().len();
    let chunk = |bytes| Chunk { bytes, header: String::new(), parent: None };
    (start < end).then(|| chunk(start..end)).into_iter().collect()
}

/// Tokens of a text as subword tokenizers of English count them, within a quarter or so: a word is one token for each six of its
/// letters or digits that it begins, every other visible character is a token.
pub fn approximate(text: &str) -> usize {
    let (mut tokens, mut word) = (0, 0);
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || (c.is_alphabetic() && c < '\u{2000}') {
            tokens += usize::from(word % 6 == 0);
            word += 1;
        } else {
            word = 0;
            tokens += usize::from(!c.is_whitespace());
        }
    }
    tokens
}

#[cfg(test)]
mod tests;
