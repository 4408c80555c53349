//! Documents in: files of a folder, rows of a corpus.
//!
//! Nothing that a file holds makes a reader fail: what cannot be taken is a reason with the name of the file, or the number of the line.

mod html;
mod limits;
mod rows;
mod text;
mod walk;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use crate::{Document, Kind, Language};

pub use limits::ReadLimits;
pub use walk::{Entry, Found, Source, SourceError};

/// What a reader hands on as it goes through a file.
pub enum Read {
    /// A document.
    Document(Document),
    /// Something that was left out or changed, in one line.
    Note(String),
}

/// What became of a file.
#[derive(Debug)]
pub enum Outcome {
    /// Read to its end; SHA-256 of its bytes.
    Whole([u8; 32]),
    /// Nothing of it is taken, for this reason, whatever happens next time.
    Refused(String, [u8; 32]),
    /// It could not be read this time.
    Failed(io::Error),
}

/// Reads the file at `path`, whose documents are named after `id`, and hands what it finds to `take`, until that fails.
///
/// # Errors
/// What `take` said.
pub fn read_file<E>(
    path: &Path,
    id: &str,
    limits: &ReadLimits,
    take: &mut dyn FnMut(Read) -> Result<(), E>,
) -> Result<Outcome, E> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return Ok(Outcome::Failed(error)),
    };
    let form = Form::of(id);
    match form {
        Form::Rows => rows::read(BufReader::with_capacity(1 << 16, file), id, limits, take),
        Form::Refused(reason) => Ok(Outcome::Refused(reason.into(), [0; 32])),
        _ => page(path, file, id, form, limits, take),
    }
}

/// How a file is read, by the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Rows,
    Html,
    Text(Kind),
    Refused(&'static str),
}

impl Form {
    fn of(name: &str) -> Self {
        let last = name.rsplit('/').next().unwrap_or(name);
        let extension = last.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
        let code = |language| Form::Text(Kind::Code(language));
        match extension.as_str() {
            "jsonl" | "ndjson" => Form::Rows,
            "html" | "htm" | "xhtml" => Form::Html,
            "md" | "markdown" | "mdx" | "qmd" | "rmd" => Form::Text(Kind::Markdown),
            "c" => code(Language::C),
            "cpp" | "cc" | "cxx" | "hpp" | "hh" | "hxx" | "h" | "cu" | "cuh" => code(Language::Cpp),
            "go" => code(Language::Go),
            "java" => code(Language::Java),
            "js" | "jsx" | "mjs" | "cjs" => code(Language::JavaScript),
            "py" | "pyi" => code(Language::Python),
            "rs" => code(Language::Rust),
            "ts" | "tsx" | "mts" | "cts" => code(Language::TypeScript),
            "pdf" => Form::Refused("PDF is not read: convert it, as with `pdftotext FILE.pdf FILE.txt`"),
            "gz" | "zip" | "zst" | "xz" | "bz2" | "tar" | "tgz" | "7z" => Form::Refused("an archive: unpack it"),
            "parquet" => Form::Refused("Parquet is not read: convert it to JSONL"),
            _ => Form::Text(Kind::Prose),
        }
    }
}

/// Reads a file that is one document.
fn page<E>(
    path: &Path,
    file: File,
    id: &str,
    form: Form,
    limits: &ReadLimits,
    take: &mut dyn FnMut(Read) -> Result<(), E>,
) -> Result<Outcome, E> {
    let mut bytes = Vec::new();
    if let Err(error) = file.take(limits.file_bytes + 1).read_to_end(&mut bytes) {
        return Ok(Outcome::Failed(error));
    }
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    if bytes.len() as u64 > limits.file_bytes {
        let size = fs::metadata(path).map_or(bytes.len() as u64, |found| found.len());
        let reason = format!("{} MB, at most {} MB are read", size.div_ceil(1 << 20), limits.file_bytes >> 20);
        return Ok(Outcome::Refused(reason, digest));
    }
    let decoded = match text::decode(&bytes) {
        Ok(decoded) => decoded,
        Err(reason) => return Ok(Outcome::Refused(reason.into(), digest)),
    };
    drop(bytes);
    if let Some(note) = decoded.note {
        take(Read::Note(note))?;
    }
    let (title, text, kind) = match form {
        Form::Html => {
            let page = html::to_markdown(&decoded.text);
            (page.title, page.text, Kind::Markdown)
        }
        Form::Text(kind) => (String::new(), decoded.text, kind),
        Form::Rows | Form::Refused(_) => (String::new(), decoded.text, Kind::Prose),
    };
    if text.trim().is_empty() {
        return Ok(Outcome::Refused("no text".into(), digest));
    }
    let name = id.rsplit('/').next().unwrap_or(id);
    let title = match kind {
        _ if !title.is_empty() => title,
        Kind::Markdown => text::first_heading(&text).unwrap_or_else(|| name.to_owned()),
        // names of functions are found by the path of their file, too
        Kind::Code(_) => id.to_owned(),
        _ => name.to_owned(),
    };
    let metadata = metadata(id, form, kind);
    take(Read::Document(Document { id: id.to_owned(), title, text, kind, metadata }))?;
    Ok(Outcome::Whole(digest))
}

/// What filters may ask of a file.
fn metadata(id: &str, form: Form, kind: Kind) -> BTreeMap<String, String> {
    let (kind, language) = match kind {
        Kind::Code(language) => ("code", serde_json::to_value(language).ok()),
        Kind::Markdown if form == Form::Html => ("html", None),
        Kind::Markdown => ("markdown", None),
        Kind::Passage => ("passage", None),
        Kind::Prose => ("text", None),
    };
    let mut metadata = BTreeMap::from([("path".to_owned(), id.to_owned()), ("kind".to_owned(), kind.to_owned())]);
    if let Some(language) = language.as_ref().and_then(|language| language.as_str()) {
        metadata.insert("language".into(), language.into());
    }
    metadata
}

#[cfg(test)]
mod tests;
