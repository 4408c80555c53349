//! Every command line that is written down in the repository is one that the executable takes: in compose files, manifests,
//! units, scripts and pages. A flag that is renamed is found here.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Parser as _;
use serde::Deserialize as _;
use serde_norway::Value;

use super::Cli;

/// A command line without the executable, and where it is written.
type Written = (PathBuf, Vec<String>);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// All files that are for people and machines to run Folgore with.
fn places() -> Vec<PathBuf> {
    let root = root();
    let mut places = vec![root.join("README.md")];
    for folder in ["docker", "kubernetes", "systemd", "nats", "README.md"].map(|name| root.join("deploy").join(name)) {
        places.extend(if folder.is_dir() { files(&folder) } else { vec![folder] });
    }
    places
}

/// Commands of containers that run our image: `command` of a compose file adds to the image's entry point, as `args` of a
/// manifest do; a manifest's `command` takes its place.
fn of_containers(node: &Value, found: &mut Vec<Vec<String>>) {
    let texts = |list: &Value| -> Vec<String> {
        list.as_sequence().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    match node {
        Value::Sequence(items) => items.iter().for_each(|item| of_containers(item, found)),
        Value::Mapping(map) => {
            let image = map.get("image").and_then(Value::as_str).unwrap_or_default();
            if image == "folgore" && !map.contains_key("command") {
                found.push(texts(&map["args"]));
            } else if image.starts_with("folgore:") && map.contains_key("command") {
                found.push(texts(&map["command"]));
            }
            map.values().for_each(|inner| of_containers(inner, found));
        }
        _ => {}
    }
}

/// Lines of a page, a script or a unit that begin with the executable; a comment ends a line, a backslash goes on with it.
fn of_lines(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    // a line with an ellipsis is no whole command
    let commands = text.lines().filter(|line| !line.contains(" ... ")).filter_map(|line| {
        let line = line.trim_start().trim_start_matches("# ").trim_start();
        let line = line.split("   #").next().unwrap_or_default();
        let line = line.split("  # ").next().unwrap_or_default();
        let starts =
            ["folgore ", "cargo run --release -- ", "ExecStart=/usr/local/bin/folgore ", "sudo -u folgore folgore "];
        starts.iter().find_map(|start| line.strip_prefix(start))
    });
    commands
        .map(|line| line.split_whitespace().map(|word| word.trim_matches(['"', '\'']).to_owned()).collect())
        .collect()
}

fn written() -> Vec<Written> {
    let mut all = Vec::new();
    for path in places() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let mut found = of_lines(&text);
        if path.extension().is_some_and(|ending| ending == "yaml") {
            for document in serde_norway::Deserializer::from_str(&text) {
                let mut value = Value::deserialize(document).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                // what is merged in may itself merge
                for _ in 0..4 {
                    value.apply_merge().unwrap();
                }
                of_containers(&value, &mut found);
            }
        }
        all.extend(found.into_iter().map(|arguments| (path.clone(), arguments)));
    }
    all
}

#[test]
fn every_command_line_is_taken() {
    let all = written();
    for (path, arguments) in &all {
        let parsed = Cli::try_parse_from(["folgore"].into_iter().chain(arguments.iter().map(String::as_str)));
        if let Err(error) = parsed {
            panic!("{}: folgore {}\n{error}", path.display(), arguments.join(" "));
        }
    }
    let from = |name: &str| all.iter().filter(|(path, _)| path.to_string_lossy().ends_with(name)).count();
    let expected = [("compose.yaml", 4), ("head.yaml", 1), ("rollout.yaml", 1), (".service", 2), ("README.md", 15)];
    for (name, at_least) in expected {
        assert!(from(name) >= at_least, "{name}: {} of {at_least}", from(name));
    }
}

#[test]
fn a_flag_that_there_is_not_is_found() {
    let lines = of_lines("    folgore train demo --run-nam=x   # a comment\n# folgore doctor\nnot folgore doctor\n");
    assert_eq!(lines, [vec!["train", "demo", "--run-nam=x"], vec!["doctor"]]);
    let parsed = Cli::try_parse_from(["folgore"].iter().map(|s| s.to_string()).chain(lines[0].clone()));
    assert!(parsed.unwrap_err().to_string().contains("--run-nam"));
}
