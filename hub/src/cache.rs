//! The cache that all programs of Hugging Face share, in its layout:
//!
//! ```text
//! models--owner--name/                        (of a dataset, datasets--owner--name/)
//!                     refs/REVISION           the commit that a branch or tag was last seen at
//!                     blobs/ETAG              contents, each once
//!                     blobs/ETAG.incomplete   what there is of a download that was interrupted
//!                     snapshots/COMMIT/FILE   links to blobs
//!                     .no_exist/COMMIT/FILE   empty: the commit is known not to have the file
//!                     .folgore/COMMIT         ours: the files of the commit, a line for each, once all that is needed of them is here
//! .locks/models--owner--name/ETAG.lock        held by whoever downloads that blob
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use folgore_config::hub::{HubName, is_commit, stays_inside};

use crate::{
    HubError,
    error::io,
    need::{INDEX, Need, SINGLE, shards},
};

/// How long another process may take for one file.
const LOCK_WAIT: Duration = Duration::from_secs(6 * 3600);
/// Between two looks at a lock.
const LOCK_LOOK: Duration = Duration::from_millis(100);
/// Largest index of shards that is read.
const INDEX_LIMIT: u64 = 64 << 20;

/// Folder of lists of files.
const LISTS: &str = ".folgore";
/// Deepest folder of a snapshot that is looked into.
const DEEPEST: usize = 8;

/// Tells apart what the threads of this process write; processes of two containers may have one number.
static TURN: AtomicU32 = AtomicU32::new(0);

/// One repository in the cache.
pub(crate) struct RepoCache {
    name: HubName,
    folder: PathBuf,
    locks: PathBuf,
}

/// What a snapshot has not.
#[derive(Debug, Default)]
pub(crate) struct Missing {
    /// Files without which nothing goes.
    pub(crate) required: Vec<String>,
    /// Files that the repository may have or not: nobody has asked.
    pub(crate) unknown: Vec<String>,
}

impl RepoCache {
    /// That of `name`; nothing is made yet.
    pub(crate) fn of(cache: &Path, name: &HubName) -> Self {
        let folder = format!("{}--{}", name.kind().plural(), name.repo().replace('/', "--"));
        Self { name: name.clone(), locks: cache.join(".locks").join(&folder), folder: cache.join(folder) }
    }

    /// The commit that the name's revision is, or was when it was last asked for.
    pub(crate) fn commit(&self) -> Option<String> {
        if let Some(commit) = self.name.commit() {
            return Some(commit.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(self.name.revision())).ok()?;
        Some(text.trim().to_owned()).filter(|text| is_commit(text))
    }

    /// Folder of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Whether the file is there, with its contents.
    pub(crate) fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// What is not there of what is needed.
    pub(crate) fn missing(&self, commit: &str, need: Need) -> Missing {
        let lacks = |file: &&str| !self.has(commit, file);
        let owned =
            |files: &[&str]| -> Vec<String> { files.iter().copied().filter(|f| lacks(f)).map(str::to_owned).collect() };
        if let Some(file) = self.name.file() {
            return Missing { required: owned(&[file]), unknown: Vec::new() };
        }
        let mut missing = Missing { required: owned(need.required()), unknown: owned(need.optional()) };
        missing.unknown.retain(|file| !self.folder.join(".no_exist").join(commit).join(file).is_file());
        if need.weights() && !self.has(commit, SINGLE) {
            match self.has(commit, INDEX).then(|| self.shards(commit)) {
                None => missing.required.push(SINGLE.into()),
                Some(Err(error)) => missing.required.push(format!("usable {INDEX} ({error})")),
                Some(Ok(names)) => missing.required.extend(names.into_iter().filter(|name| lacks(&name.as_str()))),
            }
        }
        missing
    }

    /// The shards that the index of a snapshot names.
    pub(crate) fn shards(&self, commit: &str) -> Result<Vec<String>, HubError> {
        let path = self.snapshot(commit).join(INDEX);
        let size = fs::metadata(&path).map_err(io(&path))?.len();
        if size > INDEX_LIMIT {
            return Err(HubError::Untrusted {
                place: path.display().to_string(),
                what: "size:",
                expected: "at most 64 MiB",
                got: size.to_string(),
            });
        }
        let text = fs::read(&path).map_err(io(&path))?;
        Ok(shards(&path.display().to_string(), &text)?.into_iter().collect())
    }

    /// All files that the commit has, where that is known.
    pub(crate) fn listed(&self, commit: &str) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.folder.join(LISTS).join(commit)).ok()?;
        Some(text.lines().filter(|file| stays_inside(file)).map(str::to_owned).collect())
    }

    /// Notes all files that the commit has, unless that is noted.
    pub(crate) fn note_list(&self, commit: &str, files: &[String], say: &dyn Fn(&str)) {
        if self.listed(commit).is_none() {
            self.note(&self.folder.join(LISTS).join(commit), &files.join("\n"), say);
        }
    }

    /// The files of a commit that are here.
    pub(crate) fn here(&self, commit: &str) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.snapshot(commit), "", DEEPEST, &mut found);
        found.sort();
        found
    }

    /// Where the contents with this name are.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Waits until nobody else downloads the blob `etag`; nobody does while what is given back lives.
    pub(crate) fn hold(&self, etag: &str, say: &dyn Fn(&str)) -> Result<File, HubError> {
        make(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        let mut file = lock_file(&path)?;
        let begin = Instant::now();
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(io(&path)(error)),
                _ if begin.elapsed() > LOCK_WAIT => {
                    return Err(io(&path)(std::io::Error::other("another process has held it for six hours")));
                }
                // Python removes the file when it lets go: others lock the one that is there now
                Ok(()) => file = lock_file(&path)?,
                Err(TryLockError::WouldBlock) if !told => {
                    say(&format!("{}: another process is downloading it: waiting", self.name));
                    told = true;
                }
                Err(TryLockError::WouldBlock) => {}
            }
            sleep(LOCK_LOOK);
        }
    }

    /// Shows the blob `etag` as `file` of the snapshot.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        make(path.parent().unwrap_or(&self.folder))?;
        // out of the file's folders, COMMIT and `snapshots`
        let up = "../".repeat(file.split('/').count() + 1);
        replace(&path, |beside| show(&self.blob(etag), &format!("{up}blobs/{etag}"), beside))
    }

    /// Notes that the commit has no such file, unless that is noted.
    pub(crate) fn note_absent(&self, commit: &str, file: &str, say: &dyn Fn(&str)) {
        let path = self.folder.join(".no_exist").join(commit).join(file);
        if !path.is_file() {
            self.note(&path, "", say);
        }
    }

    /// Notes the commit that the name's revision is, unless that is noted.
    pub(crate) fn note_revision(&self, commit: &str, say: &dyn Fn(&str)) {
        if self.commit().as_deref() != Some(commit) {
            self.note(&self.folder.join("refs").join(self.name.revision()), commit, say);
        }
    }

    /// Makes a note, or says that it cannot: a cache for reading only is as good.
    fn note(&self, path: &Path, text: &str, say: &dyn Fn(&str)) {
        let write = |beside: &Path| File::create_new(beside)?.write_all(text.as_bytes());
        let noted = make(path.parent().unwrap_or(&self.folder)).and_then(|()| replace(path, write));
        if let Err(error) = noted {
            say(&format!("warning: {}: the cache takes no note of what it has: {error}", self.name));
        }
    }
}

/// Puts what `make` makes, at a name of its own, in the place of `path`: nobody sees half of it, or finds nothing in between.
fn replace(path: &Path, make: impl Fn(&Path) -> std::io::Result<()>) -> Result<(), HubError> {
    loop {
        let (process, turn) = (std::process::id(), TURN.fetch_add(1, Ordering::Relaxed));
        let beside = path.with_file_name(format!(".{process}-{turn}"));
        let put = match make(&beside) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            made => made.and_then(|()| fs::rename(&beside, path)),
        };
        return put.map_err(|error| {
            let _ = fs::remove_file(&beside); // there may be none
            io(path)(error)
        });
    }
}

/// Names of the files in `folder`, with `prefix` in front.
fn walk(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match fs::metadata(entry.path()) {
            Ok(file) if file.is_file() => found.push(name),
            Ok(file) if file.is_dir() && depth > 0 => walk(&entry.path(), &format!("{name}/"), depth - 1, found),
            _ => {}
        }
    }
}

/// Opens the file of a lock, for everybody whom Python would let in.
fn lock_file(path: &Path) -> Result<File, HubError> {
    let mut options = File::options();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o664);
    options.open(path).map_err(io(path))
}

/// Whether `file` is the one that lies at `path` now.
#[cfg(unix)]
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let number = |found: fs::Metadata| (found.dev(), found.ino());
    matches!((file.metadata().map(number), fs::metadata(path).map(number)), (Ok(open), Ok(there)) if open == there)
}

/// Windows removes no file that is open.
#[cfg(not(unix))]
pub(crate) fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

/// Makes a folder with those above it.
pub(crate) fn make(folder: &Path) -> Result<(), HubError> {
    fs::create_dir_all(folder).map_err(io(folder))
}

#[cfg(unix)]
fn show(_blob: &Path, relative: &str, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Links need a privilege on Windows, where Python falls back to files as well.
#[cfg(not(unix))]
fn show(blob: &Path, _relative: &str, path: &Path) -> std::io::Result<()> {
    std::io::copy(&mut File::open(blob)?, &mut File::create_new(path)?).map(drop)
}
