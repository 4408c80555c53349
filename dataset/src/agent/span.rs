//! Spans of agents as rows of a file: calls of a language model, and rewards. What Agent Lightning and OpenTelemetry write is read.

use serde_json::{Map, Value};

use crate::shape::fields::{Fault, Fields, fault, kind, parsed};

/// Names under which calls of a language model are told.
const CALLS: [&str; 2] = ["openai.chat.completion", "chat "];
/// Names under which rewards are told.
const REWARDS: [&str; 2] = ["agentlightning.annotation", "agentlightning.reward"];

/// What a span tells.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Told {
    /// A language model was asked and answered.
    Call(Box<Call>),
    /// What was judged, and how.
    Reward(f64),
    /// Anything else: it may stand between a call and what it was made for.
    Other,
}

/// A question to a language model, with its answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// What it was asked, in the order of the conversation.
    pub asked: Value,
    /// What it said.
    pub said: Value,
    /// Functions that it could call.
    pub tools: Value,
    /// Names the answer: one that is told twice is one.
    pub response: Option<String>,
}

/// One span.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub rollout: String,
    pub attempt: String,
    pub id: String,
    pub parent: Option<String>,
    /// Place among the spans of its attempt, where it was counted.
    pub sequence: Option<u64>,
    pub start: Option<f64>,
    pub end: Option<f64>,
    pub told: Told,
}

/// Reads one span of `fields`.
pub(super) fn read(fields: &Fields) -> Result<Span, Fault> {
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => fault(name, "a text", kind(other)),
    };
    let number = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => fault(name, "a number", kind(value)),
        },
    };
    let needed = |name: &str| match text(name)? {
        Some(text) if !text.is_empty() => Ok(text),
        _ => fault(name, "a text", "none"),
    };
    let attributes = match fields.get("attributes").map(parsed) {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(attributes)) => attributes,
        Some(other) => return fault("attributes", "an object", kind(&other)),
    };
    let name = needed("name")?;
    let failed = fields.get("status").and_then(|status| status.get("status_code")).is_some_and(|code| code == "ERROR");
    let told = if REWARDS.contains(&name.as_str()) {
        reward(&attributes)?
    } else if !failed && CALLS.iter().any(|call| name.starts_with(call)) {
        call(&attributes)?
    } else {
        Told::Other
    };
    Ok(Span {
        rollout: needed("rollout_id")?,
        attempt: text("attempt_id")?.unwrap_or_default(),
        id: text("span_id")?.unwrap_or_default(),
        parent: text("parent_id")?,
        sequence: fields.get("sequence_id").and_then(Value::as_u64),
        start: number("start_time")?,
        end: number("end_time")?,
        told,
    })
}

/// The primary reward; an annotation may be about anything else.
fn reward(attributes: &Map<String, Value>) -> Result<Told, Fault> {
    let value = ["agentlightning.reward.0.value", "reward", "value"].iter().find_map(|key| attributes.get(*key));
    match value.map(|value| (value, value.as_f64())) {
        None | Some((Value::Null, _)) => Ok(Told::Other),
        Some((_, Some(value))) if value.is_finite() => Ok(Told::Reward(value)),
        Some((other, _)) => fault("attributes.agentlightning.reward.0.value", "a number", kind(other)),
    }
}

fn call(attributes: &Map<String, Value>) -> Result<Told, Fault> {
    let list = |whole: &str, flat: &str| match attributes.get(whole).map(parsed) {
        Some(value @ Value::Array(_)) => value,
        _ => nested(attributes, flat),
    };
    let asked = list("gen_ai.input.messages", "gen_ai.prompt");
    let mut said = list("gen_ai.output.messages", "gen_ai.completion");
    let messages = |value: &Value| value.as_array().is_some_and(|items| !items.is_empty());
    if !messages(&asked) {
        return fault("attributes.gen_ai.prompt", "what the model was asked", "nothing");
    }
    if !messages(&said) {
        return fault("attributes.gen_ai.completion", "what the model said", "nothing");
    }
    // several choices: the first is what the agent went on with
    if let Value::Array(choices) = &mut said {
        choices.truncate(1);
        if let Some(Value::Object(first)) = choices.first_mut() {
            first.entry("role").or_insert_with(|| "assistant".into());
            first.remove("finish_reason");
        }
    }
    let tools = list("gen_ai.tool.definitions", "llm.request.functions");
    let response = attributes.get("gen_ai.response.id").and_then(Value::as_str).map(str::to_owned);
    Ok(Told::Call(Box::new(Call { asked, said, tools, response })))
}

/// The value that attributes `prefix.a.b...` are the leaves of: keys that are numbers make lists, in the order of the numbers.
fn nested(attributes: &Map<String, Value>, prefix: &str) -> Value {
    let mut root = Tree::default();
    for (key, value) in attributes {
        let Some(path) = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')) else { continue };
        // deeper than any message is
        let parts: Vec<&str> = path.splitn(9, '.').collect();
        let node = parts.iter().fold(&mut root, |node, part| node.children.entry((*part).to_owned()).or_default());
        node.leaf = Some(value.clone());
    }
    root.value()
}

/// Attributes by the parts of their names.
#[derive(Default)]
struct Tree {
    leaf: Option<Value>,
    children: std::collections::BTreeMap<String, Tree>,
}

impl Tree {
    fn value(self) -> Value {
        if self.children.is_empty() {
            return self.leaf.unwrap_or_default();
        }
        let places: Option<Vec<u64>> = self.children.keys().map(|key| key.parse().ok()).collect();
        match places {
            Some(places) => {
                let mut items: Vec<(u64, Value)> =
                    places.into_iter().zip(self.children.into_values().map(Tree::value)).collect();
                items.sort_by_key(|(place, _)| *place);
                Value::Array(items.into_iter().map(|(_, value)| value).collect())
            }
            None => Value::Object(self.children.into_iter().map(|(key, tree)| (key, tree.value())).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        value.as_object().unwrap().clone()
    }

    fn told(name: &str, attributes: Value) -> Result<Told, Fault> {
        read(&fields(json!({"rollout_id": "r", "name": name, "attributes": attributes}))).map(|span| span.told)
    }

    #[test]
    fn flat_attributes_become_messages() {
        let attributes = json!({
            "gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "2+2?", "gen_ai.prompt.10.role": "tool",
            "gen_ai.prompt.10.content": "4", "gen_ai.prompt.2.role": "assistant",
            "gen_ai.prompt.2.tool_calls.0.name": "add", "gen_ai.prompt.2.tool_calls.0.arguments": "{\"a\": 2}",
            "gen_ai.completion.0.content": "4", "gen_ai.completion.0.finish_reason": "stop",
            "gen_ai.completion.1.content": "5", "gen_ai.response.id": "x",
        });
        let Told::Call(call) = told("openai.chat.completion", attributes).unwrap() else { panic!("no call") };
        let Call { asked, said, response, .. } = *call;
        assert_eq!(asked[1], json!({"role": "assistant", "tool_calls": [{"name": "add", "arguments": "{\"a\": 2}"}]}));
        assert_eq!((asked[2]["content"].as_str(), asked.as_array().unwrap().len()), (Some("4"), 3));
        assert_eq!((said, response.as_deref()), (json!([{"role": "assistant", "content": "4"}]), Some("x")));
    }

    #[test]
    fn rewards_are_numbers_and_other_annotations_are_not_rewards() {
        let of = |attributes| told("agentlightning.annotation", attributes);
        assert_eq!(of(json!({"agentlightning.reward.0.value": 0.5})), Ok(Told::Reward(0.5)));
        assert_eq!(of(json!({"note": "x"})), Ok(Told::Other));
        assert_eq!(of(json!({"agentlightning.reward.0.value": null})), Ok(Told::Other));
        assert!(of(json!({"agentlightning.reward.0.value": "good"})).is_err());
        assert_eq!(told("http.get", json!({})), Ok(Told::Other));
        assert!(told("openai.chat.completion", json!({})).is_err());
    }

    #[test]
    fn what_a_span_lacks_is_named() {
        let bad = |value: Value| read(&fields(value)).unwrap_err().0;
        assert_eq!(bad(json!({"name": "x"})), "rollout_id");
        assert_eq!(bad(json!({"rollout_id": "r"})), "name");
        assert_eq!(bad(json!({"rollout_id": "r", "name": "x", "start_time": "now"})), "start_time");
        assert_eq!(bad(json!({"rollout_id": "r", "name": "x", "attributes": [1]})), "attributes");
    }
}
