//! Text to words.

use serde::{Deserialize, Serialize};

/// How words are cut from a text.
///
/// A word is a run of letters, digits and `_`, in lower case. This is `(?u)\b\w\w+\b` of Python, the pattern of bm25s and scikit-learn,
/// but for vowel signs of Indic scripts, which are letters here and end a word there. Nothing is stemmed and there are no stop words:
/// BM25 gives a word that is everywhere a weight near zero. Scripts without spaces (Chinese, Thai) give long words, as there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Words {
    /// Shorter words are left out, in characters. 2 as in the pattern above: "a", but also "5" and the "C" of "C++".
    pub min_chars: usize,
    /// Words that are names in source code count as a whole and in parts: `parseHttpRequest` and `parse_http_request` also as
    /// `parse`, `http` and `request`. For code; off as in the pattern above.
    pub identifiers: bool,
}

impl Default for Words {
    fn default() -> Self {
        Self { min_chars: 2, identifiers: false }
    }
}

impl Words {
    /// Calls `found` with each word of `text`, in order.
    pub fn each(self, text: &str, mut found: impl FnMut(&str)) {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if !self.identifiers {
            let lower = text.to_lowercase();
            lower.split(|c| !is_word(c)).filter(|word| self.is_long(word)).for_each(found);
            return;
        }
        for name in text.split(|c| !is_word(c)).filter(|name| !name.is_empty()) {
            // Lower case may hold what ends a word: the dot above of a Turkish I.
            let lower = name.to_lowercase();
            lower.split(|c| !is_word(c)).filter(|word| self.is_long(word)).for_each(&mut found);
            let parts = parts(name);
            if parts.len() > 1 || parts.first().is_some_and(|part| part.len() < name.len()) {
                for part in parts.iter().map(|part| part.to_lowercase()).filter(|part| self.is_long(part)) {
                    found(&part);
                }
            }
        }
    }

    /// The words of `text`, in order.
    pub fn list(self, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        self.each(text, |word| words.push(word.to_owned()));
        words
    }

    fn is_long(self, word: &str) -> bool {
        !word.is_empty() && (word.len() >= self.min_chars * 4 || word.chars().count() >= self.min_chars)
    }
}

/// The parts of a name: cut at `_`, before a capital after a small letter or a digit, and before the last of several capitals that a
/// small letter follows (`HTTPServer`: `HTTP`, `Server`).
fn parts(name: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for piece in name.split('_').filter(|piece| !piece.is_empty()) {
        let chars: Vec<(usize, char)> = piece.char_indices().collect();
        let mut start = 0;
        for i in 1..chars.len() {
            let (before, (at, here)) = (chars[i - 1].1, chars[i]);
            let small_next = chars.get(i + 1).is_some_and(|(_, next)| next.is_lowercase());
            if here.is_uppercase() && (!before.is_uppercase() || small_next) {
                parts.push(&piece[start..at]);
                start = at;
            }
        }
        parts.push(&piece[start..]);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_two_letters_and_digits_in_lower_case() {
        let words = |text| Words::default().list(text);
        assert_eq!(words("The Cat's 2 mats, 42 of x_y; C++ a"), ["the", "cat", "mats", "42", "of", "x_y"]);
        assert_eq!(words("ÉCOLE straße ΟΔΟΣ 北京 Москва"), ["école", "straße", "οδος", "北京", "москва"]);
        assert_eq!(words(" \n\u{0} .,-"), [""; 0]);
        assert_eq!(words(""), [""; 0]);
    }

    #[test]
    fn short_words_count_if_asked_for() {
        let one = Words { min_chars: 1, ..Words::default() };
        assert_eq!(one.list("a 5 C++"), ["a", "5", "c"]);
        let three = Words { min_chars: 3, ..Words::default() };
        assert_eq!(three.list("of éé été"), ["été"]);
    }

    #[test]
    fn names_count_in_parts() {
        let names = Words { identifiers: true, ..Words::default() };
        assert_eq!(names.list("parseHttpRequest()"), ["parsehttprequest", "parse", "http", "request"]);
        assert_eq!(names.list("HTTPServer::new_v2"), ["httpserver", "http", "server", "new_v2", "new", "v2"]);
        assert_eq!(names.list("_private plain Title"), ["_private", "private", "plain", "title"]);
    }
}
