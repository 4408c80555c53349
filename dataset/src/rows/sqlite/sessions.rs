//! Reads the sessions that a schema describes, in the order in which they began.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::{Connection, Row, types::ValueRef};
use serde_json::{Map, Value, json};

use super::{
    date,
    schema::{Form, Schema, quoted},
    tree,
};
use crate::rows::Limits;

/// One session.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Session {
    pub id: String,
    pub title: Option<String>,
    pub models: BTreeSet<String>,
    /// When, in a form that orders.
    pub begun: Option<String>,
    pub messages: Vec<Value>,
    /// What is wrong with it.
    pub fault: Option<String>,
}

impl Session {
    /// Bytes said in it.
    pub fn bytes(&self) -> u64 {
        self.contents().map(|text| text.len() as u64).sum()
    }

    /// Characters said in it.
    pub fn chars(&self) -> u64 {
        self.contents().map(|text| text.chars().count() as u64).sum()
    }

    fn contents(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().filter_map(|message| message["content"].as_str())
    }

    fn say(&mut self, role: &str, content: String) {
        if !content.is_empty() {
            self.messages.push(json!({"role": role, "content": content}));
        }
    }
}

/// The word of the field for a role, however the program names it.
fn role(name: &str) -> Option<&'static str> {
    Some(match name.to_lowercase().as_str() {
        "user" | "human" | "you" | "me" => "user",
        "assistant" | "ai" | "bot" | "model" | "gpt" | "llm" | "ollama" => "assistant",
        "system" | "developer" => "system",
        "tool" | "function" | "observation" => "tool",
        _ => return None,
    })
}

/// A value as text; numbers as they are written.
fn text(value: ValueRef) -> String {
    match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(n) => n.to_string(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// The value of the column numbered `at`; none where it is null or empty.
fn column(row: &Row, at: Option<usize>) -> rusqlite::Result<Option<String>> {
    let Some(at) = at else { return Ok(None) };
    Ok(Some(text(row.get_ref(at)?)).filter(|text| !text.is_empty()))
}

/// Columns of a statement, each with its place in it.
#[derive(Default)]
struct Columns(Vec<String>);

impl Columns {
    fn add(&mut self, name: &Option<String>) -> Option<usize> {
        let name = name.as_ref()?;
        self.0.push(quoted(name));
        Some(self.0.len() - 1)
    }
}

/// Reads all sessions.
pub(super) fn read(db: &Connection, schema: &Schema, limits: &Limits) -> rusqlite::Result<Vec<Session>> {
    let told = told(db, schema)?;
    let calls = if schema.tool_calls { calls(db)? } else { HashMap::new() };
    let mut columns = Columns::default();
    let (own_id, own_title) = schema.own();
    let id = columns.add(&own_id);
    let session = columns.add(&schema.session);
    let (time, model) = (columns.add(&schema.time), columns.add(&schema.model));
    let title = if schema.session.is_none() { columns.add(&own_title) } else { None };
    let some = |name: &String| Some(name.clone());
    let parts = match &schema.form {
        Form::Messages { role, content, thought, calls } => {
            [some(role), some(content), thought.clone(), calls.clone()].map(|name| columns.add(&name))
        }
        Form::Exchanges { asked, said, system, thought } => {
            [some(asked), some(said), system.clone(), thought.clone()].map(|name| columns.add(&name))
        }
        Form::Json { body } => [some(body), None, None, None].map(|name| columns.add(&name)),
    };
    // numbers order rows where there are any; else times do
    let by_time = schema.time.as_deref().filter(|_| !schema.table.numbered).map(|t| format!("{}, ", quoted(t)));
    let (list, table) = (columns.0.join(", "), quoted(&schema.table.name));
    let order =
        |last: &str| format!("SELECT {list} FROM {table} ORDER BY {}{last}", by_time.as_deref().unwrap_or_default());
    let mut statement = db.prepare(&order("rowid")).or_else(|_| db.prepare(&order("1")))?;
    let mut rows = statement.query([])?;
    let (mut places, mut sessions) = (BTreeMap::<String, usize>::new(), Vec::<Session>::new());
    let mut number = 0u64;
    while let Some(row) = rows.next()? {
        number += 1;
        let own = column(row, id)?;
        let key = if session.is_some() { column(row, session)?.unwrap_or_default() } else { String::new() };
        let key = if schema.session.is_none() { own.clone().unwrap_or_else(|| number.to_string()) } else { key };
        let place = *places.entry(key.clone()).or_insert_with(|| {
            let begun = told.get(&key).cloned().unwrap_or_default();
            sessions.push(Session { id: key, ..begun });
            sessions.len() - 1
        });
        let kept = &mut sessions[place];
        if let Some(at) = time.filter(|_| kept.begun.is_none()) {
            kept.begun = date::of(row.get_ref(at)?);
        }
        kept.title = kept.title.take().or(column(row, title)?);
        kept.models.extend(column(row, model)?);
        // what is over the limit is refused as a whole; it need not be kept
        if kept.bytes() > limits.line_bytes {
            continue;
        }
        let [first, second, third, fourth] = parts;
        match &schema.form {
            Form::Messages { .. } => {
                let name = column(row, first)?.unwrap_or_default();
                let content = column(row, second)?.unwrap_or_default();
                let found = own.and_then(|id| calls.get(&id).cloned()).unwrap_or_default();
                message(kept, &name, content, column(row, third)?, column(row, fourth)?, found);
            }
            Form::Exchanges { .. } => {
                if let Some(system) = column(row, third)?.filter(|_| kept.messages.is_empty()) {
                    kept.say("system", system);
                }
                kept.say("user", column(row, first)?.unwrap_or_default());
                let said = column(row, second)?.unwrap_or_default();
                message(kept, "assistant", said, column(row, fourth)?, None, Vec::new());
            }
            Form::Json { .. } => {
                let body = column(row, first)?.unwrap_or_default();
                let chat: Value = serde_json::from_str(&body).unwrap_or_default();
                match tree::branch(&chat) {
                    Some(branch) => from_json(kept, &chat, &branch),
                    None if body.is_empty() || chat == json!({}) => {}
                    None => kept.fault = Some("JSON that is no chat".into()),
                }
            }
        }
    }
    Ok(sessions)
}

/// What the table of sessions tells of each.
fn told(db: &Connection, schema: &Schema) -> rusqlite::Result<HashMap<String, Session>> {
    let Some(table) = &schema.sessions else { return Ok(HashMap::new()) };
    let mut columns = Columns::default();
    let id = columns.add(&Some(table.id.clone()));
    let (title, time, model) = (columns.add(&table.title), columns.add(&table.time), columns.add(&table.model));
    let mut statement = db.prepare(&format!("SELECT {} FROM {}", columns.0.join(", "), quoted(&table.table)))?;
    let mut rows = statement.query([])?;
    let mut told = HashMap::new();
    while let Some(row) = rows.next()? {
        let begun = time.map(|at| row.get_ref(at)).transpose()?.and_then(date::of);
        let session = Session {
            title: column(row, title)?,
            models: column(row, model)?.into_iter().collect(),
            begun,
            ..Session::default()
        };
        told.insert(column(row, id)?.unwrap_or_default(), session);
    }
    Ok(told)
}

/// A call and what came of it.
type Call = (Value, Option<String>);

/// Calls by the message that made them, as Ollama's application keeps them.
fn calls(db: &Connection) -> rusqlite::Result<HashMap<String, Vec<Call>>> {
    let sql = "SELECT message_id, function_name, function_arguments, function_result FROM tool_calls ORDER BY rowid";
    let mut statement = db.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut calls = HashMap::<String, Vec<Call>>::new();
    while let Some(row) = rows.next()? {
        let (name, arguments) = (column(row, Some(1))?.unwrap_or_default(), column(row, Some(2))?.unwrap_or_default());
        let call = json!({"type": "function", "function": {"name": name, "arguments": arguments}});
        calls.entry(column(row, Some(0))?.unwrap_or_default()).or_default().push((call, column(row, Some(3))?));
    }
    Ok(calls)
}

fn message(
    session: &mut Session,
    name: &str,
    content: String,
    thought: Option<String>,
    calls_json: Option<String>,
    calls: Vec<Call>,
) {
    let Some(role) = role(name) else {
        session.fault.get_or_insert(format!("role {name:?}"));
        return;
    };
    let mut fields = Map::new();
    fields.insert("role".into(), role.into());
    fields.insert("content".into(), content.clone().into());
    if let Some(thought) = thought.filter(|_| role == "assistant") {
        fields.insert("reasoning_content".into(), thought.into());
    }
    let read: Option<Value> = calls_json.and_then(|text| serde_json::from_str(&text).ok());
    let mut made: Vec<Value> = read.and_then(|value| value.as_array().cloned()).unwrap_or_default();
    made.extend(calls.iter().map(|(call, _)| call.clone()));
    if !made.is_empty() {
        fields.insert("tool_calls".into(), made.into());
    }
    if content.is_empty() && fields.len() == 2 {
        return;
    }
    session.messages.push(Value::Object(fields));
    for (call, result) in calls {
        if let Some(result) = result {
            session.messages.push(json!({"role": "tool", "name": call["function"]["name"], "content": result}));
        }
    }
}

/// Takes the messages of a chat in JSON; what a program keeps beside them (ids, times, ratings) stays there.
fn from_json(session: &mut Session, chat: &Value, branch: &[&Value]) {
    let system = chat.get("system").or_else(|| chat.pointer("/params/system")).and_then(Value::as_str);
    session.say("system", system.unwrap_or_default().to_owned());
    let models = chat.get("models").and_then(Value::as_array).into_iter().flatten();
    session.models.extend(models.filter_map(Value::as_str).map(str::to_owned));
    for message in branch {
        let name = message["role"].as_str().unwrap_or_default();
        let said = match &message["content"] {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
            _ => String::new(),
        };
        session.models.extend(message.get("model").and_then(Value::as_str).map(str::to_owned));
        let thought = ["reasoning_content", "thinking"].iter().find_map(|key| message.get(*key)?.as_str());
        let calls = message.get("tool_calls").map(Value::to_string);
        self::message(session, name, said, thought.map(str::to_owned), calls, Vec::new());
    }
}
