//! Reads a file into rows, whatever it is laid out as: the first bytes say what it is, and the name only where they cannot.

mod csv;
pub(crate) mod folder;
mod lines;
mod parquet;
mod sqlite;

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

use folgore_config::data::ChatMemory;
use serde_json::{Map, Value};

use crate::error::{BadRow, DatasetError};

/// How files begin that are no text and are not read, with what to do about it.
const OTHER: [(&[u8], &str); 5] = [
    (b"ARROW1", ARROW),
    (b"\xff\xff\xff\xff", ARROW),
    (b"\xff\xfe", UTF16),
    (b"\xfe\xff", UTF16),
    (b"PK\x03\x04", "it is a zip archive or a spreadsheet: unpack it, or save its rows as CSV"),
];
const ARROW: &str = "it is an Arrow file, which is not read: write Parquet or JSONL (Dataset.to_parquet, to_json)";
const UTF16: &str = "it is text in UTF-16: save it in UTF-8";

/// How rows are laid out in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// One row on each line.
    Jsonl,
    /// One array of rows.
    Json,
    /// Values with commas, semicolons or tabs between them, and a line of names in front.
    Csv,
    /// Columns, compressed.
    Parquet,
    /// A database of chats, each session a row.
    Sqlite,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Container::Jsonl => "JSONL",
            Container::Json => "JSON",
            Container::Csv => "CSV",
            Container::Parquet => "Parquet",
            Container::Sqlite => "SQLite",
        })
    }
}

/// How much is read, and of chats what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits<'a> {
    /// Longest row, in bytes.
    pub line_bytes: u64,
    /// Most rows.
    pub rows: u64,
    /// Which sessions of a database.
    pub memory: &'a ChatMemory,
}

/// One row as it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RawRow {
    /// From 1; blank lines do not count.
    pub number: u64,
    /// From 1, where rows are lines.
    pub line: Option<u64>,
    /// The fields.
    pub fields: Map<String, Value>,
}

/// All rows of a file, good or bad, in order.
#[derive(Debug)]
pub(crate) struct RawRows {
    /// How they are laid out.
    pub container: Container,
    /// The rows.
    pub rows: Vec<Result<RawRow, BadRow>>,
    /// What a reader has to say of how it read them; empty if nothing.
    pub note: String,
    /// Rows that were asked not to be read, by reason.
    pub left_out: Vec<(String, u64)>,
}

impl RawRows {
    fn of(container: Container, rows: Vec<Result<RawRow, BadRow>>) -> Self {
        Self { container, rows, note: String::new(), left_out: Vec::new() }
    }
}

/// Reads the rows of the file at `path`.
pub(crate) fn read(path: &Path, limits: &Limits) -> Result<RawRows, DatasetError> {
    let shown = path.display().to_string();
    let unreadable = |source| DatasetError::Read {
        path: shown.clone(),
        procedural: folgore_config::data::PROCEDURAL.join(", "),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(unreadable(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder")));
    }
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let begin = reader.fill_buf().map_err(unreadable)?;
    if begin.starts_with(b"PAR1") {
        return parquet::read(reader.into_inner(), &shown, limits);
    }
    if begin.starts_with(b"SQLite format 3\0") {
        return sqlite::read(path, &shown, limits);
    }
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    if begin.starts_with(b"\x1f\x8b") {
        let inner = flate2::bufread::MultiGzDecoder::new(reader);
        return text(BufReader::new(inner), name.trim_end_matches(".gz"), &shown, limits, unreadable);
    }
    if begin.starts_with(b"\x28\xb5\x2f\xfd") {
        let inner = zstd::stream::read::Decoder::with_buffer(reader).map_err(unreadable)?;
        return text(BufReader::new(inner), name.trim_end_matches(".zst"), &shown, limits, unreadable);
    }
    text(reader, &name, &shown, limits, unreadable)
}

/// Reads text: CSV if its name says so, else JSON.
fn text(
    mut reader: impl BufRead,
    name: &str,
    path: &str,
    limits: &Limits,
    unreadable: impl Fn(io::Error) -> DatasetError,
) -> Result<RawRows, DatasetError> {
    let begin = reader.fill_buf().map_err(&unreadable)?;
    let other = OTHER.iter().find(|(mark, _)| begin.starts_with(mark));
    if let Some((_, reason)) = other {
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidData, *reason)));
    }
    lines::skip_mark(&mut reader).map_err(&unreadable)?;
    if name.ends_with(".csv") || name.ends_with(".tsv") {
        return csv::read(reader, path, name.ends_with(".tsv"), limits, unreadable);
    }
    lines::read(reader, path, name.ends_with(".json"), limits, unreadable)
}
