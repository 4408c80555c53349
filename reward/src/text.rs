//! Folds text that looks alike into one spelling, and bounds what a rule reads.

use unicode_normalization::UnicodeNormalization;

/// Most bytes of a completion that a rule reads, counted from its end, where answers are.
pub(crate) const MAX_COMPLETION_BYTES: usize = 1 << 20;

/// The last `max` bytes of `text`, cut at a character.
pub(crate) fn tail_bytes(text: &str, max: usize) -> &str {
    let mut start = text.len().saturating_sub(max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// The last `max` characters of `text`.
pub(crate) fn tail_chars(text: &str, max: usize) -> &str {
    match max.checked_sub(1).map(|n| text.char_indices().rev().nth(n)) {
        None => "",
        Some(None) => text,
        Some(Some((start, _))) => &text[start..],
    }
}

/// Normal form NFKC without characters that cannot be seen; every white space that is not a line end becomes a space.
pub(crate) fn fold(text: &str) -> String {
    let visible = text.nfkc().filter(|c| !is_invisible(*c));
    visible.map(|c| if c.is_whitespace() && c != '\n' { ' ' } else { c }).collect()
}

/// Format characters, variation selectors and control characters other than white space.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0000}'..='\u{e0fff}')
        || (c.is_control() && !c.is_whitespace())
}

/// Runs of white space become one space; none at the ends.
pub(crate) fn collapse_whitespace(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_alikes_fold_into_one_spelling() {
        assert_eq!(fold("\u{ff11}\u{ff12}\u{200b}3\u{a0}x\u{2009}y\u{feff}"), "123 x y");
        assert_eq!(fold("\u{1d7d9}\u{fe0f}\u{202e}\0"), "1");
        assert_eq!(fold("a\nb\tc"), "a\nb c");
    }

    #[test]
    fn tails_end_at_characters() {
        assert_eq!(tail_bytes("aé", 1), "");
        assert_eq!(tail_bytes("aé", 2), "é");
        assert_eq!(tail_chars("aéb", 2), "éb");
        assert_eq!(tail_chars("aéb", 9), "aéb");
        assert_eq!(tail_chars("aéb", 0), "");
    }
}
