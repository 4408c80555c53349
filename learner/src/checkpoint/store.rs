//! Saving, finding and pruning checkpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use folgore_protocol::{Digest, PolicyId, seed};

use super::{
    disk::{Disk, RealDisk},
    manifest::{FileEntry, MANIFEST, Manifest, SCHEMA, is_plain},
};

const PREFIX: &str = "checkpoint-";
const TMP: &str = ".tmp-";
const ASIDE: &str = ".bad-";

/// Why a checkpoint could not be saved, found or removed. What was there before is still there.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused.
    #[error("{path}: {action}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The caller could not write its own files.
    #[error("{path}: {source}")]
    Fill {
        /// The folder that it was given.
        path: PathBuf,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The caller gave a file that has no place in a checkpoint.
    #[error("checkpoint file {name:?}: {reason}")]
    File {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of a checkpoint is not what its manifest says.
    #[error("{path}: {reason}")]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

impl CheckpointError {
    /// True if the disk was full: the run may go on without this save.
    pub fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let mut cause: Option<&dyn std::error::Error> = match self {
            Self::Io { source, .. } => Some(source),
            Self::Fill { source, .. } => Some(&**source),
            _ => None,
        };
        while let Some(error) = cause {
            if error.downcast_ref::<io::Error>().is_some_and(|e| matches!(e.kind(), StorageFull | QuotaExceeded)) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

fn told(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Io { path, action, source }
}

/// What a checkpoint says about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckpointMeta {
    /// Optimiser steps taken.
    pub step: u64,
    /// The writer's epoch.
    pub epoch: u32,
    /// The policy that these weights are published as.
    pub policy: Option<PolicyId>,
    /// What the run is, by name.
    pub identity: BTreeMap<String, String>,
}

/// A checkpoint whose every file was found to be what its manifest says.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Its folder: a PEFT folder.
    pub path: PathBuf,
    /// What it is and consists of.
    pub manifest: Manifest,
}

impl Checkpoint {
    /// Reads `name` (`state/trainer.json`), checked once more against its digest.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let damaged = |reason| CheckpointError::Damaged { path: self.path.clone(), reason };
        self.manifest.read_file(&self.path, name).map_err(damaged)
    }
}

/// A checkpoint that was passed over. It is left where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// The folder `checkpoints` of one run. Its owner holds the run's [`super::RunLock`].
pub struct CheckpointStore {
    dir: PathBuf,
    save_total_limit: usize,
    disk: Box<dyn Disk>,
    /// Steps whose checkpoint this process wrote or verified.
    verified: BTreeSet<u64>,
}

impl CheckpointStore {
    /// Stands on `dir`, which is made when first needed, and removes what an interrupted save left there.
    pub fn open(dir: impl Into<PathBuf>, save_total_limit: usize) -> Result<Self, CheckpointError> {
        Self::on(Box::new(RealDisk), dir, save_total_limit)
    }

    /// As [`CheckpointStore::open`], on another disk: what tests of crashes use.
    pub fn on(disk: Box<dyn Disk>, dir: impl Into<PathBuf>, save_total_limit: usize) -> Result<Self, CheckpointError> {
        let store =
            Self { dir: dir.into(), save_total_limit: save_total_limit.max(1), disk, verified: BTreeSet::new() };
        for name in store.entries()?.iter().filter(|name| name.starts_with(PREFIX) && name.contains(TMP)) {
            let path = store.dir.join(name);
            tracing::info!(path = %path.display(), "removing what an interrupted save left");
            store.disk.remove_dir(&path).map_err(told(&path, "remove an interrupted save"))?;
        }
        Ok(store)
    }

    /// Saves `files` (by path inside the checkpoint) as the checkpoint of `meta.step`. A checkpoint of that step that is
    /// there already is replaced if it is whole, and moved aside if it is damaged.
    pub fn save(&mut self, meta: &CheckpointMeta, files: &[(&str, &[u8])]) -> Result<PathBuf, CheckpointError> {
        self.save_with(meta, files, |_| Ok::<(), io::Error>(()))
    }

    /// As [`CheckpointStore::save`]; `fill` first writes files of its own into the folder that it is given.
    pub fn save_with<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        &mut self,
        meta: &CheckpointMeta,
        files: &[(&str, &[u8])],
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, CheckpointError> {
        let place = self.place(meta.step);
        let aside = self.unused(meta.step, TMP);
        let written = self.write(&aside, meta, files, fill).and_then(|()| self.put(&aside, &place, meta.step));
        match written {
            Ok(()) => {
                self.verified.insert(meta.step);
                Ok(place)
            }
            Err(error) => {
                // The first error is the one to tell; what cannot be removed now is removed at the next start.
                if aside.exists() && self.disk.remove_dir(&aside).is_err() {
                    tracing::warn!(path = %aside.display(), "an interrupted save could not be removed");
                }
                Err(error)
            }
        }
    }

    fn write<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        &self,
        aside: &Path,
        meta: &CheckpointMeta,
        files: &[(&str, &[u8])],
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), CheckpointError> {
        self.make_dir()?;
        self.disk.create_dir(aside).map_err(told(aside, "make the folder"))?;
        fill(aside).map_err(|e| CheckpointError::Fill { path: aside.to_owned(), source: e.into() })?;
        for (name, bytes) in files {
            if !is_plain(name) || *name == MANIFEST {
                let reason = "expected a path inside the checkpoint other than the manifest".to_owned();
                return Err(CheckpointError::File { name: (*name).to_owned(), reason });
            }
            let path = aside.join(name);
            if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
                self.disk.create_dir(parent).map_err(told(parent, "make the folder"))?;
            }
            self.disk.write(&path, bytes).map_err(told(&path, "write"))?;
        }
        let mut listed = BTreeMap::new();
        self.sync_and_list(aside, "", &mut listed)?;
        let manifest = Manifest {
            schema: SCHEMA,
            step: meta.step,
            epoch: meta.epoch,
            policy: meta.policy,
            identity: meta.identity.clone(),
            files: listed,
        };
        let path = aside.join(MANIFEST);
        let bytes = serde_json::to_vec_pretty(&manifest)
            .map_err(|e| CheckpointError::File { name: MANIFEST.into(), reason: e.to_string() })?;
        self.disk.write(&path, &bytes).map_err(told(&path, "write"))?;
        self.disk.sync(&path).map_err(told(&path, "sync"))?;
        self.disk.sync(aside).map_err(told(aside, "sync"))
    }

    /// Makes the folder of checkpoints, durably: the entry of a folder belongs to the one above it.
    fn make_dir(&self) -> Result<(), CheckpointError> {
        if self.dir.is_dir() {
            return Ok(());
        }
        self.disk.create_dir(&self.dir).map_err(told(&self.dir, "make the folder"))?;
        match self.dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => self.disk.sync(parent).map_err(told(parent, "sync")),
            None => Ok(()),
        }
    }

    /// Makes all files below `dir` durable, and notes each with its digest.
    fn sync_and_list(
        &self,
        dir: &Path,
        prefix: &str,
        listed: &mut BTreeMap<String, FileEntry>,
    ) -> Result<(), CheckpointError> {
        let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(told(dir, "list"))?;
        for entry in entries {
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else {
                let name = path.display().to_string();
                return Err(CheckpointError::File { name, reason: "expected a name in UTF-8".into() });
            };
            if entry.file_type().map_err(told(&path, "look at"))?.is_dir() {
                self.sync_and_list(&path, &format!("{name}/"), listed)?;
                self.disk.sync(&path).map_err(told(&path, "sync"))?;
                continue;
            }
            let bytes = fs::read(&path).map_err(told(&path, "read back"))?;
            self.disk.sync(&path).map_err(told(&path, "sync"))?;
            listed.insert(name, FileEntry { bytes: bytes.len() as u64, sha256: Digest::of(&bytes) });
        }
        Ok(())
    }

    /// Renames `aside` into `place`.
    fn put(&self, aside: &Path, place: &Path, step: u64) -> Result<(), CheckpointError> {
        let mut moved = None;
        if place.exists() {
            // Whole ones are made again by a resumed run, and need not be kept twice; damaged ones are never deleted.
            let whole = verify(place, step).is_ok();
            let away = self.unused(step, if whole { TMP } else { ASIDE });
            self.disk.rename(place, &away).map_err(told(place, "move aside"))?;
            moved = Some((away, whole));
        }
        if let Err(error) = self.disk.rename(aside, place) {
            if let Some((away, _)) = &moved
                && let Err(error) = self.disk.rename(away, place)
            {
                tracing::warn!(path = %away.display(), %error, "the checkpoint stays aside");
            }
            return Err(told(place, "rename into place")(error));
        }
        self.disk.sync(&self.dir).map_err(told(&self.dir, "sync"))?;
        match moved {
            Some((away, true)) => self.disk.remove_dir(&away).map_err(told(&away, "remove")),
            _ => Ok(()),
        }
    }

    /// The newest checkpoint that verifies, and those that were passed over on the way to it, newest first.
    pub fn newest(&mut self) -> Result<(Option<Checkpoint>, Vec<Skipped>), CheckpointError> {
        let mut skipped = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            let path = self.place(step);
            match verify(&path, step) {
                Ok(manifest) => {
                    self.verified.insert(step);
                    return Ok((Some(Checkpoint { path, manifest }), skipped));
                }
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "checkpoint skipped: it is not whole");
                    skipped.push(Skipped { path, reason });
                }
            }
        }
        Ok((None, skipped))
    }

    /// Removes whole checkpoints beyond the newest `save_total_limit`; gives the steps that are kept. Damaged ones do not
    /// count and are left alone.
    pub fn prune(&mut self) -> Result<Vec<u64>, CheckpointError> {
        let mut kept = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            let path = self.place(step);
            if !self.verified.contains(&step) {
                match verify(&path, step) {
                    Ok(_) => self.verified.insert(step),
                    Err(_) => continue,
                };
            }
            if kept.len() < self.save_total_limit {
                kept.push(step);
                continue;
            }
            // Renamed first: a folder that is half removed must not look like a damaged checkpoint.
            let away = self.unused(step, TMP);
            self.disk.rename(&path, &away).map_err(told(&path, "move aside"))?;
            self.disk.sync(&self.dir).map_err(told(&self.dir, "sync"))?;
            self.disk.remove_dir(&away).map_err(told(&away, "remove"))?;
            self.verified.remove(&step);
        }
        kept.reverse();
        Ok(kept)
    }

    /// Steps of all folders that look like checkpoints, ascending.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        // Only the name that a save gives counts: checkpoint-007 is somebody else's.
        let step =
            |name: &String| name.strip_prefix(PREFIX)?.parse().ok().filter(|s: &u64| format!("{PREFIX}{s}") == *name);
        let mut steps: Vec<u64> = self.entries()?.iter().filter_map(step).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn entries(&self) -> Result<Vec<String>, CheckpointError> {
        match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(told(&self.dir, "list")(e)),
            Ok(entries) => {
                let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
                let names = entries.map(name).collect::<io::Result<Vec<_>>>().map_err(told(&self.dir, "list"))?;
                Ok(names.into_iter().flatten().collect())
            }
        }
    }

    fn place(&self, step: u64) -> PathBuf {
        self.dir.join(format!("{PREFIX}{step}"))
    }

    /// A name beside the checkpoint of `step` that nobody has used.
    fn unused(&self, step: u64, mark: &str) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos() as u64);
        let random = seed::mix(&[now, u64::from(std::process::id()), count]) as u32;
        self.dir.join(format!("{PREFIX}{step}{mark}{random:08x}"))
    }
}

/// Compares the checkpoint at `dir` with its manifest; the error says what does not fit.
fn verify(dir: &Path, step: u64) -> Result<Manifest, String> {
    let manifest = Manifest::read(dir)?;
    if manifest.step != step {
        return Err(format!("{MANIFEST}: expected step {step}, got {}", manifest.step));
    }
    manifest.verify(dir)?;
    Ok(manifest)
}
