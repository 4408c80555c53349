//! Names of files that hold rows, and what rows from a path are called.

use std::path::Path;

/// Names that rows have.
const ENDINGS: [&str; 9] = ["jsonl", "json", "ndjson", "csv", "tsv", "parquet", "db", "sqlite", "sqlite3"];
/// Names that compressed files have besides.
const COMPRESSED: [&str; 2] = [".gz", ".zst"];
/// What lies beside rows and is none.
const BESIDE: [&str; 7] = [
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "package.json",
    "croissant.json",
];

/// Whether a file of this name holds rows; a folder may stand in front.
pub fn holds_rows(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    let ending = plain(&name).rsplit_once('.').map(|(_, ending)| ending);
    ending.is_some_and(|ending| ENDINGS.contains(&ending)) && !BESIDE.contains(&name.as_str())
}

/// What rows from `path` are called: the name of the file without its endings, of the folder, or of the repository on the hub.
pub fn title(path: &str) -> String {
    let path = Path::new(path);
    if let Some(repository) = path.ancestors().find_map(|above| repository(path, above)) {
        return repository;
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let Some(name) = name else { return path.display().to_string() };
    let inner = plain(&name);
    match inner.rsplit_once('.').filter(|_| !path.is_dir()) {
        Some((stem, _)) if !stem.is_empty() => stem.to_owned(),
        _ => inner.to_owned(),
    }
}

fn plain(name: &str) -> &str {
    COMPRESSED.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// `owner/name` or `owner/name:PART` of a snapshot in the cache of the hub, `datasets--owner--name/snapshots/COMMIT/PART`.
fn repository(path: &Path, snapshot: &Path) -> Option<String> {
    let snapshots = snapshot.parent().filter(|folder| folder.ends_with("snapshots"))?;
    let folder = snapshots.parent()?.file_name()?.to_str()?;
    let name = folder.strip_prefix("datasets--")?.replacen("--", "/", 1);
    let part = path.strip_prefix(snapshot).ok()?.to_string_lossy().into_owned();
    Some(if part.is_empty() { name } else { format!("{name}:{part}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_by_their_names() {
        for name in ["a.jsonl", "data/train-00000-of-00001.parquet", "x.CSV.gz", "b.ndjson.zst", "chat.db"] {
            assert!(holds_rows(name), "{name}");
        }
        for name in ["README.md", "dataset_infos.json", "x/config.json", "a.txt", "a.gz", "parquet", "load.py"] {
            assert!(!holds_rows(name), "{name}");
        }
    }

    #[test]
    fn rows_are_called_as_their_file_or_repository() {
        for (path, name) in [
            ("rows.jsonl.gz", "rows"),
            ("a/b/v1.5.parquet", "v1.5"),
            ("a/folder", "folder"),
            ("c/datasets--open-r1--Math/snapshots/0123", "open-r1/Math"),
            ("c/datasets--open-r1--Math/snapshots/0123/all/x.jsonl", "open-r1/Math:all/x.jsonl"),
            ("..", ".."),
        ] {
            assert_eq!(title(path), name, "{path}");
        }
    }
}
