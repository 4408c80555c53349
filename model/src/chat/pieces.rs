//! A rendering in pieces: added tokens that the template wrote, and text between them.

use std::ops::Range;

use crate::{ModelError, tokenizer::Tokenizer};

/// A rendered conversation, any part of which can be encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    text: String,
    /// By piece: its bytes of the text, and its id where it is an added token.
    pieces: Vec<(Range<usize>, Option<u32>)>,
}

impl Pieces {
    pub(super) fn push(&mut self, text: &str, id: Option<u32>) {
        let begin = self.text.len();
        self.text.push_str(text);
        self.pieces.push((begin..self.text.len(), id));
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }

    /// The ids of the bytes `range` of the text, by themselves: text that the ends of the range divide is encoded in two parts, as
    /// text is that was given and text that was said to it.
    ///
    /// # Errors
    /// If an end of the range lies inside an added token or a character.
    pub fn ids(&self, tokenizer: &Tokenizer, range: Range<usize>) -> Result<Vec<u32>, ModelError> {
        self.encoded(range, |text, first| tokenizer.encode_run(text, first))
    }

    /// The same of what a policy is to say, in which added tokens that are content count ([`Tokenizer::encode_said`]).
    ///
    /// # Errors
    /// As [`Pieces::ids`].
    pub fn said(&self, tokenizer: &Tokenizer, range: Range<usize>) -> Result<Vec<u32>, ModelError> {
        self.encoded(range, |text, _| tokenizer.encode_said(text))
    }

    fn encoded(
        &self,
        range: Range<usize>,
        encode: impl Fn(&str, bool) -> Result<Vec<u32>, ModelError>,
    ) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::new();
        for (own, id) in &self.pieces {
            let part = own.start.max(range.start)..own.end.min(range.end);
            if part.is_empty() {
                continue;
            }
            match id {
                Some(id) if part == *own => ids.push(*id),
                Some(_) => {
                    return Err(ModelError::Template(format!("byte {} lies inside an added token", range.start)));
                }
                None => {
                    let text = self.text.get(part.clone());
                    let text =
                        text.ok_or_else(|| ModelError::Template(format!("byte {} divides a character", part.start)))?;
                    ids.extend(encode(text, part.start == 0)?);
                }
            }
        }
        Ok(ids)
    }
}
