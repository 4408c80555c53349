//! What encloses what in a document, and how its segments become chunks.

use std::ops::Range;

use super::{
    ChunkSettings,
    pieces::{Piece, pack},
};
use crate::Chunk;

/// Deepest node; what lies deeper belongs to the node at this depth.
pub(super) const DEPTH_MAX: usize = 16;
/// Longest label, in characters.
const LABEL_MAX: usize = 160;
/// Bytes that are looked at for a label.
const LABEL_SOURCE_MAX: usize = 4 * LABEL_MAX;

/// A part of a document that has a name: a section, a class, a function.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) start: usize,
    pub(super) parent: Option<usize>,
    pub(super) depth: usize,
    pub(super) label: String,
}

/// Text between two boundaries, and the innermost node that it is part of.
#[derive(Clone, Debug)]
struct Segment {
    end: usize,
    node: Option<usize>,
}

/// The nodes of a document, and its segments, which cover it.
#[derive(Clone, Debug, Default)]
pub(super) struct Outline {
    pub(super) nodes: Vec<Node>,
    segments: Vec<Segment>,
}

/// A chunk that is being made.
struct Draft {
    bytes: Range<usize>,
    tokens: usize,
    node: Option<usize>,
}

impl Outline {
    /// One segment without a name.
    pub(super) fn flat(len: usize) -> Self {
        Self { nodes: Vec::new(), segments: vec![Segment { end: len, node: None }] }
    }

    /// Adds a node, below `parent`.
    pub(super) fn add(&mut self, start: usize, parent: Option<usize>, label: String) -> usize {
        let depth = parent.map_or(0, |parent| self.nodes[parent].depth + 1);
        self.nodes.push(Node { start, parent, depth, label });
        self.nodes.len() - 1
    }

    /// Ends a segment of `node` at `end`; nothing, if the last one ended there.
    pub(super) fn segment(&mut self, end: usize, node: Option<usize>) {
        if self.segments.last().map_or(0, |last| last.end) < end {
            self.segments.push(Segment { end, node });
        }
    }

    /// The chunks of the document, whose segments `pieces` cuts.
    pub(super) fn chunks(
        mut self,
        text: &str,
        settings: &ChunkSettings,
        pieces: impl Fn(usize, usize) -> Vec<Piece>,
    ) -> Vec<Chunk> {
        self.glue(text);
        let (max, min) = (settings.max_tokens, settings.min_tokens);
        let (mut drafts, mut start) = (Vec::new(), 0);
        for Segment { end, node } in &self.segments {
            let packed = pack(start, &pieces(start, *end), max, min);
            drafts.extend(packed.into_iter().map(|p| Draft { bytes: p.bytes, tokens: p.tokens, node: *node }));
            start = *end;
        }
        let drafts = self.merged(without_blank(text, drafts), max, min);
        let chunk = |(at, draft): (usize, &Draft)| {
            let found = &text[draft.bytes.clone()];
            let begin = draft.bytes.end - found.trim_start().len();
            Chunk {
                bytes: begin..begin + found.trim().len(),
                header: self.header(draft.node),
                parent: self.parent(&drafts, at),
            }
        };
        drafts.iter().enumerate().map(chunk).filter(|chunk| !chunk.bytes.is_empty()).collect()
    }

    /// Adds segments that say nothing by themselves (closing brackets, rules, white space) to the one before.
    fn glue(&mut self, text: &str) {
        let mut start = 0;
        let mut glued: Vec<Segment> = Vec::with_capacity(self.segments.len());
        for segment in std::mem::take(&mut self.segments) {
            let says = text[start..segment.end].contains(char::is_alphanumeric);
            start = segment.end;
            match glued.last_mut() {
                Some(last) if !says => last.end = segment.end,
                _ => glued.push(segment),
            }
        }
        self.segments = glued;
    }

    /// Makes one chunk of small neighbours: with the one that they share more with, where that fits.
    fn merged(&self, drafts: Vec<Draft>, max: usize, min: usize) -> Vec<Draft> {
        let mut merged: Vec<Draft> = Vec::with_capacity(drafts.len());
        let mut coming = drafts.into_iter().peekable();
        while let Some(draft) = coming.next() {
            let fits = |a: &Draft, b: &Draft| (a.tokens < min || b.tokens < min) && a.tokens + b.tokens <= max;
            let shared =
                |a: &Draft, b: &Draft| self.common(a.node, b.node).map_or(0, |node| self.nodes[node].depth + 1);
            let Some(last) = merged.last_mut().filter(|last| fits(last, &draft)) else {
                merged.push(draft);
                continue;
            };
            let closer_to_next = last.tokens >= min
                && coming.peek().filter(|next| fits(&draft, next)).is_some_and(|next| {
                    let (behind, ahead) = (shared(last, &draft), shared(&draft, next));
                    // of equals, those that are small join each other
                    ahead > behind || (ahead == behind && next.tokens < min)
                });
            if closer_to_next {
                merged.push(draft);
                continue;
            }
            last.node = match (last.tokens >= min, draft.tokens >= min) {
                (true, false) => last.node,
                (false, true) => draft.node,
                _ => self.common(last.node, draft.node),
            };
            last.bytes.end = draft.bytes.end;
            last.tokens += draft.tokens;
        }
        merged
    }

    /// The innermost node that holds both.
    fn common(&self, a: Option<usize>, b: Option<usize>) -> Option<usize> {
        let (mut a, mut b) = (a?, b?);
        while a != b {
            let deeper = if self.nodes[a].depth >= self.nodes[b].depth { &mut a } else { &mut b };
            *deeper = self.nodes[*deeper].parent?;
        }
        Some(a)
    }

    /// The names of what a chunk is in, outermost first.
    fn header(&self, node: Option<usize>) -> String {
        let mut labels: Vec<&str> = self.ancestors(node).map(|node| self.nodes[node].label.as_str()).collect();
        labels.retain(|label| !label.is_empty());
        labels.reverse();
        labels.join(" > ")
    }

    /// The chunk in which the innermost node begins that does not begin in the chunk `at` itself.
    fn parent(&self, drafts: &[Draft], at: usize) -> Option<u32> {
        let holder = |node: usize| drafts.partition_point(|draft| draft.bytes.start <= self.nodes[node].start) - 1;
        self.ancestors(drafts[at].node).map(holder).find(|holder| *holder < at).map(|holder| holder as u32)
    }

    /// A node and those that enclose it.
    fn ancestors(&self, node: Option<usize>) -> impl Iterator<Item = usize> {
        std::iter::successors(node, |node| self.nodes[*node].parent)
    }
}

/// Adds drafts of nothing but white space to a neighbour. One remains for a document without anything else.
fn without_blank(text: &str, drafts: Vec<Draft>) -> Vec<Draft> {
    let mut kept: Vec<Draft> = Vec::with_capacity(drafts.len());
    let blank = |draft: &Draft| text[draft.bytes.clone()].trim().is_empty();
    for draft in drafts {
        match kept.last_mut() {
            Some(last) if blank(&draft) => last.bytes.end = draft.bytes.end,
            Some(last) if blank(last) => *last = Draft { bytes: last.bytes.start..draft.bytes.end, ..draft },
            _ => kept.push(draft),
        }
    }
    kept
}

/// A text as a label: one line, single spaces, not too long.
pub(super) fn label(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(LABEL_SOURCE_MAX)];
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LABEL_MAX) {
        Some((at, _)) => format!("{}…", line[..at].trim_end()),
        None => line,
    }
}
