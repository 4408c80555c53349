//! The files of a folder, in the order of their names.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::store::Stamp;

/// A folder or a file to be read, and what its documents are named after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Last part of its path: what the ids of its documents begin with.
    pub name: String,
    /// Where it is.
    pub root: PathBuf,
}

/// A source that cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The system failed.
    #[error("{0}: {1}")]
    Io(String, io::Error),
    /// It is no folder and no file, or its name is not UTF-8.
    #[error("{0}: expected a folder or a file with a name in UTF-8")]
    Nameless(String),
    /// Documents of both would have the same ids.
    #[error("{0} and {1} have the same name: index a folder that holds both")]
    Same(String, String),
}

impl Source {
    /// The sources at `paths`, which have different names.
    ///
    /// # Errors
    /// If one is not there, or two have one name.
    pub fn all(paths: &[PathBuf]) -> Result<Vec<Self>, SourceError> {
        let mut sources: Vec<Self> = Vec::new();
        for path in paths {
            let source = Self::at(path)?;
            if let Some(other) = sources.iter().find(|other| other.name == source.name) {
                return Err(SourceError::Same(other.root.display().to_string(), path.display().to_string()));
            }
            sources.push(source);
        }
        Ok(sources)
    }

    fn at(path: &Path) -> Result<Self, SourceError> {
        let shown = path.display().to_string();
        let root = fs::canonicalize(path).map_err(|error| SourceError::Io(shown.clone(), error))?;
        let name = root.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        match name.filter(|_| root.is_dir() || root.is_file()) {
            Some(name) => Ok(Self { name, root }),
            None => Err(SourceError::Nameless(shown)),
        }
    }

    /// Everything in it, in the order of names. Links are not followed, and what begins with a dot is not looked at.
    pub fn entries(&self) -> impl Iterator<Item = Found> {
        let root = self.root.clone();
        let mut waiting = vec![(self.root.clone(), self.name.clone())];
        std::iter::from_fn(move || {
            let (path, id) = waiting.pop()?;
            match look(&path, path == root) {
                Ok(Looked::File(stamp)) => Some(Found::File(Entry { stamp, path, id })),
                Ok(Looked::Folder(names)) => {
                    let inner = |name: &OsString| (path.join(name), format!("{id}/{}", name.to_string_lossy()));
                    waiting.extend(names.iter().rev().map(inner));
                    Some(Found::Folder)
                }
                Ok(Looked::Other(reason)) => Some(Found::Skipped { id, reason: reason.into() }),
                Err(error) => Some(Found::Failed { id, error }),
            }
        })
    }
}

/// What is at a path.
enum Looked {
    File(Stamp),
    Folder(Vec<OsString>),
    Other(&'static str),
}

fn look(path: &Path, is_root: bool) -> io::Result<Looked> {
    match path.file_name().and_then(|name| name.to_str()) {
        None if !is_root => return Ok(Looked::Other("its name is not UTF-8")),
        Some(name) if name.starts_with('.') && !is_root => return Ok(Looked::Other("hidden")),
        _ => {}
    }
    let found = fs::symlink_metadata(path)?;
    if found.is_symlink() {
        return Ok(Looked::Other("a link"));
    }
    if found.is_dir() {
        let mut names =
            fs::read_dir(path)?.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        return Ok(Looked::Folder(names));
    }
    if !found.is_file() {
        return Ok(Looked::Other("a socket, a pipe or a device"));
    }
    let since = |time: SystemTime| match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i64,
        Err(before) => -(before.duration().as_nanos() as i64),
    };
    Ok(Looked::File(Stamp { size: found.len(), modified: found.modified().map_or(0, since) }))
}

/// A file to be read.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it is.
    pub path: PathBuf,
    /// What its documents are named after.
    pub id: String,
    /// Its size and time.
    pub stamp: Stamp,
}

/// What was found in a source.
#[derive(Debug)]
pub enum Found {
    /// A file.
    File(Entry),
    /// A folder, whose entries follow.
    Folder,
    /// Something that is not read.
    Skipped {
        /// Its place.
        id: String,
        /// Why.
        reason: String,
    },
    /// Something that cannot be read now.
    Failed {
        /// Its place.
        id: String,
        /// What the system said.
        error: io::Error,
    },
}
