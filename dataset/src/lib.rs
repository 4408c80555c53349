//! Rows in: JSON, JSONL, CSV, Parquet and SQLite in the shapes of the field, detected and mixed; procedural tasks with exact verifiers.
//!
//! [`load`] turns the section `data` into a [`Dataset`]: questions to train on, held-out questions that are none of them, a
//! digest that names both, and a report of what was read and what was left out. [`examples`] makes rows to imitate of the same files.
//!
//! A file is read into rows by what it is laid out as (`rows/`); a row is brought to one form by its shape (`shape/`), which is told by
//! its fields (`detect.rs`); questions and examples are made of that (`make.rs`). What happens in between (formatters, passages, the
//! held-out side, mixing) knows neither layouts nor shapes.

pub mod agent;
pub mod convert;
mod detect;
mod error;
mod formatter;
mod make;
mod mix;
pub mod procedural;
mod rag;
mod read;
mod redact;
mod report;
mod rows;
mod shape;
mod sides;
mod split;
mod traces;

use std::sync::Arc;

use folgore_config::DataSection;
use folgore_protocol::{Digest, Example, Task};

pub use detect::Detection;
pub use error::{BadRow, DatasetError};
pub use mix::{Mixed, Schedule, SourceRows};
pub use procedural::{
    Questions, Side, TraceMixture, arithmetic_traces, careful_sum, carries_traces, countries, crc32, held_out,
};
pub use report::{FileReport, Purpose, Report, count};
pub use rows::Container;
pub use traces::Traces;

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
    /// Rows of several sources in their proportions.
    Mixed(Arc<Mixed<Task>>),
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
            Tasks::Mixed(mixed) => mixed.len(),
            Tasks::Made(questions) | Tasks::Changed(questions, _) => questions.len(),
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
            Tasks::Mixed(mixed) => mixed.get(index).clone(),
            Tasks::Made(questions) => questions.task(index),
            Tasks::Changed(questions, change) => (change.0)(questions.task(index)),
        }
    }

    /// Keeps the rows that `keep` says; tasks that a rule makes stay as they are.
    ///
    /// # Errors
    /// If one of several sources has none left.
    pub fn retain(&mut self, mut keep: impl FnMut(&Task) -> bool) -> Result<(), String> {
        match self {
            Tasks::Rows(rows) => rows.retain(keep),
            Tasks::Mixed(mixed) => Arc::make_mut(mixed).retain(&mut keep)?,
            Tasks::Made(_) | Tasks::Changed(..) => {}
        }
        Ok(())
    }

    /// The same tasks, changed: rows now, others when they are made.
    #[must_use]
    pub fn changed(self, change: Change) -> Self {
        match self {
            Tasks::Rows(rows) => Tasks::Rows(rows.into_iter().map(|task| (change.0)(task)).collect()),
            Tasks::Mixed(mixed) => Tasks::Mixed(Arc::new(Arc::unwrap_or_clone(mixed).map(|task| (change.0)(task)))),
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
    match procedural::Rule::of(section).filter(|_| section.is_procedural()) {
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
    let make = |id: &str, source: Option<&str>, shaped| make::task(id, source, shaped);
    let sides = sides::read(section, Purpose::Questions, &make)?;
    let digest = sides.digest();
    let train = match section.sources.is_empty() {
        true => Tasks::Rows(sides.train.into_rows()),
        false => Tasks::Mixed(Arc::new(sides.train)),
    };
    Ok(Dataset { train, eval: Tasks::Rows(sides.eval), digest, report: sides.report })
}

/// Rows to imitate, and what they came from.
#[derive(Clone, Debug)]
pub struct Examples {
    /// Rows to learn from: by position, without end, in the proportions of their sources.
    pub train: Mixed<Example>,
    /// Rows to evaluate on; the prompt of none of them is in `train`. May be empty where nothing is held out.
    pub eval: Vec<Example>,
    /// Names the rows of both sides, their order and their mix.
    pub digest: Digest,
    /// What was read, for printing.
    pub report: Report,
}

/// Reads what `section` names as rows to imitate.
///
/// # Errors
/// As [`load`]; and if `section` names questions that are made by a rule, to which nothing was said.
pub fn examples(section: &DataSection) -> Result<Examples, DatasetError> {
    if let Some(rule) = procedural::Rule::of(section).filter(|_| section.is_procedural()) {
        return worked(rule, section);
    }
    let make = |id: &str, source: Option<&str>, shaped| make::example(id, source.unwrap_or_default(), shaped);
    let sides = sides::read(section, Purpose::Examples, &make)?;
    let digest = sides.digest();
    Ok(Examples { train: sides.train, eval: sides.eval, digest, report: sides.report })
}

/// Questions made by a rule, with worked answers.
fn worked(rule: procedural::Rule, section: &DataSection) -> Result<Examples, DatasetError> {
    let questions = Questions::training(rule, section)?;
    let nothing = || {
        DatasetError::NothingToTrain {
        path: section.dataset.clone(),
        why: "expected a file, or arithmetic with at most 4096 questions (data.max_rows): other questions are made by a rule and have \
              no worked answers"
            .into(),
    }
    };
    let (train, eval) = questions.examples().ok_or_else(nothing)?;
    let train =
        Mixed::new(vec![SourceRows { name: section.dataset.clone(), rows: train }], None).map_err(|_| nothing())?;
    let report = Report { made: Some(questions.describe()), eval: eval.len() as u64, ..Report::default() };
    Ok(Examples { train, eval, digest: questions.digest(), report })
}
