//! Blobs as files named by their digest. A file is written aside, synced and renamed, so that a name never shows half a
//! blob, also after a power cut; what is read is checked against its name.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use folgore_protocol::Digest;

use crate::{Blob, BoxFuture, LinkError};

/// Numbers the files that are being written, in all folders of this process.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// A folder of blobs.
pub(super) struct LocalBlob {
    dir: Arc<Path>,
}

impl LocalBlob {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir: dir.into() }
    }

    /// Runs `work` where it may block; `name` is for the error.
    async fn blocking<T: Send + 'static>(
        &self,
        name: String,
        work: impl FnOnce(&Path) -> Result<T, String> + Send + 'static,
    ) -> Result<T, LinkError> {
        let dir = self.dir.clone();
        let result = tokio::task::spawn_blocking(move || work(&dir)).await;
        let result = result.unwrap_or_else(|e| Err(format!("the file task ended: {e}")));
        result.map_err(|reason| LinkError::Blob { name, reason })
    }
}

impl Blob for LocalBlob {
    fn put(&self, bytes: Arc<[u8]>) -> BoxFuture<'_, Result<Digest, LinkError>> {
        let name = format!("of {} bytes", bytes.len());
        Box::pin(self.blocking(name, move |dir| {
            let digest = Digest::of(&bytes);
            // A damaged file of that name is replaced.
            if read(dir, digest).is_err() {
                write(dir, digest, &bytes).map_err(|e| format!("cannot be stored in {}: {e}", dir.display()))?;
            }
            Ok(digest)
        }))
    }

    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Arc<[u8]>, LinkError>> {
        Box::pin(self.blocking(digest.hex(), move |dir| read(dir, digest).map(Arc::from)))
    }

    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(self.blocking(digest.hex(), move |dir| match fs::remove_file(dir.join(digest.hex())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("cannot be deleted: {e}")),
            _ => Ok(()),
        }))
    }
}

fn read(dir: &Path, digest: Digest) -> Result<Vec<u8>, String> {
    let bytes = fs::read(dir.join(digest.hex())).map_err(|e| format!("cannot be read in {}: {e}", dir.display()))?;
    let found = Digest::of(&bytes);
    if found != digest {
        return Err(format!("damaged in {}: its {} bytes have digest {}", dir.display(), bytes.len(), found.short()));
    }
    Ok(bytes)
}

fn write(dir: &Path, digest: Digest, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let aside = dir.join(format!("{}-{}-{number}.part", digest.short(), std::process::id()));
    let written = write_synced(&aside, bytes).and_then(|()| fs::rename(&aside, dir.join(digest.hex())));
    if written.is_err() {
        // The first error is the one worth telling.
        let _ = fs::remove_file(&aside);
    }
    written.and_then(|()| sync_dir(dir))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the rename itself durable.
#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn damage_is_told_and_healed_by_storing_again() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = LocalBlob::new(dir.path().join("blobs"));
        let bytes: Arc<[u8]> = b"adapter"[..].into();
        let digest = blobs.put(bytes.clone()).await.unwrap();
        let file = dir.path().join("blobs").join(digest.hex());
        fs::write(&file, b"adapte").unwrap();
        let error = blobs.get(digest).await.unwrap_err().to_string();
        assert!(error.contains("damaged") && error.contains(&digest.hex()), "{error}");
        assert_eq!(blobs.put(bytes.clone()).await.unwrap(), digest);
        assert_eq!(blobs.get(digest).await.unwrap(), bytes);
        let left: Vec<_> = fs::read_dir(dir.path().join("blobs")).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing is left aside: {left:?}");
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = LocalBlob::new(file.join("blobs")).put(b"x"[..].into()).await.unwrap_err().to_string();
        assert!(error.contains("cannot be stored in") && error.contains("file"), "{error}");
    }
}
