//! TensorBoard event files of a run, in its folder `tb`: the numbers of `metrics.jsonl`, of steps and of evaluations, under the same
//! names.
//!
//! Each launch writes a file of its own. It begins with the order to forget what earlier files say of the step that is resumed
//! from and later ones, and tells that step again from the run's own files: a launch that was killed may not have told it. So
//! every step is shown once. A folder without event files gets the whole run.

mod events;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use events::Event;
use folgore_learner::{alarm::Alarm, evaluation::Evaluated, learner::Witness};
use folgore_protocol::Batch;
use serde_json::{Map, Value};

use crate::summary::read_lines;

/// The folder of the event files, within that of the run.
pub const FOLDER: &str = "tb";

/// Writes the event file of one launch. A disk that takes nothing more ends the file with one warning, never the run.
pub struct TensorBoard {
    run: PathBuf,
    file: Mutex<Option<File>>,
}

impl TensorBoard {
    /// The event files of the run in the folder `run`.
    pub fn of(run: &Path) -> Self {
        Self { run: run.to_owned(), file: Mutex::default() }
    }

    /// Begins the file of a launch that goes on from `step`. Where that cannot be, a warning says so.
    pub fn start(&self, step: u64) {
        match Self::begin(&self.run, step) {
            Ok(file) => *self.file() = Some(file),
            Err(error) => eprintln!("warning: no file for TensorBoard: {error:#}"),
        }
    }

    /// The numbers of a line of `metrics.jsonl`.
    pub fn line(&self, step: u64, line: &Map<String, Value>) {
        self.tell(&of_line(line), step);
    }

    /// Begins the file of a launch that goes on from `step`.
    fn begin(run: &Path, step: u64) -> Result<File> {
        let folder = run.join(FOLDER);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let earlier = event_files(&folder)?;
        let path = folder.join(next_name(&earlier, now().as_secs()));
        let mut file = File::create_new(&path).with_context(|| path.display().to_string())?;
        Self::begin_in(&mut file, run, step, &earlier).with_context(|| path.display().to_string())?;
        Ok(file)
    }

    fn begin_in(file: &mut File, run: &Path, step: u64, earlier: &[String]) -> Result<()> {
        write(file, &Event::Version, 0)?;
        let from = if earlier.is_empty() { 0 } else { step };
        if !earlier.is_empty() {
            write(file, &Event::Start, from)?;
        }
        for line in read_lines(&run.join("metrics.jsonl"))? {
            match line.get("step").and_then(Value::as_u64) {
                Some(step) if step >= from => write(file, &of_line(&line), step)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: &Event, step: u64) {
        let mut file = self.file();
        if let Some(error) = file.as_mut().and_then(|file| write(file, event, step).err()) {
            eprintln!("warning: TensorBoard's file ends before step {step}: {error}");
            *file = None;
        }
    }
}

impl Witness for TensorBoard {
    fn goes_on(&self, step: u64) {
        self.start(step);
    }

    fn stepped(&self, step: u64, line: &Map<String, Value>, _: &Batch) {
        self.line(step, line);
    }

    fn evaluated(&self, evaluated: &Evaluated) {
        self.tell(&of_line(&evaluated.line()), evaluated.step);
    }

    fn saved(&self, _: u64, _: &Path) {}

    fn waiting(&self, _: &str) {}

    fn alarm(&self, _: &Alarm) {}
}

/// The numbers of a line of `metrics.jsonl`.
fn of_line(line: &Map<String, Value>) -> Event {
    let numbers = line.iter().filter(|(name, _)| *name != "step");
    Event::Scalars(numbers.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect())
}

/// Appends one event; a write is whole or the last.
fn write(file: &mut File, event: &Event, step: u64) -> io::Result<()> {
    file.write_all(&events::record(&event.encoded(now().as_secs_f64(), step)))
}

/// The names of event files in `folder`, in the order in which TensorBoard reads them.
fn event_files(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(PREFIX)).collect();
    names.sort_unstable();
    Ok(names)
}

const PREFIX: &str = "events.out.tfevents.";

/// A name after all of `earlier`, which are sorted: TensorBoard reads files by name, and the clock may have been set back.
fn next_name(earlier: &[String], now: u64) -> String {
    let seconds = |name: &String| name.strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok();
    let seconds = earlier.last().and_then(seconds).unwrap_or(0).max(now);
    format!("{PREFIX}{seconds:010}.folgore.{:06}", earlier.len())
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_file_is_read_later_even_if_the_clock_was_set_back() {
        let mut names = vec![next_name(&[], 1_700_000_000)];
        for now in [1_700_000_000, 1_600_000_000, 1_800_000_000] {
            names.push(next_name(&names, now));
        }
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(names[0], "events.out.tfevents.1700000000.folgore.000000");
    }

    #[test]
    fn a_file_that_cannot_be_written_ends_without_harm() {
        let run = tempfile::tempdir().unwrap();
        let scalar = || Event::Scalars(vec![("reward".into(), 1.0)]);
        let board = TensorBoard::of(run.path());
        *board.file() = Some(File::options().write(true).open("/dev/full").unwrap());
        board.tell(&scalar(), 1);
        assert!(board.file().is_none());
        board.tell(&scalar(), 2);
        fs::write(run.path().join(FOLDER), "").unwrap();
        board.goes_on(0);
        assert!(board.file().is_none());
    }
}
