//! Rows in: JSON and JSONL in the shapes of the field, detected; procedural tasks with exact verifiers.
//!
//! [`load`] turns the section `data` into a [`Dataset`]: questions to train on, held-out questions that are none of them, a
//! digest that names both, and a report of what was read and what was left out.

mod detect;
mod error;
pub mod procedural;
mod report;
mod rows;
mod shape;
mod split;

use std::{path::Path, sync::Arc};

use folgore_config::{DataSection, data::OnBadRow};
use folgore_protocol::{Digest, Task};
use sha2::{Digest as _, Sha256};

pub use detect::Detection;
pub use error::{BadRow, DatasetError};
pub use procedural::{Questions, Side, TraceMixture, arithmetic_traces, countries, crc32, held_out};
pub use report::{FileReport, Report};
pub use rows::Container;

/// Questions, and what they came from.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Questions to train on.
    pub train: Tasks,
    /// Questions to evaluate on; none of them is in `train`. May be empty where nothing is held out.
    pub eval: Tasks,
    /// Names the questions of both sides and their order.
    pub digest: Digest,
    /// What was read, for printing.
    pub report: Report,
}

/// Tasks read by place: rows in memory, or a rule that makes them.
#[derive(Clone, Debug)]
pub enum Tasks {
    /// Rows of a file.
    Rows(Vec<Task>),
    /// Made when asked for; without end, for every practical purpose.
    Made(Box<Questions>),
    /// Made when asked for, and then changed.
    Changed(Box<Questions>, Change),
}

/// What becomes of a task before anybody sees it. The same task becomes the same, always.
#[derive(Clone)]
pub struct Change(pub Arc<dyn Fn(Task) -> Task + Send + Sync>);

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Change")
    }
}

impl Tasks {
    /// Number of tasks.
    pub fn len(&self) -> u64 {
        match self {
            Tasks::Rows(rows) => rows.len() as u64,
            Tasks::Made(_) | Tasks::Changed(..) => procedural::TRAIN_LEN,
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Task number `index`; the same for the same index, always.
    ///
    /// # Panics
    /// If `index` is not below [`Tasks::len`].
    pub fn task(&self, index: u64) -> Task {
        match self {
            Tasks::Rows(rows) => rows[index as usize].clone(),
            Tasks::Made(questions) => questions.task(index),
            Tasks::Changed(questions, change) => (change.0)(questions.task(index)),
        }
    }

    /// The same tasks, changed: rows now, others when they are made.
    #[must_use]
    pub fn changed(self, change: Change) -> Self {
        match self {
            Tasks::Rows(rows) => Tasks::Rows(rows.into_iter().map(|task| (change.0)(task)).collect()),
            Tasks::Made(questions) => Tasks::Changed(questions, change),
            Tasks::Changed(questions, first) => {
                let both = move |task| (change.0)((first.0)(task));
                Tasks::Changed(questions, Change(Arc::new(both)))
            }
        }
    }
}

/// Reads what `section` names.
///
/// # Errors
/// If a file cannot be read or has no known shape, a row is bad and the policy is to stop, or nothing is left to train on.
pub fn load(section: &DataSection) -> Result<Dataset, DatasetError> {
    match procedural::Rule::of(section) {
        Some(rule) => make(rule, section),
        None => files(section),
    }
}

fn make(rule: procedural::Rule, section: &DataSection) -> Result<Dataset, DatasetError> {
    let questions = Questions::training(rule, section)?;
    let eval = questions.held_out()?;
    let report = Report { made: Some(questions.describe()), eval: eval.len() as u64, ..Report::default() };
    Ok(Dataset { digest: questions.digest(), train: Tasks::Made(Box::new(questions)), eval: Tasks::Rows(eval), report })
}

fn files(section: &DataSection) -> Result<Dataset, DatasetError> {
    let (tasks, file) = file(Path::new(&section.dataset), section)?;
    let mut report = Report { files: vec![file], ..Report::default() };
    let (train, eval) = match &section.eval_dataset {
        None => {
            let read = tasks.len();
            let (train, eval) = split::by_hash(tasks, section.eval_fraction);
            if train.is_empty() {
                let why = format!("all of {read} are held out: lower data.eval_fraction, or give a data.eval_dataset");
                return Err(DatasetError::NothingToTrain { path: section.dataset.clone(), why });
            }
            (train, eval)
        }
        Some(path) => {
            let (eval, file) = self::file(path, section)?;
            report.files.push(file);
            let read = tasks.len();
            let train = split::without(tasks, &eval);
            report.also_held_out = (read - train.len()) as u64;
            if train.is_empty() {
                let why = format!("all of {read} are also in {}", path.display());
                return Err(DatasetError::NothingToTrain { path: section.dataset.clone(), why });
            }
            (train, eval)
        }
    };
    report.train = Some(train.len() as u64);
    report.eval = eval.len() as u64;
    Ok(Dataset { digest: digest(&train, &eval), train: Tasks::Rows(train), eval: Tasks::Rows(eval), report })
}

/// Reads one file; the policy on bad rows decides whether one of them ends it.
fn file(path: &Path, section: &DataSection) -> Result<(Vec<Task>, FileReport), DatasetError> {
    let shown = path.display().to_string();
    let stem = path.file_stem().map_or_else(|| shown.clone(), |stem| stem.to_string_lossy().into_owned());
    let raw = rows::read(path, section.max_line_bytes, section.max_rows.unwrap_or(u64::MAX))?;
    let total = raw.rows.len() as u64;
    let empty = |first: Option<&BadRow>| DatasetError::Empty {
        path: shown.clone(),
        rows: total,
        first: first.map_or_else(String::new, |bad| format!("; {bad}")),
    };
    let stop = |row: BadRow| match section.on_bad_row {
        OnBadRow::Stop => Err(DatasetError::BadRow { path: shown.clone(), row }),
        OnBadRow::Skip => Ok(row),
    };
    if raw.rows.iter().all(Result::is_err) {
        let first = raw.rows.into_iter().find_map(Result::err);
        return Err(empty(first.map(stop).transpose()?.as_ref()));
    }
    let readable = raw.rows.iter().filter_map(|row| row.as_ref().ok());
    let detection = detect::detect(&shown, raw.container, readable, section)?;
    let (mut tasks, mut bad) = (Vec::new(), Vec::new());
    for row in raw.rows {
        match row.and_then(|row| shape::task(&stem, row, detection.format, section)) {
            Ok(task) => tasks.push(task),
            Err(row) => bad.push(stop(row)?),
        }
    }
    if tasks.is_empty() {
        return Err(empty(bad.first()));
    }
    let repeated = split::repeated(&tasks);
    let skipped = bad.len() as u64;
    bad.truncate(report::SHOWN);
    Ok((tasks, FileReport { detection, rows: total, skipped, first_bad: bad, repeated }))
}

fn digest(train: &[Task], eval: &[Task]) -> Digest {
    let mut sum = Sha256::new();
    for (side, tasks) in [("train", train), ("eval", eval)] {
        sum.update(format!("{side} {}\n", tasks.len()));
        for task in tasks {
            // A task is made of JSON; writing it cannot fail.
            sum.update(serde_json::to_vec(task).unwrap_or_default());
            sum.update("\n");
        }
    }
    Digest(sum.finalize().into())
}
