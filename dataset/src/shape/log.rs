//! Logs of requests, one exchange a row: what was sent to Ollama's or OpenAI's interface, and what came back, whole or in pieces.

use folgore_config::data::DataSection;
use serde_json::{Map, Value, json};

use super::{
    Said,
    fields::{Fault, Fields, fault, first, kind, parsed, text},
    messages::{self, Chat, tools},
};
use crate::redact::Redactor;

/// Fields that hold what was sent, and what came back.
pub(crate) const REQUEST: [&str; 4] = ["request", "request_body", "req", "body"];
pub(crate) const RESPONSE: [&str; 5] = ["response", "response_body", "resp", "reply", "result"];

pub(super) fn exchange(
    fields: &mut Fields,
    section: &DataSection,
    unfit: &mut Option<&'static str>,
) -> Result<Said, Fault> {
    let mut request = inner(fields, &REQUEST)?;
    let mut response = inner(fields, &RESPONSE)?;
    let redactor = Redactor::of(&section.memory.redact);
    redactor.apply(&mut request);
    redactor.apply(&mut response);
    let Value::Object(request) = request else { return fault("request", "an object", kind(&request)) };
    let mut question = match request.get("messages") {
        Some(list) => messages::messages("request.messages", list, section.reasoning)?.0,
        None => {
            let system = text(&request, "system")?.map(|text| folgore_protocol::Message::new("system", text));
            let Some(prompt) = text(&request, "prompt")? else {
                return fault("request", "messages or a prompt", "neither");
            };
            system.into_iter().chain([folgore_protocol::Message::new("user", prompt)]).collect()
        }
    };
    // what the assistant began is gone on with: it is one answer
    let begun = question.pop_if(|last| last.role == "assistant").map(|last| last.content).unwrap_or_default();
    if question.is_empty() {
        return fault("request.messages", "a message before the assistant's", "none");
    }
    let mut answer = Vec::new();
    match said(&response)? {
        Ok(mut message) => {
            message.insert("role".into(), "assistant".into());
            if !begun.is_empty() {
                let rest = message.get("content").and_then(Value::as_str).unwrap_or_default();
                message.insert("content".into(), format!("{begun}{rest}").into());
            }
            answer = messages::messages("response", &json!([message]), section.reasoning)?.0;
            if answer.iter().all(|m| m.content.is_empty() && !m.extra.contains_key("tool_calls")) {
                answer.clear();
                *unfit = Some("the response is empty");
            }
        }
        Err(reason) => *unfit = Some(reason),
    }
    for name in REQUEST.iter().chain(&RESPONSE) {
        fields.remove(*name);
    }
    if let Some(model) = request.get("model") {
        super::beside(fields, "model", model.clone());
    }
    let chat = Chat::answered(question, answer, tools(&request)?);
    fields.extend(chat.answer().map(|answer| ("completion".to_owned(), answer.into())));
    Ok(Said::Chat(chat))
}

/// The body under one of `names`; batches wrap it once more.
fn inner(fields: &Fields, names: &[&'static str]) -> Result<Value, Fault> {
    let Some((_, value)) = first(fields, names) else { return fault(names[0], "an object", "no such field") };
    let value = parsed(value);
    Ok(value.get("body").map(parsed).filter(Value::is_object).unwrap_or(value))
}

/// The message of a response, joined of pieces where it came in pieces; or why there is none.
fn said(response: &Value) -> Result<Result<Map<String, Value>, &'static str>, Fault> {
    match response {
        Value::Array(pieces) => {
            let mut joined = Map::new();
            for piece in pieces {
                if let Ok(message) = whole(&parsed(piece))? {
                    join(&mut joined, message);
                }
            }
            Ok(Ok(joined))
        }
        // events of a stream, as they came
        Value::String(text) if text.lines().any(|line| line.starts_with("data:") || line.starts_with('{')) => {
            let lines = text.lines().map(|line| line.strip_prefix("data:").unwrap_or(line).trim());
            let pieces: Vec<Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
            said(&Value::Array(pieces))
        }
        Value::String(text) => Ok(Ok(Map::from_iter([("content".to_owned(), Value::from(text.clone()))]))),
        other => whole(other),
    }
}

fn whole(response: &Value) -> Result<Result<Map<String, Value>, &'static str>, Fault> {
    if response.get("error").is_some_and(|error| !error.is_null()) {
        return Ok(Err("the response is an error"));
    }
    let choice = response.get("choices").and_then(|choices| choices.get(0));
    let places = [
        response.get("message"),
        choice.and_then(|choice| choice.get("message")),
        choice.and_then(|choice| choice.get("delta")),
    ];
    if let Some(Value::Object(message)) = places.into_iter().flatten().find(|place| place.is_object()) {
        return Ok(Ok(message.clone()));
    }
    let text = [choice.and_then(|choice| choice.get("text")), response.get("response"), response.get("content")];
    match text.into_iter().flatten().find_map(Value::as_str) {
        Some(text) => {
            let mut message = Map::from_iter([("content".to_owned(), Value::from(text))]);
            message.extend(response.get("thinking").map(|thought| ("thinking".to_owned(), thought.clone())));
            Ok(Ok(message))
        }
        // the last piece of a stream may say nothing
        None if choice.is_some() || response.get("usage").is_some() || response.get("done").is_some() => {
            Ok(Ok(Map::new()))
        }
        None => fault("response", "message, choices or response", kind(response)),
    }
}

/// Adds a piece: texts go on, calls are put together by their place.
fn join(joined: &mut Map<String, Value>, piece: Map<String, Value>) {
    for (key, value) in piece {
        match (joined.get_mut(&key), value) {
            (_, Value::Null) => {}
            (Some(Value::String(begun)), Value::String(more)) if key != "role" => begun.push_str(&more),
            (Some(Value::Array(calls)), Value::Array(more)) if key == "tool_calls" => {
                more.into_iter().for_each(|call| join_call(calls, call));
            }
            (Some(_), _) => {}
            (None, value) => drop(joined.insert(key, value)),
        }
    }
}

fn join_call(calls: &mut Vec<Value>, call: Value) {
    let place = call.get("index").and_then(Value::as_u64);
    let same = |known: &&mut Value| place.is_some() && known.get("index").and_then(Value::as_u64) == place;
    let Some(known) = calls.iter_mut().find(same) else { return calls.push(call) };
    let more = call.pointer("/function/arguments").and_then(Value::as_str).unwrap_or_default();
    if let Some(Value::String(arguments)) = known.pointer_mut("/function/arguments") {
        arguments.push_str(more);
    }
}
