//! HTML to Markdown: headings, paragraphs, items, and nothing of what is not shown.
//!
//! This reads tags as they come and builds no tree, so that it takes any input in linear time. It keeps what can be searched.

/// What a page says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) title: String,
    pub(super) text: String,
}

/// Elements whose content is not shown.
const HIDDEN: &[&str] = &["script", "style", "noscript", "template", "svg", "iframe", "object", "select"];
/// Elements that stand in their own lines.
const BLOCKS: &[&str] = &[
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "dd",
    "details",
    "dialog",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "header",
    "hr",
    "html",
    "li",
    "main",
    "nav",
    "ol",
    "p",
    "section",
    "summary",
    "table",
    "tbody",
    "tfoot",
    "thead",
    "tr",
    "ul",
    "pre",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
];
/// Longest name of an element or entity that is looked at.
const NAME_MAX: usize = 16;
/// Longest title, in bytes.
const TITLE_MAX: usize = 1024;

/// Reads a page, however broken.
pub(super) fn to_markdown(html: &str) -> Page {
    let mut out = Writer::default();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        out.text(&rest[..at]);
        rest = out.tag(&rest[at..]);
    }
    out.text(rest);
    let end = out.title.floor_char_boundary(TITLE_MAX);
    Page { title: out.title[..end].split_whitespace().collect::<Vec<_>>().join(" "), text: out.text }
}

#[derive(Default)]
struct Writer {
    title: String,
    text: String,
    in_title: bool,
    preformatted: bool,
    /// White space that comes before the next word: none, a space, or line ends.
    space: Space,
    /// What the next word begins with: the marks of a heading or an item.
    mark: &'static str,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Space {
    #[default]
    None,
    Word,
    Line,
    Block,
}

impl Writer {
    /// Takes text between two tags.
    fn text(&mut self, text: &str) {
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let (c, used) = match c {
                '&' => entity(rest).unwrap_or(('&', 1)),
                c => (c, c.len_utf8()),
            };
            rest = &rest[used..];
            self.put(c);
        }
    }

    fn put(&mut self, c: char) {
        if self.in_title {
            self.title.push(c);
        } else if self.preformatted && c == '\n' {
            self.flush();
            self.text.push('\n');
        } else if c.is_whitespace() && !self.preformatted {
            self.space = self.space.max(Space::Word);
        } else {
            self.flush();
            self.text.push(c);
        }
    }

    /// Writes the white space and the mark that wait for a word.
    fn flush(&mut self) {
        let before = match std::mem::take(&mut self.space) {
            _ if self.text.is_empty() => "",
            Space::None => "",
            Space::Word => " ",
            Space::Line => "\n",
            Space::Block => "\n\n",
        };
        self.text.push_str(before);
        self.text.push_str(std::mem::take(&mut self.mark));
    }

    /// Takes the tag that `rest` begins with, and what it hides; what follows.
    fn tag<'a>(&mut self, rest: &'a str) -> &'a str {
        if let Some(comment) = rest.strip_prefix("<!--") {
            return comment.find("-->").map_or("", |end| &comment[end + 3..]);
        }
        let inner = &rest[1..];
        let closes = inner.starts_with('/');
        let named = inner.strip_prefix('/').unwrap_or(inner);
        if !named.starts_with(|c: char| c.is_ascii_alphabetic()) && !inner.starts_with(['!', '?']) {
            self.put('<');
            return inner;
        }
        let end = named.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(named.len());
        let name = named[..end.min(NAME_MAX)].to_ascii_lowercase();
        let after = &named[tag_end(named)..];
        if !closes && HIDDEN.contains(&name.as_str()) {
            return behind(after, &name);
        }
        self.element(&name, closes);
        after
    }

    fn element(&mut self, name: &str, closes: bool) {
        match name {
            "title" => self.in_title = !closes && self.title.is_empty(),
            "br" => self.space = self.space.max(Space::Line),
            "td" | "th" => self.space = self.space.max(Space::Word),
            _ if BLOCKS.contains(&name) => {
                self.in_title = false;
                let tight = matches!(name, "li" | "tr" | "dt" | "dd");
                self.space = self.space.max(if tight { Space::Line } else { Space::Block });
                self.preformatted = name == "pre" && !closes;
                self.mark = match name {
                    _ if closes => "",
                    "h1" => "# ",
                    "h2" => "## ",
                    "h3" => "### ",
                    "h4" => "#### ",
                    "h5" => "##### ",
                    "h6" => "###### ",
                    "li" => "- ",
                    // what a heading or an item holds may be blocks itself
                    _ => self.mark,
                };
            }
            _ => {}
        }
    }
}

/// Where the tag ends that a text begins with; a quoted `>` does not end it.
fn tag_end(tag: &str) -> usize {
    let mut quote = None;
    let mut before = b' ';
    for (at, byte) in tag.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => return at + 1,
            (None, b'"' | b'\'') if before == b'=' => quote = Some(byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            before = byte;
        }
    }
    tag.len()
}

/// What follows the end of the element `name`.
fn behind<'a>(text: &'a str, name: &str) -> &'a str {
    let mut rest = text;
    while let Some(at) = rest.find("</") {
        rest = &rest[at + 2..];
        let found = rest.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name));
        if found && !rest[name.len()..].starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return rest.find('>').map_or("", |end| &rest[end + 1..]);
        }
    }
    ""
}

/// The character that an entity stands for, and its length. Others than these stay as they are written.
fn entity(text: &str) -> Option<(char, usize)> {
    let end = text.bytes().take(NAME_MAX).position(|byte| byte == b';')?;
    let name = &text[1..end];
    let number = |digits: &str, base| u32::from_str_radix(digits, base).ok().and_then(char::from_u32);
    let c = match name.strip_prefix('#') {
        Some(digits) => match digits.strip_prefix(['x', 'X']) {
            Some(digits) => number(digits, 16)?,
            None => number(digits, 10)?,
        },
        None => named(name)?,
    };
    Some((c, end + 1))
}

fn named(name: &str) -> Option<char> {
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => ' ',
        "ndash" => '–',
        "mdash" => '—',
        "hellip" => '…',
        "lsquo" => '‘',
        "rsquo" => '’',
        "ldquo" => '“',
        "rdquo" => '”',
        "laquo" => '«',
        "raquo" => '»',
        "bull" => '•',
        "middot" => '·',
        "copy" => '©',
        "reg" => '®',
        "trade" => '™',
        "deg" => '°',
        "plusmn" => '±',
        "times" => '×',
        "divide" => '÷',
        "minus" => '−',
        "le" => '≤',
        "ge" => '≥',
        "ne" => '≠',
        "larr" => '←',
        "rarr" => '→',
        "sect" => '§',
        "para" => '¶',
        "euro" => '€',
        "pound" => '£',
        "yen" => '¥',
        "cent" => '¢',
        "micro" => 'µ',
        "frac12" => '½',
        "szlig" => 'ß',
        "oslash" => 'ø',
        "Oslash" => 'Ø',
        "aelig" => 'æ',
        "AElig" => 'Æ',
        "oelig" => 'œ',
        "iexcl" => '¡',
        "iquest" => '¿',
        _ => return accented(name),
    })
}

/// Letters with an accent: `eacute`, `Uuml`.
fn accented(name: &str) -> Option<char> {
    let letter = name.chars().next().filter(char::is_ascii_alphabetic)?;
    let row = match &name[1..] {
        "acute" => "AÁEÉIÍOÓUÚYÝaáeéiíoóuúyý",
        "grave" => "AÀEÈIÌOÒUÙaàeèiìoòuù",
        "circ" => "AÂEÊIÎOÔUÛaâeêiîoôuû",
        "uml" => "AÄEËIÏOÖUÜaäeëiïoöuüyÿ",
        "tilde" => "AÃNÑOÕaãnñoõ",
        "cedil" => "CÇcç",
        "caron" => "SŠZŽsšzž",
        "ring" => "AÅaå",
        _ => return None,
    };
    let mut pairs = row.chars();
    pairs.by_ref().find(|c| *c == letter)?;
    pairs.next()
}
