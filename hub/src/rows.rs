//! Datasets: which files of a repository are rows, and which of them are meant.

use std::collections::{BTreeMap, BTreeSet};

use folgore_config::{data::names::holds_rows, hub::HubName};

use crate::{HubError, Obtained, Settings, apart, asked, cache::RepoCache, client::Client, download::Downloads, need};

/// Words of folders that are splits of the rows and no part of their own.
const SPLITS: [&str; 10] =
    ["train", "training", "test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev"];

/// Gives the rows of `name`, out of the cache or from the hub: a folder, or a file where `name` says one; `say` is told what takes time.
///
/// A repository may hold several parts, each a folder: `name:FOLDER` says which. Without one it is `data`, or all files where there are
/// no parts. Questions to the hub are as few as those of [`crate::obtain`].
///
/// # Errors
/// As [`crate::obtain`]; and if the repository has several parts and `name` says none, or has no file of rows.
pub fn obtain_rows(settings: &Settings, name: &HubName, say: &(dyn Fn(&str) + Sync)) -> Result<Obtained, HubError> {
    apart(|runtime| runtime.block_on(found(settings, name, say)))
}

async fn found(settings: &Settings, name: &HubName, say: &dyn Fn(&str)) -> Result<Obtained, HubError> {
    let cache = RepoCache::of(&settings.cache, name);
    let local = Local::look(&cache, name);
    if let Some(obtained) = local.complete().filter(|_| settings.offline || name.commit().is_some()) {
        return Ok(obtained);
    }
    let lacking = |why: String| HubError::NotCached {
        name: name.to_string(),
        why,
        cache: settings.cache.clone(),
        missing: local.missing(),
    };
    if settings.offline {
        return local.taken_as_it_is(say).ok_or_else(|| lacking("the hub is not asked (HF_HUB_OFFLINE)".into()));
    }
    let client = Client::new(settings)?;
    let attempts = if local.complete().is_some() { 1 } else { client.attempts() };
    let listing = match asked(&client, name, attempts, say).await {
        Err(HubError::Unreachable { why, .. }) => {
            let why = format!("{} cannot be asked: {why}", settings.endpoint);
            if let Some(obtained) = local.complete() {
                say(&format!("warning: {name}: {why}: the files in the cache are used as they are"));
                return Ok(obtained);
            }
            return local.taken_as_it_is(say).ok_or_else(|| lacking(why));
        }
        listing => listing?,
    };
    let chosen = choose(name, &listing.files)?;
    chosen.beside.iter().for_each(|other| say(&format!("{name}: {} is taken; {other} is not", chosen.place)));
    let downloads = Downloads { client: &client, cache: &cache, name, commit: &listing.commit, say };
    for file in &chosen.files {
        downloads.bring(file).await?;
    }
    cache.note_list(&listing.commit, &listing.files, say);
    cache.note_revision(&listing.commit, say);
    Ok(Obtained { path: cache.snapshot(&listing.commit).join(&chosen.place), commit: listing.commit })
}

/// What the cache has of a dataset before anybody is asked.
struct Local<'a> {
    cache: &'a RepoCache,
    name: &'a HubName,
    commit: Option<String>,
    /// All files of the commit, where this program noted them.
    listed: Option<Vec<String>>,
}

impl<'a> Local<'a> {
    fn look(cache: &'a RepoCache, name: &'a HubName) -> Self {
        let commit = cache.commit();
        let listed = commit.as_deref().and_then(|commit| cache.listed(commit));
        Self { cache, name, commit, listed }
    }

    fn at(&self, commit: &str, chosen: &Chosen) -> Obtained {
        Obtained { path: self.cache.snapshot(commit).join(&chosen.place), commit: commit.to_owned() }
    }

    /// What is known to be all that is meant.
    fn complete(&self) -> Option<Obtained> {
        let (commit, files) = (self.commit.as_deref()?, self.listed.as_ref()?);
        let chosen = choose(self.name, files).ok()?;
        chosen.files.iter().all(|file| self.cache.has(commit, file)).then(|| self.at(commit, &chosen))
    }

    /// What another program downloaded, which left no list: used unless a shard is seen to be missing.
    fn taken_as_it_is(&self, say: &dyn Fn(&str)) -> Option<Obtained> {
        let commit = self.commit.as_deref().filter(|_| self.listed.is_none())?;
        let chosen =
            choose(self.name, &self.cache.here(commit)).ok().filter(|chosen| shards_are_whole(&chosen.files))?;
        say(&format!("warning: {}: nobody can tell whether the cache has all of it: it is used as it is", self.name));
        Some(self.at(commit, &chosen))
    }

    fn missing(&self) -> String {
        match (&self.commit, &self.listed) {
            (None, _) => format!("revision {} of it", self.name.revision()),
            (Some(_), None) => "whole set of its files".into(),
            (Some(commit), Some(files)) => match choose(self.name, files) {
                Err(_) => self.name.file().unwrap_or("file of rows").to_owned(),
                Ok(chosen) => {
                    let lacks: Vec<String> =
                        chosen.files.into_iter().filter(|file| !self.cache.has(commit, file)).collect();
                    lacks.join(", ")
                }
            },
        }
    }
}

/// The rows that are meant.
#[derive(Debug, PartialEq)]
struct Chosen {
    /// Their file or folder in the repository; empty for all of it.
    place: String,
    /// The files.
    files: Vec<String>,
    /// Other parts.
    beside: Vec<String>,
}

fn choose(name: &HubName, files: &[String]) -> Result<Chosen, HubError> {
    let rows: Vec<&String> = files.iter().filter(|file| holds_rows(file) && !file.starts_with('.')).collect();
    let under = |place: &str| -> Vec<String> {
        let inside = |file: &str| file == place || file.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'));
        rows.iter().filter(|file| inside(file)).map(|file| (*file).clone()).collect()
    };
    let parts: BTreeSet<&str> = rows.iter().map(|file| file.split('/').next().unwrap_or(file)).collect();
    let no_file = |file: &str, hint: String| HubError::NoFile { name: name.to_string(), file: file.to_owned(), hint };
    if let Some(place) = name.file() {
        let files = under(place);
        if files.is_empty() {
            let has = parts.iter().copied().collect::<Vec<_>>().join(", ");
            return Err(no_file(&format!("rows in {place}"), format!(" (it has rows in {has})")));
        }
        return Ok(Chosen { place: place.to_owned(), files, beside: Vec::new() });
    }
    if rows.is_empty() {
        return Err(no_file("file of rows (JSON, JSONL, CSV, Parquet)", hint(name, files)));
    }
    let is_split = |part: &str| {
        let word = part.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_lowercase();
        SPLITS.contains(&word.as_str())
    };
    let folders: BTreeSet<&str> =
        rows.iter().filter_map(|file| Some(file.split_once('/')?.0)).filter(|folder| !is_split(folder)).collect();
    let all = || Chosen {
        place: String::new(),
        files: rows.iter().map(|file| (*file).clone()).collect(),
        beside: Vec::new(),
    };
    let owned = |parts: &BTreeSet<&str>| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    match parts.len() {
        1 => Ok(all()),
        _ if folders.is_empty() => Ok(all()),
        _ if folders.contains("data") => {
            let beside = owned(&parts).into_iter().filter(|part| part != "data").collect();
            Ok(Chosen { place: "data".into(), files: under("data"), beside })
        }
        _ => Err(HubError::Parts { repo: name.repo().to_owned(), parts: owned(&parts) }),
    }
}

fn hint(name: &HubName, files: &[String]) -> String {
    if files.iter().any(|file| file.ends_with(".py")) && name.file().is_none() {
        let parquet = name.at("refs/convert/parquet").map(|name| name.to_string()).unwrap_or_default();
        return format!(
            " (a program makes its rows, which is not run; the hub may have made files of them: {parquet})"
        );
    }
    need::hint(name.repo(), files)
}

/// Whether of files like `train-00003-of-00007.parquet` all are there.
fn shards_are_whole(files: &[String]) -> bool {
    let mut seen: BTreeMap<(&str, u32), u32> = BTreeMap::new();
    for file in files {
        let Some((left, right)) = file.rsplit_once("-of-") else { continue };
        let (count, shard) = (right.split('.').next().and_then(|n| n.parse().ok()), left.rsplit_once('-'));
        if let (Some(count), Some((stem, _))) = (count, shard) {
            *seen.entry((stem, count)).or_default() += 1;
        }
    }
    seen.iter().all(|((_, count), there)| there == count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(name: &str, files: &[&str]) -> Result<(String, usize), String> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        let name = HubName::parse_dataset(name).unwrap();
        choose(&name, &files).map(|chosen| (chosen.place, chosen.files.len())).map_err(|error| error.to_string())
    }

    #[test]
    fn parts_are_folders_and_one_is_meant() {
        let sums = [
            "README.md",
            "main/train-00000-of-00001.parquet",
            "main/test-00000-of-00001.parquet",
            "socratic/train.parquet",
        ];
        assert_eq!(chosen("a/b:main", &sums), Ok(("main".into(), 2)));
        assert_eq!(chosen("a/b:socratic/train.parquet", &sums), Ok(("socratic/train.parquet".into(), 1)));
        assert_eq!(chosen("a/b", &sums).unwrap_err(), "a/b has several parts: main, socratic; name one, as a/b:main");
        assert!(chosen("a/b:mai", &sums).unwrap_err().contains("no rows in mai (it has rows in main, socratic)"));
        let math = ["all/x.parquet", "data/x.parquet", "data/y.parquet", "extended/x.parquet"];
        assert_eq!(chosen("a/b", &math), Ok(("data".into(), 2)));
        assert_eq!(chosen("a/b", &["train.jsonl", "test.jsonl", "dataset_infos.json"]), Ok((String::new(), 2)));
        assert_eq!(chosen("a/b", &["train/0.parquet", "test/0.parquet", "load.py"]), Ok((String::new(), 2)));
        assert_eq!(chosen("a/b", &["default/train/0.parquet"]), Ok((String::new(), 1)));
        assert!(chosen("a/b", &["README.md", "b.py"]).unwrap_err().contains("a/b@refs/convert/parquet"));
    }

    #[test]
    fn a_shard_that_is_missing_is_seen() {
        let whole = |files: &[&str]| shards_are_whole(&files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>());
        assert!(whole(&["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "x.jsonl"]));
        assert!(!whole(&["data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"]));
    }
}
