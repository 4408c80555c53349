//! Pieces of text that are never cut, and how they are put together.

use std::ops::Range;

/// How good a place to cut is, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cut {
    /// Within a word that is too long.
    Character,
    /// Between two words.
    Word,
    /// Between two lines.
    Line,
    /// Between two sentences, or items of a list.
    Sentence,
    /// Between two paragraphs.
    Paragraph,
}

/// A piece of text with the white space that follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) end: usize,
    pub(super) tokens: usize,
    /// How good a place to cut its end is.
    pub(super) cut: Cut,
}

/// Longest text that is counted at once, in bytes: tokenizers take memory in proportion.
const COUNTED_MAX: usize = 4096;

/// Counts a text.
#[derive(Clone, Copy)]
pub(super) struct Measure<'a> {
    pub(super) text: &'a str,
    pub(super) counter: &'a (dyn Fn(&str) -> usize + Send + Sync),
    /// Most tokens of a piece.
    pub(super) max: usize,
}

impl Measure<'_> {
    /// Adds the piece `range`, or more pieces if it is too large: words, and parts of words that are too large themselves.
    pub(super) fn push(self, range: Range<usize>, cut: Cut, out: &mut Vec<Piece>) {
        if range.is_empty() {
            return;
        }
        if let Some(tokens) = self.fits(&range) {
            out.push(Piece { end: range.end, tokens, cut });
            return;
        }
        let text = &self.text[range.clone()];
        let mut start = range.start;
        let mut space: Option<Cut> = None;
        for (at, c) in text.char_indices() {
            match (c.is_whitespace(), space) {
                (true, None) => space = Some(if c == '\n' { Cut::Line } else { Cut::Word }),
                (true, Some(_)) if c == '\n' => space = Some(Cut::Line),
                (false, Some(between)) => {
                    self.word(start..range.start + at, between, out);
                    (start, space) = (range.start + at, None);
                }
                _ => {}
            }
        }
        self.word(start..range.end, cut, out);
    }

    /// Adds a word, halved until its parts fit.
    fn word(self, range: Range<usize>, cut: Cut, out: &mut Vec<Piece>) {
        let mut rest = vec![(range, cut)];
        while let Some((range, cut)) = rest.pop() {
            if range.is_empty() {
                continue;
            }
            let middle = self.text.floor_char_boundary(range.start + range.len().div_ceil(2));
            match self.fits(&range) {
                Some(tokens) => out.push(Piece { end: range.end, tokens, cut }),
                // one character, whatever it counts
                None if middle <= range.start => out.push(Piece { end: range.end, tokens: self.max, cut }),
                None => {
                    rest.push((middle..range.end, cut));
                    rest.push((range.start..middle, Cut::Character));
                }
            }
        }
    }

    /// Tokens of a text that is small enough to be a piece.
    fn fits(self, range: &Range<usize>) -> Option<usize> {
        if range.len() > COUNTED_MAX {
            return None;
        }
        let text = self.text[range.clone()].trim();
        let tokens = if text.is_empty() { 0 } else { (self.counter)(text) };
        (tokens <= self.max).then_some(tokens)
    }
}

/// A run of pieces that became one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) bytes: Range<usize>,
    pub(super) tokens: usize,
}

/// Puts pieces that begin at `start` together: as few runs as their size allows, cut at the best place of each one's second half, the
/// last not smaller than `min` where that can be.
pub(super) fn pack(start: usize, pieces: &[Piece], max: usize, min: usize) -> Vec<Packed> {
    let mut rest: usize = pieces.iter().map(|piece| piece.tokens).sum();
    let (mut packed, mut begin, mut first) = (Vec::new(), start, 0);
    while first < pieces.len() {
        let room = match rest {
            rest if rest <= max => usize::MAX,
            rest if rest < max + min => rest - min,
            _ => max,
        };
        let (mut end, mut tokens) = (first, 0);
        while end < pieces.len() && (end == first || tokens + pieces[end].tokens <= room) {
            tokens += pieces[end].tokens;
            end += 1;
        }
        if end < pieces.len() {
            (end, tokens) = best_cut(pieces, first, end, tokens);
        }
        packed.push(Packed { bytes: begin..pieces[end - 1].end, tokens });
        rest -= tokens;
        (begin, first) = (pieces[end - 1].end, end);
    }
    packed
}

/// The best end of a run `first..end`, not before its half, with the tokens up to there; the last of several.
fn best_cut(pieces: &[Piece], first: usize, end: usize, tokens: usize) -> (usize, usize) {
    let (mut best, mut before) = ((end, tokens), tokens);
    let mut at = end;
    while at > first + 1 {
        at -= 1;
        before -= pieces[at].tokens;
        if before * 2 < tokens {
            break;
        }
        if pieces[at - 1].cut > pieces[best.0 - 1].cut {
            best = (at, before);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> usize {
        text.split_whitespace().map(|word| word.len().div_ceil(4)).sum()
    }

    fn pieces(text: &str, max: usize) -> Vec<String> {
        let mut out = Vec::new();
        Measure { text, counter: &words, max }.push(0..text.len(), Cut::Sentence, &mut out);
        let mut start = 0;
        out.iter().map(|p| text[std::mem::replace(&mut start, p.end)..p.end].to_owned()).collect()
    }

    #[test]
    fn what_is_too_large_becomes_words_and_parts_of_words() {
        assert_eq!(pieces("one two\nthree", 9), ["one two\nthree"]);
        assert_eq!(pieces("one two\nthree", 2), ["one ", "two\n", "three"]);
        assert_eq!(pieces("aaaabbbbcccc d", 2), ["aaaabbb", "bcccc ", "d"]);
        assert_eq!(pieces("ééé", 1), ["é", "éé"], "never within a character");
        let long = "x".repeat(COUNTED_MAX + 1);
        assert_eq!(pieces(&long, usize::MAX).len(), 2, "what is too long to be counted is halved");
    }

    #[test]
    fn runs_end_at_the_best_place_of_their_second_half() {
        let piece = |end, tokens, cut| Piece { end, tokens, cut };
        let list = [
            piece(1, 2, Cut::Paragraph),
            piece(2, 4, Cut::Sentence),
            piece(3, 2, Cut::Word),
            piece(4, 2, Cut::Word),
            piece(5, 9, Cut::Word),
        ];
        let ends = |max, min| pack(0, &list, max, min).iter().map(|p| p.bytes.end).collect::<Vec<_>>();
        assert_eq!(ends(10, 0), [2, 3, 5].map(|e| if e == 3 { 4 } else { e }));
        assert_eq!(ends(100, 0), [5]);
        let even = [piece(1, 5, Cut::Word), piece(2, 5, Cut::Word), piece(3, 1, Cut::Word)];
        let sizes = |min| pack(0, &even, 10, min).iter().map(|p| p.tokens).collect::<Vec<_>>();
        assert_eq!((sizes(0), sizes(5)), (vec![10, 1], vec![5, 6]), "no small rest");
    }
}
