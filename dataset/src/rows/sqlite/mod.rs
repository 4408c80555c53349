//! Chats that a program kept in SQLite, each session a row with `messages`. What tables mean is told by the names of their columns
//! (`schema.rs`), so that Open WebUI, Ollama's own application, `llm` and plain tables of messages are read alike.
//!
//! Files may be anybody's: they are opened to be read, with no trust in their schema, and no value may be longer than a row.

mod date;
mod schema;
mod sessions;
mod tree;

use std::{collections::BTreeMap, path::Path};

use folgore_config::data::ChatMemory;
use rusqlite::{Connection, OpenFlags, limits::Limit};
use serde_json::{Map, Value};

use self::{schema::Schema, sessions::Session};
use super::{Container, Limits, RawRow, RawRows};
use crate::{
    error::{BadRow, DatasetError},
    redact::Redactor,
};

/// Reads the sessions of the database at `path` that `limits.memory` asks for.
pub(super) fn read(path: &Path, shown: &str, limits: &Limits) -> Result<RawRows, DatasetError> {
    let refused =
        |reason: String| DatasetError::Container { path: shown.to_owned(), container: Container::Sqlite, reason };
    let failed = |error: rusqlite::Error| refused(error.to_string());
    let db = open(path, limits).map_err(failed)?;
    let schema = Schema::find(&db).map_err(failed)?.map_err(refused)?;
    let sessions = sessions::read(&db, &schema, limits).map_err(failed)?;
    let redactor = Redactor::of(&limits.memory.redact);
    let (mut rows, mut left) = (Vec::new(), BTreeMap::<&str, u64>::new());
    for session in sessions {
        if rows.len() as u64 >= limits.rows {
            break;
        }
        if let Some(reason) = unwanted(&session, limits.memory) {
            *left.entry(reason).or_default() += 1;
            continue;
        }
        let number = rows.len() as u64 + 1;
        rows.push(row(session, number, &redactor, limits.line_bytes));
    }
    let note = format!("chats in {schema}{}", redactor.note());
    let left_out = left.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
    Ok(RawRows { container: Container::Sqlite, rows, note, left_out })
}

fn open(path: &Path, limits: &Limits) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let prepare = |db: Connection| {
        let longest = i32::try_from(limits.line_bytes).unwrap_or(i32::MAX).max(1 << 16);
        db.set_limit(Limit::SQLITE_LIMIT_LENGTH, longest)?;
        db.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;")?;
        // the first access is what fails where its folder may not be written to
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(db)
    };
    let first = Connection::open_with_flags(path, flags).and_then(prepare);
    let journal = path.with_file_name(format!("{}-wal", path.file_name().unwrap_or_default().to_string_lossy()));
    match first {
        // nobody writes to it: then it needs no files beside it
        Err(_) if !journal.exists() => {
            let escaped: String =
                path.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
            let uri = format!("file:{escaped}?immutable=1");
            Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI).and_then(prepare)
        }
        other => other,
    }
}

/// Why a session is left out, if it is.
fn unwanted(session: &Session, memory: &ChatMemory) -> Option<&'static str> {
    let like = |patterns: &[String], texts: &[&str]| {
        patterns.is_empty() || patterns.iter().any(|pattern| texts.iter().any(|text| matches(pattern, text)))
    };
    let title = session.title.as_deref().unwrap_or_default();
    if !like(&memory.sessions, &[&session.id, title]) {
        return Some("another session than data.memory.sessions");
    }
    let models: Vec<&str> = session.models.iter().map(String::as_str).collect();
    if !like(&memory.models, &models) {
        return Some("another model than data.memory.models");
    }
    let begun = session.begun.as_deref();
    let before = |date: &Option<String>| date.as_deref().map(|date| begun.map(|begun| begun < &*date::plain(date)));
    if before(&memory.since).is_some_and(|earlier| earlier != Some(false)) {
        return Some("begun before data.memory.since, or nobody knows when");
    }
    if before(&memory.until).is_some_and(|earlier| earlier != Some(true)) {
        return Some("begun after data.memory.until, or nobody knows when");
    }
    if session.messages.len() < memory.min_messages as usize {
        return Some("fewer messages than data.memory.min_messages");
    }
    (session.chars() < u64::from(memory.min_chars)).then_some("shorter than data.memory.min_chars")
}

/// Whether `text` is of the form `pattern`, where `*` stands for anything. Upper and lower case are one.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.to_lowercase(), text.to_lowercase());
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn row(session: Session, number: u64, redactor: &Redactor, line_bytes: u64) -> Result<RawRow, BadRow> {
    let bad = |expected: String, got: String| {
        Err(BadRow { row: number, line: None, field: Some(format!("session {}", session.id)), expected, got })
    };
    if session.bytes() > line_bytes {
        return bad(format!("at most data.max_line_bytes = {line_bytes}"), format!("{} bytes", session.bytes()));
    }
    if let Some(fault) = session.fault {
        return bad("messages of user, assistant, system or tool".into(), fault);
    }
    let mut messages = Value::Array(session.messages);
    redactor.apply(&mut messages);
    let mut fields = Map::new();
    fields.insert("messages".into(), messages);
    fields.insert("session_id".into(), session.id.into());
    if let Some(title) = session.title {
        let mut title = Value::String(title);
        redactor.apply(&mut title);
        fields.insert("title".into(), title);
    }
    if !session.models.is_empty() {
        fields.insert("model".into(), session.models.into_iter().collect::<Vec<_>>().join(", ").into());
    }
    fields.extend(session.begun.map(|begun| ("created_at".to_owned(), begun.into())));
    Ok(RawRow { number, line: None, fields })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, fits) in [
            ("work", "Work", true),
            ("work", "works", false),
            ("work*", "works", true),
            ("*:7b*", "qwen2.5:7b-instruct", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxcyyb", false),
            ("*", "", true),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }
}
