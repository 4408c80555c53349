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
    /// Rows that are in order and were not wanted, by reason.
    pub left_out: Vec<(String, u64)>,
    /// Rows whose prompt stands in an earlier row; they are kept.
    pub repeated: u64,
    /// Files beside it in its folder that were not read, with the reason; said once for a folder.
    pub beside: Vec<String>,
}

/// What rows are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To be asked.
    #[default]
    Questions,
    /// To be imitated.
    Examples,
}

/// What became of the section `data`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The files read.
    pub files: Vec<FileReport>,
    /// Files of a folder that cannot be read at all, each with its reason.
    pub unreadable: Vec<String>,
    /// The rule that makes questions, in words; none where files are read.
    pub made: Option<String>,
    /// Rows of all files that give no question, or nothing to imitate, by reason.
    pub left_out: Vec<(String, u64)>,
    /// How sources are mixed, a line for each; empty for one file.
    pub mix: Vec<String>,
    /// What was done to ask over passages.
    pub rag: Option<String>,
    /// What rows are for: `questions to train on`, or `rows to learn from`.
    pub purpose: Purpose,
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
            for (reason, count) in &file.left_out {
                writeln!(f, "  {count} of {} rows left out: {reason}", file.rows)?;
            }
            if file.repeated > 0 {
                writeln!(f, "  {} of {} rows repeat an earlier prompt", file.repeated, file.rows)?;
            }
            if !file.beside.is_empty() {
                let more = file.beside.len().saturating_sub(SHOWN);
                let shown = file.beside.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
                writeln!(
                    f,
                    "  not read: {shown}{}",
                    if more > 0 { format!(", and {more} more") } else { String::new() }
                )?;
            }
        }
        if !self.unreadable.is_empty() {
            writeln!(f, "left out whole, {} that cannot be read:", count(self.unreadable.len() as u64, "file"))?;
            self.unreadable.iter().take(SHOWN).try_for_each(|reason| writeln!(f, "  {reason}"))?;
        }
        for (reason, rows) in &self.left_out {
            writeln!(f, "  {} left out: {reason}", count(*rows, "row"))?;
        }
        self.mix.iter().chain(&self.rag).try_for_each(|line| writeln!(f, "  {line}"))?;
        if self.also_held_out > 0 {
            writeln!(f, "  {} left out: their prompts are held out", count(self.also_held_out, "training row"))?;
        }
        let (one, what) = match self.purpose {
            Purpose::Questions => ("question", "to train on"),
            Purpose::Examples => ("row", "to learn from"),
        };
        match self.train {
            Some(train) => write!(f, "{} {what}, {} held out", count(train, one), self.eval),
            None => write!(f, "{one}s {what} without end, {} held out", self.eval),
        }
    }
}

/// A number with its noun, for people.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
