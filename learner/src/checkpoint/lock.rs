//! One process writes one run: an advisory lock on the run's folder, which dies with its process.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Seek, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Name of the locked file.
const LOCK: &str = "lock";

/// Why a run's folder cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else writes this run.
    #[error("{dir}: in use by {holder}: stop that one first, or choose another run name")]
    Held {
        /// The run's folder.
        dir: PathBuf,
        /// Who, if known.
        holder: String,
    },
    /// The system refused.
    #[error("{path}: lock: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Who holds the lock, for the message that the other one prints.
#[derive(Serialize, Deserialize)]
struct Holder {
    pid: u32,
    /// Tells a process from its namesake after a restart of the machine, or on another one.
    boot_id: String,
}

/// Holds a run's folder until it is dropped.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Locks `dir`, which is made if it is not there.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(LOCK);
        let io = |source| LockError::Io { path: path.clone(), source };
        fs::create_dir_all(dir).map_err(io)?;
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = holder(dir).unwrap_or_else(|| "another process".to_owned());
                return Err(LockError::Held { dir: dir.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let text = serde_json::to_string(&Holder { pid: std::process::id(), boot_id: boot_id() }).unwrap_or_default();
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes())).map_err(io)?;
        Ok(Self { _file: file })
    }
}

/// The process named in the lock file of `dir`, in words; none if there is none. Only the lock itself tells whether it
/// still holds it.
pub fn holder(dir: &Path) -> Option<String> {
    let holder: Holder = serde_json::from_slice(&fs::read(dir.join(LOCK)).ok()?).ok()?;
    let elsewhere = if holder.boot_id == boot_id() { "" } else { " of another machine or boot" };
    Some(format!("process {}{elsewhere}", holder.pid))
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let lock = RunLock::acquire(&run).unwrap();
        let error = RunLock::acquire(&run).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        RunLock::acquire(&run).unwrap();
    }
}
