//! Files and folders into rows of one form, with a report on each file.

use std::{collections::BTreeMap, path::Path};

use folgore_config::{
    DataSection,
    data::{DataSource, OnBadRow},
};

use crate::{
    detect,
    error::{BadRow, DatasetError},
    formatter,
    report::{self, FileReport},
    rows::{
        self, Limits, RawRows,
        folder::{self, Role},
    },
    shape::{self, Shaped},
    split::{self, Keyed},
};

/// A row in one form.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Unique within its dataset.
    pub id: String,
    /// What it says.
    pub shaped: Shaped,
}

/// What was read of a path.
pub(crate) struct Read {
    /// Its rows.
    pub rows: Vec<Keyed<Held>>,
    /// On each file.
    pub files: Vec<FileReport>,
    /// Files that cannot be read at all, each with its reason, where the policy is to leave out what is bad.
    pub unreadable: Vec<String>,
}

/// The section as it is for one source.
pub(crate) fn section_of(source: &DataSource, section: &DataSection) -> DataSection {
    DataSection {
        dataset: source.path.clone(),
        sources: Vec::new(),
        format: source.format,
        formatter: source.formatter.unwrap_or(section.formatter),
        prompt_column: source.prompt_column.clone().or_else(|| section.prompt_column.clone()),
        answer_column: source.answer_column.clone().or_else(|| section.answer_column.clone()),
        ..section.clone()
    }
}

/// Reads a file or a folder; `name` is put in front of ids.
pub(crate) fn path(path: &Path, section: &DataSection, role: Role, name: Option<&str>) -> Result<Read, DatasetError> {
    let shown = path.display().to_string();
    if !path.exists() && folgore_config::HubName::parse_dataset(&shown).is_some() {
        return Err(DatasetError::OnTheHub { name: shown });
    }
    let unreadable = |source| DatasetError::Read {
        path: shown.clone(),
        procedural: folgore_config::data::PROCEDURAL.join(", "),
        source,
    };
    let mut found = folder::find(path, role).map_err(unreadable)?;
    if found.files.is_empty() {
        let beside: Vec<&str> = found.not_read.iter().map(|(name, _)| name.as_str()).take(report::SHOWN).collect();
        let beside = if beside.is_empty() { String::new() } else { format!("; beside: {}", beside.join(", ")) };
        return Err(DatasetError::Empty {
            path: shown,
            rows: 0,
            first: format!(" (a folder without files of rows{beside})"),
        });
    }
    let alone = found.files.len() == 1;
    let mut read = Read { rows: Vec::new(), files: Vec::new(), unreadable: Vec::new() };
    for (file, short) in &found.files {
        let stem = name.map_or_else(|| short.clone(), |name| format!("{name}/{short}"));
        match self::file(file, &stem, section) {
            Ok((rows, report)) => {
                read.rows.extend(rows);
                read.files.push(report);
            }
            // one of many may be empty
            Err(DatasetError::Empty { rows: 0, .. }) if !alone => found.not_read.push((short.clone(), "empty")),
            Err(error) if !alone && section.on_bad_row == OnBadRow::Skip => read.unreadable.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    if read.rows.is_empty() {
        let first = read.unreadable.first().map_or_else(String::new, |first| format!("; {first}"));
        return Err(DatasetError::Empty { path: shown, rows: 0, first });
    }
    if let Some(last) = read.files.last_mut() {
        last.beside = found.not_read.into_iter().map(|(name, reason)| format!("{name} ({reason})")).collect();
    }
    Ok(read)
}

/// Reads one file; the policy on bad rows decides whether one of them ends it.
fn file(path: &Path, stem: &str, section: &DataSection) -> Result<(Vec<Keyed<Held>>, FileReport), DatasetError> {
    let shown = path.display().to_string();
    let most = section.max_rows.unwrap_or(u64::MAX);
    let limits = Limits { line_bytes: section.max_line_bytes, rows: most, memory: &section.memory };
    let RawRows { container, rows: raw, note, left_out } = rows::read(path, &limits)?;
    let not_wanted: u64 = left_out.iter().map(|(_, count)| count).sum();
    let total = raw.len() as u64 + not_wanted;
    let empty = |first: String| DatasetError::Empty { path: shown.clone(), rows: total, first };
    let stop = |row: BadRow| match section.on_bad_row {
        OnBadRow::Stop => Err(DatasetError::BadRow { path: shown.clone(), row }),
        OnBadRow::Skip => Ok(row),
    };
    let mut left: BTreeMap<String, u64> = left_out.into_iter().collect();
    if raw.iter().all(Result::is_err) {
        let first = raw.into_iter().find_map(Result::err).map(stop).transpose()?;
        let why = first.map(|bad| bad.to_string()).or_else(|| left.keys().next().cloned());
        return Err(empty(why.map_or_else(String::new, |why| format!("; {why}"))));
    }
    let readable = raw.iter().filter_map(|row| row.as_ref().ok());
    let mut detection = detect::detect(&shown, container, readable, section)?;
    if !note.is_empty() {
        detection.reason = format!("{}; {note}", detection.reason);
    }
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    for raw in raw {
        let shaped = raw.and_then(|raw| {
            let id = format!("{stem}:{}", raw.number);
            Ok((id, shape::read(raw, detection.format, section)?))
        });
        let (id, shaped) = match shaped {
            Ok(shaped) => shaped,
            Err(row) => {
                bad.push(stop(row)?);
                continue;
            }
        };
        let (prefix, system) = (section.prompt_prefix.as_deref(), section.system_prompt.as_deref());
        let shaped = Shaped { said: shape::introduce(shaped.said, prefix, system), ..shaped };
        let key = split::key(&shaped.said.prompt());
        match formatter::apply(section.formatter, shaped) {
            Ok(shaped) => rows.push(Keyed { key, row: Held { id, shaped } }),
            Err(reason) => *left.entry(reason.to_owned()).or_default() += 1,
        }
    }
    if rows.is_empty() {
        let why = bad.first().map(ToString::to_string).or_else(|| left.keys().next().cloned());
        return Err(empty(why.map_or_else(String::new, |why| format!("; {why}"))));
    }
    let repeated = split::repeated(&rows);
    let skipped = bad.len() as u64;
    bad.truncate(report::SHOWN);
    let left_out = left.into_iter().collect();
    let report = FileReport { detection, rows: total, skipped, first_bad: bad, left_out, repeated, beside: Vec::new() };
    Ok((rows, report))
}
