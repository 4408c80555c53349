//! The table of `ARCHITECTURE.md`, held: who may know whom, and what no source file may hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

const PREFIX: &str = "folgore-";
/// Lines of a source file. Above it, a file holds more than one idea.
const LINES_MAX: usize = 800;

type Names = BTreeSet<String>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The packages that Folgore is made of, as cargo sees them: those of `examples/` are what users build upon it.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (examples, mut packages) = (root().join("examples"), metadata["packages"].as_array().unwrap().clone());
    packages.retain(|package| !Path::new(package["manifest_path"].as_str().unwrap()).starts_with(&examples));
    packages
}

fn short(name: &str) -> Option<String> {
    name.strip_prefix(PREFIX).map(str::to_owned)
}

/// What each crate depends on, ours (without the prefix) and others', for building and for tests alike.
fn dependencies() -> BTreeMap<String, (Names, Names)> {
    let of = |package: &Value| {
        let names = package["dependencies"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap().to_owned());
        let (ours, others): (Names, Names) = names.partition(|name| name.starts_with(PREFIX));
        let name = short(package["name"].as_str().unwrap()).expect("a crate of the workspace begins with the prefix");
        (name, (ours.iter().filter_map(|n| short(n)).collect(), others))
    };
    packages().iter().map(of).collect()
}

/// The table of `ARCHITECTURE.md`: each crate with those that it may know; none stands for all.
fn table() -> BTreeMap<String, Option<Names>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [folder, _, knows] = cells[..] else { return None };
        let name = folder.strip_prefix('`')?.strip_suffix("/`")?;
        let knows = match knows {
            "all" => None,
            "nothing of ours" => Some(Names::new()),
            list => Some(list.split(',').map(|n| n.trim().to_owned()).collect()),
        };
        Some((name.to_owned(), knows))
    });
    rows.collect()
}

/// All Rust sources of the crates and of `tests/`.
fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for krate in dependencies().into_keys() {
        for part in ["src", "tests", "benches", "examples"] {
            let folder = root().join(&krate).join(part);
            if folder.is_dir() {
                walk(&folder, &mut found);
            }
        }
    }
    walk(&root().join("tests"), &mut found);
    assert!(found.len() > 100, "only {} sources were found", found.len());
    found
}

#[test]
fn every_crate_knows_only_those_that_the_table_allows() {
    let (table, dependencies) = (table(), dependencies());
    for (krate, (ours, _)) in &dependencies {
        let allowed = table.get(krate).unwrap_or_else(|| panic!("{krate} is missing in the table of ARCHITECTURE.md"));
        let Some(allowed) = allowed else { continue };
        let beyond: Vec<_> = ours.difference(allowed).collect();
        assert!(beyond.is_empty(), "{krate} depends on {beyond:?}; the table of ARCHITECTURE.md allows {allowed:?}");
    }
    let folders: Names = table.into_keys().filter(|name| name != "tests").collect();
    assert_eq!(folders, dependencies.into_keys().collect(), "the table and the workspace hold the same crates");
}

#[test]
fn what_the_design_rests_on_does_not_depend_on_the_table() {
    let dependencies = dependencies();
    let apart = ["rollout", "retriever", "reward", "learner"];
    for (krate, (ours, others)) in &dependencies {
        if apart.contains(&krate.as_str()) {
            let met: Vec<_> = ours.iter().filter(|n| apart.contains(&n.as_str())).collect();
            assert!(met.is_empty(), "{krate} depends on {met:?}: they meet in protocol only");
        }
        if krate != "actors" && krate != "deploy" {
            assert!(!others.contains("async-nats"), "{krate} names async-nats: transports are the business of actors");
        }
        assert!(!ours.contains("deploy"), "{krate} depends on deploy, which is the last to know");
        // the tool that looks for faults is known by nobody
        let knows_all = ours.len() + 1 == dependencies.keys().filter(|name| *name != "fuzz").count();
        assert_eq!(knows_all, krate == "deploy", "{krate} knows {ours:?}: deploy alone knows every crate");
    }
    assert!(dependencies["protocol"].0.is_empty() && dependencies["config"].0.is_empty());
    let runtimes = ["tokio", "ractor", "async-nats", "redb"];
    let io: Vec<_> = dependencies["protocol"].1.iter().filter(|n| runtimes.contains(&n.as_str())).collect();
    assert!(io.is_empty(), "protocol holds values only, and depends on {io:?}");
}

#[test]
fn no_transport_is_named_outside_of_actors() {
    for path in
        sources().iter().filter(|p| !p.starts_with(root().join("actors")) && !p.starts_with(root().join("tests")))
    {
        let text = fs::read_to_string(path).unwrap();
        assert!(!text.contains("async_nats"), "{}: names async_nats", path.display());
    }
}

#[test]
fn sources_are_short_finished_and_say_what_they_are_for() {
    // put together, so that this file does not hold them
    let unfinished =
        [["#[ig", "nore"], ["todo", "!("], ["unimple", "mented!("], ["db", "g!("]].map(|halves| halves.concat());
    let mut faults = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let mut fault = |what: String| faults.push(format!("{}: {what}", path.strip_prefix(root()).unwrap().display()));
        let lines = text.lines().count();
        if lines > LINES_MAX {
            fault(format!("{lines} lines, at most {LINES_MAX} are allowed"));
        }
        if !text.starts_with("//!") {
            fault("begins without a line of //! that says what the file is for".into());
        }
        for word in unfinished.iter().filter(|word| text.contains(*word)) {
            fault(format!("holds {word}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_crate_takes_its_lints_and_versions_from_the_workspace() {
    for krate in dependencies().into_keys() {
        let manifest = fs::read_to_string(root().join(&krate).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{krate}/Cargo.toml: lints of its own");
        assert!(manifest.contains("publish.workspace = true"), "{krate}/Cargo.toml: publish of its own");
        let versions: Vec<&str> = manifest.lines().filter(|line| line.contains("version = \"")).collect();
        assert!(versions.is_empty(), "{krate}/Cargo.toml: versions belong into the workspace's: {versions:?}");
    }
}
