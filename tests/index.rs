//! `folgore index` and `folgore search` as users run them, and what a kill leaves behind.

mod support;

use std::{fs, path::Path};

use serde_json::Value;
use support::{Running, folder, folgore, refused, run};

/// The one JSON object that a command prints.
fn answer(args: &[&str]) -> Value {
    let ended = run(folgore([args, &["--json"]].concat())).well();
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stdout))
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_folder_becomes_an_index_that_is_searched_and_brought_up_to_date() {
    let place = folder();
    let docs = place.path().join("docs");
    fs::create_dir_all(docs.join("src")).unwrap();
    fs::write(
        docs.join("guide.md"),
        "# Guide\n\nWelcome.\n\n## Install\n\nUnpack the archive and run the installer.\n",
    )
    .unwrap();
    fs::write(docs.join("src/stack.py"), "class Stack:\n    def push(self, item):\n        \"\"\"Puts an item on top.\"\"\"\n        self.items.append(item)\n").unwrap();
    fs::write(
        docs.join("facts.jsonl"),
        "{\"id\": \"chad\", \"contents\": \"\\\"Chad\\\"\\nThe capital of Chad is N'Djamena.\"}\n",
    )
    .unwrap();
    fs::write(docs.join("scan.pdf"), "%PDF-1.7").unwrap();
    let index = place.path().join("index");
    let build = ["index", path(&docs), "--out", path(&index)];
    let first = answer(&build);
    assert_eq!((&first["report"]["files_read"], &first["counts"]["documents"]), (&3.into(), &3.into()), "{first}");
    assert_eq!(first["report"]["skipped"]["names"][0][0], "docs/scan.pdf");
    let again = answer(&build);
    assert_eq!((&again["digest"], &again["report"]["documents_added"]), (&first["digest"], &0.into()), "{again}");

    let search = |query: &str, more: &[&str]| answer(&[&["search", query, "--index", path(&index)][..], more].concat());
    let found = search("capital of Chad", &["-k", "1"]);
    assert_eq!(found["passages"][0]["id"], "chad");
    assert_eq!(found["passages"][0]["title"], "Chad");
    assert_eq!(found["passages"].as_array().unwrap().len(), 1);
    assert_eq!(search("item push", &["--filter", "language=python"])["passages"][0]["document"], "docs/src/stack.py");
    assert_eq!(search("capital", &["--filter", "kind=markdown"])["passages"], Value::Array(Vec::new()));
    let said = run(folgore(["search", "installer", "--index", path(&index)])).well().stdout;
    assert!(said.starts_with("1. docs/guide.md") && said.contains("run the installer"), "{said}");
    let said = run(folgore(build)).well().stdout;
    assert!(said.contains("3 documents") && said.contains("docs/scan.pdf: PDF is not read"), "{said}");

    fs::remove_file(docs.join("facts.jsonl")).unwrap();
    assert_eq!(answer(&build)["report"]["documents_removed"], 1);
    assert_eq!(search("capital of Chad", &[])["passages"], Value::Array(Vec::new()));
}

#[test]
fn what_cannot_be_done_is_one_line() {
    let place = folder();
    let none = place.path().join("none");
    refused(folgore(["search", "x", "--index", path(&none)]), &["none", "folgore index"]);
    refused(folgore(["index", path(&none), "--out", path(&none)]), &["none"]);
    fs::write(place.path().join("a.md"), "text").unwrap();
    let file = place.path().join("a.md");
    refused(folgore(["index", path(&file), path(&file), "--out", path(&none)]), &["same name"]);
    refused(folgore(["index", path(&file), "--out", path(&none), "--max-tokens", "3"]), &["at least 16"]);
    run(folgore(["index", path(&file), "--out", path(&none)])).well();
    refused(folgore(["search", "x", "--index", path(&none), "--filter", "nothing"]), &["key=value"]);
    fs::write(none.join("corpus.redb"), vec![1; 9000]).unwrap();
    refused(folgore(["search", "x", "--index", path(&none)]), &["index again"]);
}

/// Rows and files enough for many transactions.
fn corpus(docs: &Path) {
    fs::create_dir_all(docs).unwrap();
    let text = "Some words that stand for the text of a passage, again and again. ".repeat(8);
    let rows: String = (0..30_000)
        .map(|n| format!("{{\"id\": \"row {n}\", \"title\": \"Row {n}\", \"text\": \"{text} {n}\"}}\n"))
        .collect();
    fs::write(docs.join("rows.jsonl"), rows).unwrap();
    for n in 0..300 {
        fs::write(docs.join(format!("page-{n}.md")), format!("# Page {n}\n\n{text}\n\n## More\n\n{text}\n")).unwrap();
    }
}

#[test]
fn killed_at_any_moment_nothing_is_lost_and_nothing_is_there_twice() {
    let place = folder();
    let docs = place.path().join("docs");
    corpus(&docs);
    let (whole, cut) = (place.path().join("whole"), place.path().join("cut"));
    let expected = answer(&["index", path(&docs), "--out", path(&whole)]);
    assert_eq!(expected["counts"]["documents"], 30_300);

    let (file, mut committed) = (cut.join("corpus.redb"), 0);
    let mut kills = 0;
    for size in [0, 1, 2, 4, 8, 16].map(|step| step * 1_500_000) {
        let mut running = Running::start(folgore(["index", path(&docs), "--out", path(&cut)]));
        // cut off once the file has grown by another part; a launch that ends by itself is as good
        if running.until(|| fs::metadata(&file).is_ok_and(|found| found.len() > size)) {
            running.kill();
            kills += 1;
        }
        // what is there can be searched, and never becomes less
        let found = answer(&["search", "words of a passage", "--index", path(&cut), "-k", "10000"]);
        let found = found["passages"].as_array().unwrap();
        let mut ids: Vec<&str> = found.iter().map(|passage| passage["id"].as_str().unwrap()).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count, "a passage is there twice");
        assert!(count >= committed, "{count} passages, there were {committed}");
        committed = count;
    }
    assert!(kills >= 2, "{kills} launches were cut off");
    let done = answer(&["index", path(&docs), "--out", path(&cut)]);
    assert_eq!((&done["digest"], &done["counts"]), (&expected["digest"], &expected["counts"]));
    let again = answer(&["index", path(&docs), "--out", path(&cut)]);
    assert_eq!((&again["digest"], &again["report"]["documents_added"]), (&expected["digest"], &0.into()));
}
