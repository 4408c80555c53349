//! Rows of a Parquet file, one page at a time: nested columns become the lists and objects that they were made of.
//!
//! A struct in Parquet has all its fields in every row. What was absent when it was written is null when it is read, so nulls inside
//! of structs are taken for absent; a null column is null.

use std::fs::File;

use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::{Field, Row},
};
use serde_json::{Map, Number, Value};

use super::{Container, Limits, RawRow, RawRows};
use crate::error::{BadRow, DatasetError};

/// Deepest nesting of a column that is read.
const DEEPEST: usize = 32;

/// A field at fault: its name, what it takes, what it holds.
type Fault = (String, String, String);

/// Reads rows of `file`.
pub(super) fn read(file: File, path: &str, limits: &Limits) -> Result<RawRows, DatasetError> {
    let refused =
        |reason: String| DatasetError::Container { path: path.to_owned(), container: Container::Parquet, reason };
    let reader = SerializedFileReader::new(file).map_err(|e| refused(e.to_string()))?;
    let iterator = reader.get_row_iter(None).map_err(|e| refused(e.to_string()))?;
    let mut rows = Vec::new();
    for row in iterator {
        let number = rows.len() as u64 + 1;
        if number > limits.rows {
            break;
        }
        // after an error of the file nothing behind it can be found
        let row = row.map_err(|e| refused(format!("row {number}: {e}")))?;
        rows.push(match fields(row, limits.line_bytes) {
            Ok(fields) => Ok(RawRow { number, line: None, fields }),
            Err((field, expected, got)) => Err(BadRow { row: number, line: None, field: Some(field), expected, got }),
        });
    }
    Ok(RawRows::of(Container::Parquet, rows))
}

fn fields(row: Row, line_bytes: u64) -> Result<Map<String, Value>, Fault> {
    let mut bytes = 0;
    let mut fields = Map::new();
    for (name, field) in row.into_columns() {
        let value = value(&name, field, DEEPEST, &mut bytes)?;
        if bytes > line_bytes {
            let expected = format!("a row of at most data.max_line_bytes = {line_bytes}");
            return Err((name, expected, format!("{bytes} bytes up to here")));
        }
        fields.insert(name, value);
    }
    Ok(fields)
}

fn value(name: &str, field: Field, depth: usize, bytes: &mut u64) -> Result<Value, Fault> {
    let fault = |expected: &str, got: String| Err((name.to_owned(), expected.to_owned(), got));
    if depth == 0 {
        return fault("nesting of at most 32", "more".into());
    }
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    *bytes += 8;
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => truth.into(),
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) => n.into(),
        Field::Long(n) => n.into(),
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        Field::Float16(n) => float(n.to_f64()),
        Field::Float(n) => float(n.into()),
        Field::Double(n) => float(n),
        Field::Str(text) => {
            *bytes += text.len() as u64;
            text.into()
        }
        Field::Bytes(data) => match std::str::from_utf8(data.data()) {
            Ok(text) => {
                *bytes += text.len() as u64;
                text.into()
            }
            Err(_) => return fault("text", format!("{} bytes that are none (a picture or a sound?)", data.len())),
        },
        Field::Group(row) => {
            let mut map = Map::new();
            for (key, field) in row.into_columns() {
                let inner = value(&format!("{name}.{key}"), field, depth - 1, bytes)?;
                if !inner.is_null() {
                    map.insert(key, inner);
                }
            }
            map.into()
        }
        Field::ListInternal(list) => {
            let items = list.elements().iter().cloned();
            let items: Result<Vec<Value>, Fault> = items.map(|item| value(name, item, depth - 1, bytes)).collect();
            items?.into()
        }
        Field::MapInternal(entries) => {
            let mut map = Map::new();
            for (key, field) in entries.entries() {
                let key = match value(name, key.clone(), depth - 1, bytes)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                map.insert(key, value(name, field.clone(), depth - 1, bytes)?);
            }
            map.into()
        }
        // dates, times and decimals as they are written
        other => other.to_string().into(),
    })
}
