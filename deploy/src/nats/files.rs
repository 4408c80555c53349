//! Files that hold secrets: readable by their owner only, written whole or not at all.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It was not there.
    Written,
    /// It held something else.
    Changed,
    /// It is as it should be.
    Same,
}

/// Makes `folder` and what leads to it; only the owner may look into it.
pub fn make_folder(folder: &Path) -> Result<()> {
    let named = || format!("{}: cannot make the folder", folder.display());
    fs::create_dir_all(folder).with_context(named)?;
    #[cfg(unix)]
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).with_context(named)?;
    Ok(())
}

/// Writes `path` unless it holds `text` already.
pub fn keep(path: &Path, text: &str) -> Result<Kept> {
    let before = read_if_there(path)?;
    if before.as_deref() == Some(text) {
        return Ok(Kept::Same);
    }
    write(path, text)?;
    Ok(if before.is_some() { Kept::Changed } else { Kept::Written })
}

/// Writes `text` to `path` for the owner's eyes only; on an error `path` is as it was.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let named = || format!("{}: cannot be written", path.display());
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // a temporary file is made with mode 0600, and keeps it
    let mut part = tempfile::NamedTempFile::new_in(folder).with_context(named)?;
    part.write_all(text.as_bytes()).and_then(|()| part.as_file().sync_all()).with_context(named)?;
    part.persist(path).map_err(|e| e.error).with_context(named)?;
    Ok(())
}

/// The text of `path`.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// The text of `path`; none if there is no such file.
pub fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

/// The folder as the server shall know it, wherever it is started from.
pub fn absolute(folder: &Path) -> Result<PathBuf> {
    folder.canonicalize().with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_holds_it_already_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert_eq!(keep(&path, "one").unwrap(), Kept::Written);
        assert_eq!(keep(&path, "one").unwrap(), Kept::Same);
        assert_eq!(keep(&path, "two").unwrap(), Kept::Changed);
        assert_eq!(read(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left aside");
    }

    #[cfg(unix)]
    #[test]
    fn others_may_not_look() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        make_folder(&inner).unwrap();
        write(&inner.join("key"), "secret").unwrap();
        assert_eq!(fs::metadata(&inner).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(inner.join("key")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
