//! What a field holds, and what is said of it where it holds something else.

use serde_json::{Map, Value};

/// A field at fault: its name, what it takes, what it holds.
pub(crate) type Fault = (String, String, String);

/// The fields of a row.
pub(crate) type Fields = Map<String, Value>;

/// The kind of a JSON value, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(crate) fn fault<T>(field: &str, expected: &str, got: impl Into<String>) -> Result<T, Fault> {
    Err((field.to_owned(), expected.to_owned(), got.into()))
}

/// The value at a dotted `name`; missing and null are faults.
pub(crate) fn present<'a>(fields: &'a Fields, name: &str) -> Result<&'a Value, Fault> {
    let dotted = || {
        let mut parts = name.split('.');
        let first = fields.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    };
    match fields.get(name).or_else(dotted) {
        None => fault(name, "a value", "no such field"),
        Some(Value::Null) => fault(name, "a value", "null"),
        Some(value) => Ok(value),
    }
}

/// The first of `names` that the row has and that is not null, in any case of letters.
pub(crate) fn first<'a>(fields: &'a Fields, names: &[&'static str]) -> Option<(&'a str, &'a Value)> {
    names.iter().find_map(|name| {
        let exact = fields.get_key_value(*name);
        let found = exact.or_else(|| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
        found.filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value))
    })
}

/// The value of the field `name`, in any case of letters.
pub(crate) fn first_named<'a>(fields: &'a Fields, name: &str) -> Option<&'a Value> {
    let other = || fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    fields.get(name).or_else(other)
}

/// The text of the field `name`; numbers are taken as they are written. Missing, null and empty are none.
pub(crate) fn text(fields: &Fields, name: &str) -> Result<Option<String>, Fault> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => fault(name, "a text", kind(other)),
    }
}

/// The text of the first of `names` that is there; the fault names the first.
pub(crate) fn needed(fields: &Fields, names: &[&'static str]) -> Result<String, Fault> {
    let Some((name, _)) = first(fields, names) else {
        let got = if fields.contains_key(names[0]) { "null" } else { "no such field" };
        return fault(names[0], "a text", got);
    };
    text(fields, name)?.map_or_else(|| fault(name, "a text", "an empty text"), Ok)
}

/// A list or an object, which may be written as JSON in a text.
pub(crate) fn parsed(value: &Value) -> Value {
    match value {
        Value::String(text) if text.trim_start().starts_with(['[', '{']) => {
            serde_json::from_str(text).unwrap_or_else(|_| value.clone())
        }
        other => other.clone(),
    }
}

/// Whether a value says yes, in the spellings of JSON, Python and C.
pub(crate) fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::Number(number) => match number.as_f64() {
            Some(1.0) => Some(true),
            Some(0.0 | -1.0) => Some(false),
            _ => None,
        },
        Value::String(text) => match text.to_lowercase().as_str() {
            "true" | "1" | "yes" => Some(true),
            "false" | "0" | "-1" | "no" => Some(false),
            _ => None,
        },
        _ => None,
    }
}
