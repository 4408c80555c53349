//! Blobs with a folder of this machine before them: many processes of one host, one download.
//!
//! A blob is a file named by its digest. Who finds none takes a lock beside it, looks again and only then downloads, so
//! that of many who want the same blob one goes and the others read what it brought. The folder is a convenience: whatever
//! goes wrong with it, the blob is fetched as if it were not there.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use folgore_protocol::Digest;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::{Blob, BoxFuture, LinkError};

/// How long to wait for somebody else's download before going oneself.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How often the lock is tried.
const LOCK_TRY: Duration = Duration::from_millis(50);
/// Age at which what a crashed process left aside is removed.
const LEFT_ASIDE: Duration = Duration::from_secs(3600);

/// Numbers the files that are being written.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// `blob` behind `folder`, in which the `keep` blobs that were used last stay. The folder is made when it is needed, and
/// may be shared by processes.
pub fn cached(blob: Arc<dyn Blob>, folder: impl Into<PathBuf>, keep: usize) -> Arc<dyn Blob> {
    Arc::new(Cached { inner: blob, folder: Folder { path: folder.into().into(), keep: keep.max(1) } })
}

struct Cached {
    inner: Arc<dyn Blob>,
    folder: Folder,
}

impl Blob for Cached {
    fn put(&self, bytes: Arc<[u8]>) -> BoxFuture<'_, Result<Digest, LinkError>> {
        Box::pin(async move {
            let digest = self.inner.put(bytes.clone()).await?;
            self.folder.fill(digest, bytes).await;
            Ok(digest)
        })
    }

    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Arc<[u8]>, LinkError>> {
        Box::pin(async move {
            if let Some(bytes) = self.folder.look(digest).await {
                return Ok(bytes);
            }
            // Held until the file is there; without it, this process goes on its own.
            let lock = match self.folder.turn(digest).await {
                Turn::Come(bytes) => return Ok(bytes),
                Turn::Own(lock) => lock,
            };
            let bytes = self.inner.get(digest).await?;
            // Who asked need not wait for the disk.
            let (folder, copy) = (self.folder.clone(), bytes.clone());
            tokio::spawn(async move {
                folder.fill(digest, copy).await;
                drop(lock);
            });
            Ok(bytes)
        })
    }

    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async move {
            self.folder.quietly("delete", move |folder| folder.remove(&digest.hex())).await;
            self.inner.delete(digest).await
        })
    }
}

/// How a wait for a blob ends.
enum Turn {
    /// It is there.
    Come(Arc<[u8]>),
    /// It is to be downloaded, under the lock if there can be one and it was free in time.
    Own(Option<File>),
}

#[derive(Clone)]
struct Folder {
    path: Arc<Path>,
    keep: usize,
}

impl Folder {
    /// Does `work` where it may block; what goes wrong is logged and otherwise as if nothing were there.
    async fn quietly<T: Default + Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    ) -> T {
        let folder = self.clone();
        let done = spawn_blocking(move || work(&folder)).await;
        done.map_err(io::Error::other).and_then(|done| done).unwrap_or_else(|error| {
            tracing::warn!(folder = %self.path.display(), %error, "blob cache: cannot {what}");
            T::default()
        })
    }

    /// The blob, if it is there and whole; a damaged one is removed.
    async fn look(&self, digest: Digest) -> Option<Arc<[u8]>> {
        self.quietly("read", move |folder| folder.read(digest)).await
    }

    async fn fill(&self, digest: Digest, bytes: Arc<[u8]>) {
        self.quietly("write", move |folder| {
            folder.write(digest, &bytes)?;
            folder.prune()
        })
        .await;
    }

    /// Waits until somebody else has brought the blob, or it is one's own turn. Those who wait look for the file and not for
    /// the lock: when it comes, they all read it at once.
    async fn turn(&self, digest: Digest) -> Turn {
        let deadline = Instant::now() + LOCK_PATIENCE;
        let mut lock = self.quietly("lock", move |folder| folder.open_lock(digest).map(Some)).await;
        while let Some(file) = lock.take() {
            let Ok((tried, file)) = spawn_blocking(move || (file.try_lock(), file)).await else { break };
            // Also with the lock: it may have come before.
            if let Some(bytes) = self.look(digest).await {
                return Turn::Come(bytes);
            }
            match tried {
                Ok(()) => return Turn::Own(Some(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => lock = Some(file),
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(folder = %self.path.display(), %error, "blob cache: cannot lock");
                    break;
                }
            }
            sleep(LOCK_TRY).await;
        }
        Turn::Own(None)
    }

    fn open_lock(&self, digest: Digest) -> io::Result<File> {
        fs::create_dir_all(&self.path)?;
        File::options().create(true).truncate(false).write(true).open(self.path.join(format!("{}.lock", digest.hex())))
    }

    fn read(&self, digest: Digest) -> io::Result<Option<Arc<[u8]>>> {
        let name = digest.hex();
        let bytes = match fs::read(self.path.join(&name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        if Digest::of(&bytes) != digest {
            tracing::warn!(folder = %self.path.display(), blob = name, "blob cache: a damaged file is removed");
            self.remove(&name)?;
            return Ok(None);
        }
        // Only the order of pruning depends on it.
        let _ = File::options().write(true).open(self.path.join(&name)).and_then(|f| f.set_modified(SystemTime::now()));
        Ok(Some(bytes.into()))
    }

    fn write(&self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        let number = WRITES.fetch_add(1, Ordering::Relaxed);
        let aside = self.path.join(format!("{}-{}-{number}.part", digest.short(), std::process::id()));
        let written = fs::write(&aside, bytes).and_then(|()| fs::rename(&aside, self.path.join(digest.hex())));
        if written.is_err() {
            // The first error is the one worth telling.
            let _ = fs::remove_file(&aside);
        }
        written
    }

    /// Removes all but the newest blobs, with their locks, and what crashed processes left aside.
    fn prune(&self) -> io::Result<()> {
        let now = SystemTime::now();
        let mut blobs = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Somebody else may have pruned it meanwhile.
            let Ok(modified) = entry.metadata().and_then(|facts| facts.modified()) else { continue };
            if name.ends_with(".part") && now.duration_since(modified).is_ok_and(|age| age > LEFT_ASIDE) {
                self.remove(&name)?;
            } else if Digest::try_from(name.clone()).is_ok() {
                blobs.push((modified, name));
            }
        }
        blobs.sort();
        blobs.reverse();
        for (_, name) in blobs.into_iter().skip(self.keep) {
            self.remove(&name)?;
            // Whoever holds it may download once more than needed, and no worse.
            self.remove(&format!("{name}.lock"))?;
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::{LocalConfig, local};

    /// Counts downloads, each of which takes a while.
    struct Counting(Arc<dyn Blob>, AtomicUsize);

    impl Blob for Counting {
        fn put(&self, bytes: Arc<[u8]>) -> BoxFuture<'_, Result<Digest, LinkError>> {
            self.0.put(bytes)
        }
        fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Arc<[u8]>, LinkError>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                sleep(Duration::from_millis(100)).await;
                self.0.get(digest).await
            })
        }
        fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), LinkError>> {
            self.0.delete(digest)
        }
    }

    struct Bench {
        dir: tempfile::TempDir,
        counting: Arc<Counting>,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let inner = local("demo", LocalConfig::new(dir.path().join("far"))).blob;
            Self { dir, counting: Arc::new(Counting(inner, AtomicUsize::new(0))) }
        }
        fn cache(&self, keep: usize) -> Arc<dyn Blob> {
            cached(self.counting.clone(), self.folder(), keep)
        }
        fn folder(&self) -> PathBuf {
            self.dir.path().join("near")
        }
        fn downloads(&self) -> usize {
            self.counting.1.load(Ordering::SeqCst)
        }
        async fn stored(&self, text: &str) -> Digest {
            self.counting.put(text.as_bytes().into()).await.unwrap()
        }
    }

    #[tokio::test]
    async fn many_who_want_one_blob_download_it_once() {
        let bench = Bench::new();
        let digest = bench.stored("adapter").await;
        // Four handles stand for four processes: the lock is on the file.
        let mut getting = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let cache = bench.cache(4);
            getting.spawn(async move { cache.get(digest).await });
        }
        while let Some(got) = getting.join_next().await {
            assert_eq!(&got.unwrap().unwrap()[..], b"adapter");
        }
        assert_eq!(bench.downloads(), 1);
    }

    #[tokio::test]
    async fn damage_on_disk_is_downloaded_again() {
        let bench = Bench::new();
        let digest = bench.stored("adapter").await;
        let cache = bench.cache(4);
        let file = bench.folder().join(digest.hex());
        let becomes_whole = async || {
            while fs::read(&file).ok().as_deref() != Some(b"adapter") {
                sleep(Duration::from_millis(5)).await;
            }
        };
        cache.get(digest).await.unwrap();
        becomes_whole().await;
        fs::write(&file, b"adapte").unwrap();
        assert_eq!(&cache.get(digest).await.unwrap()[..], b"adapter");
        tokio::time::timeout(Duration::from_secs(10), becomes_whole()).await.expect("healed");
        assert_eq!(bench.downloads(), 2);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_used_costs_downloads_and_nothing_else() {
        let bench = Bench::new();
        let digest = bench.stored("adapter").await;
        fs::write(bench.folder(), b"not a folder").unwrap();
        let cache = bench.cache(4);
        for _ in 0..2 {
            assert_eq!(&cache.get(digest).await.unwrap()[..], b"adapter");
        }
        assert_eq!(cache.put(b"other"[..].into()).await, Ok(Digest::of(b"other")));
        cache.delete(digest).await.unwrap();
        assert_eq!(bench.downloads(), 2);
    }

    #[tokio::test]
    async fn the_blobs_used_last_stay_and_a_deleted_one_is_gone() {
        let bench = Bench::new();
        let cache = bench.cache(2);
        let mut digests = Vec::new();
        for text in ["a", "b", "c"] {
            digests.push(cache.put(text.as_bytes().into()).await.unwrap());
            // Files of one moment have no order.
            sleep(Duration::from_millis(20)).await;
            cache.get(digests[0]).await.unwrap();
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(bench.downloads(), 0, "what is put is in the cache");
        let there = |digest: &Digest| bench.folder().join(digest.hex()).exists();
        assert_eq!(digests.iter().map(there).collect::<Vec<_>>(), [true, false, true]);
        cache.delete(digests[0]).await.unwrap();
        assert!(cache.get(digests[0]).await.is_err() && !there(&digests[0]));
    }
}
