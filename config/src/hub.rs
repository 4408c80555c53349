//! Names of models and datasets on the Hugging Face hub.

use std::fmt;

/// Revision of a name that says none.
const MAIN: &str = "main";
/// Longest name that the hub gives.
const LONGEST: usize = 96;

/// What a repository holds. The hub keeps names of the two apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RepoKind {
    /// A model, an adapter, an encoder.
    #[default]
    Model,
    /// Rows.
    Dataset,
}

impl RepoKind {
    /// What addresses and folders of the cache call it.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// What people call it.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }
}

/// `owner/name`, `owner/name@revision`, `owner/name:file.gguf`, or `owner/name@revision:file.gguf`; of a dataset any file or folder
/// stands behind the colon. All parts may be put into paths and addresses: none leads out of its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    kind: RepoKind,
    repo: String,
    revision: Option<String>,
    file: Option<String>,
}

impl HubName {
    /// Reads `text` as the name of a model; none if it is no such name.
    pub fn parse(text: &str) -> Option<Self> {
        let name = Self::of(RepoKind::Model, text)?;
        name.file.as_ref().is_none_or(|file| file.to_lowercase().ends_with(".gguf")).then_some(name)
    }

    /// Reads `text` as the name of a dataset; none if it is no such name, or one that a file of rows has.
    pub fn parse_dataset(text: &str) -> Option<Self> {
        Self::of(RepoKind::Dataset, text).filter(|name| !crate::data::names::holds_rows(&name.repo))
    }

    fn of(kind: RepoKind, text: &str) -> Option<Self> {
        let (left, file) = match text.split_once(':') {
            Some((left, file)) => (left, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = match left.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (left, None),
        };
        let (owner, name) = repo.split_once('/')?;
        let fits = repo.len() <= LONGEST
            && is_word(owner)
            && is_word(name)
            && revision.is_none_or(stays_inside)
            && file.is_none_or(stays_inside);
        fits.then(|| Self { kind, repo: repo.into(), revision: revision.map(Into::into), file: file.map(Into::into) })
    }

    /// What it is the name of.
    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// `owner/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Branch, tag or commit; `main` unless it is said.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// True if the name says its revision.
    pub fn says_revision(&self) -> bool {
        self.revision.is_some()
    }

    /// The commit, if that is the revision: a revision that stays what it is.
    pub fn commit(&self) -> Option<&str> {
        self.revision.as_deref().filter(|revision| is_commit(revision))
    }

    /// The GGUF file, or the file or folder of a dataset, that is meant; none for all of it.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The same without a revision.
    pub fn without_revision(&self) -> Self {
        Self { revision: None, ..self.clone() }
    }

    /// The same at `revision`; none if that is none.
    pub fn at(&self, revision: &str) -> Option<Self> {
        stays_inside(revision).then(|| Self { revision: Some(revision.to_owned()), ..self.clone() })
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// Whether `text` is the whole name of a commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `path` is a relative path with slashes that stays in its folder.
pub fn stays_inside(path: &str) -> bool {
    let strange = |c: char| c.is_control() || matches!(c, '\\' | ':');
    !path.is_empty() && !path.contains(strange) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Owner or name by the rules of the hub, which keep `--` for the folders of its cache.
fn is_word(text: &str) -> bool {
    let edge = |c: char| c == '-' || c == '.';
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("--")
        && !text.contains("..")
}

#[cfg(test)]
mod tests {
    use crate::ModelSection;

    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (text, revision, file) in [
            ("HuggingFaceTB/SmolLM2-135M-Instruct", "main", None),
            ("a/b@v1.0", "v1.0", None),
            ("a/b@refs/pr/1", "refs/pr/1", None),
            ("a/b:q/x.Q4_K_M.gguf", "main", Some("q/x.Q4_K_M.gguf")),
            (&format!("a/b@{commit}:x.GGUF"), commit, Some("x.GGUF")),
        ] {
            let name = HubName::parse(text).unwrap_or_else(|| panic!("{text} was not taken"));
            assert_eq!((name.revision(), name.file(), name.to_string().as_str()), (revision, file, text));
            assert_eq!(name.commit().is_some(), revision == commit);
        }
        let rows = HubName::parse_dataset("openai/gsm8k@main:socratic").unwrap();
        assert_eq!((rows.kind(), rows.file()), (RepoKind::Dataset, Some("socratic")));
        for file in ["data/train.jsonl", "data/rows.parquet", "a/b:../c", "a/b:/c", "rows"] {
            assert_eq!(HubName::parse_dataset(file), None, "{file}");
        }
        assert_eq!(HubName::parse("a/b:x.gguf").unwrap().at("v1").unwrap().to_string(), "a/b@v1:x.gguf");
    }

    #[test]
    fn a_revision_beside_the_name_counts_as_one_in_it() {
        let told = |name: &str, revision: &str| {
            let section = ModelSection {
                model_name_or_path: name.into(),
                model_revision: Some(revision.into()),
                ..ModelSection::default()
            };
            let mut problems = crate::Problems::default();
            section.check(&mut problems);
            let faults: Vec<String> = problems.errors.iter().map(|e| format!("{}: {}", e.key, e.expected)).collect();
            (section.reference(), faults.join("\n"))
        };
        assert_eq!(told("a/b", "v1"), ("a/b@v1".into(), String::new()));
        assert_eq!(told("a/b:x.gguf", "refs/pr/2"), ("a/b@refs/pr/2:x.gguf".into(), String::new()));
        assert!(told("a/b", "../x").1.contains("a branch, a tag or a commit"));
        for name in ["a/b@v2", "/models/b", "embedded"] {
            assert!(told(name, "v1").1.contains("a name on the hub"), "{name}");
        }
    }

    #[test]
    fn what_would_lead_elsewhere_is_no_name() {
        for bad in [
            "embedded",
            "a",
            "/a/b",
            "a/b/c",
            "../b",
            "a/..",
            "./b",
            "a/b@",
            "a/b@../x",
            "a/b@/x",
            "a/b@x/../y",
            "a/b:",
            "a/b:x.bin",
            "a/b:../x.gguf",
            "a/b:/x.gguf",
            "a/b:c\\x.gguf",
            "a--c/b",
            "-a/b",
            "a/b.",
            "a b/c",
            "a/b\n",
            "C:/x",
            "a/",
            "/b",
            "",
        ] {
            assert_eq!(HubName::parse(bad), None, "{bad:?} was taken");
        }
        assert!(HubName::parse(&format!("a/{}", "b".repeat(95))).is_none());
        assert!(HubName::parse("a/b").unwrap().at("..").is_none());
    }
}
