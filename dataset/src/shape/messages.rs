//! Messages in one form, whatever they were written in: roles of the OpenAI shape, calls of tools as lists of functions with their
//! arguments as objects, reasoning where `data.reasoning` wants it.

use folgore_config::data::Reasoning;
use folgore_protocol::Message;
use serde_json::{Map, Value, json};

use super::fields::{Fault, Fields, fault, kind, parsed, truth};

/// Keys that hold reasoning.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Keys that say whether a message is learnt.
const WEIGHT: [&str; 3] = ["weight", "train", "training"];
/// Columns that hold tools.
const TOOLS: [&str; 3] = ["tools", "tool_defs", "functions"];

/// A conversation with what is learnt of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Chat {
    /// All messages.
    pub messages: Vec<Message>,
    /// The first of them that are the question.
    pub asked: usize,
    /// By message, whether it is learnt.
    pub learnt: Vec<bool>,
    /// Functions that may be called.
    pub tools: Vec<Value>,
}

impl Chat {
    /// A conversation whose last message of the assistant is the answer to what precedes it, and of which all messages of the
    /// assistant are learnt but those that say otherwise.
    pub fn whole(messages: Vec<Message>, learnt: Vec<bool>, tools: Vec<Value>) -> Self {
        let answered = messages.last().is_some_and(|last| last.role == "assistant");
        Self { asked: messages.len() - usize::from(answered), messages, learnt, tools }
    }

    /// `question` is asked, `answer` is learnt.
    pub fn answered(question: Vec<Message>, answer: Vec<Message>, tools: Vec<Value>) -> Self {
        let asked = question.len();
        let learnt =
            (0..asked).map(|_| false).chain(answer.iter().map(|message| message.role == "assistant")).collect();
        Self { messages: question.into_iter().chain(answer).collect(), asked, learnt, tools }
    }

    /// What was said to the question: the text of the last message, with its reasoning.
    pub fn answer(&self) -> Option<String> {
        let last = self.messages[self.asked..].last()?;
        let thought = last.extra.get("reasoning_content").and_then(Value::as_str);
        Some(thought.map_or_else(|| last.content.clone(), |thought| inline(thought, &last.content)))
    }
}

/// Reasoning in front of what was said.
pub(crate) fn inline(thought: &str, content: &str) -> String {
    format!("<think>\n{}\n</think>\n\n{content}", thought.trim_matches('\n'))
}

/// Reads a list of messages, and by message whether it is learnt.
pub(crate) fn messages(name: &str, value: &Value, reasoning: Reasoning) -> Result<(Vec<Message>, Vec<bool>), Fault> {
    let Value::Array(items) = parsed(value) else { return fault(name, "a list of messages", kind(value)) };
    if items.is_empty() {
        return fault(name, "at least one message", "an empty list");
    }
    let numbered = channels(items).into_iter();
    numbered.map(|(i, item)| message(&format!("{name}[{i}]"), item, reasoning)).collect()
}

/// Harmony's channels, each message with its place: what the assistant analyses is thought of what it says next.
fn channels(items: Vec<Value>) -> Vec<(usize, Value)> {
    let mut said: Vec<(usize, Value)> = Vec::new();
    let mut thought: Option<(usize, String)> = None;
    let alone = |(place, thought): (usize, String)| (place, json!({"role": "assistant", "thinking": thought}));
    for (place, mut item) in items.into_iter().enumerate() {
        let assistant = item.get("role").is_some_and(|role| role == "assistant");
        let channel = item.get("channel").and_then(Value::as_str).map(str::to_owned);
        if let (true, Some("analysis"), Some(Value::String(text))) =
            (assistant, channel.as_deref(), item.get("content"))
        {
            let begun = thought.take().map_or_else(String::new, |(_, begun)| begun + "\n");
            thought = Some((place, begun + text));
            continue;
        }
        if let Some(thought) = thought.take() {
            match item.as_object_mut().filter(|_| assistant) {
                Some(item) => drop(item.insert("thinking".into(), thought.1.into())),
                None => said.push(alone(thought)),
            }
        }
        if let Some(item) = item.as_object_mut().filter(|_| channel.is_some()) {
            item.remove("channel");
        }
        said.push((place, item));
    }
    said.extend(thought.map(alone));
    said
}

fn message(name: &str, item: Value, reasoning: Reasoning) -> Result<(Message, bool), Fault> {
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
    finished(name, role, content, extra, reasoning)
}

/// Brings the other keys of a message to one form; null is absent.
pub(crate) fn finished(
    name: &str,
    role: String,
    mut content: String,
    mut extra: Map<String, Value>,
    reasoning: Reasoning,
) -> Result<(Message, bool), Fault> {
    extra.retain(|_, value| !value.is_null());
    let assistant = role == "assistant";
    let mut learnt = assistant;
    for key in WEIGHT.iter().filter(|_| assistant) {
        if let Some(value) = extra.remove(*key) {
            match truth(&value) {
                Some(counts) => learnt &= counts,
                None => return fault(&format!("{name}.{key}"), "0, 1, true or false", value.to_string()),
            }
        }
    }
    if assistant {
        let thoughts: Vec<String> =
            REASONING.iter().filter_map(|key| extra.remove(*key)?.as_str().map(str::to_owned)).collect();
        if let Some(thought) = thoughts.into_iter().find(|thought| !thought.trim().is_empty()) {
            match reasoning {
                Reasoning::Inline => content = inline(&thought, &content),
                Reasoning::Field => drop(extra.insert("reasoning_content".into(), thought.into())),
                Reasoning::Drop => {}
            }
        }
        if reasoning == Reasoning::Drop {
            content = without_thought(content);
        }
        let old = extra.remove("function_call").filter(|call| !call.is_null());
        let called = extra.remove("tool_calls").map(|value| parsed(&value));
        let called = match (called, old) {
            (Some(Value::Array(items)), _) => items,
            (Some(Value::Object(one)), _) => vec![Value::Object(one)],
            (Some(other), _) => return fault(&format!("{name}.tool_calls"), "a list of calls", kind(&other)),
            (None, Some(one)) => vec![one],
            (None, None) => Vec::new(),
        };
        let called: Vec<Value> = called
            .iter()
            .enumerate()
            .map(|(i, item)| call(&format!("{name}.tool_calls[{i}]"), item))
            .collect::<Result<_, _>>()?;
        if !called.is_empty() {
            extra.insert("tool_calls".into(), called.into());
        }
    }
    Ok((Message { role, content, extra }, learnt))
}

/// A text without the thought that it begins with.
fn without_thought(content: String) -> String {
    let rest = content.trim_start().strip_prefix("<think>").and_then(|rest| rest.split_once("</think>"));
    rest.map(|(_, said)| said.trim_start().to_owned()).unwrap_or(content)
}

/// A call as templates expect it: `{"type": "function", "function": {"name", "arguments": {..}}}`, its id kept.
pub(crate) fn call(name: &str, item: &Value) -> Result<Value, Fault> {
    let item = parsed(item);
    let inner = item.get("function").filter(|function| function.is_object()).unwrap_or(&item);
    let Some(called) = inner.get("name").and_then(Value::as_str).filter(|called| !called.is_empty()) else {
        return fault(
            &format!("{name}.name"),
            "the name of a function",
            item.to_string().chars().take(80).collect::<String>(),
        );
    };
    let arguments = ["arguments", "parameters", "input"].iter().find_map(|key| inner.get(*key));
    let arguments = arguments.map(parsed).filter(|value| !value.is_null()).unwrap_or_else(|| json!({}));
    let mut call = Map::new();
    call.extend(item.get("id").filter(|id| !id.is_null()).map(|id| ("id".to_owned(), id.clone())));
    call.insert("type".into(), "function".into());
    call.insert("function".into(), json!({"name": called, "arguments": arguments}));
    Ok(call.into())
}

/// The tools of a row: a list or JSON in a text, of whole schemas or of bare functions.
pub(crate) fn tools(fields: &Fields) -> Result<Vec<Value>, Fault> {
    let Some((name, value)) = TOOLS.iter().find_map(|name| fields.get(*name).map(|value| (*name, value))) else {
        return Ok(Vec::new());
    };
    let items = match parsed(value) {
        Value::Null => Vec::new(),
        Value::Array(items) => items,
        Value::Object(one) => vec![Value::Object(one)],
        Value::String(text) if text.trim().is_empty() => Vec::new(),
        other => return fault(name, "a list of functions", kind(&other)),
    };
    let tool = |(i, item): (usize, Value)| {
        let item = parsed(&item);
        match (item.get("function").is_some(), item.get("name").is_some()) {
            (true, _) => Ok(item),
            (false, true) => Ok(json!({"type": "function", "function": item})),
            (false, false) => fault(&format!("{name}[{i}]"), "a function with its name", kind(&item)),
        }
    };
    items.into_iter().enumerate().map(tool).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value, reasoning: Reasoning) -> (Value, Vec<bool>) {
        let (messages, learnt) = messages("messages", &value, reasoning).unwrap();
        (serde_json::to_value(messages).unwrap(), learnt)
    }

    #[test]
    fn calls_have_one_form() {
        let want = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
        for given in [
            json!({"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}),
            json!({"tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]}),
            json!({"tool_calls": "[{\"name\": \"f\", \"arguments\": {\"x\": 1}}]"}),
            json!({"function_call": {"name": "f", "arguments": "{\"x\": 1}"}}),
        ] {
            let mut message = given;
            message["role"] = "assistant".into();
            message["content"] = Value::Null;
            assert_eq!(read(json!([message]), Reasoning::Inline).0[0]["tool_calls"], want);
        }
        let odd = json!([{"role": "assistant", "tool_calls": [{"id": "1", "name": "f", "arguments": "not JSON"}]}]);
        assert_eq!(read(odd, Reasoning::Inline).0[0]["tool_calls"][0]["function"]["arguments"], "not JSON");
        let none = json!([{"role": "assistant", "content": "a", "tool_calls": null, "name": null}]);
        assert_eq!(read(none, Reasoning::Inline).0, json!([{"role": "assistant", "content": "a"}]));
        let (name, ..) =
            messages("m", &json!([{"role": "assistant", "tool_calls": [{}]}]), Reasoning::Inline).unwrap_err();
        assert_eq!(name, "m[0].tool_calls[0].name");
    }

    #[test]
    fn reasoning_goes_where_it_is_wanted() {
        for key in ["reasoning_content", "thinking", "reasoning"] {
            let given = || json!([{"role": "assistant", "content": "4", key: "2+2\n"}]);
            assert_eq!(read(given(), Reasoning::Inline).0[0]["content"], "<think>\n2+2\n</think>\n\n4");
            let kept = read(given(), Reasoning::Field).0;
            assert_eq!(kept, json!([{"role": "assistant", "content": "4", "reasoning_content": "2+2\n"}]));
            assert_eq!(read(given(), Reasoning::Drop).0, json!([{"role": "assistant", "content": "4"}]));
        }
        let inside = json!([{"role": "assistant", "content": "<think>x</think>\n4"}]);
        assert_eq!(read(inside.clone(), Reasoning::Drop).0[0]["content"], "4");
        assert_eq!(read(inside.clone(), Reasoning::Inline).0, inside);
    }

    #[test]
    fn what_is_analysed_is_thought_of_what_is_said_next() {
        let given = json!([
            {"role": "developer", "content": "d"},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "channel": "analysis", "content": "a"},
            {"role": "assistant", "channel": "analysis", "content": "b"},
            {"role": "assistant", "channel": "final", "content": "4"},
            {"role": "user", "content": "c", "channel": null},
            {"role": "assistant", "channel": "analysis", "content": "cut"}
        ]);
        let (read, learnt) = read(given, Reasoning::Inline);
        assert_eq!(read[2], json!({"role": "assistant", "content": "<think>\na\nb\n</think>\n\n4"}));
        assert_eq!(
            (&read[4]["content"], learnt),
            (&json!("<think>\ncut\n</think>\n\n"), vec![false, false, true, false, true])
        );
        let bad =
            json!([{"role": "assistant", "channel": "analysis", "content": "a"}, {"role": "assistant", "content": 1}]);
        assert_eq!(
            messages("m", &bad, Reasoning::Inline).unwrap_err().0,
            "m[1].content",
            "places are those of the row"
        );
    }

    #[test]
    fn weights_say_what_is_learnt() {
        let given = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "weight": 1},
            {"role": "assistant", "content": "e", "train": false}
        ]);
        assert_eq!(read(given, Reasoning::Inline).1, [false, false, false, true, false]);
        let bad = json!([{"role": "assistant", "content": "b", "weight": "much"}]);
        assert_eq!(messages("m", &bad, Reasoning::Inline).unwrap_err().0, "m[0].weight");
    }

    #[test]
    fn tools_are_whole_or_bare() {
        let bare = json!([{"name": "f", "parameters": {}}]);
        let whole = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
        for value in [bare.clone(), whole.clone(), bare.to_string().into(), whole.to_string().into()] {
            let fields = json!({"tools": value}).as_object().unwrap().clone();
            assert_eq!(Value::from(tools(&fields).unwrap()), whole);
        }
        for empty in [json!(null), json!(""), json!("[]"), json!([])] {
            assert!(tools(json!({"tools": empty}).as_object().unwrap()).unwrap().is_empty());
        }
        assert_eq!(tools(json!({"tools": "no"}).as_object().unwrap()).unwrap_err().1, "a list of functions");
    }
}
