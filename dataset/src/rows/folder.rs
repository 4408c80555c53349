//! A folder of files: which of them are rows, in which order, and of which split.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use folgore_config::data::names;

/// Deepest folder, and most files.
const DEEPEST: usize = 8;
const MOST: usize = 10_000;

/// Which side a folder is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Rows to train on.
    Train,
    /// Rows to evaluate on.
    Eval,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Files to read with their names in the folder, in order.
    pub files: Vec<(PathBuf, String)>,
    /// Names of files that are not read, with the reason.
    pub not_read: Vec<(String, &'static str)>,
}

/// Finds the files of `path` for `role`; a file is found as it is.
pub(crate) fn find(path: &Path, role: Role) -> io::Result<Found> {
    if !path.is_dir() {
        let name = names::title(&path.display().to_string());
        return Ok(Found { files: vec![(path.to_owned(), name)], not_read: Vec::new() });
    }
    let mut found = Found::default();
    walk(path, "", DEEPEST, &mut found)?;
    found.files.sort_by(|a, b| a.1.cmp(&b.1));
    found.not_read.sort();
    keep_split(role, &mut found);
    Ok(found)
}

fn walk(folder: &Path, prefix: &str, depth: usize, found: &mut Found) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let (path, shown) = (entry.path(), format!("{prefix}{name}"));
        if entry.file_type()?.is_dir() {
            if depth == 0 {
                found.not_read.push((shown, "too deep"));
            } else {
                walk(&path, &format!("{shown}/"), depth - 1, found)?;
            }
        } else if names::holds_rows(&name) && path.is_file() {
            found.files.push((path, shown));
        } else {
            found.not_read.push((shown, "no rows, by its name"));
        }
        if found.files.len() + found.not_read.len() > MOST {
            return Err(io::Error::other(format!("more than {MOST} files")));
        }
    }
    Ok(())
}

/// The split that a name tells, as the hub reads names.
fn split_of(name: &str) -> Option<Role> {
    name.to_lowercase().split(|c: char| !c.is_alphanumeric()).find_map(|word| match word {
        "train" | "training" => Some(Role::Train),
        "test" | "testing" | "eval" | "evaluation" | "validation" | "valid" | "val" | "dev" => Some(Role::Eval),
        _ => None,
    })
}

/// Where names tell splits, only the files of `role` stay.
fn keep_split(role: Role, found: &mut Found) {
    let other = match role {
        Role::Train => Role::Eval,
        Role::Eval => Role::Train,
    };
    if !found.files.iter().any(|(_, name)| split_of(name) == Some(role)) {
        return;
    }
    let (left, kept) = found.files.drain(..).partition(|(_, name)| split_of(name) == Some(other));
    found.files = kept;
    let left: Vec<(PathBuf, String)> = left;
    found.not_read.extend(left.into_iter().map(|(_, name)| (name, "of another split")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_in_order_and_by_split() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        for name in [
            "data/train-00001.parquet",
            "data/train-00000.parquet",
            "data/test-00000.parquet",
            "more.jsonl.gz",
            "README.md",
            "dataset_infos.json",
            ".hidden.json",
        ] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let names = |role| {
            let found = find(folder.path(), role).unwrap();
            let files: Vec<String> = found.files.into_iter().map(|(_, name)| name).collect();
            (files, found.not_read.len())
        };
        let train = ["data/train-00000.parquet", "data/train-00001.parquet", "more.jsonl.gz"];
        assert_eq!(names(Role::Train), (train.map(str::to_owned).to_vec(), 3));
        let eval = ["data/test-00000.parquet", "more.jsonl.gz"];
        assert_eq!(names(Role::Eval), (eval.map(str::to_owned).to_vec(), 4));
    }
}
