//! What is in `deploy/` to run Folgore somewhere: container, compose file, Kubernetes manifests, units. Nothing of it can be
//! started here, but all of it can be held to what it refers to: schemas, the real server, the executable, and each other.
//! That every command line in these files is one that the executable takes is a test of the executable
//! (`deploy/src/cli/written.rs`).

#[path = "deploy_files/compose.rs"]
mod compose;
#[path = "deploy_files/image.rs"]
mod image;
#[path = "deploy_files/kubernetes.rs"]
mod kubernetes;
#[path = "deploy_files/server.rs"]
mod server;
#[path = "deploy_files/services.rs"]
mod services;
mod support;
#[path = "deploy_files/systemd.rs"]
mod systemd;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use serde_json::Value;
use support::root;

/// A file below `deploy/`.
fn text(path: &str) -> String {
    let path = root().join("deploy").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file below `deploy/`, with merge keys resolved.
fn documents(path: &str) -> Vec<Value> {
    let read = |document| -> Result<Value, serde_norway::Error> {
        let mut value = serde_norway::Value::deserialize(document)?;
        // what is merged in may itself merge
        for _ in 0..4 {
            value.apply_merge()?;
        }
        serde_norway::from_value(value)
    };
    let text = text(path);
    let all = serde_norway::Deserializer::from_str(&text).map(read).collect::<Result<_, _>>();
    all.unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The one document of a YAML file.
fn document(path: &str) -> Value {
    let mut all = documents(path);
    assert_eq!(all.len(), 1, "{path}");
    all.remove(0)
}

/// All files below `folder` whose names end in `ending`.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files(&path, ending)),
            false if path.to_string_lossy().ends_with(ending) => found.push(path),
            false => {}
        }
    }
    found
}

/// The texts in a list; none for a list that is not there.
fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.map(|item| item.as_str().unwrap_or_else(|| panic!("{item} is no text")).to_owned()).collect()
}

/// What a command line gives for `flag`, as `--flag=value` or `--flag value`; the last one counts.
fn flag(arguments: &[String], flag: &str) -> Option<String> {
    flags(arguments, flag).pop()
}

/// What a command line gives for `flag`, which may be repeated.
fn flags(arguments: &[String], flag: &str) -> Vec<String> {
    let joined = format!("{flag}=");
    let here = |(at, argument): (usize, &String)| match argument.strip_prefix(&joined) {
        Some(value) => Some(value.to_owned()),
        None if argument == flag => arguments.get(at + 1).cloned(),
        None => None,
    };
    arguments.iter().enumerate().filter_map(here).collect()
}

/// A schema of `tests/schemas/`.
fn schema(name: &str) -> Value {
    let path = root().join("tests/schemas").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What the schema at `pointer` in `schema` has against `value`; nothing if it is good.
fn faults(schema: &Value, pointer: &str, value: &Value) -> Option<String> {
    let mut compiler = boon::Compiler::new();
    compiler.add_resource("mem:///schema.json", schema.clone()).unwrap();
    let mut schemas = boon::Schemas::new();
    let at = compiler.compile(&format!("mem:///schema.json{pointer}"), &mut schemas);
    let at = at.unwrap_or_else(|error| panic!("{pointer}: {error}"));
    schemas.validate(value, at).err().map(|error| format!("{error:#}"))
}

#[test]
fn every_yaml_file_is_yaml() {
    let deploy = root().join("deploy");
    let found: Vec<PathBuf> = [".yaml", ".yml"].iter().flat_map(|ending| files(&deploy, ending)).collect();
    assert!(found.len() > 10, "{found:?}");
    for path in found {
        assert!(!documents(path.strip_prefix(&deploy).unwrap().to_str().unwrap()).is_empty(), "{}", path.display());
    }
}

/// Variables of OpenTelemetry that are read, by us or by its SDK, and that our files set.
const TELEMETRY: [&str; 4] =
    ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_METRICS_EXPORTER", "OTEL_RESOURCE_ATTRIBUTES"];

/// A variable that nobody reads does nothing, and says nothing.
#[test]
fn every_variable_of_ours_is_read_by_a_source() {
    let root = root();
    let sources: String = ["actors/src", "deploy/src", "rollout/src", "reward/src"]
        .iter()
        .flat_map(|folder| files(&root.join(folder), ".rs"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut seen = BTreeSet::new();
    for ending in [".yaml", ".service", ".env", "Dockerfile"] {
        for path in files(&root.join("deploy"), ending) {
            let text = fs::read_to_string(&path).unwrap();
            let words = text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
            for name in words.clone().filter(|word| word.starts_with("OTEL_")) {
                assert!(TELEMETRY.contains(&name), "{}: nothing reads {name}", path.display());
            }
            for name in words.filter(|word| word.starts_with("FOLGORE_")) {
                assert!(sources.contains(&format!("\"{name}\"")), "{}: nothing reads {name}", path.display());
                seen.insert(name.to_owned());
            }
        }
    }
    assert!(seen.contains("FOLGORE_CACHE"), "{seen:?}");
}
