//! Definitions of source code, by the grammars of tree-sitter.
//!
//! A grammar makes a tree of any text, with errors in it where the text is broken; definitions are found in what it made
//! sense of, and everything else belongs to what encloses it. So a chunk is a whole definition where one fits, and lines
//! otherwise.

use std::ops::ControlFlow;

use tree_sitter::{Node, ParseOptions, Parser, Tree};

use super::{
    ChunkSettings,
    languages::{Rule, bound_function, grammar, rule},
    outline::{DEPTH_MAX, Outline, label},
    pieces::{Cut, Measure, Piece},
};
use crate::Language;

/// Larger files are cut by lines alone: nobody wrote them by hand, and a tree takes many times the memory of its text.
const PARSED_MAX: usize = 1 << 20;
/// Deepest nesting of brackets that is parsed: nobody writes more, and parsers take memory by its square.
const NESTED_MAX: usize = 256;
/// Indentation, in bytes, beyond which a comment is not looked at as one that stands alone in its line.
const INDENT_MAX: usize = 256;
/// Steps that a parser may take, at a hundred each: several times what texts need that are not made to be hard.
const fn parser_patience(bytes: usize) -> usize {
    1000 + bytes / 8
}

/// The lines of a text, counted once.
pub(super) struct Lines {
    pieces: Vec<Piece>,
    /// Tokens before each piece.
    before: Vec<usize>,
}

impl Lines {
    pub(super) fn of(measure: Measure<'_>) -> Self {
        let (mut pieces, mut at) = (Vec::new(), 0);
        for line in measure.text.split_inclusive('\n') {
            let cut = if line.trim().is_empty() { Cut::Paragraph } else { Cut::Line };
            measure.push(at..at + line.len(), cut, &mut pieces);
            at += line.len();
        }
        let mut before = Vec::with_capacity(pieces.len());
        pieces.iter().fold(0, |sum, piece: &Piece| {
            before.push(sum);
            sum + piece.tokens
        });
        Self { pieces, before }
    }

    /// Tokens of the pieces that a range touches.
    fn tokens(&self, start: usize, end: usize) -> usize {
        let first = self.pieces.partition_point(|piece| piece.end <= start);
        let last = self.pieces.partition_point(|piece| piece.end < end).min(self.pieces.len() - 1);
        self.before[last] + self.pieces[last].tokens - self.before[first.min(last)]
    }

    /// The pieces of a segment, which may begin and end within lines.
    pub(super) fn pieces(&self, measure: Measure<'_>, start: usize, end: usize) -> Vec<Piece> {
        let first = self.pieces.partition_point(|piece| piece.end <= start);
        let (mut out, mut at) = (Vec::new(), if first == 0 { 0 } else { self.pieces[first - 1].end });
        for piece in &self.pieces[first..] {
            let from = std::mem::replace(&mut at, piece.end);
            match (from < start, piece.end > end) {
                _ if from >= end => break,
                (false, false) => out.push(*piece),
                _ => measure.push(from.max(start)..piece.end.min(end), piece.cut, &mut out),
            }
        }
        out
    }
}

/// The definitions of a text.
pub(super) fn outline(text: &str, language: Language, lines: &Lines, settings: &ChunkSettings) -> Outline {
    match parse(text, language) {
        Some(tree) => Walk::new(text, language, lines, settings.max_tokens).run(&tree),
        None => Outline::flat(text.len()),
    }
}

/// The tree of a text; none if it is too large, or too hard.
fn parse(text: &str, language: Language) -> Option<Tree> {
    if text.len() > PARSED_MAX || nested(text) > NESTED_MAX {
        return None;
    }
    let mut parser = Parser::new();
    parser.set_language(&grammar(language, text)).ok()?;
    let mut left = parser_patience(text.len());
    let mut patience = |_: &_| {
        left = left.saturating_sub(1);
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let bytes = text.as_bytes();
    let options = ParseOptions::new().progress_callback(&mut patience);
    parser.parse_with_options(&mut |at, _| bytes.get(at..).unwrap_or_default(), None, Some(options))
}

/// How deep the brackets of a text go, whatever they stand in. Those of generic types are counted up to the end of a statement,
/// because they are signs of comparison, too.
fn nested(text: &str) -> usize {
    let (mut depth, mut angles, mut deepest) = (0usize, 0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'<' => angles += 1,
            b'>' => angles = angles.saturating_sub(1),
            _ => {}
        }
        if matches!(byte, b';' | b'{' | b'}') {
            angles = 0;
        }
        deepest = deepest.max(depth + angles);
    }
    deepest
}

/// One way through the tree, in the order of the text.
struct Walk<'a> {
    text: &'a str,
    language: Language,
    lines: &'a Lines,
    max: usize,
    outline: Outline,
    /// Definitions around the place that was reached, with their ends.
    open: Vec<(usize, usize)>,
    /// Comments and attributes right before it: first start and last end.
    leading: Option<(usize, usize)>,
    /// A wrapper around it: start and end.
    wrapper: Option<(usize, usize)>,
    /// The body of the container that was entered last, which is looked into whatever its kind.
    body: Option<usize>,
    /// Go's types by name, for their methods.
    types: Vec<(&'a str, usize)>,
}

impl<'a> Walk<'a> {
    fn new(text: &'a str, language: Language, lines: &'a Lines, max: usize) -> Self {
        Self {
            text,
            language,
            lines,
            max,
            outline: Outline::default(),
            open: Vec::new(),
            leading: None,
            wrapper: None,
            body: None,
            types: Vec::new(),
        }
    }

    fn run(mut self, tree: &Tree) -> Outline {
        let mut cursor = tree.walk();
        loop {
            let node = cursor.node();
            self.close(node.start_byte());
            if self.visit(node) && cursor.goto_first_child() {
                continue;
            }
            while !cursor.goto_next_sibling() {
                if !cursor.goto_parent() {
                    self.close(usize::MAX);
                    self.outline.segment(self.text.len(), None);
                    return self.outline;
                }
            }
        }
    }

    fn inner(&self) -> Option<usize> {
        self.open.last().map(|(node, _)| *node)
    }

    /// Ends the definitions that end before `at`.
    fn close(&mut self, at: usize) {
        while let Some((node, end)) = self.open.pop_if(|(_, end)| *end <= at) {
            self.outline.segment(self.text.floor_char_boundary(end), Some(node));
        }
    }

    /// Takes note of a node; whether to look into it.
    fn visit(&mut self, node: Node<'_>) -> bool {
        let (start, end) = (node.start_byte(), node.end_byte());
        let large = |walk: &Self| start < end && walk.lines.tokens(start, end) > walk.max;
        if self.body.is_some_and(|body| body == node.id()) {
            return true;
        }
        match rule(self.language, node) {
            Rule::Leading => {
                self.lead(start, end);
                false
            }
            Rule::Wrapper => {
                let start = self.take_leading(start);
                self.wrapper = Some((start, end));
                true
            }
            Rule::Leaf => {
                self.define(node);
                large(self)
            }
            Rule::Container => {
                self.define(node);
                self.body = node.child_by_field_name("body").map(|body| body.id());
                true
            }
            Rule::Through => true,
            Rule::Part => {
                self.leading = None;
                large(self)
            }
        }
    }

    /// Notes a comment or an attribute, which goes on with the one before unless a blank line is between.
    fn lead(&mut self, start: usize, end: usize) {
        let from = self.text.floor_char_boundary(start.saturating_sub(INDENT_MAX));
        let before = self.text.get(from..start).unwrap_or_default();
        let line = before.rfind('\n').map_or(before, |at| &before[at..]);
        if !line.trim().is_empty() {
            self.leading = None;
            return;
        }
        let first = self.take_leading(start);
        self.leading = Some((first, end));
    }

    /// Where something that begins at `start` begins with what leads to it.
    fn take_leading(&mut self, start: usize) -> usize {
        let close = |(_, end): &(usize, usize)| {
            let between = self.text.get(*end..start).unwrap_or("\n\n");
            // a line comment may hold its line end
            let ended = usize::from(self.text.as_bytes()[..*end].ends_with(b"\n"));
            between.trim().is_empty() && between.matches('\n').count() + ended <= 1
        };
        self.leading.take().filter(close).map_or(start, |(first, _)| first)
    }

    fn define(&mut self, node: Node<'_>) {
        let end = node.end_byte();
        let own = self.take_leading(node.start_byte());
        let start = match self.wrapper.take().filter(|(_, wrapped)| end <= *wrapped) {
            Some((start, _)) => start.min(own),
            None => own,
        };
        if self.open.len() >= DEPTH_MAX || node.start_byte() == end {
            return;
        }
        let start = self.text.floor_char_boundary(start);
        self.outline.segment(start, self.inner());
        let parent = self.inner().or_else(|| self.receiver(node));
        let added = self.outline.add(start, parent, self.label(node, start));
        if let Some(name) = self.type_name(node) {
            self.types.push((name, added));
        }
        self.open.push((added, end));
    }

    fn of(&self, node: Node<'_>) -> &'a str {
        let end = self.text.floor_char_boundary(node.end_byte());
        self.text.get(self.text.floor_char_boundary(node.start_byte())..end).unwrap_or_default()
    }

    /// The name of a type of Go.
    fn type_name(&self, node: Node<'_>) -> Option<&'a str> {
        let spec = (node.kind() == "type_declaration").then(|| node.named_child(0)).flatten()?;
        spec.child_by_field_name("name").map(|name| self.of(name))
    }

    /// The type that a method of Go belongs to.
    fn receiver(&self, node: Node<'_>) -> Option<usize> {
        let receiver = node.child_by_field_name("receiver").map(|receiver| self.of(receiver))?;
        let written = receiver.trim_matches(['(', ')']).split('[').next()?.split([' ', '*']).next_back()?;
        self.types.iter().rev().find(|(name, _)| *name == written).map(|(_, node)| *node)
    }

    /// Signature and first line of the documentation.
    fn label(&self, node: Node<'_>, start: usize) -> String {
        let body = node.child_by_field_name("body").or_else(|| bound_function(node)?.child_by_field_name("body"));
        let end = body.map_or(node.end_byte(), |body| body.start_byte());
        let written = self.text.get(node.start_byte()..end).unwrap_or_default();
        let written = if body.is_some() { written } else { written.lines().next().unwrap_or_default() };
        let signature = label(written);
        let signature = signature.trim_end_matches(['{', ':', '=', ' ']);
        // of a function as a value; a `>` alone ends a list of types
        let signature = signature.strip_suffix("=>").map_or(signature, str::trim_end);
        let led = self.text.get(start..node.start_byte()).unwrap_or_default();
        match comment_line(led).or_else(|| body.and_then(|body| self.docstring(body))) {
            Some(doc) => format!("{signature}: {doc}"),
            None => signature.to_owned(),
        }
    }

    /// The first line of the string that a body of Python begins with.
    fn docstring(&self, body: Node<'_>) -> Option<String> {
        let first = body.named_child(0).filter(|first| first.kind() == "expression_statement")?;
        let string = first.named_child(0).filter(|string| string.kind() == "string")?;
        let text = self.of(string).trim_start_matches(|c: char| c.is_alphabetic()).trim_matches(['"', '\'']);
        text.lines().map(label).find(|line| !line.is_empty())
    }
}

/// The first line of comments that says something.
fn comment_line(led: &str) -> Option<String> {
    let said = |line: &str| {
        let line = line.trim();
        let comment = ["///", "//!", "//", "/**", "/*", "*", "#"].iter().find_map(|mark| line.strip_prefix(mark))?;
        let text = comment.trim_end_matches("*/").trim();
        (!text.starts_with('[') && text.contains(char::is_alphanumeric)).then(|| label(text))
    };
    led.lines().take(20).find_map(said)
}
