//! Files to procedures. What is wrong is told with file, procedure, field, what it takes and what it has.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use folgore_config::{sop::BUILTIN, yaml};
use serde_json::{Map, Value};

use super::{MAX_PROCEDURES, MAX_STEPS, MAX_TRIGGERS, Procedure, Status, Step, builtin};
use crate::read::{Found, Source, SourceError};

/// Largest file, in bytes.
const FILE_BYTES: u64 = 1 << 20;
/// Most characters of a name or category.
const NAME_CHARS: usize = 100;
/// Most characters of a trigger.
const TRIGGER_CHARS: usize = 200;
/// Most characters of any other text.
const TEXT_CHARS: usize = 2000;
/// Endings of the names of files that are read.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// Why there is no memory of procedures.
#[derive(Debug, thiserror::Error)]
pub enum SopError {
    /// A file cannot be read.
    #[error("{0}: {1}")]
    Io(String, io::Error),
    /// A path leads to nothing that can be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file is not what it is taken for.
    #[error("{place}: {reason}")]
    Syntax {
        /// File, line and column.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A procedure is not as it should be.
    #[error("{place}: {field}: expected {expected}, got {got}")]
    Field {
        /// File and procedure.
        place: String,
        /// The field.
        field: String,
        /// What it takes.
        expected: String,
        /// What it has.
        got: String,
    },
    /// Two procedures have one name.
    #[error("procedure {name:?} is in {first} and in {second}: expected names that differ by more than capitals")]
    Twice {
        /// The name.
        name: String,
        /// Where it was first.
        first: String,
        /// Where it is again.
        second: String,
    },
    /// Something is missing, or too much.
    #[error("{place}: expected {expected}, got {got}")]
    Expected {
        /// What it is about.
        place: String,
        /// What was wanted.
        expected: String,
        /// What there is.
        got: String,
    },
}

/// Reads the procedures at `paths`, in their order: files, folders with all `.yaml`, `.yml` and `.json` files in them in the order of
/// names, and `builtin`. A file holds one procedure or a list of them.
///
/// # Errors
/// If a path, a file or a procedure is wrong, a name is there twice, or there are none or too many.
pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<Procedure>, SopError> {
    let mut all = Gathered::default();
    for path in paths.iter().map(AsRef::as_ref) {
        match path.to_str() {
            Some(BUILTIN) => all.take(BUILTIN, builtin())?,
            _ => all.path(path)?,
        }
    }
    Ok(all.procedures)
}

#[derive(Default)]
struct Gathered {
    procedures: Vec<Procedure>,
    /// Where each name was found.
    places: HashMap<String, String>,
}

impl Gathered {
    fn path(&mut self, path: &Path) -> Result<(), SopError> {
        let (shown, before) = (path.display().to_string(), self.procedures.len());
        let sources = Source::all(&[path.to_owned()])?;
        for found in sources.iter().flat_map(Source::entries) {
            match found {
                Found::File(entry) => {
                    // as the user wrote the path, not as the system resolves it
                    let inner = entry.path.strip_prefix(&sources[0].root).unwrap_or(Path::new(""));
                    let place = if inner.as_os_str().is_empty() { path.to_owned() } else { path.join(inner) };
                    if path.is_dir() && !is_read(&place) {
                        continue;
                    }
                    let place = place.display().to_string();
                    self.take(&place, file(&entry.path, &place)?)?;
                }
                Found::Failed { id, error } => return Err(SopError::Io(id, error)),
                Found::Folder | Found::Skipped { .. } => {}
            }
        }
        if self.procedures.len() == before {
            let expected = "at least one procedure, in files that end in .yaml, .yml or .json".to_owned();
            return Err(SopError::Expected { place: shown, expected, got: "none".into() });
        }
        Ok(())
    }

    fn take(&mut self, place: &str, procedures: Vec<Procedure>) -> Result<(), SopError> {
        for procedure in procedures {
            let key = procedure.name.to_lowercase();
            if let Some(first) = self.places.insert(key, place.to_owned()) {
                return Err(SopError::Twice { name: procedure.name, first, second: place.to_owned() });
            }
            self.procedures.push(procedure);
        }
        let got = self.procedures.len();
        if got > MAX_PROCEDURES {
            let expected = format!("at most {MAX_PROCEDURES} procedures in all");
            return Err(SopError::Expected { place: place.to_owned(), expected, got: got.to_string() });
        }
        Ok(())
    }
}

fn is_read(path: &Path) -> bool {
    path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| ENDINGS.contains(&ending))
}

fn file(path: &Path, place: &str) -> Result<Vec<Procedure>, SopError> {
    let failed = |error| SopError::Io(place.to_owned(), error);
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES {
        let (expected, got) = (format!("at most {FILE_BYTES} bytes"), "more".to_owned());
        return Err(SopError::Expected { place: place.to_owned(), expected, got });
    }
    let text = String::from_utf8(bytes).map_err(|error| SopError::Syntax {
        place: place.to_owned(),
        reason: format!("expected UTF-8 text, got another byte at place {}", error.utf8_error().valid_up_to() + 1),
    })?;
    text_of(&text, place)
}

/// The procedures in `text`, which is called `place`: JSON where that ends so, else YAML.
pub(super) fn text_of(text: &str, place: &str) -> Result<Vec<Procedure>, SopError> {
    let json = place.ends_with(".json");
    let value = if json { yaml::parse_json(text) } else { yaml::parse(text) };
    let value = value.map_err(|fault| SopError::Syntax {
        place: fault.at.map_or(place.to_owned(), |(line, column)| format!("{place}:{line}:{column}")),
        reason: format!("no {}: {}", if json { "JSON" } else { "YAML" }, fault.reason),
    })?;
    let (items, numbered) = match value {
        Value::Array(items) => (items, true),
        one => (vec![one], false),
    };
    let at = |i: usize| if numbered { format!("{place}, procedure {}", i + 1) } else { place.to_owned() };
    items.into_iter().enumerate().map(|(i, item)| procedure(item, &at(i))).collect()
}

/// A field at fault: its name, what it takes, what it has.
type Fault = (String, String, String);

fn fault<T>(field: &str, expected: impl Into<String>, got: impl Into<String>) -> Result<T, Fault> {
    Err((field.to_owned(), expected.into(), got.into()))
}

fn procedure(item: Value, place: &str) -> Result<Procedure, SopError> {
    let mut fields = match item {
        Value::Object(fields) => fields,
        other => {
            let expected = "a procedure (name, triggers, steps) or a list of procedures".to_owned();
            return Err(SopError::Expected { place: place.to_owned(), expected, got: kind(&other).into() });
        }
    };
    // what is wrong with a procedure is found again by its name
    let name = fields.get("name").and_then(Value::as_str).map(|name| format!(" ({:?})", short(name)));
    let made = of_fields(&mut fields);
    made.map_err(|(field, expected, got)| {
        let place = format!("{place}{}", name.unwrap_or_default());
        SopError::Field { place, field, expected, got }
    })
}

fn of_fields(fields: &mut Map<String, Value>) -> Result<Procedure, Fault> {
    known(fields, "", &["name", "category", "status", "when", "triggers", "steps"])?;
    let name = needed(fields, "name", "name", NAME_CHARS)?;
    let category = optional(fields, "category", "category", NAME_CHARS)?;
    let when = optional(fields, "when", "when", TEXT_CHARS)?;
    let triggers = list(fields, "triggers", MAX_TRIGGERS)?.into_iter().enumerate();
    let triggers: Vec<String> =
        triggers.map(|(i, item)| text(&format!("triggers[{i}]"), item, TRIGGER_CHARS)).collect::<Result<_, _>>()?;
    let lower: Vec<String> = triggers.iter().map(|trigger| trigger.to_lowercase()).collect();
    if let Some(i) = (1..lower.len()).find(|i| lower[..*i].contains(&lower[*i])) {
        return fault(&format!("triggers[{i}]"), "another trigger than before", format!("{:?} again", triggers[i]));
    }
    let steps = list(fields, "steps", MAX_STEPS)?.into_iter().enumerate();
    let steps = steps.map(|(i, item)| step(&format!("steps[{i}]"), item)).collect::<Result<_, _>>()?;
    Ok(Procedure { name, category, status: status(fields)?, when, triggers, steps })
}

fn status(fields: &mut Map<String, Value>) -> Result<Status, Fault> {
    let expected = "active, draft or retired";
    match fields.remove("status") {
        None | Some(Value::Null) => Ok(Status::default()),
        Some(Value::String(said)) => match Status::ALL.into_iter().find(|status| status.name() == said) {
            Some(status) => Ok(status),
            None => fault("status", expected, format!("{:?}", short(&said))),
        },
        Some(other) => fault("status", expected, kind(&other)),
    }
}

/// A text alone is an action of which nothing is expected.
fn step(field: &str, item: Value) -> Result<Step, Fault> {
    match item {
        Value::Object(mut fields) => {
            known(&fields, &format!("{field}."), &["action", "expect"])?;
            let action = needed(&mut fields, "action", &format!("{field}.action"), TEXT_CHARS)?;
            Ok(Step { action, expect: optional(&mut fields, "expect", &format!("{field}.expect"), TEXT_CHARS)? })
        }
        Value::String(_) => Ok(Step { action: text(field, item, TEXT_CHARS)?, expect: String::new() }),
        other => fault(field, "a step (action, expect) or a text", kind(&other)),
    }
}

fn known(fields: &Map<String, Value>, before: &str, names: &[&str]) -> Result<(), Fault> {
    match fields.keys().find(|key| !names.contains(&key.as_str())) {
        None => Ok(()),
        Some(other) => {
            fault(&format!("{before}{}", short(other)), format!("one of {}", names.join(", ")), "an unknown field")
        }
    }
}

fn list(fields: &mut Map<String, Value>, name: &str, most: usize) -> Result<Vec<Value>, Fault> {
    let expected = format!("a list of 1 to {most}");
    match fields.remove(name) {
        None => fault(name, expected, "no such field"),
        Some(Value::Array(items)) if (1..=most).contains(&items.len()) => Ok(items),
        Some(Value::Array(items)) => fault(name, expected, format!("a list of {}", items.len())),
        Some(other) => fault(name, expected, kind(&other)),
    }
}

fn needed(fields: &mut Map<String, Value>, key: &str, name: &str, most: usize) -> Result<String, Fault> {
    match fields.remove(key) {
        None => fault(name, "a text", "no such field"),
        Some(value) => text(name, value, most),
    }
}

fn optional(fields: &mut Map<String, Value>, key: &str, name: &str, most: usize) -> Result<String, Fault> {
    match fields.remove(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(value) => text(name, value, most),
    }
}

/// A text of one line: runs of white space are one space.
fn text(name: &str, value: Value, most: usize) -> Result<String, Fault> {
    let Value::String(said) = value else { return fault(name, "a text", kind(&value)) };
    let line = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let (chars, control) = (line.chars().count(), line.chars().find(|c| c.is_control()));
    match control {
        Some(c) => fault(name, "a text without control characters", format!("U+{:04X}", u32::from(c))),
        None if line.is_empty() => fault(name, "a text", "an empty one"),
        None if chars > most => fault(name, format!("at most {most} characters"), format!("{chars}")),
        None => Ok(line),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// What an error repeats of a text.
fn short(text: &str) -> String {
    text.chars().take(60).collect()
}
