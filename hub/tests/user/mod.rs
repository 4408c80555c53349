//! Whoever wants models: a cache of their own, and the hub they look at.
#![allow(dead_code, reason = "each test target uses its own part")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use folgore_config::HubName;
use folgore_hub::{HubError, Need, Obtained, Patience, Settings, obtain};
use tempfile::TempDir;

use crate::server::{Hub, Repo, etag};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";
pub const NAME: &str = "owner/tiny";
pub const MODEL: [&str; 6] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures").join(name)
}

/// A fixture with what Folgore does not read beside it.
pub fn repo(name: &str) -> Repo {
    let mut repo = Repo::of(&fixture(name), COMMIT);
    for extra in ["pytorch_model.bin", "README.md", "onnx/model.onnx"] {
        repo.files.insert(extra.into(), extra.into());
    }
    repo
}

/// A cache of its own, and a user who looks at `hub`.
pub struct User {
    pub cache: TempDir,
    pub settings: Settings,
    pub said: Mutex<Vec<String>>,
}

impl User {
    pub fn of(hub: &Hub) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let patience = Patience {
            connect: Duration::from_secs(20),
            silence: Duration::from_secs(60),
            attempts: 3,
            pause: Duration::from_millis(1),
        };
        let (endpoint, path) = (hub.url.clone(), cache.path().join("hub"));
        let settings = Settings { endpoint, cache: path, token: None, offline: false, patience };
        Self { cache, settings, said: Mutex::default() }
    }

    pub fn obtain(&self, name: &str, need: Need) -> Result<Obtained, HubError> {
        let say = |line: &str| self.said.lock().unwrap().push(line.to_owned());
        obtain(&self.settings, &HubName::parse(name).unwrap(), need, &say)
    }

    #[track_caller]
    pub fn gets(&self, name: &str, need: Need) -> Obtained {
        self.obtain(name, need).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The error, which holds all of `words`.
    #[track_caller]
    pub fn is_refused(&self, name: &str, words: &[&str]) {
        let told = self.obtain(name, Need::Model).expect_err("it was given").to_string();
        words.iter().for_each(|word| assert!(told.contains(word), "{word:?} is not in {told:?}"));
    }

    pub fn folder(&self) -> PathBuf {
        self.settings.cache.join("models--owner--tiny")
    }

    /// All that is in the cache, links not followed.
    pub fn tree(&self) -> BTreeSet<String> {
        fn walk(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), root, found),
                    false => drop(found.insert(entry.path().strip_prefix(root).unwrap().display().to_string())),
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(self.cache.path(), self.cache.path(), &mut found);
        found
    }
}

pub fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Writes `files` as `huggingface_hub` does.
pub fn as_python(user: &User, files: &[&str]) {
    let (folder, repo) = (user.folder(), repo("tiny-tied"));
    for part in ["refs", "blobs", &format!("snapshots/{COMMIT}")] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    for file in files {
        let etag = etag(file, &repo.files[*file]);
        fs::write(folder.join("blobs").join(&etag), &repo.files[*file]).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{etag}"), folder.join("snapshots").join(COMMIT).join(file))
            .unwrap();
    }
}
