//! What chunks promise, for all kinds.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::Language;

const LANGUAGES: [Language; 8] = [
    Language::C,
    Language::Cpp,
    Language::Go,
    Language::Java,
    Language::JavaScript,
    Language::Python,
    Language::Rust,
    Language::TypeScript,
];

fn kinds() -> Vec<Kind> {
    let mut kinds = vec![Kind::Prose, Kind::Markdown, Kind::Passage];
    kinds.extend(LANGUAGES.map(Kind::Code));
    kinds
}

fn document(kind: Kind, text: &str) -> Document {
    Document { id: "d".into(), title: String::new(), text: text.into(), kind, metadata: BTreeMap::new() }
}

fn chunker(max: usize, min: usize) -> Chunker {
    Chunker::new(ChunkSettings { max_tokens: max, min_tokens: min, ..ChunkSettings::default() }).unwrap()
}

/// The chunks, proven to cover the text.
fn covering(chunker: &Chunker, kind: Kind, text: &str) -> Vec<Chunk> {
    let chunks = chunker.chunks(&document(kind, text));
    let mut end = 0;
    for (number, chunk) in chunks.iter().enumerate() {
        assert!(chunk.bytes.start >= end && chunk.bytes.end <= text.len(), "{kind:?}: {chunk:?} after {end}");
        assert!(text[end..chunk.bytes.start].trim().is_empty(), "{kind:?}: lost {:?}", &text[end..chunk.bytes.start]);
        let inner = &text[chunk.bytes.clone()];
        assert!(!inner.is_empty() && inner == inner.trim(), "{kind:?}: {inner:?}");
        assert!(chunk.parent.is_none_or(|parent| (parent as usize) < number), "{kind:?}: {chunk:?} is number {number}");
        assert!(chunk.header.len() < 12_000, "{kind:?}: a header of {} bytes", chunk.header.len());
        end = chunk.bytes.end;
    }
    assert!(text[end..].trim().is_empty(), "{kind:?}: lost {:?}", &text[end..]);
    chunks
}

/// Text and header of each chunk, and the header of its parent.
fn seen(kind: Kind, text: &str, max: usize, min: usize) -> Vec<(String, String, Option<String>)> {
    let chunks = covering(&chunker(max, min), kind, text);
    let header = |n: u32| chunks[n as usize].header.clone();
    chunks.iter().map(|c| (text[c.bytes.clone()].to_owned(), c.header.clone(), c.parent.map(header))).collect()
}

fn headers(language: Language, text: &str) -> Vec<(String, Option<String>)> {
    seen(Kind::Code(language), text, 128, 4).into_iter().map(|(_, header, parent)| (header, parent)).collect()
}

fn pairs<const N: usize>(list: [(&str, Option<&str>); N]) -> Vec<(String, Option<String>)> {
    list.iter().map(|(header, parent)| ((*header).to_owned(), parent.map(str::to_owned))).collect()
}

#[test]
fn python_is_cut_into_heads_classes_methods_and_functions() {
    let text = "import os\nimport sys, json\nLIMIT = 10\n\n@dataclass\nclass Stack(Base):\n    \"\"\"Keeps things.\n\n    More.\n    \"\"\"\n    \
                size: int = 0\n\n    # Puts one on top.\n    def push(self, item: int) -> None:\n        self.items.append(item)\n        self.size += 1\n\n    \
                @property\n    def top(self):\n        '''The last one.'''\n        return self.items[-1]\n\n\ndef main(argv):\n    stack = Stack()\n    \
                stack.push(int(argv[1]))\n    print(stack.top)\n\nif __name__ == '__main__':\n    main(sys.argv)\n";
    let class = "class Stack(Base): Keeps things.";
    let expected = [
        ("", None),
        (class, None),
        ("class Stack(Base): Keeps things. > def push(self, item: int) -> None: Puts one on top.", Some(class)),
        ("class Stack(Base): Keeps things. > def top(self): The last one.", Some(class)),
        ("def main(argv)", None),
        ("", None),
    ];
    assert_eq!(headers(Language::Python, text), pairs(expected));
    let texts: Vec<String> = seen(Kind::Code(Language::Python), text, 128, 4).into_iter().map(|c| c.0).collect();
    assert!(texts[2].starts_with("# Puts one on top.\n") && texts[3].starts_with("@property"), "{texts:#?}");
}

#[test]
fn rust_is_cut_into_items_and_methods() {
    let text = "//! Counts.\nuse std::fmt;\nuse std::io;\n\n/// A counter.\n#[derive(Debug)]\npub struct Counter {\n    /// So many.\n    count: u64,\n}\n\n\
                impl Counter {\n    /// Adds one.\n    ///\n    /// More.\n    pub fn add(&mut self) -> u64 {\n        self.count += 1;\n        self.count\n    }\n\n    \
                fn get(&self) -> u64 {\n        self.count + 0 + 0 + 0\n    }\n}\n\nmod inner {\n    pub fn free<T: Copy>(x: T) -> T {\n        x\n    }\n}\n";
    let implementation = "impl Counter";
    let found = headers(Language::Rust, text);
    let expected = [
        ("", None),
        ("pub struct Counter: A counter.", None),
        (implementation, None),
        ("impl Counter > pub fn add(&mut self) -> u64: Adds one.", Some(implementation)),
        ("impl Counter > fn get(&self) -> u64", Some(implementation)),
        ("mod inner > pub fn free<T: Copy>(x: T) -> T", None),
    ];
    let names = |list: &[(String, Option<String>)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(&pairs(expected)), "{found:#?}");
}

#[test]
fn methods_of_go_belong_to_their_type() {
    let text = "package stack\n\nimport \"fmt\"\n\n// Stack keeps things.\ntype Stack[T any] struct {\n\titems []T\n\tsize int\n}\n\n// Push puts one on top.\n\
                func (s *Stack[T]) Push(item T) {\n\ts.items = append(s.items, item)\n\ts.size++\n}\n\nfunc main() {\n\tfmt.Println(1, 2, 3, 4)\n}\n";
    let class = "type Stack[T any] struct: Stack keeps things.";
    let expected = [
        ("", None),
        (class, None),
        (
            "type Stack[T any] struct: Stack keeps things. > func (s *Stack[T]) Push(item T): Push puts one on top.",
            Some(class),
        ),
        ("func main()", None),
    ];
    assert_eq!(headers(Language::Go, text), pairs(expected));
}

#[test]
fn the_other_languages_have_classes_and_functions() {
    let java = "package a;\nimport java.util.List;\n/** A box. */\npublic class Box<T> {\n  private T item;\n  /** Takes it out. */\n  public T take() { return item; }\n  \
                class Inner { int deep(int a, int b) { return a * b + 1; } }\n}\n";
    let typescript = "import { a } from 'b';\nexport interface Shape { area(): number; name: string; }\n/** Makes one. */\nexport const make = (x: number): Shape => {\n  \
                      return new Square(x);\n};\nexport default class Square implements Shape {\n  @log\n  area(): number { return this.side * this.side; }\n}\n\
                      namespace N { export function f(a: number) { return a + a + a; } }\n";
    let javascript = "const a = require('a');\nasync function load(path) { return await fetch(path); }\nclass Cache extends Map {\n  get(key) { return super.get(key) ?? null; }\n  \
                      static of(x) { return new Cache([x]); }\n}\n";
    let c = "#include <stdio.h>\n#ifdef X\n/* Adds. */\nstatic int add(int a, int b) { return a + b; }\n#endif\nstruct point { int x; int y; };\nint main(void) { printf(\"%d\", add(1, 2)); return 0; }\n";
    let cpp = "#include <vector>\nnamespace n {\ntemplate <typename T>\nclass Box {\n public:\n  // Takes it.\n  T take() const { return item_ + item_; }\n private:\n  T item_;\n};\n\
               int Box<int>::take() const { return 1 + 2 + 3; }\n}\n";
    let cases: [(Language, &str, &[&str]); 5] = [
        (
            Language::Java,
            java,
            &["public class Box<T>: A box. > public T take(): Takes it out.", "class Inner > int deep(int a, int b)"],
        ),
        (
            Language::TypeScript,
            typescript,
            &[
                "interface Shape",
                "const make = (x: number): Shape: Makes one.",
                "class Square implements Shape > area(): number",
                "namespace N > function f(a: number)",
            ],
        ),
        (
            Language::JavaScript,
            javascript,
            &[
                "async function load(path)",
                "class Cache extends Map > get(key)",
                "class Cache extends Map > static of(x)",
            ],
        ),
        (Language::C, c, &["static int add(int a, int b): Adds.", "struct point", "int main(void)"]),
        (Language::Cpp, cpp, &["namespace n > class Box > T take() const: Takes it.", "int Box<int>::take() const"]),
    ];
    for (language, text, expected) in cases {
        let found = headers(language, text);
        for name in expected {
            assert!(
                found.iter().any(|(header, _)| header.ends_with(name)),
                "{language:?}: {name} is not in {found:#?}"
            );
        }
    }
}

#[test]
fn broken_code_is_still_cut_into_what_is_whole() {
    let text = "def one(a):\n    return a + a + a + a\n\nclass Broken(:\n    def two(self, b):\n        return b * b * b * b\n\ndef three(c):\n    return c - c - c - c\n}}}} ((\n";
    let found = headers(Language::Python, text);
    for name in ["def one(a)", "def three(c)"] {
        assert!(found.iter().any(|(header, _)| header.ends_with(name)), "{found:#?}");
    }
}

#[test]
fn a_definition_that_fits_is_whole_and_a_large_one_is_cut_at_blank_lines() {
    let body: String =
        (0..40).map(|n| format!("    let x{n} = {n};\n{}", if n % 8 == 7 { "\n" } else { "" })).collect();
    let text = format!(
        "fn small() {{\n    fn nested() {{ one(); two(); three(); }}\n    nested();\n}}\n\nfn large() {{\n{body}}}\n"
    );
    let found = seen(Kind::Code(Language::Rust), &text, 96, 8);
    assert_eq!(found[0].1, "fn small()", "{found:#?}");
    assert!(found[0].0.contains("nested();\n}"), "{found:#?}");
    let large: Vec<_> = found.iter().filter(|(_, header, _)| header == "fn large()").collect();
    assert!(large.len() > 2, "{found:#?}");
    assert!(large[1..].iter().all(|(text, _, parent)| parent.is_some() && text.starts_with("let x")), "{found:#?}");
    let at_blank =
        large[1..].iter().filter(|(text, ..)| text.starts_with(|_: char| true) && text.split('=').next().is_some());
    assert_eq!(at_blank.count(), large.len() - 1);
}

#[test]
fn sections_have_their_path_and_small_ones_join_their_kin() {
    let long = "This sentence has some words in it. ".repeat(6);
    let text = format!(
        "# Guide\nShort.\n## Install\n{long}\n### Linux\n{long}\n## Use\n{long}\n### A\nTiny.\n### B\nTiny too.\n"
    );
    let found = seen(Kind::Markdown, &text, 64, 24);
    let headers: Vec<_> = found.iter().map(|(_, header, parent)| (header.as_str(), parent.as_deref())).collect();
    let expected = [
        ("Guide > Install", None),
        ("Guide > Install > Linux", Some("Guide > Install")),
        ("Guide > Use", Some("Guide > Install")),
    ];
    assert_eq!(headers[..3], expected, "{found:#?}");
    assert!(found.last().is_some_and(|(text, ..)| text.contains("### A") && text.contains("### B")), "{found:#?}");
}

#[test]
fn sizes_hold_and_small_chunks_are_rare() {
    let text = "A sentence of seven words stands here. Short one. \n\n".repeat(300);
    let chunks = covering(&chunker(64, 16), Kind::Prose, &text);
    let sizes: Vec<usize> = chunks.iter().map(|c| approximate(&text[c.bytes.clone()])).collect();
    assert!(sizes.iter().all(|size| (16..=64).contains(size)), "{sizes:?}");
    assert!(chunks.iter().all(|c| text[c.bytes.clone()].ends_with("Short one.")), "cut between paragraphs");
}

#[test]
fn passages_are_never_cut() {
    let text = format!(" {} ", "word ".repeat(10_000));
    assert_eq!(covering(&chunker(16, 0), Kind::Passage, &text).len(), 1);
    assert_eq!(covering(&chunker(16, 0), Kind::Passage, " \n").len(), 0);
}

#[test]
fn what_the_settings_cannot_mean_is_refused() {
    let with = |max_tokens, min_tokens, counter: &str| {
        Chunker::new(ChunkSettings { max_tokens, min_tokens, counter: counter.into() }).err().map(|e| e.to_string())
    };
    assert_eq!(with(256, 32, APPROXIMATE), None);
    assert!(with(15, 0, APPROXIMATE).unwrap().contains("at least 16"));
    assert!(with(64, 33, APPROXIMATE).unwrap().contains("at most half of the 64"));
    assert!(with(64, 0, "abc").unwrap().contains("\"abc\""));
}

/// Text that is hard on somebody: nested without end, without line ends, of one character, all marks.
fn hard() -> Vec<String> {
    let many = 10_000;
    let mut hard: Vec<String> = [
        "(",
        "[",
        "{",
        "<",
        "\"",
        "'",
        "`",
        "#",
        "/*",
        "\n",
        " ",
        "\t",
        ".",
        "é",
        "字",
        "\u{0}",
        "if a {",
        "class A {",
        "a(",
        "fn f() {",
        "mod m {",
        "- ",
        "> ",
        "x y ",
        "=\n",
        "\\",
        "*",
        "&",
        "a::",
        "a<",
        "!",
        "#if\n",
        "{{",
        "f\"{",
    ]
    .iter()
    .map(|part| part.repeat(many))
    .collect();
    hard.push((0..3000).map(|n| format!("{}if x:\n", " ".repeat(n % 1200))).collect());
    hard.push("a".repeat(1 << 20));
    hard
}

#[test]
fn hard_texts_are_cut_like_any_other() {
    let chunker = Chunker::default();
    for text in hard() {
        for kind in kinds() {
            covering(&chunker, kind, &text);
        }
    }
}

/// Parts of real programs and texts, put together at random.
fn broken() -> impl Strategy<Value = String> {
    let parts = vec![
        "def f(x):\n    ",
        "class A:\n",
        "fn g<T>(a: T) -> T {\n",
        "impl B for C {\n",
        "}\n",
        "}",
        "{",
        "(",
        ")",
        "\n\n",
        "\n",
        "    ",
        "\t",
        "/// doc\n",
        "// c\n",
        "/* x */",
        "# h\n",
        "## h2\n",
        "```\n",
        "---\n",
        "===\n",
        "\"",
        "'",
        "`",
        "func (r *T) M() {\n",
        "type T struct {\n",
        "public class J {\n",
        "void m() {\n",
        "template <class T>\n",
        "namespace n {\n",
        "#ifdef A\n",
        "#endif\n",
        "#define X \\\n",
        "export default ",
        "const f = () => {\n",
        "return x;\n",
        "One sentence. ",
        "Another! ",
        "漢字。",
        "é",
        "🦀",
        "\u{0}",
        "\u{feff}",
        "\r\n",
        "\u{2028}",
        "<div>",
        "</div>",
        "async ",
        "@dec\n",
        "#[attr]\n",
        "let a = 1;\n",
        "if x { ",
        " else ",
        "- item\n",
        "1. one\n",
        "| a | b |\n",
        "\\",
        "R\"(",
        "'''",
        "\"\"\"",
        "${",
        "=>",
    ];
    prop::collection::vec(prop::sample::select(parts), 0..80).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_cover_any_text(text in prop_oneof![broken(), ".{0,200}", "\\PC{0,300}"], max in 16usize..80, share in 0usize..3) {
        let chunker = chunker(max, max * share / 4);
        for kind in kinds() {
            let chunks = covering(&chunker, kind, &text);
            let again = covering(&chunker, kind, &text);
            prop_assert_eq!(&chunks, &again);
            for chunk in &chunks {
                let size = approximate(&text[chunk.bytes.clone()]);
                prop_assert!(kind == Kind::Passage || size <= max, "{:?}: {} tokens, at most {}", kind, size, max);
            }
        }
    }
}
