//! Feeds damaged files to every reader of files: a seeded mutator over a committed corpus (`fuzz/corpus/TARGET/`), under an
//! allocator that counts. A reader fails if it panics, takes more memory than the size of its input accounts for, or does not
//! come back in time. It needs no nightly compiler: `cargo run --release -p folgore-fuzz -- --seconds 60`.
//!
//! An input is a function of (seed, number) alone, so a finding is repeated by `--seed S --target T --only N`. The number of
//! the input at work is kept in a file, for the case that the process dies.

mod count;
mod mutate;
mod targets;

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

pub use targets::TARGETS;
use targets::Target;

/// Bytes of memory that a reader may take for each byte of its input, and beside them: what is not of the input's making
/// (buffers, tables of regular expressions, the small model that stands around the damaged file).
pub const FACTOR: usize = 256;
/// See [`FACTOR`]; [`PROGRAM`] for what a program may do.
pub const CONSTANT: usize = 64 << 20;
/// Bytes of memory that a template may take beside those: it runs for a million instructions at most, whatever its length. What
/// it writes, at most 4 MiB, counts as input, since it is tokenized.
pub const PROGRAM: usize = 256 * 1_000_000;
/// Longest time for one input. Far above what the largest takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(20);
/// Largest input.
const LARGEST: usize = 256 << 10;

/// What the last panic said, instead of a page on the screen for each that a reader catches.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

fn remember_panics() {
    std::panic::set_hook(Box::new(|info| {
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
    }));
}

/// What one target went through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Inputs tried.
    pub inputs: u64,
    /// Inputs that the reader took as valid.
    pub taken: u64,
    /// Most memory above its constant part that one input took, in bytes for each byte of it.
    pub worst_factor: usize,
    /// Most memory that one input took, in bytes.
    pub worst_bytes: usize,
    /// Longest time for one input.
    pub slowest: Duration,
}

/// A target with its corpus.
pub struct Run {
    target: Target,
    corpus: Vec<Vec<u8>>,
    state: File,
    state_path: PathBuf,
    seed: u64,
}

impl Run {
    /// Reads the corpus of the target called `name`.
    pub fn new(name: &str, seed: u64) -> anyhow::Result<Self> {
        let target = TARGETS.iter().find(|t| t.name == name).copied();
        let names = || TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join(", ");
        let target = target.with_context(|| format!("no target {name}: there are {}", names()))?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut corpus = Vec::new();
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
            .with_context(|| folder.display().to_string())?
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<_, _>>()?;
        paths.sort();
        for path in paths {
            corpus.push(fs::read(&path).with_context(|| path.display().to_string())?);
        }
        if corpus.is_empty() {
            bail!("{} is empty", folder.display());
        }
        let state_path = std::env::temp_dir().join(format!("folgore-fuzz-{}-{name}", std::process::id()));
        let state = File::create(&state_path).with_context(|| state_path.display().to_string())?;
        Ok(Self { target, corpus, state, state_path, seed })
    }

    /// Every file of the corpus as it is, then damaged ones until `time` is over; the number of the first is `from`.
    pub fn run(&self, time: Duration, from: u64) -> anyhow::Result<Tally> {
        remember_panics();
        let mut tally = Tally::default();
        let begin = Instant::now();
        let whole = self.corpus.len() as u64;
        let mut number = from;
        while number < whole || begin.elapsed() < time {
            self.one(number, &mut tally)?;
            number += 1;
        }
        fs::remove_file(&self.state_path).with_context(|| self.state_path.display().to_string())?;
        Ok(tally)
    }

    /// Input `number`: of the corpus first, then made of it.
    pub fn input(&self, number: u64) -> Vec<u8> {
        match self.corpus.get(number as usize) {
            Some(bytes) => bytes.clone(),
            None => mutate::mutated(&self.corpus, self.target.words, self.seed, number, LARGEST),
        }
    }

    /// Tries input `number`.
    pub fn one(&self, number: u64, tally: &mut Tally) -> anyhow::Result<()> {
        let input = self.input(number);
        let note = format!("{} --seed {} --only {number:<20}\n", self.target.name, self.seed);
        (&self.state).seek(SeekFrom::Start(0))?;
        (&self.state).write_all(note.as_bytes())?;
        let begin = Instant::now();
        let (result, bytes) = count::peak(|| catch_unwind(AssertUnwindSafe(|| (self.target.read)(&input))));
        let time = begin.elapsed();
        tally.inputs += 1;
        tally.worst_bytes = tally.worst_bytes.max(bytes);
        tally.worst_factor = tally.worst_factor.max(bytes.saturating_sub(CONSTANT) / input.len().max(1));
        tally.slowest = tally.slowest.max(time);
        let again = format!("--target {} --seed {} --only {number}", self.target.name, self.seed);
        match result {
            Err(_) => {
                let said = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
                bail!("{said}: {again}")
            }
            Ok(taken) => tally.taken += u64::from(taken.is_some()),
        }
        let most = FACTOR * (input.len() + result.ok().flatten().unwrap_or(0)) + CONSTANT + self.target.more;
        if bytes > most {
            bail!("{bytes} bytes of memory for an input of {}, at most {most} are right: {again}", input.len());
        }
        if time > PATIENCE {
            bail!("{time:?} for an input of {} bytes: {again}", input.len());
        }
        Ok(())
    }
}
