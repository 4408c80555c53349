//! Conversations: TRL's and OpenAI's `messages`, ShareGPT's `conversations`, Alpaca's instructions with their history.

use folgore_config::data::DataSection;
use folgore_protocol::Message;
use serde_json::{Map, Value};

use super::{
    Said,
    fields::{Fault, Fields, fault, first, kind, needed, parsed, text},
    messages::{self, Chat, tools},
};

/// The last message of the assistant answers what precedes it; a conversation that ends otherwise is all question.
fn conversation(name: &str, messages: Vec<Message>, learnt: Vec<bool>, fields: &mut Fields) -> Result<Said, Fault> {
    let chat = Chat::whole(messages, learnt, tools(fields)?);
    if chat.asked == 0 {
        return fault(name, "a message before the assistant's", "none");
    }
    if let Some(answer) = chat.answer() {
        fields.insert("completion".into(), answer.into());
    }
    Ok(Said::Chat(chat))
}

pub(super) fn messages(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let name = section.prompt_column.as_deref().unwrap_or("messages");
    let Some(value) = fields.remove(name) else { return fault(name, "a list of messages", "no such field") };
    let (messages, learnt) = messages::messages(name, &value, section.reasoning)?;
    conversation(name, messages, learnt, fields)
}

/// What ShareGPT and its kin call who speaks; calls are told apart by their own name.
fn role(from: &str) -> Option<&'static str> {
    Some(match from.to_lowercase().as_str() {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" | "function_call" | "tool_call" => "assistant",
        "system" => "system",
        "observation" | "tool" | "tool_response" | "function_response" | "function" => "tool",
        _ => return None,
    })
}

pub(super) fn sharegpt(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let name = section.prompt_column.clone();
    let name = name.or_else(|| first(fields, &["conversations", "conversation"]).map(|(name, _)| name.to_owned()));
    let name = name.unwrap_or_else(|| "conversations".to_owned());
    let value = fields.remove(&name);
    let Some(Value::Array(turns)) = value.as_ref().map(parsed) else {
        let got = value.as_ref().map_or("no such field", kind);
        return fault(&name, "a list of turns with from and value", got);
    };
    if turns.is_empty() {
        return fault(&name, "at least one turn", "an empty list");
    }
    let (mut said, mut learnt) = (Vec::new(), Vec::new());
    for (i, turn) in turns.into_iter().enumerate() {
        let (message, counts) = self::turn(&format!("{name}[{i}]"), turn, section)?;
        said.push(message);
        learnt.push(counts);
    }
    if let Some(system) = text(fields, "system")?.filter(|_| said[0].role != "system") {
        said.insert(0, Message::new("system", system));
        learnt.insert(0, false);
    }
    conversation(&name, said, learnt, fields)
}

fn turn(name: &str, turn: Value, section: &DataSection) -> Result<(Message, bool), Fault> {
    let Value::Object(mut turn) = turn else { return fault(name, "a turn with from and value", kind(&turn)) };
    let from = turn.remove("from").or_else(|| turn.remove("role")).unwrap_or_default();
    let from = from.as_str().unwrap_or_default().to_owned();
    let Some(role) = role(&from) else {
        let known = "human, gpt, system, function_call or observation";
        return fault(&format!("{name}.from"), known, if from.is_empty() { "nothing".into() } else { from });
    };
    let value = turn.remove("value").or_else(|| turn.remove("content")).unwrap_or_default();
    if matches!(from.as_str(), "function_call" | "tool_call") {
        let calls = match parsed(&value) {
            Value::Array(items) => Value::Array(items),
            one => Value::Array(vec![one]),
        };
        turn.insert("tool_calls".into(), calls);
        return messages::finished(name, role.into(), String::new(), turn, section.reasoning);
    }
    let value = match value {
        Value::String(text) => text,
        // what a tool gave back may be JSON
        other @ (Value::Object(_) | Value::Array(_)) if role == "tool" => other.to_string(),
        other => return fault(&format!("{name}.value"), "a text", kind(&other)),
    };
    messages::finished(name, role.into(), value, turn, section.reasoning)
}

pub(super) fn alpaca(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let mut question = needed(fields, &["instruction"])?;
    if let Some(input) = text(fields, "input")? {
        question = format!("{question}\n{input}");
    }
    let output = first(fields, &["output", "chosen", "response"]).map(|(name, _)| name.to_owned());
    let output = output.map(|name| text(fields, &name)).transpose()?.flatten();
    let mut said = Vec::new();
    said.extend(text(fields, "system")?.map(|system| Message::new("system", system)));
    if let Some(history) = fields.get("history").map(parsed).filter(|history| !history.is_null()) {
        let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(asked), Value::String(answered)]) => Some((asked.clone(), answered.clone())),
            _ => None,
        };
        let pairs: Option<Vec<_>> = match &history {
            Value::Array(pairs) => pairs.iter().map(pair).collect(),
            Value::String(text) if text.trim().is_empty() => Some(Vec::new()),
            _ => None,
        };
        let Some(pairs) = pairs else { return fault("history", "a list of pairs of texts", kind(&history)) };
        for (asked, answered) in pairs {
            said.push(Message::new("user", asked));
            said.push(Message::new("assistant", answered));
        }
    }
    if section.prompt_prefix.is_some() && said.is_empty() {
        fields.extend(output.clone().map(|text| ("completion".to_owned(), text.into())));
        return Ok(Said::Plain { prompt: question, completion: output });
    }
    said.push(Message::new("user", question));
    if let Some(answer) = output {
        said.push(messages::finished("output", "assistant".into(), answer, Map::new(), section.reasoning)?.0);
    }
    let learnt = said.iter().map(|message| message.role == "assistant").collect();
    conversation("instruction", said, learnt, fields)
}
