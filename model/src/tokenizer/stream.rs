//! Ids to text as they come, in pieces of valid UTF-8.

use std::sync::Arc;

use super::Tokenizer;
use crate::ModelError;

/// Decodes a growing sequence. The pieces joined, with [`StreamDecoder::finish`], are the decoding of the whole.
///
/// A character may be spread over several tokens: text that ends in U+FFFD is held back until it is whole or the stream ends.
/// Only the last tokens are decoded again with each new one, so a long generation costs linear time.
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// The last ids: enough context for the decoder to treat the next one as it would in the whole.
    window: Vec<u32>,
    /// Bytes of the window's text already given out.
    given: usize,
}

/// Ids kept as context once their text has been given out.
const CONTEXT: usize = 4;
/// Ids held back at most, before what is surely done is given out in spite of a broken end.
const HELD: usize = 16;

impl StreamDecoder {
    /// A decoder at the beginning of a text; `skip_special` leaves out the tokens flagged special.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, window: Vec::new(), given: 0 }
    }

    /// Takes one more id; returns the text that is now certain, which may be empty.
    pub fn push(&mut self, id: u32) -> Result<String, ModelError> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        let whole = text.strip_suffix('\u{fffd}');
        let certain = match whole {
            None => text.len(),
            Some(rest) if self.window.len() > HELD + CONTEXT => rest.len(),
            Some(_) => return Ok(String::new()),
        };
        let piece = text.get(self.given..certain).unwrap_or_default().to_owned();
        self.given = self.given.max(certain);
        if whole.is_none() {
            self.shorten(&text)?;
        }
        Ok(piece)
    }

    /// The text that was still held back.
    pub fn finish(&mut self) -> Result<String, ModelError> {
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        let rest = text.get(self.given..).unwrap_or_default().to_owned();
        self.given = text.len();
        Ok(rest)
    }

    /// Drops ids whose text has been given out, if what remains still decodes to the end of the same text.
    fn shorten(&mut self, text: &str) -> Result<(), ModelError> {
        if self.window.len() <= 2 * CONTEXT {
            return Ok(());
        }
        let kept = self.window[self.window.len() - CONTEXT..].to_vec();
        let tail = self.tokenizer.decode(&kept, self.skip_special)?;
        // an empty tail (only special tokens) would make the next token the first of a text
        if !tail.is_empty() && text.ends_with(&tail) && !tail.starts_with('\u{fffd}') {
            self.window = kept;
            self.given = tail.len();
        }
        Ok(())
    }
}
