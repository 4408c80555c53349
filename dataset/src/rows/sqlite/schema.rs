//! What the tables of a database of chats mean, told by the names of their columns.
//!
//! Three forms are known: one row a message (`role`, `content`, a session), one row an exchange (`prompt`, `response`), and one row a
//! session with all of it as JSON (Open WebUI's `chat`). A table of sessions with titles and times may stand beside the first two.

use std::fmt;

use rusqlite::Connection;

/// Most tables that are looked at.
const MOST: usize = 1000;

const ROLE: [&str; 8] = ["role", "sender_role", "chat_role", "author", "sender", "from", "message_type", "type"];
const CONTENT: [&str; 7] = ["content", "text", "message", "body", "message_text", "value", "message_content"];
const SESSION: [&str; 9] = [
    "session_id",
    "chat_id",
    "conversation_id",
    "thread_id",
    "dialog_id",
    "sessionid",
    "chatid",
    "conversationid",
    "session",
];
const TIME: [&str; 11] = [
    "created_at",
    "timestamp",
    "datetime_utc",
    "createdat",
    "created",
    "time",
    "dt",
    "date",
    "sent_at",
    "start_time",
    "started_at",
];
const MODEL: [&str; 4] = ["model", "model_name", "model_id", "modelid"];
const THOUGHT: [&str; 4] = ["thinking", "reasoning_content", "reasoning", "thoughts"];
const CALLS: [&str; 2] = ["tool_calls", "tool_calls_json"];
const ASKED: [&str; 5] = ["prompt", "user_message", "question", "user_input", "query"];
const SAID: [&str; 6] = ["response", "assistant_message", "answer", "bot_response", "ai_response", "reply"];
const TITLE: [&str; 4] = ["title", "name", "summary", "topic"];
const JSON: [&str; 5] = ["chat", "messages", "history", "conversation", "data"];

/// A table and its columns, as the database names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// Its name.
    pub name: String,
    columns: Vec<String>,
    /// True if a column is another name of the row's number, so that numbers order rows.
    pub numbered: bool,
}

impl Table {
    /// The first of `names` that is a column, as the table writes it.
    pub fn column(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.columns.iter().find(|column| column.eq_ignore_ascii_case(name)).cloned())
    }
}

/// How messages are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One row a message.
    Messages { role: String, content: String, thought: Option<String>, calls: Option<String> },
    /// One row an exchange.
    Exchanges { asked: String, said: String, system: Option<String>, thought: Option<String> },
    /// One row a session, as JSON.
    Json { body: String },
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Schema {
    /// The table of messages, exchanges or sessions as JSON.
    pub table: Table,
    /// How it keeps them.
    pub form: Form,
    /// Its column that names the session; none: each row is one.
    pub session: Option<String>,
    /// Its column of times.
    pub time: Option<String>,
    /// Its column of models.
    pub model: Option<String>,
    /// The table of sessions: its name, and its columns of ids, titles, times and models.
    pub sessions: Option<Sessions>,
    /// Ollama's table of calls, which belong to a message.
    pub tool_calls: bool,
}

/// A table of sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sessions {
    pub table: String,
    pub id: String,
    pub title: Option<String>,
    pub time: Option<String>,
    pub model: Option<String>,
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.table.name;
        match &self.form {
            Form::Messages { role, content, .. } => write!(f, "table `{name}` (`{role}`, `{content}`)")?,
            Form::Exchanges { asked, said, .. } => write!(f, "table `{name}` (`{asked}`, `{said}`)")?,
            Form::Json { body } => write!(f, "table `{name}` (`{body}` as JSON)")?,
        }
        self.session.iter().try_for_each(|column| write!(f, " by `{column}`"))?;
        self.sessions.iter().try_for_each(|sessions| write!(f, ", sessions in `{}`", sessions.table))
    }
}

/// A name as SQL quotes it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Schema {
    /// Finds out what the tables of `db` mean, or says what was seen instead.
    pub fn find(db: &Connection) -> rusqlite::Result<Result<Self, String>> {
        let tables = tables(db)?;
        let messages = tables.iter().find_map(|table| Self::of_messages(table, &tables));
        // Open WebUI keeps sessions as JSON, and in later versions messages beside it: its own form is JSON
        let mut json = None;
        for table in &tables {
            for body in JSON.iter().filter_map(|name| table.column(&[name])) {
                if json.is_none() && holds_chats(db, table, &body)? {
                    json = Some(Self::new(table, Form::Json { body }, None));
                }
            }
        }
        let exchanges = || tables.iter().find_map(|table| Self::of_exchanges(table, &tables));
        let seen = || {
            let shown = |t: &Table| format!("{} ({})", t.name, t.columns.join(", "));
            let seen: Vec<String> = tables.iter().take(8).map(shown).collect();
            format!(
                "expected a table of messages (role, content), of exchanges (prompt, response) or of chats as JSON, got {}",
                if seen.is_empty() { "no table".to_owned() } else { seen.join("; ") }
            )
        };
        Ok(json.or(messages).or_else(exchanges).ok_or_else(seen))
    }

    fn new(table: &Table, form: Form, session: Option<String>) -> Self {
        let (time, model) = (table.column(&TIME), table.column(&MODEL));
        Self { table: table.clone(), form, session, time, model, sessions: None, tool_calls: false }
    }

    fn of_messages(table: &Table, tables: &[Table]) -> Option<Self> {
        let session = table.column(&SESSION)?;
        let (role, content) = (table.column(&ROLE)?, table.column(&CONTENT)?);
        let form = Form::Messages { role, content, thought: table.column(&THOUGHT), calls: table.column(&CALLS) };
        let of_ollama = |t: &Table| {
            t.name == "tool_calls" && t.column(&["message_id"]).is_some() && t.column(&["function_name"]).is_some()
        };
        let tool_calls = table.column(&["id"]).is_some() && tables.iter().any(of_ollama);
        let sessions = Sessions::find(&session, table, tables);
        Some(Self { tool_calls, sessions, ..Self::new(table, form, Some(session)) })
    }

    fn of_exchanges(table: &Table, tables: &[Table]) -> Option<Self> {
        let (asked, said) = (table.column(&ASKED)?, table.column(&SAID)?);
        let session = table.column(&SESSION);
        let (system, thought) = (table.column(&["system"]), table.column(&THOUGHT));
        let sessions = session.as_ref().and_then(|session| Sessions::find(session, table, tables));
        let form = Form::Exchanges { asked, said, system, thought };
        Some(Self { sessions, ..Self::new(table, form, session) })
    }

    /// Columns of a session that stands in the table itself: its id and its title.
    pub fn own(&self) -> (Option<String>, Option<String>) {
        (self.table.column(&["id", "uuid"]), self.table.column(&TITLE))
    }
}

impl Sessions {
    /// The table that the column `session` points into, by its name.
    fn find(session: &str, of: &Table, tables: &[Table]) -> Option<Self> {
        let stem = session.to_lowercase();
        let stem = stem.trim_end_matches("id").trim_end_matches('_').to_owned();
        let candidates =
            tables.iter().filter(|table| table.name != of.name && table.name.to_lowercase().contains(&stem));
        candidates
            .filter_map(|table| {
                let id = table.column(&["id", session, "uuid"])?;
                let (title, time) = (table.column(&TITLE), table.column(&TIME));
                let told = title.is_some() || time.is_some();
                told.then(|| Self { table: table.name.clone(), id, title, time, model: table.column(&MODEL) })
            })
            .min_by_key(|sessions| sessions.table.len())
    }
}

fn tables(db: &Connection) -> rusqlite::Result<Vec<Table>> {
    let mut statement = db.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND sql NOT LIKE 'CREATE VIRTUAL%' \
         ORDER BY name LIMIT ?1",
    )?;
    let names: Vec<String> = statement.query_map([MOST as i64], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut tables = Vec::new();
    for name in names {
        let mut statement = db.prepare(&format!("PRAGMA table_info({})", quoted(&name)))?;
        let columns: Vec<(String, String, i64)> = statement
            .query_map([], |row| Ok((row.get(1)?, row.get::<_, Option<String>>(2)?.unwrap_or_default(), row.get(5)?)))?
            .collect::<Result<_, _>>()?;
        let numbered = columns.iter().any(|(_, kind, key)| *key == 1 && kind.eq_ignore_ascii_case("integer"));
        let columns = columns.into_iter().map(|(column, ..)| column).collect();
        tables.push(Table { name, columns, numbered });
    }
    // the likeliest names first
    let likely =
        |table: &Table| !["messages", "message", "chat_messages", "responses", "chat"].contains(&table.name.as_str());
    tables.sort_by_key(likely);
    Ok(tables)
}

/// Whether a column holds chats as JSON, by the first that is not empty.
fn holds_chats(db: &Connection, table: &Table, column: &str) -> rusqlite::Result<bool> {
    let (table, column) = (quoted(&table.name), quoted(column));
    let sql = format!("SELECT {column} FROM {table} WHERE typeof({column}) IN ('text', 'blob') LIMIT 1");
    let mut statement = db.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let Some(row) = rows.next()? else { return Ok(false) };
    let body = row.get_ref(0)?;
    let text = body.as_str().or_else(|_| body.as_blob().map(|b| std::str::from_utf8(b).unwrap_or_default()));
    Ok(text.is_ok_and(|text| serde_json::from_str(text).is_ok_and(|value| super::tree::branch(&value).is_some())))
}
