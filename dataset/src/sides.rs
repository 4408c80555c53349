//! The side to train on and the side to evaluate on, of one file or of several that are mixed.

use std::{collections::BTreeMap, path::Path};

use folgore_config::{DataSection, data::names};
use folgore_protocol::Digest;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{
    error::DatasetError,
    mix::{Mixed, SourceRows},
    rag,
    read::{self, Held, Read},
    report::{self, Purpose, Report},
    rows::folder::Role,
    shape::Shaped,
    split::{self, Keyed},
};

/// Makes a row of what was said: its id, its source where there are several, what it says. The error is why it is none.
pub(crate) type Make<'a, T> = &'a dyn Fn(&str, Option<&str>, Shaped) -> Result<T, &'static str>;

/// Both sides.
pub(crate) struct Sides<T> {
    pub train: Mixed<T>,
    pub eval: Vec<T>,
    pub report: Report,
}

/// One source before its rows are made.
struct Source {
    name: String,
    path: String,
    max_samples: Option<u64>,
    rows: Vec<Keyed<Held>>,
}

/// Reads what `section` names.
pub(crate) fn read<T>(section: &DataSection, purpose: Purpose, make: Make<T>) -> Result<Sides<T>, DatasetError> {
    let mut report = Report { purpose, ..Report::default() };
    let mixing = !section.sources.is_empty();
    let mut sources = sources(section, &mut report)?;
    report.rag = rag::apply(sources.iter_mut().flat_map(|source| &mut source.rows), section)?;
    let named = |name: &str| (mixing || purpose == Purpose::Examples).then(|| name.to_owned());
    let (mut left, mut made) = (BTreeMap::new(), Vec::new());
    for source in sources {
        let name = named(&source.name);
        let rows = self::made(source.rows, name.as_deref(), make, &mut left);
        let rows = if let Some(most) = source.max_samples { split::at_most(rows, most) } else { rows };
        made.push((source.name, source.path, rows));
    }
    let nothing = |path: &str, why: String| DatasetError::NothingToTrain { path: path.to_owned(), why };
    let reasons = |left: &BTreeMap<&'static str, u64>| {
        left.iter()
            .map(|(reason, count)| format!("{} left out: {reason}", report::count(*count, "row")))
            .collect::<Vec<_>>()
            .join("; ")
    };
    if let Some((_, path, _)) = made.iter().find(|(_, _, rows)| rows.is_empty()) {
        return Err(nothing(path, reasons(&left)));
    }
    let held = match &section.eval_dataset {
        None => None,
        Some(path) => {
            let Read { mut rows, files, unreadable } = read::path(path, section, Role::Eval, None)?;
            let said = rag::apply(rows.iter_mut(), section)?;
            report.rag = report.rag.take().or(said);
            report.files.extend(files);
            report.unreadable.extend(unreadable);
            let name = names::title(&path.display().to_string());
            let rows = self::made(rows, named(&name).as_deref(), make, &mut left);
            if rows.is_empty() {
                return Err(nothing(&path.display().to_string(), reasons(&left)));
            }
            Some((path.display().to_string(), rows))
        }
    };
    let (mut trained, mut eval) = (Vec::new(), Vec::new());
    for (name, path, rows) in made {
        let read = rows.len();
        let rows = match &held {
            None => {
                let (train, out) = split::by_hash(rows, section.eval_fraction);
                eval.extend(out.into_iter().map(|row| row.row));
                if train.is_empty() {
                    let why =
                        format!("all of {read} are held out: lower data.eval_fraction, or give a data.eval_dataset");
                    return Err(nothing(&path, why));
                }
                train
            }
            Some((eval_path, held)) => {
                let train = split::without(rows, held);
                report.also_held_out += (read - train.len()) as u64;
                if train.is_empty() {
                    return Err(nothing(&path, format!("all of {read} are also in {eval_path}")));
                }
                train
            }
        };
        trained.push(SourceRows { name, rows: rows.into_iter().map(|row| row.row).collect() });
    }
    eval.extend(held.into_iter().flat_map(|(_, rows)| rows).map(|row| row.row));
    let weights: Option<Vec<f64>> = section.sources.iter().map(|source| source.weight).collect();
    let weights = weights.filter(|weights| !weights.is_empty());
    let train = Mixed::new(trained, weights.as_deref()).map_err(DatasetError::Mix)?;
    if mixing {
        let share = |(source, share): (&SourceRows<T>, f64)| {
            format!("{}: {} rows, {:.2} % of the mix", source.name, source.rows.len(), 100.0 * share)
        };
        report.mix = std::iter::zip(train.sources(), train.shares()).map(share).collect();
    }
    report.left_out = left.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
    report.train = Some(train.len());
    report.eval = eval.len() as u64;
    Ok(Sides { train, eval, report })
}

fn sources(section: &DataSection, report: &mut Report) -> Result<Vec<Source>, DatasetError> {
    let mut one = |name: String, path: &str, section: &DataSection, max_samples, mixed: bool| {
        let Read { rows, files, unreadable } =
            read::path(Path::new(path), section, Role::Train, mixed.then_some(&*name))?;
        report.files.extend(files);
        report.unreadable.extend(unreadable);
        Ok(Source { name, path: path.to_owned(), max_samples, rows })
    };
    if section.sources.is_empty() {
        let path = &section.dataset;
        return Ok(vec![one(names::title(path), path, section, None, false)?]);
    }
    let each = section
        .sources
        .iter()
        .map(|source| one(source.title(), &source.path, &read::section_of(source, section), source.max_samples, true));
    each.collect()
}

fn made<T>(
    rows: Vec<Keyed<Held>>,
    source: Option<&str>,
    make: Make<T>,
    left: &mut BTreeMap<&'static str, u64>,
) -> Vec<Keyed<T>> {
    let mut taken = Vec::with_capacity(rows.len());
    for Keyed { key, row } in rows {
        match make(&row.id, source, row.shaped) {
            Ok(row) => taken.push(Keyed { key, row }),
            Err(reason) => *left.entry(reason).or_default() += 1,
        }
    }
    taken
}

impl<T: Serialize> Sides<T> {
    /// Names the rows of both sides and their order, and their mix where there is one.
    pub fn digest(&self) -> Digest {
        let mut sum = Sha256::new();
        let train: Vec<&T> = self.train.rows().collect();
        let eval: Vec<&T> = self.eval.iter().collect();
        for (side, rows) in [("train", train), ("eval", eval)] {
            sum.update(format!("{side} {}\n", rows.len()));
            for row in rows {
                // A row is made of JSON; writing it cannot fail.
                sum.update(serde_json::to_vec(row).unwrap_or_default());
                sum.update("\n");
            }
        }
        if self.train.sources().len() > 1 {
            for (source, share) in std::iter::zip(self.train.sources(), self.train.shares()) {
                sum.update(format!("mix {} {} {share}\n", source.name, source.rows.len()));
            }
        }
        Digest(sum.finalize().into())
    }
}
