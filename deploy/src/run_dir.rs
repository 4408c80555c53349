//! The folder of a run: its name, its lock, and whether there is something to go on with.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use folgore_learner::checkpoint::{Checkpoint, CheckpointStore, RunLock};
use folgore_protocol::RunName;

/// The folder of one run, held by this process.
pub struct RunDir {
    /// The folder.
    pub path: PathBuf,
    /// Name of the run.
    pub name: String,
    _lock: RunLock,
}

impl RunDir {
    /// Begins a run: its folder must not hold one already.
    pub fn begin(output_dir: &Path, name: Option<&str>) -> Result<Self> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => free_name(output_dir),
        };
        let name = RunName::new(name).map_err(anyhow::Error::msg).context("run.name")?;
        expect_free(output_dir, Some(name.as_str()))?;
        Self::hold(output_dir.join(name.as_str()), name.as_str())
    }

    /// Goes on with the run `name`; an empty name means the one touched last.
    pub fn resume(output_dir: &Path, name: &str) -> Result<Self> {
        let path = find(output_dir, name)?;
        let name = name_of(&path)?;
        Self::hold(path, &name)
    }

    fn hold(path: PathBuf, name: &str) -> Result<Self> {
        std::fs::create_dir_all(&path).with_context(|| format!("{}: cannot make the run's folder", path.display()))?;
        let lock = RunLock::acquire(&path)?;
        Ok(Self { path, name: name.to_owned(), _lock: lock })
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The record.
    pub fn record(&self) -> PathBuf {
        self.file(RECORD)
    }

    /// The checkpoints, and the newest whole one; those passed over are reported through `say`.
    pub fn checkpoints(&self, keep: u32, mut say: impl FnMut(String)) -> Result<(CheckpointStore, Option<Checkpoint>)> {
        let mut store = CheckpointStore::open(self.file("checkpoints"), keep as usize)?;
        let (newest, skipped) = store.newest()?;
        for s in skipped {
            say(format!("warning: {} is passed over: {}", s.path.display(), s.reason));
        }
        Ok((store, newest))
    }

    /// The folder for the logs of this launch.
    pub fn next_attempt(&self) -> Result<PathBuf> {
        let logs = self.file("logs");
        let attempt = (1..).find(|n| !logs.join(format!("attempt-{n}")).exists()).unwrap_or(1);
        let path = logs.join(format!("attempt-{attempt}"));
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

/// The name of the run in `path`.
pub fn name_of(path: &Path) -> Result<String> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
    name.with_context(|| format!("{}: expected a folder with a name", path.display()))
}

const RECORD: &str = "record.redb";
/// The resolved configuration; its presence says that the run has begun.
pub const CONFIG: &str = "config.yaml";

/// Checks that there is no run `name`; no name means one that will be free.
pub fn expect_free(output_dir: &Path, name: Option<&str>) -> Result<()> {
    let Some(name) = name else { return Ok(()) };
    let path = output_dir.join(name);
    if path.join(RECORD).exists() || is_there(output_dir, name) {
        bail!(
            "{}: a run of this name is there; go on with it by --resume {name}, or choose another --run-name",
            path.display()
        );
    }
    Ok(())
}

/// Whether the run `name` has begun.
pub fn is_there(output_dir: &Path, name: &str) -> bool {
    output_dir.join(name).join(CONFIG).exists()
}

/// The folder of the run `name` (a name or a path); with an empty name, of the run touched last.
pub fn find(output_dir: &Path, name: &str) -> Result<PathBuf> {
    if name.is_empty() {
        let runs =
            std::fs::read_dir(output_dir).with_context(|| format!("{}: no run to go on with", output_dir.display()))?;
        let newest = runs
            .filter_map(Result::ok)
            .filter_map(|entry| Some((entry.path().join(RECORD).metadata().ok()?.modified().ok()?, entry.path())))
            .max();
        return newest.map(|(_, path)| path).with_context(|| format!("{}: no run to go on with", output_dir.display()));
    }
    for path in [output_dir.join(name), PathBuf::from(name)] {
        if path.join(CONFIG).exists() {
            return Ok(path);
        }
    }
    bail!("{name}: no such run in {} (a run's folder holds config.yaml)", output_dir.display())
}

/// The steps of the checkpoints in `folder`, ascending.
pub fn checkpoint_steps(folder: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let step = |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok();
    let mut steps: Vec<u64> = entries.filter_map(step).collect();
    steps.sort_unstable();
    steps
}

/// A name that no run has.
pub fn free_name(output_dir: &Path) -> String {
    (1..).map(|n| format!("run-{n}")).find(|name| !output_dir.join(name).exists()).unwrap_or_else(|| "run".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_used_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunDir::begin(dir.path(), None).unwrap();
        assert_eq!(first.name, "run-1");
        std::fs::write(first.file("config.yaml"), "{}").unwrap();
        std::fs::write(first.record(), "").unwrap();
        assert!(RunDir::begin(dir.path(), Some("run-1")).err().unwrap().to_string().contains("--resume"));
        assert!(RunDir::resume(dir.path(), "run-1").is_err(), "the lock is held");
        drop(first);
        assert_eq!(RunDir::resume(dir.path(), "").unwrap().name, "run-1");
        assert!(RunDir::begin(dir.path(), Some("../x")).is_err());
        assert!(find(dir.path(), "nothing").unwrap_err().to_string().contains("no such run"));
    }
}
