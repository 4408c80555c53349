//! `folgore index` and `folgore search` as users run them, and what a kill leaves behind.

mod support;

use std::{fs, path::Path};

use serde_json::{Value, json};
use support::{Running, folder, folgore, refused, root, run};

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

/// A model of the fixtures.
fn model(name: &str) -> String {
    path(&root().join("tests/parity/fixtures/bert-tiny").join(name)).to_owned()
}

/// Facts of which a misspelt one can only be found by its vector.
fn facts(docs: &Path) {
    fs::create_dir_all(docs).unwrap();
    for (name, text) in [
        ("asia.md", "# Asia\n\nThe capital of Kazakhstan is Astana.\n"),
        ("frogs.md", "# Frogs\n\nTree frogs eat insects.\n"),
        ("africa.md", "# Africa\n\nThe capital of Chad is N'Djamena.\n"),
    ] {
        fs::write(docs.join(name), text).unwrap();
    }
}

#[test]
fn an_encoder_makes_vectors_that_follow_the_documents() {
    let place = folder();
    let (docs, index) = (place.path().join("docs"), place.path().join("index"));
    facts(&docs);
    let build = |more: &[&str]| answer(&[&["index", path(&docs), "--out", path(&index)][..], more].concat());
    let search = |query: &str, more: &[&str]| answer(&[&["search", query, "--index", path(&index)][..], more].concat());
    let first = |found: Value| found["passages"][0]["document"].clone();
    let plain = build(&[]);
    assert_eq!((&plain["encoder"], &plain["vectors"]["encoded"]), (&Value::Null, &0.into()));
    assert_eq!(search("Kazakstan", &[])["ranked"]["by"], "words");
    refused(folgore(["search", "x", "--index", path(&index), "--by", "both"]), &["no vectors", "--encoder"]);

    // words are left as they are, and vectors come to them
    let hashed = build(&["--encoder", "hashed"]);
    assert_eq!((&hashed["digest"], &hashed["report"]["files_read"]), (&plain["digest"], &0.into()));
    assert_eq!((&hashed["vectors"], &hashed["encoder"]["name"]), (&json!({"encoded": 3, "kept": 0}), &"hashed".into()));
    let found = search("Kazakstan", &["-k", "1"]);
    assert_eq!((&found["ranked"]["by"], &found["ranked"]["encoder"]), (&"both".into(), &"hashed".into()), "{found}");
    assert_eq!(first(found), "docs/asia.md");
    assert_eq!(search("Kazakstan", &["--by", "words"])["passages"], json!([]));
    assert_eq!(first(search("Kazakstan", &["--by", "vectors"])), "docs/asia.md");
    assert_eq!(first(search("capital of Kazakstan", &["--filter", "path=docs/af*"])), "docs/africa.md");

    // the index remembers its encoder; a changed, a new and a removed file
    fs::write(docs.join("frogs.md"), "# Frogs\n\nFrogs are amphibians.\n").unwrap();
    fs::write(docs.join("toads.md"), "# Toads\n\nToads are dry.\n").unwrap();
    fs::remove_file(docs.join("africa.md")).unwrap();
    let next = build(&[]);
    assert_eq!((&next["vectors"], &next["counts"]["chunks"]), (&json!({"encoded": 2, "kept": 1}), &3.into()), "{next}");
    assert_eq!(first(search("amphibian", &["--by", "vectors"])), "docs/frogs.md");
    let said = run(folgore(["index", path(&docs), "--out", path(&index)])).well().stdout;
    assert!(said.contains("vectors    0 made, 3 kept, by hashed"), "{said}");
    assert_eq!(build(&["--clear"])["vectors"], json!({"encoded": 3, "kept": 0}));
    assert_eq!(build(&["--encoder", "none"])["vectors"], json!({"encoded": 0, "kept": 0}));
    assert_eq!(search("frogs", &[])["ranked"]["by"], "words");
}

#[test]
fn models_in_folders_encode_and_rerank() {
    let place = folder();
    let (docs, index, moved) =
        (place.path().join("docs"), place.path().join("index"), place.path().join("elsewhere/model"));
    facts(&docs);
    let (mean, cls) = (model("sentence-mean"), model("sentence-cls"));
    let build = |encoder: &str| answer(&["index", path(&docs), "--out", path(&index), "--encoder", encoder]);
    let built = build(&mean);
    assert_eq!((&built["vectors"]["encoded"], &built["encoder"]["dim"]), (&3.into(), &24.into()), "{built}");
    let search = |more: &[&str]| answer(&[&["search", "capital of Chad", "--index", path(&index)][..], more].concat());
    assert_eq!(search(&["--by", "vectors"])["passages"].as_array().unwrap().len(), 3);
    for kind in ["cross", "late"] {
        let reranker = model(kind);
        let found = search(&["--rerank", &reranker, "--candidates", "7"]);
        assert!(found["ranked"]["rerank"].as_str().unwrap().ends_with(kind), "{found}");
        assert_eq!((&found["ranked"]["by"], &found["ranked"]["candidates"]), (&"both".into(), &7.into()));
        let scores: Vec<f64> =
            found["passages"].as_array().unwrap().iter().map(|p| p["score"].as_f64().unwrap()).collect();
        assert!(scores.len() == 3 && scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    }
    refused(folgore(["search", "x", "--index", path(&index), "--rerank", &mean]), &["classifier.weight"]);
    refused(folgore(["search", "x", "--index", path(&index), "--encoder", &cls]), &["sentence-mean", "another one"]);
    refused(
        folgore(["index", path(&docs), "--out", path(&index), "--max-tokens", "256"]),
        &["sentence-mean", "looks at"],
    );

    // another encoder makes all vectors anew; the index says where it was when it is gone
    fs::create_dir_all(moved.join("1_Pooling")).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"] {
        fs::copy(Path::new(&cls).join(name), moved.join(name)).unwrap();
    }
    assert_eq!(build(path(&moved))["vectors"], json!({"encoded": 3, "kept": 0}));
    fs::rename(&moved, place.path().join("here")).unwrap();
    refused(folgore(["search", "x", "--index", path(&index)]), &["elsewhere/model", "--encoder"]);
    let here = place.path().join("here");
    assert_eq!(search(&["--encoder", path(&here)])["ranked"]["by"], "both");
    assert_eq!(build(path(&here))["vectors"], json!({"encoded": 0, "kept": 3}), "the same encoder under another name");
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
    let build = |out| ["index", path(&docs), "--out", path(out), "--encoder", "hashed"];
    let expected = answer(&build(&whole));
    assert_eq!(expected["counts"]["documents"], 30_300);
    assert_eq!(expected["vectors"]["encoded"], expected["counts"]["chunks"]);

    let (file, mut committed) = (cut.join("corpus.redb"), 0);
    let mut kills = 0;
    // the larger ones are reached while vectors are made
    for size in [0, 1, 2, 4, 8, 16, 32, 48].map(|step| step * 1_500_000) {
        let mut running = Running::start(folgore(build(&cut)));
        // cut off once the file has grown by another part; a launch that ends by itself is as good
        if running.until(|| fs::metadata(&file).is_ok_and(|found| found.len() > size)) {
            running.kill();
            kills += 1;
        }
        // what is there can be searched, and never becomes less
        let by_words = ["search", "words of a passage", "--index", path(&cut), "-k", "10000", "--by", "words"];
        let found = answer(&by_words);
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
    let done = answer(&build(&cut));
    assert_eq!((&done["digest"], &done["counts"]), (&expected["digest"], &expected["counts"]));
    let again = answer(&build(&cut));
    assert_eq!((&again["digest"], &again["report"]["documents_added"]), (&expected["digest"], &0.into()));
    assert_eq!(again["vectors"], json!({"encoded": 0, "kept": expected["counts"]["chunks"]}));
    let best =
        |out| answer(&["search", "Row 777", "--index", path(out), "--by", "vectors"])["passages"][0]["id"].clone();
    assert_eq!((best(&cut), best(&whole)), ("row 777".into(), "row 777".into()));
}
