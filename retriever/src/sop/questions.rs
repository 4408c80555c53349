//! A question as it is searched for: bounded, in sentences, and whether a trigger stands in it.

use crate::lexical::Words;

/// Most bytes of a question that are looked at: its beginning.
const BYTES: usize = 8 << 10;
/// Most sentences.
const SENTENCES: usize = 64;

/// The part of `question` that is looked at.
pub(super) fn bounded(question: &str) -> &str {
    &question[..question.floor_char_boundary(BYTES)]
}

/// The question itself and, if it has several, its sentences: a long letter is about refunds in one of them.
pub(super) fn sentences(question: &str) -> Vec<&str> {
    let mut all = vec![question];
    let ends = |c: char| matches!(c, '.' | '!' | '?' | ';' | '\n' | '\u{3002}' | '\u{ff01}' | '\u{ff1f}');
    let parts = question.split(ends).map(str::trim).filter(|part| !part.is_empty());
    all.extend(parts.take(SENTENCES));
    if all.len() == 2 {
        all.pop();
    }
    all
}

/// Words of English that say nothing of what a sentence is about. A handful of procedures is too few to tell that from how often words
/// are in them, and "what is the" stands in questions of every kind.
const EMPTY_WORDS: &str = " a an and any are as at be been but by can could did do does for from get had has have he her here him his \
    how i if in into is it its just like me more much many my need no not now of on one or our please she should so some than that \
    the their them then there these they this those to us want was we were what when where which who why will with would you your ";

/// `text` without words that say nothing.
pub(super) fn content(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let is_empty = |word: &str| EMPTY_WORDS.split(' ').any(|empty| empty == word);
    Words { min_chars: 1, identifiers: false }.each(text, |word| {
        if !is_empty(word) {
            kept.push_str(word);
            kept.push(' ');
        }
    });
    kept
}

/// `text` with small letters and single spaces.
pub(super) fn plain(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether `trigger` stands in `question`, both [`plain`], and not inside of longer words.
pub(super) fn holds(question: &str, trigger: &str) -> bool {
    question.match_indices(trigger).any(|(at, found)| {
        let (before, after) = (&question[..at], &question[at + found.len()..]);
        let ends = |text: &str| text.chars().next_back();
        let begins = |text: &str| text.chars().next();
        !joined(ends(before), begins(found)) && !joined(ends(found), begins(after))
    })
}

/// Whether a word goes on from one character to the next. Scripts without capitals may stand without spaces (Chinese, Thai), and are
/// taken to.
fn joined(one: Option<char>, next: Option<char>) -> bool {
    let in_word = |c: char| c.is_lowercase() || c.is_uppercase() || c.is_numeric() || c == '_';
    one.is_some_and(in_word) && next.is_some_and(in_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_stand_in_questions_as_whole_words() {
        let holds = |question: &str, trigger: &str| holds(&plain(question), &plain(trigger));
        assert!(holds("I want a  REFUND\nnow", "refund now"));
        assert!(holds("refund", "Refund") && holds("(refund)", "refund") && holds("a C++ test", "c++"));
        assert!(!holds("refunded", "refund") && !holds("prefund", "refund") && !holds("refund_2", "refund"));
        assert!(holds("prefund a refund", "refund"), "the second is one");
        assert!(holds("\u{6211}\u{8981}\u{9000}\u{6b3e}\u{3002}", "\u{9000}\u{6b3e}"));
        assert!(!holds("", "refund") && !holds("fund", "re fund"));
    }

    #[test]
    fn what_says_nothing_is_left_out() {
        assert_eq!(content("What is the SUM of it?"), "sum ");
        assert_eq!(content("How are you?"), "");
    }

    #[test]
    fn sentences_are_bounded() {
        assert_eq!(
            sentences("Hello. Where is it?\nThanks"),
            ["Hello. Where is it?\nThanks", "Hello", "Where is it", "Thanks"]
        );
        assert_eq!(sentences("one"), ["one"]);
        assert_eq!(sentences("one?"), ["one?"]);
        assert_eq!(sentences(&"a. ".repeat(500)).len(), SENTENCES + 1);
        assert_eq!(bounded(&"\u{20ac}".repeat(BYTES)).len(), BYTES - BYTES % 3);
    }
}
