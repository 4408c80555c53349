//! Where an export is made: in a folder beside its own, which takes its name when it is whole and found to be the policy.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use folgore_model::files::atomic::sync_folder;
use tempfile::TempDir;

/// A folder in the making. It is gone when this is dropped; after a crash it is there under the name that it has now.
pub struct Place {
    target: PathBuf,
    beside: TempDir,
}

impl Place {
    /// Makes one for `target`, which must be new or empty.
    pub fn new(target: &Path) -> Result<Self> {
        if fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{}: expected a new or an empty folder", target.display());
        }
        let there = || target.display().to_string();
        let target = if target.exists() { target.canonicalize() } else { Ok(target.to_owned()) }.with_context(there)?;
        if env::current_dir().is_ok_and(|here| here == target) {
            bail!("{}: expected another folder than the one that this runs in", target.display());
        }
        let (Some(name), Some(parent)) = (target.file_name(), target.parent()) else {
            bail!("{}: expected the name of a folder", target.display());
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        let prefix = format!(".{}.", name.to_string_lossy());
        let beside = tempfile::Builder::new().prefix(&prefix).suffix(".partial").tempdir_in(parent);
        let place = Self { beside: beside.with_context(|| parent.display().to_string())?, target };
        // the outer one is for nobody else to read, and an export is
        fs::create_dir(place.folder()).with_context(|| place.folder().display().to_string())?;
        Ok(place)
    }

    /// Where the files go.
    pub fn folder(&self) -> PathBuf {
        self.beside.path().join("export")
    }

    /// Gives the folder its name. Where that is not possible, the error says where it is instead.
    pub fn settle(self) -> Result<PathBuf> {
        match self.rename() {
            Ok(()) => Ok(self.target),
            Err(error) => {
                let target = self.target.clone();
                let kept = self.keep();
                Err(error).with_context(|| format!("{}: the export stays in {}", target.display(), kept.display()))
            }
        }
    }

    fn rename(&self) -> io::Result<()> {
        if self.target.exists() {
            fs::remove_dir(&self.target)?;
        }
        sync_folder(&self.folder())?;
        fs::rename(self.folder(), &self.target)?;
        sync_folder(self.target.parent().unwrap_or(Path::new(".")))
    }

    /// Leaves the folder where it is.
    pub fn keep(self) -> PathBuf {
        self.beside.keep().join("export")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_its_name_only_when_it_is_whole() {
        let above = tempfile::tempdir().unwrap();
        let target = above.path().join("a/out");
        let place = Place::new(&target).unwrap();
        fs::write(place.folder().join("x"), "x").unwrap();
        assert!(!target.exists());
        // as after an error
        drop(place);
        assert_eq!(fs::read_dir(above.path().join("a")).unwrap().count(), 0);

        fs::create_dir(&target).unwrap();
        let place = Place::new(&target).unwrap();
        fs::write(place.folder().join("x"), "x").unwrap();
        assert_eq!(place.settle().unwrap(), target.canonicalize().unwrap());
        assert_eq!(fs::read(target.join("x")).unwrap(), b"x");
        assert_eq!(fs::read_dir(above.path().join("a")).unwrap().count(), 1);
        assert!(Place::new(&target).err().unwrap().to_string().contains("expected a new or an empty folder"));
    }

    #[test]
    fn what_cannot_have_its_name_is_not_lost() {
        let above = tempfile::tempdir().unwrap();
        let target = above.path().join("out");
        let place = Place::new(&target).unwrap();
        fs::write(place.folder().join("x"), "x").unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(target.join("other"), "").unwrap();
        let kept = place.folder();
        let error = format!("{:#}", place.settle().unwrap_err());
        assert!(error.contains(&format!("the export stays in {}", kept.display())), "{error}");
        assert_eq!(fs::read(kept.join("x")).unwrap(), b"x");
    }
}
