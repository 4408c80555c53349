//! Questions asked over passages, for a share of the rows: the row's own, if it has any, among passages of other rows or of a corpus.
//! Which rows, which passages and in which order depends on the row alone.

use std::path::Path;

use folgore_config::DataSection;
use folgore_protocol::seed;
use serde_json::Value;

use crate::{
    error::DatasetError,
    read::Held,
    rows::{self, Limits},
    shape::{Fields, Said},
    split::{self, Keyed},
};

/// Columns that hold a row's own passages.
const OWN: [&str; 7] = ["context", "contexts", "passages", "passage", "documents", "document", "ctxs"];
/// Keys of a passage that hold its text.
const TEXT: [&str; 4] = ["contents", "text", "content", "passage"];
/// Separates the draws of this file from all others.
const STREAM: u64 = 0x7261_6770_6173_7361;
/// Passages of a corpus that are held at most.
const MOST: u64 = 1_000_000;

/// Puts passages in front of the questions of a share of `rows`; says what it did.
pub(crate) fn apply<'a>(
    rows: impl Iterator<Item = &'a mut Keyed<Held>>,
    section: &DataSection,
) -> Result<Option<String>, DatasetError> {
    if section.rag_share <= 0.0 {
        return Ok(None);
    }
    let mut rows: Vec<&mut Keyed<Held>> = rows.collect();
    let pool = match &section.rag_corpus {
        Some(path) => corpus(path, section)?,
        None => rows.iter().flat_map(|row| own(&row.row.shaped.columns)).collect(),
    };
    if pool.is_empty() {
        let columns = OWN.join(", ");
        let from = section.rag_corpus.as_ref().map(|path| format!(" in {}", path.display()));
        let why = format!("expected passages{}: rows have none of {columns}", from.unwrap_or_default());
        return Err(DatasetError::Rag(format!("{why}; data.rag_corpus names a file of them")));
    }
    let (mut asked, mut with_own) = (0u64, 0u64);
    for Keyed { key, row } in rows.iter_mut().map(|row| &mut **row) {
        // another hash than that by which rows are held out
        let lot = seed::mix(&[STREAM, (split::place(key) * (1u64 << 53) as f64) as u64]);
        if f64::from(seed::uniform(lot, 0)) >= section.rag_share || matches!(row.shaped.said, Said::Text(_)) {
            continue;
        }
        let mine = own(&row.shaped.columns);
        let mut all: Vec<(bool, String)> = mine.iter().map(|passage| (true, passage.clone())).collect();
        let others = section.rag_passages as usize;
        let tries = (0..8 * others as u64).map(|i| &pool[seed::below(lot, 1 + i, pool.len() as u64) as usize]);
        for other in tries {
            if all.len() < mine.len() + others && !all.iter().any(|(_, known)| known == other) {
                all.push((false, other.clone()));
            }
        }
        seed::shuffle(seed::mix(&[lot, 1]), &mut all);
        if all.is_empty() || !put(&mut row.shaped.said, &all) {
            continue;
        }
        let relevant: Vec<Value> =
            all.iter().enumerate().filter(|(_, (mine, _))| *mine).map(|(i, _)| (i + 1).into()).collect();
        with_own += u64::from(!relevant.is_empty());
        asked += 1;
        row.shaped.columns.insert("rag_relevant".into(), relevant.into());
    }
    let count = rows.len();
    Ok(Some(format!(
        "{asked} of {count} questions are asked over passages, {with_own} of them with passages of their own"
    )))
}

/// Puts passages in front of the last thing asked.
fn put(said: &mut Said, passages: &[(bool, String)]) -> bool {
    let text: Vec<String> = passages.iter().enumerate().map(|(i, (_, text))| format!("[{}] {text}", i + 1)).collect();
    let framed = |question: &str| format!("Passages:\n{}\n\nQuestion: {question}", text.join("\n"));
    match said {
        Said::Text(_) => false,
        Said::Plain { prompt, .. } => {
            *prompt = framed(prompt);
            true
        }
        Said::Chat(chat) => {
            let last = chat.messages[..chat.asked].iter_mut().rfind(|message| message.role == "user");
            last.map(|message| message.content = framed(&message.content)).is_some()
        }
    }
}

/// The passages of a row, each with its title in front.
fn own(columns: &Fields) -> Vec<String> {
    let found = OWN.iter().find_map(|name| columns.get(*name).filter(|value| !value.is_null()));
    match found.map(crate::shape::fields::parsed) {
        Some(Value::Array(items)) => items.iter().filter_map(passage).collect(),
        Some(one) => passage(&one).into_iter().collect(),
        None => Vec::new(),
    }
}

fn passage(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => {
            let text = TEXT.iter().find_map(|key| map.get(*key)?.as_str())?;
            match map.get("title").and_then(Value::as_str).filter(|title| !title.is_empty()) {
                Some(title) => format!("{title}: {text}"),
                None => text.to_owned(),
            }
        }
        _ => return None,
    };
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn corpus(path: &Path, section: &DataSection) -> Result<Vec<String>, DatasetError> {
    let limits = Limits { line_bytes: section.max_line_bytes, rows: MOST, memory: &section.memory };
    let read = rows::read(path, &limits)?;
    let shown = || path.display().to_string();
    let row = |row: Result<rows::RawRow, _>| {
        let row = row.map_err(|row| DatasetError::BadRow { path: shown(), row })?;
        Ok(passage(&Value::Object(row.fields)))
    };
    read.rows.into_iter().filter_map(|raw| row(raw).transpose()).collect()
}
