//! Rows as CSV: a line of names, then values, all of them texts. A quoted value may hold line ends; none may be longer than a row.
//!
//! The parser is csv-core, which gives the memory of a row to its caller: an open quote takes no more than one row's.

use std::{
    collections::BTreeSet,
    io::{self, BufRead},
};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use serde_json::{Map, Value};

use super::{Container, Limits, RawRow, RawRows};
use crate::error::{BadRow, DatasetError};

/// One record: its values, or their length where they are over the limit.
enum Record {
    Values(Vec<Vec<u8>>),
    TooLong(u64),
}

/// Reads records one by one, each with the line where it begins.
struct Records<R> {
    reader: R,
    parser: Reader,
    limit: usize,
    output: Vec<u8>,
    ends: Vec<usize>,
    /// Line ends read so far.
    line_ends: u64,
}

impl<R: BufRead> Records<R> {
    fn new(reader: R, delimiter: u8, limit: u64) -> Self {
        let parser = ReaderBuilder::new().delimiter(delimiter).build();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { reader, parser, limit, output: vec![0; 4096], ends: vec![0; 64], line_ends: 0 }
    }

    fn next(&mut self) -> io::Result<Option<(u64, Record)>> {
        let (mut written, mut ended, mut dropped) = (0, 0, 0u64);
        self.skip_blank()?;
        let line = self.line_ends + 1;
        loop {
            let input = self.reader.fill_buf()?;
            let (result, used, out, ends) =
                self.parser.read_record(input, &mut self.output[written..], &mut self.ends[ended..]);
            self.line_ends += line_ends(&input[..used]);
            self.reader.consume(used);
            written += out;
            ended += ends;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if written >= self.limit => {
                    // nothing of it is kept, and the reader goes on to its end
                    dropped += written as u64;
                    (written, ended) = (0, 0);
                }
                ReadRecordResult::OutputFull => {
                    let larger = (self.output.len() * 2).min(self.limit.max(1));
                    self.output.resize(larger.max(self.output.len() + 1), 0);
                }
                ReadRecordResult::OutputEndsFull if dropped > 0 => ended = 0,
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record if dropped > 0 => {
                    return Ok(Some((line, Record::TooLong(dropped + written as u64))));
                }
                ReadRecordResult::Record => {
                    let mut from = 0;
                    let values = self.ends[..ended].iter().map(|end| {
                        let value = self.output[from..*end].to_vec();
                        from = *end;
                        value
                    });
                    return Ok(Some((line, Record::Values(values.collect()))));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }
}

impl<R: BufRead> Records<R> {
    /// Skips line ends: the one behind a record, and lines without anything.
    fn skip_blank(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let blank = buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            if blank == 0 {
                return Ok(());
            }
            self.line_ends += line_ends(&buffer[..blank]);
            self.reader.consume(blank);
        }
    }
}

fn line_ends(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Reads rows from CSV, whose names are in its first record.
pub(super) fn read(
    mut reader: impl BufRead,
    path: &str,
    tabs: bool,
    limits: &Limits,
    unreadable: impl Fn(io::Error) -> DatasetError,
) -> Result<RawRows, DatasetError> {
    let delimiter = if tabs { b'\t' } else { delimiter(reader.fill_buf().map_err(&unreadable)?) };
    let mut records = Records::new(reader, delimiter, limits.line_bytes);
    let refused = |reason: String| DatasetError::Container { path: path.to_owned(), container: Container::Csv, reason };
    let names = match records.next().map_err(&unreadable)? {
        None => return Ok(RawRows::of(Container::Csv, Vec::new())),
        Some((_, Record::TooLong(bytes))) => {
            let most = limits.line_bytes;
            return Err(refused(format!("expected names in at most data.max_line_bytes = {most}, got {bytes} bytes")));
        }
        Some((_, Record::Values(values))) => values,
    };
    let names: Result<Vec<String>, _> = names.into_iter().map(String::from_utf8).collect();
    let names = names.map_err(|_| refused("expected names in UTF-8 in its first line".into()))?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
        return Err(refused(format!("expected another name for each column, got {twice:?} twice in its first line")));
    }
    let mut rows = Vec::new();
    while (rows.len() as u64) < limits.rows {
        let Some((line, record)) = records.next().map_err(&unreadable)? else { break };
        let bad = |field: Option<&String>, expected: String, got: String| BadRow {
            row: rows.len() as u64 + 1,
            line: Some(line),
            field: field.cloned(),
            expected,
            got,
        };
        rows.push(match record {
            Record::TooLong(bytes) => {
                let expected = format!("a row of at most data.max_line_bytes = {}", limits.line_bytes);
                Err(bad(None, expected, format!("{bytes} bytes (a quote that is not closed?)")))
            }
            Record::Values(values) if values.len() != names.len() => {
                Err(bad(None, format!("{} values, as there are names", names.len()), values.len().to_string()))
            }
            Record::Values(values) => {
                let fields: Result<Map<String, Value>, BadRow> = std::iter::zip(&names, values)
                    .map(|(name, value)| match String::from_utf8(value) {
                        Ok(text) => Ok((name.clone(), messages(&text).unwrap_or(Value::String(text)))),
                        Err(error) => {
                            let place = error.utf8_error().valid_up_to() + 1;
                            Err(bad(Some(name), "UTF-8 text".into(), format!("another byte at place {place} of it")))
                        }
                    })
                    .collect();
                fields.map(|fields| RawRow { number: rows.len() as u64 + 1, line: Some(line), fields })
            }
        });
    }
    Ok(RawRows::of(Container::Csv, rows))
}

/// Messages that are written as JSON in a value; every other value is a text, whatever it looks like.
fn messages(text: &str) -> Option<Value> {
    let begin = text.trim_start().strip_prefix('[')?.trim_start();
    let list: Value = begin.starts_with('{').then(|| serde_json::from_str(text).ok())??;
    let turn = |item: &Value| item.get("role").or_else(|| item.get("from")).is_some_and(Value::is_string);
    list.as_array().is_some_and(|items| items.iter().all(turn)).then_some(list)
}

/// What stands most often in the first line, of comma, semicolon and tab.
fn delimiter(begin: &[u8]) -> u8 {
    let line = begin.split(|b| *b == b'\n').next().unwrap_or_default();
    let count = |byte: u8| line.iter().filter(|b| **b == byte).count();
    [b';', b'\t'].into_iter().fold(b',', |best, other| if count(other) > count(best) { other } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(body: &[u8], line_bytes: u64) -> Result<Vec<String>, String> {
        let memory = Default::default();
        let limits = Limits { line_bytes, rows: u64::MAX, memory: &memory };
        let read = read(body, "rows.csv", false, &limits, |e| panic!("{e}")).map_err(|e| e.to_string())?;
        let shown = |row: Result<RawRow, BadRow>| {
            row.map_or_else(|bad| bad.to_string(), |row| format!("{:?} {}", row.line, Value::Object(row.fields)))
        };
        Ok(read.rows.into_iter().map(shown).collect())
    }

    #[test]
    fn quotes_hold_commas_line_ends_and_quotes() {
        let body = b"prompt,answer\r\n\"a, \"\"b\"\"\r\nc\",1\r\n\r\nd,\n";
        assert_eq!(
            rows(body, 1000).unwrap(),
            [r#"Some(2) {"prompt":"a, \"b\"\r\nc","answer":"1"}"#, r#"Some(5) {"prompt":"d","answer":""}"#]
        );
        assert_eq!(rows(b"a;b\n1,5;2\n", 1000).unwrap(), [r#"Some(2) {"a":"1,5","b":"2"}"#]);
        assert!(rows(b"", 1000).unwrap().is_empty());
    }

    #[test]
    fn bad_records_are_named_and_the_next_is_read() {
        let mut body = b"prompt,answer\na\nb,\xff\n".to_vec();
        body.extend_from_slice(&[b'x'; 20_000]);
        body.extend_from_slice(b",1\nc,2\n\"open,3\n");
        body.extend_from_slice(&[b'y'; 9000]);
        assert_eq!(
            rows(&body, 5000).unwrap(),
            [
                "row 1 (line 2): expected 2 values, as there are names, got 1",
                "row 2 (line 3), field `answer`: expected UTF-8 text, got another byte at place 1 of it",
                "row 3 (line 4): expected a row of at most data.max_line_bytes = 5000, got 20001 bytes (a quote that is not \
                 closed?)",
                r#"Some(5) {"prompt":"c","answer":"2"}"#,
                "row 5 (line 6): expected a row of at most data.max_line_bytes = 5000, got 9007 bytes (a quote that is not \
                 closed?)",
            ]
        );
        assert!(rows(b"a,b,a\n", 1000).unwrap_err().contains("got \"a\" twice"));
    }
}
