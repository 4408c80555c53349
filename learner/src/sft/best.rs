//! The adapter of the best evaluation so far, in a folder that always holds a whole one.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use folgore_model::files::peft::AdapterFile;
use serde::{Deserialize, Serialize};

/// Name of the file that says which evaluation it was.
const NOTE: &str = "best.json";

/// Which evaluation was the best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its step.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
}

/// A PEFT folder that is replaced whole.
#[derive(Clone, Debug)]
pub struct BestFolder(PathBuf);

impl BestFolder {
    /// The folder `path`. What an interrupted replacement left beside it is put right.
    pub fn at(path: PathBuf) -> io::Result<Self> {
        let (old, new) = (beside(&path, "old"), beside(&path, "new"));
        if old.exists() && !path.exists() {
            fs::rename(&old, &path)?;
        }
        for left in [old, new].iter().filter(|left| left.exists()) {
            fs::remove_dir_all(left)?;
        }
        Ok(Self(path))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Puts `file` there, with files `texts` by name beside it.
    ///
    /// # Errors
    /// If the disk takes it not; what was there is still there, or comes back with [`BestFolder::at`].
    pub fn put(
        &self,
        file: &AdapterFile,
        texts: &BTreeMap<String, String>,
        best: Best,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (old, new) = (beside(&self.0, "old"), beside(&self.0, "new"));
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        file.write(&new)?;
        for (name, text) in texts {
            fs::write(new.join(name), text)?;
        }
        fs::write(new.join(NOTE), serde_json::to_vec_pretty(&best)?)?;
        if self.0.exists() {
            fs::rename(&self.0, &old)?;
        }
        fs::rename(&new, &self.0)?;
        if old.exists() {
            fs::remove_dir_all(&old)?;
        }
        Ok(())
    }
}

fn beside(path: &Path, mark: &str) -> PathBuf {
    path.with_extension(mark)
}
