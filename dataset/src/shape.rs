//! Turns a row of a known shape into a task; a row that does not fit is reported with its field.

use folgore_config::data::{DataFormat, DataSection};
use folgore_protocol::{Message, Prompt, Task};
use serde_json::{Map, Value};

use crate::{error::BadRow, rows::RawRow};

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

/// A field at fault: its name, what it takes, what it holds.
type Fault = (String, String, String);

fn fault<T>(field: &str, expected: &str, got: impl Into<String>) -> Result<T, Fault> {
    Err((field.to_owned(), expected.to_owned(), got.into()))
}

/// Makes a task of `row`; `stem` names the file in the task's id.
pub(crate) fn task(stem: &str, row: RawRow, format: DataFormat, section: &DataSection) -> Result<Task, BadRow> {
    let (number, line) = (row.number, row.line);
    let made = columns_and_prompt(row.fields, format, section);
    let (prompt, columns) =
        made.map_err(|(field, expected, got)| BadRow { row: number, line, field: Some(field), expected, got })?;
    let prompt = introduced(prompt, section.prompt_prefix.as_deref(), section.system_prompt.as_deref());
    Ok(Task { id: format!("{stem}:{number}"), prompt, columns })
}

fn columns_and_prompt(
    mut fields: Map<String, Value>,
    format: DataFormat,
    section: &DataSection,
) -> Result<(Prompt, Map<String, Value>), Fault> {
    // Found first: the answer may stand in a field that the shape takes away.
    let answer = section.answer_column.as_deref().map(|name| present(&fields, name).cloned()).transpose()?;
    let prompt = match format {
        DataFormat::Messages => {
            let (prompt, completion) =
                conversation(&mut fields, section.prompt_column.as_deref().unwrap_or("messages"))?;
            if let Some(text) = completion {
                fields.insert("completion".into(), text.into());
            }
            prompt
        }
        _ => question(&mut fields, section.prompt_column.as_deref().unwrap_or("prompt"))?,
    };
    if format == DataFormat::PromptCompletion {
        present(&fields, "completion")?;
    }
    if format == DataFormat::Verl {
        let graded = if fields.contains_key("reward_spec") { "reward_spec" } else { "reward_model" };
        let truth = present(&fields, &format!("{graded}.ground_truth"))?.clone();
        // Search-R1 keeps a list of right answers inside of it
        fields.entry("answer").or_insert_with(|| truth.get("target").unwrap_or(&truth).clone());
        fields.insert("ground_truth".into(), truth);
    }
    if let Some(answer) = answer {
        fields.insert("answer".into(), answer);
    }
    Ok((prompt, fields))
}

/// The value at a dotted `name`; missing and null are faults.
fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a Value, Fault> {
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

const PROMPT: &str = "a text or a list of messages";

fn question(fields: &mut Map<String, Value>, name: &str) -> Result<Prompt, Fault> {
    match fields.remove(name) {
        None => fault(name, PROMPT, "no such field"),
        Some(Value::String(text)) if text.is_empty() => fault(name, PROMPT, "an empty text"),
        Some(Value::String(text)) => Ok(Prompt::Text(text)),
        Some(Value::Array(items)) => Ok(Prompt::Messages(messages(name, items)?)),
        Some(other) => fault(name, PROMPT, kind(&other)),
    }
}

/// What precedes the last assistant message is the prompt; a conversation that ends otherwise is all prompt.
fn conversation(fields: &mut Map<String, Value>, name: &str) -> Result<(Prompt, Option<String>), Fault> {
    let items = match fields.remove(name) {
        None => return fault(name, "a list of messages", "no such field"),
        Some(Value::Array(items)) => items,
        Some(other) => return fault(name, "a list of messages", kind(&other)),
    };
    let mut messages = messages(name, items)?;
    let completion = messages.pop_if(|last| last.role == "assistant").map(|last| last.content);
    if messages.is_empty() {
        return fault(name, "a message before the assistant's", "none");
    }
    Ok((Prompt::Messages(messages), completion))
}

fn messages(name: &str, items: Vec<Value>) -> Result<Vec<Message>, Fault> {
    if items.is_empty() {
        return fault(name, "at least one message", "an empty list");
    }
    let numbered = items.into_iter().enumerate();
    numbered.map(|(i, item)| message(&format!("{name}[{i}]"), item)).collect()
}

fn message(name: &str, item: Value) -> Result<Message, Fault> {
    let mut extra = match item {
        Value::Object(map) => map,
        other => return fault(name, "a message with role and content", kind(&other)),
    };
    let role = match extra.remove("role") {
        Some(Value::String(role)) if !role.is_empty() => role,
        Some(other) => return fault(&format!("{name}.role"), "a word", kind(&other)),
        None => return fault(&format!("{name}.role"), "a word", "no such field"),
    };
    // A message that only calls tools has no content.
    let content = match extra.remove("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts_of_text(&format!("{name}.content"), &parts)?,
        Some(other) => return fault(&format!("{name}.content"), "a text", kind(&other)),
    };
    Ok(Message { role, content, extra })
}

/// Joins `[{"type": "text", "text": ..}]`; other parts (pictures, sounds) are refused by name.
fn parts_of_text(name: &str, parts: &[Value]) -> Result<String, Fault> {
    let mut joined = String::new();
    for (i, part) in parts.iter().enumerate() {
        match part.get("text").and_then(Value::as_str) {
            Some(text) => joined.push_str(text),
            None => {
                let got = part.get("type").and_then(Value::as_str).unwrap_or(kind(part));
                return fault(&format!("{name}[{i}]"), "a part with a text", got);
            }
        }
    }
    Ok(joined)
}

/// Puts examples in front of plain text, and the system prompt in front of a conversation that has none; plain text becomes a
/// conversation with it.
pub(crate) fn introduced(prompt: Prompt, prefix: Option<&str>, system: Option<&str>) -> Prompt {
    let prompt = match (prompt, prefix) {
        (Prompt::Text(text), Some(prefix)) => Prompt::Text(format!("{prefix}{text}")),
        (prompt, _) => prompt,
    };
    let Some(system) = system else { return prompt };
    let first = Message::new("system", system);
    match prompt {
        Prompt::Text(text) => Prompt::Messages(vec![first, Message::new("user", text)]),
        Prompt::Messages(messages) => match messages.first().map(|m| m.role.as_str()) {
            Some("system" | "developer") => Prompt::Messages(messages),
            _ => Prompt::Messages(std::iter::once(first).chain(messages).collect()),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn make(row: Value, format: DataFormat, section: &DataSection) -> Result<Task, String> {
        let fields = row.as_object().unwrap().clone();
        task("rows", RawRow { number: 7, line: Some(8), fields }, format, section).map_err(|bad| bad.to_string())
    }

    fn plain(row: Value, format: DataFormat) -> Result<Task, String> {
        make(row, format, &DataSection::default())
    }

    #[test]
    fn every_shape_gives_prompt_and_columns() {
        let task = plain(json!({"prompt": "1+1=", "answer": 2, "level": "easy"}), DataFormat::Prompt).unwrap();
        assert_eq!(task.id, "rows:7");
        assert_eq!(task.prompt, Prompt::Text("1+1=".into()));
        assert_eq!(Value::Object(task.columns), json!({"answer": 2, "level": "easy"}));

        let turns = json!([{"role": "user", "content": "hi", "name": "ann"}]);
        let task = plain(json!({"prompt": turns, "completion": "yo"}), DataFormat::PromptCompletion).unwrap();
        assert_eq!(serde_json::to_value(&task.prompt).unwrap(), turns);
        assert_eq!(task.columns["completion"], "yo");

        let turns = json!([
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"}
        ]);
        let task = plain(json!({"messages": turns, "tools": "[]"}), DataFormat::Messages).unwrap();
        assert_eq!(task.prompt, Prompt::Messages(vec![Message::new("system", "s"), Message::new("user", "ab")]));
        assert_eq!(Value::Object(task.columns), json!({"tools": "[]", "completion": "c"}));

        let row = json!({
            "data_source": "gsm8k",
            "prompt": [{"role": "user", "content": "q"}],
            "reward_model": {"style": "rule", "ground_truth": "72"},
            "extra_info": {"index": 3}
        });
        let task = plain(row, DataFormat::Verl).unwrap();
        assert_eq!((&task.columns["ground_truth"], &task.columns["answer"]), (&json!("72"), &json!("72")));
        assert_eq!(task.columns["extra_info"]["index"], 3);
        assert_eq!(task.columns["data_source"], "gsm8k");
    }

    #[test]
    fn rows_of_search_r1_keep_all_their_answers() {
        let row = json!({
            "id": "test_0", "question": "who wrote dune", "golden_answers": ["Frank Herbert", "Herbert"], "data_source": "nq",
            "prompt": [{"role": "user", "content": "Answer ... Question: who wrote dune?\n"}], "ability": "fact-reasoning",
            "reward_model": {"style": "rule", "ground_truth": {"target": ["Frank Herbert", "Herbert"]}},
            "extra_info": {"split": "test", "index": 0}
        });
        let task = plain(row.clone(), DataFormat::Verl).unwrap();
        let answers = json!(["Frank Herbert", "Herbert"]);
        assert_eq!(task.columns["answer"], answers);
        assert_eq!((&task.columns["golden_answers"], &task.columns["ground_truth"]["target"]), (&answers, &answers));
        assert_eq!(task.columns["reward_model"], row["reward_model"]);
        let Prompt::Messages(messages) = &task.prompt else { panic!("{:?}", task.prompt) };
        assert!(messages[0].content.ends_with("who wrote dune?\n"), "as it stands");
    }

    #[test]
    fn columns_are_mapped_also_from_inside_a_field() {
        let section = DataSection {
            prompt_column: Some("question".into()),
            answer_column: Some("extra.final".into()),
            system_prompt: Some("be brief".into()),
            ..DataSection::default()
        };
        let task = make(json!({"question": "q", "extra": {"final": 5}}), DataFormat::Prompt, &section).unwrap();
        assert_eq!(task.columns["answer"], 5);
        assert_eq!(task.prompt, Prompt::Messages(vec![Message::new("system", "be brief"), Message::new("user", "q")]));
        let own = json!({"question": [{"role": "system", "content": "mine"}, {"role": "user", "content": "q"}], "extra": {"final": 1}});
        let Prompt::Messages(kept) = make(own, DataFormat::Prompt, &section).unwrap().prompt else { panic!() };
        assert_eq!(kept[0].content, "mine");
    }

    #[test]
    fn examples_go_in_front_of_plain_prompts_only() {
        let section = DataSection { prompt_prefix: Some("1+1=2\n".into()), ..DataSection::default() };
        let prompt = |row| make(row, DataFormat::Prompt, &section).unwrap().prompt;
        assert_eq!(prompt(json!({"prompt": "2+2="})), Prompt::Text("1+1=2\n2+2=".into()));
        let own = prompt(json!({"prompt": [{"role": "user", "content": "q"}]}));
        assert_eq!(own, Prompt::Messages(vec![Message::new("user", "q")]));
    }

    #[test]
    fn a_bad_row_is_named_with_its_field() {
        use DataFormat::{Messages, Prompt as Plain, PromptCompletion, Verl};
        for (row, format, want) in [
            (json!({"text": "x"}), Plain, "field `prompt`: expected a text or a list of messages, got no such field"),
            (json!({"prompt": null}), Plain, "field `prompt`: expected a text or a list of messages, got null"),
            (json!({"prompt": 5}), Plain, "field `prompt`: expected a text or a list of messages, got a number"),
            (json!({"prompt": ""}), Plain, "field `prompt`: expected a text or a list of messages, got an empty text"),
            (json!({"prompt": []}), Plain, "field `prompt`: expected at least one message, got an empty list"),
            (
                json!({"prompt": ["a"]}),
                Plain,
                "field `prompt[0]`: expected a message with role and content, got a text",
            ),
            (
                json!({"prompt": [{"content": "a"}]}),
                Plain,
                "field `prompt[0].role`: expected a word, got no such field",
            ),
            (
                json!({"prompt": [{"role": "user", "content": 5}]}),
                Plain,
                "field `prompt[0].content`: expected a text, got a number",
            ),
            (
                json!({"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                Plain,
                "field `prompt[0].content[0]`: expected a part with a text, got image_url",
            ),
            (json!({"prompt": "a"}), PromptCompletion, "field `completion`: expected a value, got no such field"),
            (
                json!({"messages": [{"role": "assistant", "content": "a"}]}),
                Messages,
                "field `messages`: expected a message before the assistant's, got none",
            ),
            (
                json!({"prompt": "a", "reward_model": {"ground_truth": null}}),
                Verl,
                "field `reward_model.ground_truth`: expected a value, got null",
            ),
        ] {
            assert_eq!(plain(row, format).unwrap_err(), format!("row 7 (line 8), {want}"));
        }
        let section = DataSection { answer_column: Some("final".into()), ..DataSection::default() };
        let error = make(json!({"prompt": "a"}), Plain, &section).unwrap_err();
        assert!(error.contains("field `final`: expected a value, got no such field"), "{error}");
    }

    #[test]
    fn odd_texts_pass_through_unchanged() {
        for text in [" ", "\u{0}", "👩‍👩‍👧", "\u{202e}אב", "e\u{301}"] {
            let task = plain(json!({"prompt": text}), DataFormat::Prompt).unwrap();
            assert_eq!(task.prompt, Prompt::Text(text.into()));
        }
    }
}
