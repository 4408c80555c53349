//! `metrics.jsonl`: one object per step and per evaluation, appended. On resume it is cut back to the checkpoint's step, so that no
//! step is told twice. Evaluations of that very step go too: they come after its checkpoint, and are made again.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::evaluation::is_evaluation;

/// Appends objects to a file, one per line.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    /// Length up to the last whole line.
    bytes: u64,
}

impl MetricsLog {
    /// Opens `path` for appending, or creates it. [`Self::cut_back`] comes before the first line.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let file = File::options().append(true).create(true).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, path, bytes })
    }

    /// Appends `metrics`, an object with the field `step`, in one write. After an error the file is as it was before.
    pub fn append(&mut self, metrics: &impl Serialize) -> io::Result<()> {
        let value = serde_json::to_value(metrics)?;
        if value.get("step").and_then(Value::as_u64).is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "metrics: expected an object with a whole `step`"));
        }
        let line = format!("{value}\n");
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Half a line would swallow the next one.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Removes the lines of steps after `step`, evaluations from `step` on, and what is no whole line. The file is replaced in one rename.
    pub fn cut_back(&mut self, step: u64) -> io::Result<CutBack> {
        let done = cut_back(&self.path, step)?;
        *self = Self::open(&self.path)?;
        Ok(done)
    }

    /// Makes what was appended durable: before a checkpoint, so that its steps are never missing.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What [`MetricsLog::cut_back`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutBack {
    /// Lines that stay.
    pub kept: u64,
    /// Whole lines of later steps, and of evaluations that are made again, that are gone.
    pub removed: u64,
    /// Lines that were no object with a step (the torn last one), gone too.
    pub torn: u64,
}

fn cut_back(path: &Path, step: u64) -> io::Result<CutBack> {
    let mut done = CutBack::default();
    let mut from = BufReader::new(File::open(path)?);
    let aside = path.with_extension("jsonl.new");
    let mut to = BufWriter::new(File::create(&aside)?);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        match told(&line) {
            None => done.torn += 1,
            Some((found, evaluates)) if found > step || evaluates && found == step => done.removed += 1,
            Some(_) => {
                to.write_all(&line)?;
                done.kept += 1;
            }
        }
        line.clear();
    }
    to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&aside, path)?;
    Ok(done)
}

/// The step of a line, and whether it is that of an evaluation; none if it is no whole line.
fn told(line: &[u8]) -> Option<(u64, bool)> {
    let line: Map<String, Value> = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
    Some((line.get("step")?.as_u64()?, is_evaluation(&line)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cutting_back_leaves_the_steps_that_are_kept_and_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path).unwrap();
        assert_eq!(log.cut_back(3).unwrap(), CutBack::default());
        for step in 1..=5 {
            log.append(&json!({"step": step, "loss": 0.5})).unwrap();
        }
        log.sync().unwrap();
        assert!(log.append(&json!({"loss": 1})).is_err());
        drop(log);
        let three = fs::read_to_string(&path).unwrap().lines().take(3).map(|l| format!("{l}\n")).collect::<String>();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"step\": 2, \"lo").unwrap();
        let mut log = MetricsLog::open(&path).unwrap();
        assert_eq!(log.cut_back(3).unwrap(), CutBack { kept: 3, removed: 2, torn: 1 });
        assert_eq!(fs::read_to_string(&path).unwrap(), three);
        log.append(&json!({"step": 4})).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{three}{{\"step\":4}}\n"));
        assert_eq!(log.cut_back(0).unwrap(), CutBack { kept: 0, removed: 4, torn: 0 });
    }

    #[test]
    fn evaluations_of_the_step_that_is_gone_on_from_are_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path).unwrap();
        log.append(&json!({"step": 0, "eval": "before"})).unwrap();
        for step in 1..=3 {
            log.append(&json!({"step": step})).unwrap();
            log.append(&json!({"step": step, "eval": format!("step-{step}")})).unwrap();
        }
        assert_eq!(log.cut_back(2).unwrap(), CutBack { kept: 4, removed: 3, torn: 0 });
        let left = fs::read_to_string(&path).unwrap();
        assert!(left.contains("before") && left.contains("step-1") && !left.contains("step-2"), "{left}");
        assert_eq!(log.cut_back(0).unwrap(), CutBack { kept: 0, removed: 4, torn: 0 });
    }
}
