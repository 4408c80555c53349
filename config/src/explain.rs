//! Turns what the deserialiser says about a value into what its user can act upon.

use serde_json::Value;

/// Longest value that a message repeats, in characters.
const SHOWN: usize = 60;

/// `value` as a message shows it.
pub(crate) fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => "nothing (null)".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(map) => format!("a mapping with {} keys", map.len()),
        other => other.to_string(),
    };
    if text.chars().count() <= SHOWN {
        return text;
    }
    let cut: String = text.chars().take(SHOWN).collect();
    format!("{cut}...")
}

/// Expected and got, from the deserialiser's `message` about `value`, which replaced `default`.
pub(crate) fn type_error(message: &str, value: &Value, default: Option<&Value>) -> (String, String) {
    let nested = matches!(value, Value::Array(_) | Value::Object(_));
    let typed = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    if let Some((got, expected)) = typed.and_then(|rest| rest.rsplit_once(", expected ")) {
        let got = if nested { got.to_owned() } else { shown(value) };
        return (wanted(expected, value), got);
    }
    if message.starts_with("data did not match any variant") {
        let example = default.map_or_else(|| "another form".to_owned(), |d| format!("a value like {d}"));
        return (example, shown(value));
    }
    for (prefix, what) in [("unknown variant ", ""), ("unknown field ", "a key, ")] {
        let Some((got, known)) = message.strip_prefix(prefix).and_then(|rest| rest.split_once(", expected ")) else {
            continue;
        };
        let near = nearest(got.trim_matches('`'), known);
        return (format!("{what}{known}"), format!("{got}{near}"));
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return (format!("a key {field}"), "none".to_owned());
    }
    (message.to_owned(), shown(value))
}

/// The name in backticks within `known` that is nearest to `got`, as a question.
fn nearest(got: &str, known: &str) -> String {
    let names = known.split('`').skip(1).step_by(2);
    let best = names.map(|name| (strsim::damerau_levenshtein(got, name), name)).min();
    match best {
        Some((distance, name)) if distance <= (got.chars().count() / 3).max(2) => format!("; did you mean `{name}`?"),
        _ => String::new(),
    }
}

/// A Rust type in the words of a user.
fn wanted(expected: &str, value: &Value) -> String {
    match expected {
        "f32" | "f64" => "a number".to_owned(),
        "u8" => "a whole number of 0 to 255".to_owned(),
        "u16" => "a whole number of 0 to 65535".to_owned(),
        "u32" => "a whole number of 0 to 4294967295".to_owned(),
        "u64" | "usize" => "a whole number of 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a string" | "path string" | "string or map" if matches!(value, Value::Number(_) | Value::Bool(_)) => {
            format!("a text; for the text {value} write '\"{value}\"'")
        }
        "a string" | "string or map" => "a text".to_owned(),
        "path string" => "a path".to_owned(),
        other if other == "a map" || other.starts_with("struct ") => "keys and their values".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_speak_of_values_and_not_of_types() {
        let explain = |message: &str, value: Value| {
            let (expected, got) = type_error(message, &value, Some(&json!("all-linear")));
            format!("expected {expected}, got {got}")
        };
        for (message, value, want) in [
            ("invalid type: string \"hot\", expected f64", json!("hot"), "expected a number, got \"hot\""),
            (
                "invalid value: integer `-1`, expected u32",
                json!(-1),
                "expected a whole number of 0 to 4294967295, got -1",
            ),
            (
                "invalid type: integer `5`, expected a string",
                json!(5),
                "expected a text; for the text 5 write '\"5\"', got 5",
            ),
            ("invalid type: null, expected a boolean", Value::Null, "expected true or false, got nothing (null)"),
            (
                "unknown variant `grop`, expected one of `grpo`, `bnpo`",
                json!("grop"),
                "expected one of `grpo`, `bnpo`, got `grop`; did you mean `grpo`?",
            ),
            ("missing field `name`", json!([{}]), "expected a key `name`, got none"),
            (
                "data did not match any variant of untagged enum TargetModules",
                json!(7),
                "expected a value like \"all-linear\", got 7",
            ),
        ] {
            assert_eq!(explain(message, value), want);
        }
        assert!(shown(&json!("x".repeat(500))).chars().count() < 70);
    }
}
