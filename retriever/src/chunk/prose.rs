//! Sentences and paragraphs.

use super::pieces::{Cut, Measure, Piece};

/// Words that end in a full stop without ending a sentence, in lower case.
const ABBREVIATIONS: &[&str] = &[
    "al", "approx", "art", "ca", "cf", "ch", "col", "dept", "dr", "ed", "eds", "eg", "e.g", "eq", "est", "etc", "fig",
    "figs", "gen", "gov", "ie", "i.e", "inc", "jr", "lt", "ltd", "mr", "mrs", "ms", "mt", "no", "nos", "op", "p", "pp",
    "prof", "ref", "rev", "sec", "sen", "sgt", "sr", "st", "u.s", "u.k", "viz", "vol", "vs",
];
/// Longest word that is looked up there.
const ABBREVIATION_MAX: usize = 6;

/// The pieces of running text: sentences, which end paragraphs at blank lines.
pub(super) fn pieces(measure: Measure<'_>, start: usize, end: usize) -> Vec<Piece> {
    let (mut out, mut begin, mut at, mut blank) = (Vec::new(), start, start, true);
    for line in measure.text[start..end].split_inclusive('\n') {
        let is_blank = line.trim().is_empty();
        if blank && !is_blank && begin < at {
            sentences(measure, begin, at, Cut::Paragraph, &mut out);
            begin = at;
        }
        blank = is_blank;
        at += line.len();
    }
    sentences(measure, begin, end, Cut::Paragraph, &mut out);
    out
}

/// The sentences of one paragraph, of which the last ends as `last` says.
pub(super) fn sentences(measure: Measure<'_>, start: usize, end: usize, last: Cut, out: &mut Vec<Piece>) {
    let text = &measure.text[start..end];
    let mut begin = start;
    // the end of the words that end a sentence, once a mark was seen; then the white space after it
    let mut marked: Option<(usize, char)> = None;
    let mut spaced = false;
    for (at, c) in text.char_indices() {
        match marked {
            Some(_) if c.is_whitespace() => spaced = true,
            Some((mark, sign)) if spaced => {
                if ends(text, mark, sign, c) {
                    measure.push(begin..start + at, Cut::Sentence, out);
                    begin = start + at;
                }
                (marked, spaced) = (is_mark(c).then_some((at, c)), false);
            }
            Some((_, sign)) if is_full_width(sign) && !is_mark(c) && !is_closer(c) => {
                measure.push(begin..start + at, Cut::Sentence, out);
                (begin, marked) = (start + at, None);
            }
            Some(_) if is_closer(c) => {}
            _ => marked = is_mark(c).then_some((at, c)),
        }
    }
    measure.push(begin..end, last, out);
}

fn is_mark(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…') || is_full_width(c)
}

/// Marks after which no white space follows.
fn is_full_width(c: char) -> bool {
    matches!(c, '。' | '！' | '？')
}

fn is_closer(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '»' | '”' | '’')
}

/// Whether the mark at `at` ends a sentence before a text that begins with `next`.
fn ends(text: &str, at: usize, sign: char, next: char) -> bool {
    if sign != '.' {
        return true;
    }
    if next.is_lowercase() {
        return false;
    }
    let from = text.ceil_char_boundary(at.saturating_sub(4 * ABBREVIATION_MAX));
    let word = text[from..at].rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
    let initial = word.chars().count() == 1 && word.chars().all(char::is_uppercase);
    let short = word.len() <= ABBREVIATION_MAX && ABBREVIATIONS.contains(&word.to_lowercase().as_str());
    !(initial || short)
}

#[cfg(test)]
mod tests {
    use super::{super::approximate, *};

    fn cut(text: &str) -> Vec<(&str, Cut)> {
        let measure = Measure { text, counter: &approximate, max: 1000 };
        let mut start = 0;
        pieces(measure, 0, text.len())
            .iter()
            .map(|p| (&text[std::mem::replace(&mut start, p.end)..p.end], p.cut))
            .collect()
    }

    fn texts(text: &str) -> Vec<&str> {
        cut(text).into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn sentences_end_where_readers_end_them() {
        assert_eq!(
            texts("It rains. It pours! Why? Nobody knows."),
            ["It rains. ", "It pours! ", "Why? ", "Nobody knows."]
        );
        assert_eq!(
            texts("Dr. J. Smith paid 3.5 kg, e.g. gold.  He left."),
            ["Dr. J. Smith paid 3.5 kg, e.g. gold.  ", "He left."]
        );
        assert_eq!(texts("She said \"No.\" Then she left."), ["She said \"No.\" ", "Then she left."]);
        assert_eq!(texts("今日は雨です。明日は晴れ！「はい」"), ["今日は雨です。", "明日は晴れ！", "「はい」"]);
        assert_eq!(texts("see v1.2.3 and a.b.c"), ["see v1.2.3 and a.b.c"]);
        assert_eq!(texts("wait... What"), ["wait... ", "What"]);
    }

    #[test]
    fn paragraphs_end_at_blank_lines() {
        let text = "One line\nand another. End.\n\n \nNext.";
        let expected =
            [("One line\nand another. ", Cut::Sentence), ("End.\n\n \n", Cut::Paragraph), ("Next.", Cut::Paragraph)];
        assert_eq!(cut(text), expected);
    }
}
