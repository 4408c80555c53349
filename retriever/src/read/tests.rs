//! What readers make of files, good and bad.

use std::{fs, path::PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// Documents, notes and outcome of a file.
fn read(name: &str, bytes: &[u8], limits: ReadLimits) -> (Vec<Document>, Vec<String>, Outcome) {
    let folder = folder(&[(name, bytes)]);
    let (mut documents, mut notes) = (Vec::new(), Vec::new());
    let outcome = read_file::<()>(&folder.path().join(name), name, &limits, &mut |read| {
        match read {
            Read::Document(document) => documents.push(document),
            Read::Note(note) => notes.push(note),
        }
        Ok(())
    });
    (documents, notes, outcome.unwrap())
}

fn one(name: &str, bytes: &[u8]) -> Document {
    let (mut documents, notes, _) = read(name, bytes, ReadLimits::default());
    assert_eq!((documents.len(), notes), (1, vec![]), "{name}");
    documents.remove(0)
}

fn refused(name: &str, bytes: &[u8]) -> String {
    match read(name, bytes, ReadLimits { file_bytes: 1 << 20, ..ReadLimits::default() }) {
        (documents, _, Outcome::Refused(reason, _)) if documents.is_empty() => reason,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn files_are_read_by_the_end_of_their_name() {
    let page = one("a/b.md", b"intro\n# The Page #\ntext");
    assert_eq!((page.id.as_str(), page.title.as_str(), page.kind), ("a/b.md", "The Page", Kind::Markdown));
    assert_eq!(page.metadata["path"], "a/b.md");
    let code = one("x.rs", b"fn a() {}");
    assert_eq!((code.kind, code.metadata["language"].as_str()), (Kind::Code(Language::Rust), "rust"));
    assert_eq!(one("Makefile", b"all:\n\ttrue").kind, Kind::Prose);
    assert_eq!(one("notes.txt", b"\xef\xbb\xbfhello").text, "hello");
    assert_eq!(one("wide.txt", b"\xff\xfeh\0i\0").text, "hi");
}

#[test]
fn what_is_no_text_is_refused_with_the_reason() {
    assert!(refused("a.pdf", b"%PDF-1.7").contains("pdftotext"));
    assert!(refused("a.tar.gz", b"\x1f\x8b").contains("unpack"));
    assert!(refused("a.bin", b"ab\0cd").contains("NUL"));
    assert!(refused("a.dat", &[0xfa; 100]).contains("not UTF-8"));
    assert!(refused("a.txt", b" \n\t").contains("no text"));
    assert!(refused("a.txt", &vec![b'a'; (1 << 20) + 1]).contains("2 MB, at most 1 MB"));
    assert!(refused("a.html", b"<script>only</script>").contains("no text"));
}

#[test]
fn broken_utf8_is_mended_and_said() {
    let (documents, notes, _) = read("a.txt", b"good \xff bad \xc3( end, and much more of it", ReadLimits::default());
    assert_eq!(documents[0].text, "good \u{fffd} bad \u{fffd}( end, and much more of it");
    assert_eq!(notes, ["not UTF-8 in 2 places, which are U+FFFD now"]);
}

#[test]
fn rows_come_in_the_shapes_of_search_r1() {
    let rows = br#"{"id": "7", "contents": "\"Chad\"\nIts capital is N'Djamena.", "year": 1960}
{"id": 8, "title": "Peru", "text": "Lima.", "metadata": {"region": "America", "list": [1]}}

{"title": "T", "text": "B.", "contents": "\"X\"\nY"}
{"contents": "no title at all"}
"#;
    let (documents, notes, outcome) = read("c.jsonl", rows, ReadLimits::default());
    let seen: Vec<_> = documents.iter().map(|d| (d.id.as_str(), d.title.as_str(), d.text.as_str())).collect();
    let expected = [
        ("7", "Chad", "Its capital is N'Djamena."),
        ("8", "Peru", "Lima."),
        ("c.jsonl:4", "T", "B."),
        ("c.jsonl:5", "", "no title at all"),
    ];
    assert_eq!((seen, notes), (expected.to_vec(), vec![]));
    assert_eq!((documents[0].metadata["year"].as_str(), documents[1].metadata["region"].as_str()), ("1960", "America"));
    assert!(documents.iter().all(|d| d.kind == Kind::Passage));
    assert!(matches!(outcome, Outcome::Whole(digest) if digest == <[u8; 32]>::from(Sha256::digest(rows))));
}

#[test]
fn bad_rows_are_noted_by_their_line_and_the_others_taken() {
    let mut rows = b"{\"text\": \"one\"}\nnot json\n[1]\n{\"id\": true, \"text\": \"x\"}\n{\"title\": \"x\"}\n{\"text\": \" \"}\n{\"text\": 5}\n".to_vec();
    rows.extend(b"{\"text\": \"");
    rows.extend(vec![b'x'; 3 << 20]);
    rows.extend(b"\"}\n{\"text\": \"inv\xffalid\"}\n{\"text\": \"last\"}");
    let (documents, notes, _) = read("c.jsonl", &rows, ReadLimits { row_bytes: 1 << 20, ..ReadLimits::default() });
    let texts: Vec<_> = documents.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(texts, ["one", "inv\u{fffd}alid", "last"]);
    let expected = [
        "line 2: expected a JSON object",
        "line 3: expected a JSON object",
        "line 4: id",
        "line 5: expected `contents`",
        "line 6: no text",
        "line 7: text: expected a text",
        "line 8: 4 MB, at most 1 MB",
        "line 9: not UTF-8",
    ];
    assert_eq!(notes.len(), expected.len(), "{notes:?}");
    assert!(notes.iter().zip(expected).all(|(note, begin)| note.starts_with(begin)), "{notes:?}");
}

#[test]
fn pages_keep_headings_items_and_shown_text() {
    let html = "<!DOCTYPE html><html><head><title>The &amp; Page\n</title><style>p > a {}</style></head><body><!-- <p>no</p> -->\
                <h1 class=\"a>b\">One <b>bold</b></h1><p>First&nbsp;line<br>second &eacute;&#233;&#xe9; 1 < 2 &unknown;</p><ul><li>a<li>b<li><p>c</p></ul>\
                <pre>x\n  y</pre><SCRIPT>if (a</b) {}</SCRIPT>tail</body>";
    let page = html::to_markdown(html);
    assert_eq!(page.title, "The & Page");
    assert_eq!(
        page.text, "# One bold\n\nFirst line\nsecond ééé 1 < 2 &unknown;\n\n- a\n- b\n\n- c\n\nx\n  y\n\ntail",
        "an item that holds a paragraph stands apart"
    );
    assert_eq!(one("p.html", html.as_bytes()).title, "The & Page");
}

#[test]
fn folders_are_walked_in_order_without_links_and_hidden_files() {
    let folder =
        folder(&[("b/x.md", b"x"), ("a.md", b"a"), (".git/config", b"g"), ("b/.hidden", b"h"), ("c.md", b"c")]);
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path(), folder.path().join("b/loop")).unwrap();
    let sources = Source::all(&[folder.path().to_owned()]).unwrap();
    let name = &sources[0].name;
    let seen: Vec<String> = sources[0]
        .entries()
        .filter_map(|found| match found {
            Found::File(entry) => Some(entry.id),
            Found::Skipped { id, reason } => Some(format!("{id}: {reason}")),
            Found::Folder => None,
            Found::Failed { id, error } => panic!("{id}: {error}"),
        })
        .collect();
    let expected = [".git: hidden", "a.md", "b/.hidden: hidden", "b/loop: a link", "b/x.md", "c.md"]
        .map(|end| format!("{name}/{end}"));
    assert_eq!(seen, expected);
    let file = Source::all(&[folder.path().join("a.md")]).unwrap();
    assert!(matches!(file[0].entries().next(), Some(Found::File(entry)) if entry.id == "a.md"));
    let twice = Source::all(&[folder.path().join("a.md"), folder.path().join("b/../a.md")]);
    assert!(twice.unwrap_err().to_string().contains("same name"));
    assert!(matches!(Source::all(&[PathBuf::from("/no such")]), Err(SourceError::Io(..))));
}

#[test]
fn html_of_any_length_is_read_in_linear_time() {
    for part in ["<", "<a ", "<!--", "<script>", "</", "&", "<p>", "<a b='", "&#", "<h1><p>"] {
        to_text(part.repeat(200_000));
    }
}

fn to_text(html: String) -> String {
    html::to_markdown(&html).text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), form in 0usize..4) {
        let name = ["a.txt", "a.html", "a.jsonl", "a.py"][form];
        drop(read(name, &bytes, ReadLimits { file_bytes: 300, row_bytes: 50 }));
    }

    #[test]
    fn any_html_is_read(parts in prop::collection::vec(prop::sample::select(
        vec!["<", ">", "/", "<p>", "</p>", "<script>", "</script>", "<!--", "-->", "\"", "'", "=", "&amp;", "&", "é", "🦀", "<h1>", "<pre>", "text ", "\n", "<title>", "<a b=\">"]), 0..60)) {
        to_text(parts.concat());
    }
}
