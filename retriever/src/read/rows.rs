//! Rows of a corpus: `{"id", "contents"}` as Search-R1 has them, `{"title", "text"}`, one a line.

use std::{collections::BTreeMap, io::BufRead};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{Outcome, Read, ReadLimits};
use crate::{Document, Kind};

/// Longest id of a row, in bytes.
const ID_MAX: usize = 1024;

/// Reads a file of rows, however long it and its lines are.
pub(super) fn read<E>(
    mut file: impl BufRead,
    id: &str,
    limits: &ReadLimits,
    take: &mut dyn FnMut(Read) -> Result<(), E>,
) -> Result<Outcome, E> {
    let mut hash = Sha256::new();
    let mut line = Vec::new();
    for number in 1u64.. {
        let length = match read_line(&mut file, &mut line, limits.row_bytes, &mut hash) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) => return Ok(Outcome::Failed(error)),
        };
        let note = |what: &str| Read::Note(format!("line {number}: {what}"));
        if length > limits.row_bytes as u64 {
            let size = length.div_ceil(1 << 20);
            take(note(&format!("{size} MB, at most {} MB are read", limits.row_bytes >> 20)))?;
            continue;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        match row(text, id, number) {
            Ok(document) => {
                if text.contains(char::REPLACEMENT_CHARACTER) && std::str::from_utf8(&line).is_err() {
                    take(note("not UTF-8 in places, which are U+FFFD now"))?;
                }
                take(Read::Document(document))?;
            }
            Err(reason) => take(note(&reason))?,
        }
    }
    Ok(Outcome::Whole(hash.finalize().into()))
}

/// Reads a line to its end, of which `kept` takes `limit` bytes at most; how long it is.
fn read_line(file: &mut impl BufRead, kept: &mut Vec<u8>, limit: usize, hash: &mut Sha256) -> std::io::Result<u64> {
    kept.clear();
    let mut length = 0u64;
    loop {
        let there = match file.fill_buf() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            there => there?,
        };
        let end = there.iter().position(|byte| *byte == b'\n');
        let part = &there[..end.map_or(there.len(), |end| end + 1)];
        hash.update(part);
        kept.extend(&part[..part.len().min(limit.saturating_sub(kept.len()))]);
        let used = part.len();
        length += used as u64;
        file.consume(used);
        if end.is_some() || used == 0 {
            return Ok(length);
        }
    }
}

/// The document of one line.
fn row(line: &str, path: &str, number: u64) -> Result<Document, String> {
    let mut fields: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("expected a JSON object: {error}"))?;
    let id = match fields.remove("id") {
        None | Some(Value::Null) => format!("{path}:{number}"),
        Some(Value::String(id)) if !id.is_empty() && id.len() <= ID_MAX => id,
        Some(Value::Number(id)) => id.to_string(),
        Some(_) => return Err(format!("id: expected a number or a text of at most {ID_MAX} bytes")),
    };
    let mut text_of = |name: &str| match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{name}: expected a text")),
    };
    let (title, contents, text) = (text_of("title")?, text_of("contents")?, text_of("text")?);
    let (title, text) = match (title, contents, text) {
        // Search-R1's BM25 corpora have all three, of which `contents` is the others put together
        (Some(title), _, Some(text)) => (title, text),
        (title, Some(contents), None) => {
            let (first, rest) = split(&contents);
            (title.unwrap_or(first), rest)
        }
        (None, Some(contents), Some(_)) => split(&contents),
        (None, None, Some(text)) => (String::new(), text),
        (_, None, None) => return Err("expected `contents`, or `text` with a `title`".into()),
    };
    if text.trim().is_empty() {
        return Err("no text".into());
    }
    let mut metadata = BTreeMap::from([("path".to_owned(), path.to_owned()), ("kind".into(), "passage".into())]);
    for (name, value) in fields {
        match value {
            Value::Object(inner) if name == "metadata" => {
                inner.into_iter().for_each(|(n, v)| keep(&mut metadata, n, &v))
            }
            value => keep(&mut metadata, name, &value),
        }
    }
    Ok(Document { id, title, text, kind: Kind::Passage, metadata })
}

/// Title and text of `contents`: the first line, in quotes or not, and the rest.
fn split(contents: &str) -> (String, String) {
    match contents.split_once('\n') {
        Some((first, rest)) => {
            let first = first.trim();
            let title = first.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(first);
            (title.to_owned(), rest.to_owned())
        }
        None => (String::new(), contents.to_owned()),
    }
}

/// Keeps what a filter can ask for: texts, numbers, true and false.
fn keep(metadata: &mut BTreeMap<String, String>, name: String, value: &Value) {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(yes) => yes.to_string(),
        _ => return,
    };
    metadata.insert(name, text);
}
