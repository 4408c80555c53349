//! Rows as text: JSONL line by line, or one JSON array. Nothing in a file can make it fail but by a message.

use std::io::{self, BufRead, Read};

use serde_json::Value;

use super::{Container, Limits, RawRow, RawRows};
use crate::error::{BadRow, DatasetError};

/// Largest JSON array that is read, in bytes; JSONL has no such limit.
pub const MAX_ARRAY_BYTES: u64 = 512 << 20;

/// Reads rows from text that is JSON; `one` says that the text may be one object, written over many lines.
pub(super) fn read(
    mut reader: impl BufRead,
    path: &str,
    one: bool,
    limits: &Limits,
    unreadable: impl Fn(io::Error) -> DatasetError,
) -> Result<RawRows, DatasetError> {
    let (first, line_ends) = first_byte(&mut reader).map_err(&unreadable)?;
    match first {
        Some(b'[') => array(reader, path, limits.rows, unreadable),
        Some(b'{') if one => {
            let mut first = Vec::new();
            (&mut reader).take(limits.line_bytes).read_until(b'\n', &mut first).map_err(&unreadable)?;
            let ends_early = serde_json::from_slice::<Value>(&first).is_err_and(|error| error.is_eof());
            let text = io::Cursor::new(first).chain(reader);
            match ends_early {
                true => object_of_rows(text, path, line_ends, limits, unreadable),
                false => lines(text, line_ends, limits.line_bytes, limits.rows).map_err(unreadable),
            }
        }
        _ => lines(reader, line_ends, limits.line_bytes, limits.rows).map_err(unreadable),
    }
}

/// Skips the byte order mark of UTF-8.
pub(super) fn skip_mark(reader: &mut impl BufRead) -> io::Result<()> {
    if reader.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(())
}

/// The first byte that is not white space, which stays in the reader, and the line ends before it.
fn first_byte(reader: &mut impl BufRead) -> io::Result<(Option<u8>, u64)> {
    let mut line_ends = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let blank = buffer.iter().take_while(|b| b.is_ascii_whitespace()).count();
        let first = buffer.get(blank).copied();
        line_ends += buffer[..blank].iter().filter(|b| **b == b'\n').count() as u64;
        reader.consume(blank);
        if first.is_some() || blank == 0 {
            return Ok((first, line_ends));
        }
    }
}

/// All of a text that is read at once.
fn whole(text: impl Read, path: &str, unreadable: impl Fn(io::Error) -> DatasetError) -> Result<Vec<u8>, DatasetError> {
    let mut body = Vec::new();
    text.take(MAX_ARRAY_BYTES + 1).read_to_end(&mut body).map_err(unreadable)?;
    let bytes = body.len() as u64;
    match bytes > MAX_ARRAY_BYTES {
        true => Err(DatasetError::TooLarge { path: path.to_owned(), bytes, limit: MAX_ARRAY_BYTES }),
        false => Ok(body),
    }
}

fn array(
    reader: impl Read,
    path: &str,
    max_rows: u64,
    unreadable: impl Fn(io::Error) -> DatasetError,
) -> Result<RawRows, DatasetError> {
    let body = whole(reader, path, &unreadable)?;
    let values: Vec<Value> = serde_json::from_slice(&body)
        .map_err(|error| DatasetError::Json { path: path.to_owned(), reason: error.to_string() })?;
    let numbered = (1..=max_rows).zip(values);
    let rows = numbered.map(|(number, value)| object(number, None, value)).collect();
    Ok(RawRows::of(Container::Json, rows))
}

/// Reads one object: the rows are its only list of objects, or it is one itself. What is no JSON as a whole is read by lines.
fn object_of_rows(
    text: impl Read,
    path: &str,
    line: u64,
    limits: &Limits,
    unreadable: impl Fn(io::Error) -> DatasetError,
) -> Result<RawRows, DatasetError> {
    let body = whole(text, path, &unreadable)?;
    let Ok(Value::Object(fields)) = serde_json::from_slice(&body) else {
        return lines(&body[..], line, limits.line_bytes, limits.rows).map_err(unreadable);
    };
    let is_rows = |value: &Value| value.as_array().is_some_and(|l| !l.is_empty() && l.iter().all(Value::is_object));
    let lists: Vec<&String> = fields.iter().filter(|(_, value)| is_rows(value)).map(|(name, _)| name).collect();
    // a conversation is a list of objects too, in a row of its own
    let rows = match lists.as_slice() {
        [name] if !["messages", "conversations", "prompt", "completion"].contains(&name.as_str()) => {
            Some((format!("its rows are in `{name}`"), fields[*name].as_array().cloned().unwrap_or_default()))
        }
        _ => None,
    };
    let (note, values) = rows.unwrap_or_else(|| (String::new(), vec![Value::Object(fields)]));
    let rows = (1..=limits.rows).zip(values).map(|(number, value)| object(number, None, value)).collect();
    Ok(RawRows { note, ..RawRows::of(Container::Json, rows) })
}

/// Reads rows from lines; `line` is the number of lines that came before.
fn lines(mut reader: impl BufRead, mut line: u64, max_line: u64, max_rows: u64) -> io::Result<RawRows> {
    let mut rows = Vec::new();
    let mut buffer = Vec::new();
    while (rows.len() as u64) < max_rows {
        buffer.clear();
        if (&mut reader).take(max_line + 1).read_until(b'\n', &mut buffer)? == 0 {
            break;
        }
        line += 1;
        let number = rows.len() as u64 + 1;
        let bad = |expected: &str, got: String| {
            Err(BadRow { row: number, line: Some(line), field: None, expected: expected.to_owned(), got })
        };
        let body = buffer.trim_ascii();
        if buffer.len() as u64 > max_line && !buffer.ends_with(b"\n") {
            let length = buffer.len() as u64 + rest_of_line(&mut reader)?;
            rows.push(bad(&format!("a line of at most data.max_line_bytes = {max_line}"), format!("{length} bytes")));
        } else if body.is_empty() {
            continue;
        } else {
            rows.push(match std::str::from_utf8(body) {
                Err(error) => {
                    bad("UTF-8 text", format!("another byte at place {} of the line", error.valid_up_to() + 1))
                }
                Ok(text) => match serde_json::from_str(text) {
                    Ok(value) => object(number, Some(line), value),
                    Err(error) => bad("one JSON object on the line", format!("text that is not: {}", place(&error))),
                },
            });
        }
    }
    Ok(RawRows::of(Container::Jsonl, rows))
}

/// Reads to the end of the line and keeps nothing of it; gives its length.
fn rest_of_line(reader: &mut impl BufRead) -> io::Result<u64> {
    let mut length = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let end = buffer.iter().position(|b| *b == b'\n');
        let used = end.map_or(buffer.len(), |at| at + 1);
        let done = end.is_some() || buffer.is_empty();
        reader.consume(used);
        length += used as u64;
        if done {
            return Ok(length);
        }
    }
}

/// What the parser says, without its own count of lines: a row has one line only.
fn place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    format!("{reason} at column {}", error.column())
}

fn object(number: u64, line: Option<u64>, value: Value) -> Result<RawRow, BadRow> {
    match value {
        Value::Object(fields) => Ok(RawRow { number, line, fields }),
        other => Err(BadRow {
            row: number,
            line,
            field: None,
            expected: "a JSON object".into(),
            got: crate::shape::kind(&other).into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn read(path: &std::path::Path, line_bytes: u64, rows: u64) -> Result<RawRows, DatasetError> {
        crate::rows::read(path, &Limits { line_bytes, rows, memory: &Default::default() })
    }

    fn rows(bytes: &[u8]) -> Vec<Result<RawRow, BadRow>> {
        read(file(bytes).path(), 100, u64::MAX).unwrap().rows
    }

    #[test]
    fn marks_line_ends_and_blank_lines_are_no_matter() {
        let bytes = b"\xef\xbb\xbf\r\n {\"a\": 1}\r\n\r\n  \n{\"a\": 2}\r\n{\"a\": 3}";
        let rows: Vec<_> = rows(bytes).into_iter().map(Result::unwrap).collect();
        assert_eq!(
            rows.iter().map(|r| (r.number, r.line)).collect::<Vec<_>>(),
            [(1, Some(2)), (2, Some(5)), (3, Some(6))]
        );
        assert_eq!(rows[2].fields["a"], 3);
    }

    #[test]
    fn an_array_is_read_as_rows() {
        let read = read(file(b" \n[{\"a\": 1},\n 7, {\"a\": 2}]").path(), 100, u64::MAX).unwrap();
        assert_eq!(read.container, Container::Json);
        assert_eq!(read.rows[1].as_ref().unwrap_err().to_string(), "row 2: expected a JSON object, got a number");
        assert_eq!(read.rows[2].as_ref().unwrap().number, 3);
    }

    #[test]
    fn an_object_over_many_lines_is_read_as_what_it_holds() {
        let place = tempfile::tempdir().unwrap();
        let rows = |text: &str| {
            let path = place.path().join("rows.json");
            std::fs::write(&path, text).unwrap();
            let read = read(&path, 1000, u64::MAX).unwrap();
            let shown = |row: Result<RawRow, BadRow>| {
                row.map_or_else(|bad| bad.to_string(), |r| Value::Object(r.fields).to_string())
            };
            (read.note, read.rows.into_iter().map(shown).collect::<Vec<_>>())
        };
        let (note, list) = rows("{\n \"version\": 1,\n \"data\": [{\"a\": 1},\n {\"a\": 2}]\n}\n");
        assert_eq!(
            (note.as_str(), list),
            ("its rows are in `data`", vec![r#"{"a":1}"#.to_owned(), r#"{"a":2}"#.to_owned()])
        );
        assert_eq!(rows("{\n\"messages\": [{\"role\": \"user\"}]}").1.len(), 1, "a conversation is a row");
        assert_eq!(rows("{\"a\": 1}\n{\"a\": 2}\n").1.len(), 2, "lines are lines");
        let broken = rows("{\"a\":\n{\"a\": 2}\n").1;
        assert!(broken[0].starts_with("row 1 (line 1): expected one JSON object") && broken.len() == 2, "{broken:?}");
    }

    #[test]
    fn bad_lines_are_named_and_do_not_end_the_reading() {
        let mut bytes = b"{\"a\": 1}\n{\"a\": \n{\"a\": \"\xff\"}\n[1]\n{\"a\": \"".to_vec();
        bytes.extend_from_slice(&[b'x'; 70_000]);
        bytes.extend_from_slice(b"\"}\n{\"a\": \"\\ud800\"}\n{\"a\": 2}\n");
        let got: Vec<String> = rows(&bytes)
            .iter()
            .map(|row| row.as_ref().map_or_else(ToString::to_string, |row| format!("a = {}", row.fields["a"])))
            .collect();
        assert_eq!(
            got,
            [
                "a = 1",
                "row 2 (line 2): expected one JSON object on the line, got text that is not: EOF while parsing a value at \
                 column 5",
                "row 3 (line 3): expected UTF-8 text, got another byte at place 8 of the line",
                "row 4 (line 4): expected a JSON object, got a list",
                "row 5 (line 5): expected a line of at most data.max_line_bytes = 100, got 70010 bytes",
                "row 6 (line 6): expected one JSON object on the line, got text that is not: unexpected end of hex escape \
                 at column 14",
                "a = 2",
            ]
        );
    }

    #[test]
    fn files_that_are_no_rows_are_refused() {
        let error = |bytes: &[u8]| read(file(bytes).path(), 100, u64::MAX).unwrap_err().to_string();
        assert!(error(b"[{\"a\": 1},").contains("at line 1 column 10"));
        assert!(rows(b"").is_empty() && rows(b" \n ").is_empty());
        let missing = read(std::path::Path::new("no/such/file.jsonl"), 100, 9).unwrap_err().to_string();
        assert!(missing.starts_with("no/such/file.jsonl: cannot be read: "), "{missing}");
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path(), 100, 9).is_err());
    }
}
