//! One row and its fields, taken out one by one so that what is left over is what nobody knows.

use anyhow::{Result, anyhow, bail};
use folgore_protocol::Message;
use serde_json::{Map, Value};

/// A JSON object with its place in the input.
#[derive(Debug)]
pub struct Row {
    /// File and line, for errors.
    pub place: String,
    /// What has not been taken.
    pub fields: Map<String, Value>,
}

impl Row {
    pub(super) fn new(place: String, fields: Map<String, Value>) -> Self {
        Self { place, fields }
    }

    /// True if the field is there.
    pub fn has(&self, key: &str) -> bool {
        self.fields.contains_key(key)
    }

    /// Takes a field that has to be there.
    pub fn take(&mut self, key: &str) -> Result<Value> {
        self.fields.remove(key).ok_or_else(|| anyhow!("field {key} is missing"))
    }

    /// Takes a text.
    pub fn text(&mut self, key: &str) -> Result<String> {
        match self.take(key)? {
            Value::String(text) => Ok(text),
            other => bail!("{key}: expected a text, got {}", kind(&other)),
        }
    }

    /// Takes a list of token ids.
    pub fn ids(&mut self, key: &str) -> Result<Vec<u32>> {
        let Value::Array(items) = self.take(key)? else { bail!("{key}: expected a list of token ids") };
        let id = |(i, item): (usize, &Value)| {
            let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| anyhow!("{key}[{i}]: expected a token id, got {item}"))
        };
        items.iter().enumerate().map(id).collect()
    }

    /// Takes a conversation. A message without content only calls tools; content in parts is joined.
    pub fn messages(&mut self, key: &str) -> Result<Vec<Message>> {
        let Value::Array(items) = self.take(key)? else { bail!("{key}: expected a list of messages") };
        let read = |(i, item): (usize, Value)| message(item).map_err(|e| anyhow!("{key}[{i}]{e}"));
        items.into_iter().enumerate().map(read).collect()
    }

    /// Which one of `keys` the row has; it must be exactly one.
    pub fn one_of(&self, keys: &[&'static str]) -> Result<&'static str> {
        let found: Vec<&'static str> = keys.iter().copied().filter(|key| self.has(key)).collect();
        match found[..] {
            [key] => Ok(key),
            [] => bail!("expected one of the fields {}, got {}", keys.join(", "), names(&self.fields)),
            _ => bail!("expected only one of the fields {}, got {}", keys.join(", "), found.join(" and ")),
        }
    }

    /// Refuses fields that nobody took.
    pub fn end(&self) -> Result<()> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(key) => bail!("field {key} is not known here"),
        }
    }
}

fn message(item: Value) -> Result<Message, String> {
    let Value::Object(mut fields) = item else {
        return Err(format!(": expected a message with role and content, got {}", kind(&item)));
    };
    let role = match fields.remove("role") {
        Some(Value::String(role)) => role,
        other => return Err(format!(".role: expected a text, got {}", other.as_ref().map_or("no such field", kind))),
    };
    let content = match fields.remove("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts.iter().enumerate().map(part).collect::<Result<_, _>>()?,
        Some(other) => return Err(format!(".content: expected a text, got {}", kind(&other))),
    };
    Ok(Message { role, content, extra: fields })
}

fn part((i, part): (usize, &Value)) -> Result<String, String> {
    let text = part.get("text").and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| format!(".content[{i}]: expected a part with a text, got {part:.80}"))
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn names(fields: &Map<String, Value>) -> String {
    let names: Vec<&str> = fields.keys().take(8).map(String::as_str).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(value: Value) -> Row {
        Row::new("in, line 1".into(), value.as_object().unwrap().clone())
    }

    #[test]
    fn fields_come_in_the_form_that_was_asked_for() {
        let mut r =
            row(json!({"text": "a", "ids": [1, 2], "messages": [{"role": "user", "content": "q", "name": "n"}]}));
        assert_eq!(r.text("text").unwrap(), "a");
        assert_eq!(r.ids("ids").unwrap(), [1, 2]);
        let messages = r.messages("messages").unwrap();
        assert_eq!((messages[0].content.as_str(), messages[0].extra["name"].as_str()), ("q", Some("n")));
        r.end().unwrap();
        let parts =
            json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}, {"role": "assistant"}]);
        let messages = row(json!({"m": parts})).messages("m").unwrap();
        assert_eq!((messages[0].content.as_str(), messages[1].content.as_str()), ("ab", ""));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let say = |result: Result<()>| result.unwrap_err().to_string();
        for (error, want) in [
            (say(row(json!({})).text("text").map(drop)), "field text is missing"),
            (say(row(json!({"text": 1})).text("text").map(drop)), "text: expected a text, got a number"),
            (say(row(json!({"ids": [1, -2]})).ids("ids").map(drop)), "ids[1]: expected a token id, got -2"),
            (say(row(json!({"ids": [4294967296u64]})).ids("ids").map(drop)), "ids[0]"),
            (say(row(json!({"ids": "1"})).ids("ids").map(drop)), "ids: expected a list"),
            (say(row(json!({"m": ["x"]})).messages("m").map(drop)), "m[0]: expected a message"),
            (
                say(row(json!({"m": [{"content": ""}]})).messages("m").map(drop)),
                "m[0].role: expected a text, got no such",
            ),
            (say(row(json!({"m": [{"role": "u", "content": [{}]}]})).messages("m").map(drop)), "m[0].content[0]"),
            (say(row(json!({"idz": 1})).one_of(&["ids", "text"]).map(drop)), "one of the fields ids, text, got idz"),
            (say(row(json!({"ids": 1, "text": 1})).one_of(&["ids", "text"]).map(drop)), "got ids and text"),
            (say(row(json!({"x": 1})).end()), "field x is not known"),
        ] {
            assert!(error.contains(want), "{error:?} does not say {want:?}");
        }
    }
}
