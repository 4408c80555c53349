//! The operations on the file system that a save consists of, as a trait, so that tests can stop at each of them.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// What a save does to a disk. Each call is one point at which a crash can happen.
pub trait Disk: Send + Sync {
    /// Makes a folder, and those above it.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Writes a new file. Not durable before [`Disk::sync`].
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file's bytes, or a folder's entries, durable. An error is final for that file: the system may have dropped
    /// the bytes, and a second try that succeeds would prove nothing.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Renames; durable once the folder above is synced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a folder with all that is in it.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        File::create_new(path)?.write_all(bytes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        // A folder can be opened and synced on Unix only; elsewhere the file system has no such operation.
        if cfg!(not(unix)) && path.is_dir() { Ok(()) } else { File::open(path)?.sync_all() }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}
