//! The container image: what it is built from, and who it runs as.

use std::{collections::BTreeSet, fs, path::Path};

use super::{root, text};

const DOCKERFILE: &str = "docker/Dockerfile";

/// The arguments of `instruction` in the Dockerfile, continued lines joined.
pub fn instructions(instruction: &str) -> Vec<String> {
    let text = text(DOCKERFILE).replace("\\\n", " ");
    let lines = text.lines().filter_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The version of the workspace, which the image has for a tag.
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Whether the name of an image says which one, and goes on saying so.
pub fn pinned(image: &str) -> bool {
    let tag = image.rsplit('/').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    tag.is_some_and(|tag| tag.split(['.', '-']).filter(|part| part.chars().any(|c| c.is_ascii_digit())).count() >= 2)
}

#[test]
fn the_compiler_is_the_one_that_is_tested() {
    let toolchain = fs::read_to_string(root().join("rust-toolchain.toml")).unwrap();
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let stages = instructions("FROM");
    assert!(stages[0].starts_with(&format!("rust:{channel}-")), "{stages:?} against {channel}");
    for stage in &stages {
        assert!(pinned(stage.split(' ').next().unwrap()), "{stage}");
    }
    assert!(!pinned("nats:latest") && !pinned("nats") && !pinned("registry:5000/nats") && !pinned("nats:2"));
}

/// What is built in one Debian runs in the same one: the C library of the last stage is not older.
#[test]
fn both_stages_are_the_same_debian() {
    let stages = instructions("FROM");
    assert!(stages[0].contains("bookworm") && stages[1].starts_with("debian:12."), "{stages:?}");
}

#[test]
fn it_runs_as_nobody_in_particular() {
    let user = instructions("USER").pop().unwrap();
    let (uid, gid) = user.split_once(':').expect("numbers, because Kubernetes cannot know a name");
    assert!(uid.parse::<u32>().unwrap() >= 1000 && uid == gid, "{user}");
    let made = instructions("RUN").pop().unwrap();
    assert!(made.contains(&format!("--uid {uid}")) && made.contains(&format!("--gid {gid}")), "{made}");
    for folder in ["/runs", "/nats", "/cache"] {
        assert!(made.contains(folder), "a volume at {folder} would be root's: {made}");
    }
    assert_eq!(instructions("ENTRYPOINT"), ["[\"folgore\"]"], "signals reach the executable itself");
}

/// `.dockerignore` lets in what it names; what it forgets is missing in the build.
#[test]
fn the_context_holds_the_workspace_and_nothing_that_is_made() {
    let root = root();
    let ignore = fs::read_to_string(root.join(".dockerignore")).unwrap();
    let mut lines = ignore.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"), "everything is left out but what is named");
    let named: BTreeSet<&str> = lines.map(|line| line.strip_prefix('!').expect("a name to let in")).collect();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let is_let_in = |path: &str| named.iter().any(|name| Path::new(path).starts_with(name));
    for member in members.split('"').skip(1).step_by(2) {
        for part in ["Cargo.toml", "src"] {
            assert!(is_let_in(&format!("{member}/{part}")), "{member}/{part} is left out");
        }
    }
    for copied in instructions("COPY").iter().filter(|line| !line.starts_with("--from") && !line.starts_with(". ")) {
        assert!(named.contains(copied.split(' ').next().unwrap()), "{copied}");
    }
    // a file that is compiled in lies in what is let in
    for folder in named.iter().map(|name| root.join(name)).filter(|path| path.is_dir()) {
        for path in super::files(&folder, ".rs") {
            let source = fs::read_to_string(&path).unwrap();
            for call in ["include_str!(\"", "include_bytes!(\""] {
                for named_there in source.split(call).skip(1).map(|rest| rest.split('"').next().unwrap()) {
                    let file = path.parent().unwrap().join(named_there);
                    let file = file.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                    let inside = file.strip_prefix(root.canonicalize().unwrap()).unwrap().to_owned();
                    assert!(named.iter().any(|name| inside.starts_with(name)), "{} is left out", inside.display());
                }
            }
        }
    }
}
