//! `manifest.json`: what a checkpoint consists of, written last. A folder without a manifest that fits is no checkpoint.

use std::{collections::BTreeMap, fs, io, path::Path};

use folgore_protocol::{Digest, PolicyId};
use serde::{Deserialize, Serialize};

/// Version of the layout of a checkpoint.
pub const SCHEMA: u32 = 1;

/// Name of the file.
pub const MANIFEST: &str = "manifest.json";

/// No manifest is longer; a damaged one must not fill the memory.
const BYTES_MAX: u64 = 16 << 20;

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Length.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: Digest,
}

/// What a checkpoint is and consists of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the layout that the writer used.
    pub schema: u32,
    /// Optimiser steps taken.
    pub step: u64,
    /// The writer's epoch.
    pub epoch: u32,
    /// The policy that these weights are published as.
    pub policy: Option<PolicyId>,
    /// What the run is (digests of base model, tokenizer, template, data; seeds), by name.
    pub identity: BTreeMap<String, String>,
    /// Every other file, by its path with `/`.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// Reads the manifest of the checkpoint at `dir`; the error says what is wrong with it.
    pub(super) fn read(dir: &Path) -> Result<Self, String> {
        let path = dir.join(MANIFEST);
        let say = |e: io::Error| format!("{MANIFEST}: {e}");
        let bytes = fs::metadata(&path).map_err(say)?.len();
        if bytes > BYTES_MAX {
            return Err(format!("{MANIFEST}: expected at most {BYTES_MAX} bytes, got {bytes}"));
        }
        let manifest: Self =
            serde_json::from_slice(&fs::read(&path).map_err(say)?).map_err(|e| format!("{MANIFEST}: {e}"))?;
        if manifest.schema != SCHEMA {
            return Err(format!("{MANIFEST}: expected schema {SCHEMA}, got {}", manifest.schema));
        }
        Ok(manifest)
    }

    /// Compares every file below `dir` with its entry; the error names the first one that does not fit.
    pub(super) fn verify(&self, dir: &Path) -> Result<(), String> {
        self.files.keys().try_for_each(|name| self.read_file(dir, name).map(drop))
    }

    /// Reads `name` and checks it against its entry.
    pub(super) fn read_file(&self, dir: &Path, name: &str) -> Result<Vec<u8>, String> {
        let entry = self.files.get(name).ok_or_else(|| format!("{name}: not listed in {MANIFEST}"))?;
        if !is_plain(name) {
            return Err(format!("{name:?}: expected a path inside the checkpoint"));
        }
        let path = dir.join(name);
        let say = |e: io::Error| format!("{name}: {e}");
        let found = fs::metadata(&path).map_err(say)?.len();
        if found != entry.bytes {
            return Err(format!("{name}: expected {} bytes, got {found}", entry.bytes));
        }
        let bytes = fs::read(&path).map_err(say)?;
        let digest = Digest::of(&bytes);
        if digest != entry.sha256 {
            return Err(format!("{name}: expected digest {}, got {}", entry.sha256.short(), digest.short()));
        }
        Ok(bytes)
    }
}

/// True if `name` stays inside the folder that it is joined to, on every system.
pub(super) fn is_plain(name: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && !p.contains(['\\', ':', '\0']);
    name.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert!(is_plain("state/optimizer.safetensors"));
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a\\b", "C:x", "."] {
            assert!(!is_plain(bad), "{bad:?} was taken");
        }
    }
}
