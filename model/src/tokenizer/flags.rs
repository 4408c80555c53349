//! What a tokenizer says of its added tokens beside their texts.

use std::collections::BTreeMap;

use super::Tokenizer;

/// Flags of an added token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// Left out where a text is decoded for people.
    pub special: bool,
    /// Looked for in the normalised text, and not in the text itself.
    pub normalized: bool,
    /// Takes in the white space before it.
    pub lstrip: bool,
    /// Takes in the white space after it.
    pub rstrip: bool,
    /// Found only as a word of its own.
    pub single_word: bool,
}

impl Tokenizer {
    /// The flags of all added tokens, those of white space alone among them.
    pub fn added_flags(&self) -> BTreeMap<u32, Flags> {
        let tokens = self.trusted.get_added_tokens_decoder().into_iter();
        let flags = |token: &tokenizers::AddedToken| Flags {
            special: token.special,
            normalized: token.normalized,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            single_word: token.single_word,
        };
        tokens.map(|(id, token)| (id, flags(&token))).collect()
    }
}
