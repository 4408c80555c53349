//! Verdicts that were given before: bounded in memory, and kept in a file where the user names one.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use folgore_protocol::Digest;
use serde::{Deserialize, Serialize};

/// Verdicts in each of the two generations.
const GENERATION: usize = 1 << 15;
/// Bytes of a file that are read at most; the rest is forgotten when it is read.
const FILE_MAX: u64 = 64 << 20;

/// Scores by the digest of what was judged. The older of two generations is dropped when the newer is full, so that what is
/// used stays and memory is bounded.
pub(super) struct Cache {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    newer: HashMap<Digest, f64>,
    older: HashMap<Digest, f64>,
    file: Option<File>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    score: f64,
}

impl Cache {
    /// An empty cache, or that of the file at `path`, which is made if it is not there.
    ///
    /// # Errors
    /// If the file cannot be read or written; the text names it.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, String> {
        let mut state = State::default();
        if let Some(path) = path {
            let named = |e: std::io::Error| format!("judge.cache: {}: {e}", path.display());
            state.read(path).map_err(named)?;
            state.file = Some(OpenOptions::new().create(true).append(true).open(path).map_err(named)?);
        }
        Ok(Self { state: Mutex::new(state) })
    }

    /// The score of `key`.
    pub(super) fn get(&self, key: &Digest) -> Option<f64> {
        let mut state = self.state();
        if let Some(score) = state.newer.get(key) {
            return Some(*score);
        }
        let score = state.older.remove(key)?;
        state.remember(*key, score);
        Some(score)
    }

    /// Keeps the score of `key`. A file that cannot be written costs the next run some verdicts, and this one nothing.
    pub(super) fn put(&self, key: Digest, score: f64) {
        let mut state = self.state();
        state.remember(key, score);
        let Ok(mut line) = serde_json::to_string(&Line { key: key.hex(), score }) else { return };
        line.push('\n');
        if let Some(error) = state.file.as_mut().and_then(|file| file.write_all(line.as_bytes()).err()) {
            tracing::warn!(%error, "the cache of the judge cannot be written: going on without its file");
            state.file = None;
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remember(&mut self, key: Digest, score: f64) {
        if self.newer.len() >= GENERATION {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(key, score);
    }

    /// Reads what is there; a line that is none was torn by a crash and is passed over.
    fn read(&mut self, path: &Path) -> std::io::Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let too_long = file.metadata()?.len() > FILE_MAX;
        for line in BufReader::new(file.take(FILE_MAX)).split(b'\n') {
            let Ok(Line { key, score }) = serde_json::from_slice(&line?) else { continue };
            if let Ok(key) = Digest::try_from(key)
                && score.is_finite()
            {
                self.remember(key, score);
            }
        }
        if too_long { self.rewrite(path) } else { Ok(()) }
    }

    /// Begins a file that has grown too long again, with what is remembered.
    fn rewrite(&self, path: &Path) -> std::io::Result<()> {
        let mut aside = PathBuf::from(path).into_os_string();
        aside.push(".tmp");
        let mut file = std::io::BufWriter::new(File::create(&aside)?);
        for (key, score) in self.older.iter().chain(&self.newer) {
            serde_json::to_writer(&mut file, &Line { key: key.hex(), score: *score })?;
            file.write_all(b"\n")?;
        }
        file.flush()?;
        std::fs::rename(aside, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(i: usize) -> Digest {
        Digest::of(&i.to_le_bytes())
    }

    #[test]
    fn it_forgets_the_oldest_and_stays_bounded() {
        let cache = Cache::open(None).unwrap();
        cache.put(key(0), 0.5);
        for i in 1..3 * GENERATION {
            cache.put(key(i), 1.0);
            if i.is_multiple_of(GENERATION / 2) {
                assert_eq!(cache.get(&key(0)), Some(0.5), "what is used stays");
            }
        }
        assert_eq!(cache.get(&key(1)), None);
        let state = cache.state();
        assert!(state.newer.len() <= GENERATION && state.older.len() <= GENERATION);
    }

    #[test]
    fn a_file_remembers_across_processes_and_survives_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("verdicts.jsonl");
        let cache = Cache::open(Some(&path)).unwrap();
        cache.put(key(1), 0.25);
        drop(cache);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"key\": \"12\n").unwrap();
        let cache = Cache::open(Some(&path)).unwrap();
        cache.put(key(2), 0.75);
        drop(cache);
        let cache = Cache::open(Some(&path)).unwrap();
        assert_eq!((cache.get(&key(1)), cache.get(&key(2)), cache.get(&key(3))), (Some(0.25), Some(0.75), None));
        let refused = Cache::open(Some(folder.path())).err().unwrap();
        assert!(refused.contains("judge.cache"), "{refused}");
    }
}
