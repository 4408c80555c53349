//! What was read and what was left out: printed at the start of a run, so that nothing is dropped silently.

use std::fmt;

use crate::{detect::Detection, error::BadRow};

/// Bad rows that a report shows.
pub(crate) const SHOWN: usize = 5;

/// What became of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReport {
    /// Its shape.
    pub detection: Detection,
    /// Rows in it, up to `data.max_rows`.
    pub rows: u64,
    /// Rows left out because they are bad.
    pub skipped: u64,
    /// The first of them.
    pub first_bad: Vec<BadRow>,
    /// Rows whose prompt stands in an earlier row; they are kept.
    pub repeated: u64,
}

/// What became of the section `data`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The files read.
    pub files: Vec<FileReport>,
    /// The rule that makes questions, in words; none where files are read.
    pub made: Option<String>,
    /// Training rows left out because their prompt is in the held-out file.
    pub also_held_out: u64,
    /// Questions to train on; none where a rule makes them without end.
    pub train: Option<u64>,
    /// Questions held out.
    pub eval: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(made) = &self.made {
            writeln!(f, "{made}")?;
        }
        for file in &self.files {
            writeln!(f, "{}", file.detection)?;
            if file.skipped > 0 {
                writeln!(f, "  {} of {} rows are bad and left out:", file.skipped, file.rows)?;
                file.first_bad.iter().try_for_each(|bad| writeln!(f, "    {bad}"))?;
            }
            if file.repeated > 0 {
                writeln!(f, "  {} of {} rows repeat an earlier prompt", file.repeated, file.rows)?;
            }
        }
        if self.also_held_out > 0 {
            writeln!(f, "  {} training rows left out: their prompts are held out", self.also_held_out)?;
        }
        match self.train {
            Some(train) => write!(f, "{train} questions to train on, {} held out", self.eval),
            None => write!(f, "questions to train on without end, {} held out", self.eval),
        }
    }
}
