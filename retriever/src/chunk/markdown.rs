//! Headings and what is below them.

use super::{
    outline::{Outline, label},
    pieces::{Cut, Measure, Piece},
    prose,
};

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    Blank,
    /// Within a fence, or its first or last line.
    Fenced,
    Heading(usize, &'a str),
    /// `===` or `---`, which makes a heading of the line before it.
    Underline(usize),
    /// Begins an item of a list, or a row of a table.
    Item,
    Text,
}

/// Reads lines one after the other; knows whether it is within a fence or the metadata in front.
#[derive(Default)]
struct Lines {
    fence: Option<(char, usize)>,
    front_matter: bool,
    begun: bool,
}

impl Lines {
    fn read<'a>(&mut self, line: &'a str) -> Line<'a> {
        let first = !std::mem::replace(&mut self.begun, true);
        let text = line.trim_end();
        if (first && text == "---") || self.front_matter {
            self.front_matter = first || !matches!(text, "---" | "...");
            return Line::Fenced;
        }
        let inner = text.trim_start_matches(' ');
        let marks = |c: char| inner.chars().take_while(|found| *found == c).count();
        let fence = ['`', '~'].map(|c| (c, marks(c))).into_iter().find(|(_, count)| *count >= 3);
        match (self.fence, fence) {
            (Some((c, count)), Some((found, more))) if c == found && more >= count && inner.len() == more => {
                self.fence = None;
                return Line::Fenced;
            }
            (Some(_), _) => return Line::Fenced,
            (None, Some(opens)) => {
                self.fence = Some(opens);
                return Line::Fenced;
            }
            _ => {}
        }
        if text.len() - inner.len() > 3 {
            return Line::Text;
        }
        plain(inner)
    }
}

fn plain(inner: &str) -> Line<'_> {
    let level = inner.bytes().take_while(|b| *b == b'#').count();
    let after = &inner[level..];
    if (1..=6).contains(&level) && (after.is_empty() || after.starts_with([' ', '\t'])) {
        return Line::Heading(level, after.trim().trim_end_matches('#').trim_end());
    }
    let only = |c: u8| !inner.is_empty() && inner.bytes().all(|b| b == c);
    let number = inner.bytes().take_while(u8::is_ascii_digit).count();
    match () {
        () if inner.is_empty() => Line::Blank,
        () if only(b'=') => Line::Underline(1),
        () if only(b'-') => Line::Underline(2),
        () if inner.starts_with(['|', '>']) || ["- ", "* ", "+ "].iter().any(|mark| inner.starts_with(mark)) => {
            Line::Item
        }
        () if (1..=9).contains(&number) && [". ", ") "].iter().any(|mark| inner[number..].starts_with(mark)) => {
            Line::Item
        }
        () => Line::Text,
    }
}

/// The sections of a text.
pub(super) fn outline(text: &str) -> Outline {
    let mut outline = Outline::default();
    let mut open: Vec<(usize, usize)> = Vec::new();
    let (mut lines, mut at) = (Lines::default(), 0);
    let mut before: Option<(usize, &str)> = None;
    for line in text.split_inclusive('\n') {
        let read = lines.read(line);
        let heading = match (read, before) {
            (Line::Heading(level, name), _) => Some((at, level, name)),
            (Line::Underline(level), Some((start, name))) => Some((start, level, name)),
            _ => None,
        };
        if let Some((start, level, name)) = heading {
            outline.segment(start, open.last().map(|(_, node)| *node));
            open.retain(|(above, _)| *above < level);
            let node = outline.add(start, open.last().map(|(_, node)| *node), label(name));
            open.push((level, node));
        }
        before = (read == Line::Text).then_some((at, line.trim()));
        at += line.len();
    }
    outline.segment(text.len(), open.last().map(|(_, node)| *node));
    outline
}

/// The pieces of a section: sentences of its paragraphs, items of its lists, lines of its code.
pub(super) fn pieces(measure: Measure<'_>, start: usize, end: usize) -> Vec<Piece> {
    let mut out = Vec::new();
    // the metadata in front can only be at the start of the document
    let mut lines = Lines { begun: start > 0, ..Lines::default() };
    let (mut begin, mut at) = (start, start);
    let (mut last, mut blank) = (Line::Blank, false);
    for line in measure.text[start..end].split_inclusive('\n') {
        let fenced = lines.fence.is_some();
        let read = lines.read(line);
        if read == Line::Blank {
            blank = true;
        } else {
            let goes_on = !blank && matches!((last, read), (Line::Text | Line::Item, Line::Text | Line::Underline(_)));
            if !goes_on && begin < at {
                let cut = match (last, read) {
                    // a heading stays with what it is about
                    (Line::Heading(..) | Line::Underline(_), _) => Cut::Word,
                    (Line::Fenced, Line::Fenced) if fenced => Cut::Line,
                    (Line::Fenced, _) => Cut::Paragraph,
                    _ if blank => Cut::Paragraph,
                    (_, Line::Item) => Cut::Sentence,
                    _ => Cut::Line,
                };
                flush(measure, begin, at, last, cut, &mut out);
                begin = at;
            }
            (last, blank) = (read, false);
        }
        at += line.len();
    }
    flush(measure, begin, end, last, Cut::Paragraph, &mut out);
    out
}

fn flush(measure: Measure<'_>, begin: usize, end: usize, last: Line<'_>, cut: Cut, out: &mut Vec<Piece>) {
    match last {
        Line::Text | Line::Item => prose::sentences(measure, begin, end, cut, out),
        _ => measure.push(begin..end, cut, out),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::approximate, *};

    fn labels(text: &str) -> Vec<(usize, String)> {
        outline(text).nodes.iter().map(|node| (node.depth, node.label.clone())).collect()
    }

    #[test]
    fn headings_nest_by_level() {
        let text = "intro\n# A\ntext\n### A.1 ###\n## B\nTitle\n=====\n#no heading\n";
        let expected = [(0, "A"), (1, "A.1"), (1, "B"), (0, "Title")].map(|(depth, name)| (depth, name.to_owned()));
        assert_eq!(labels(text), expected);
    }

    #[test]
    fn code_and_metadata_hold_no_headings() {
        let text = "---\ntitle: x\n# no\n---\n# Yes\n```sh\n# comment\n~~~\n```\n    # indented\n* item\n---\n";
        assert_eq!(labels(text), [(0, "Yes".to_owned())]);
    }

    #[test]
    fn pieces_keep_items_and_lines_of_code_whole() {
        let text = "# H\nOne. Two.\n\n- a\n- b\n\n```\nx = 1\n\ny = 2\n```\nend\n";
        let measure = Measure { text, counter: &approximate, max: 1000 };
        let mut start = 0;
        let cut: Vec<_> =
            pieces(measure, 0, text.len()).iter().map(|p| &text[std::mem::replace(&mut start, p.end)..p.end]).collect();
        assert_eq!(
            cut,
            ["# H\n", "One. ", "Two.\n\n", "- a\n", "- b\n\n", "```\n", "x = 1\n", "\n", "y = 2\n", "```\n", "end\n"]
        );
    }
}
