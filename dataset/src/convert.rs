//! Rows to imitate written down in the shapes of others. What a shape cannot say is an error with its reason, never left out in silence.

use folgore_protocol::{Example, Message, Task, example::Body};
use serde_json::{Map, Value, json};

/// Shapes that rows are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `messages`, with `tools`; a message of the assistant that is not learnt has `weight` 0.
    Messages,
    /// `prompt` and `completion`: texts of plain rows, lists of messages of conversations.
    PromptCompletion,
    /// `conversations` of `from` and `value`, with `system` and `tools`.
    Sharegpt,
    /// `instruction`, `input`, `output`, with `system` and `history`.
    Alpaca,
    /// `text`.
    Text,
}

/// Keys that a shape takes for itself: a column of the same name is not written beside it.
const OWN: [&str; 13] = [
    "messages",
    "tools",
    "prompt",
    "completion",
    "conversations",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "text",
    "target",
    "rejected",
];

/// Writes `example` as `target`, with its other columns beside.
///
/// # Errors
/// If the shape cannot say what the row says.
pub fn example(example: &Example, target: Target) -> Result<Value, &'static str> {
    let mut row = match target {
        Target::Messages => messages(&example.body)?,
        Target::PromptCompletion => prompt_completion(&example.body)?,
        Target::Sharegpt => sharegpt(&example.body)?,
        Target::Alpaca => alpaca(&example.body)?,
        Target::Text => Map::from_iter([("text".to_owned(), text(&example.body)?.into())]),
    };
    let beside = example.columns.iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
    row.extend(beside.map(|(name, value)| (name.clone(), value.clone())));
    Ok(row.into())
}

/// Writes a question as a row of verl, with what was said to it as LUFFY's `target`; `source` is where it is from, unless it says so itself.
///
/// # Errors
/// If nothing says what is right.
pub fn verl(task: &Task, index: u64, source: &str) -> Result<Value, &'static str> {
    let column = |name: &str| task.columns.get(name).filter(|value| !value.is_null()).cloned();
    let prompt = match &task.prompt {
        folgore_protocol::Prompt::Text(text) => vec![Message::new("user", text.clone())],
        folgore_protocol::Prompt::Messages(messages) => messages.clone(),
    };
    let truth = column("ground_truth").or_else(|| column("answer")).or_else(|| column("golden_answers"));
    let truth = truth.ok_or("no `answer` and no `ground_truth`, which verl's rewards compare with")?;
    let mut row = json!({
        "data_source": column("data_source").unwrap_or_else(|| source.into()),
        "prompt": prompt,
        "ability": column("ability").unwrap_or_else(|| "unknown".into()),
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": column("extra_info").unwrap_or_else(|| json!({"index": index, "id": task.id})),
    });
    if let Some(Value::String(said)) = column("completion") {
        row["target"] = json!([Message::new("assistant", said)]);
    }
    Ok(row)
}

/// The messages of a body; plain rows are a turn of the user and one of the assistant.
fn turns(body: &Body) -> Result<(Vec<Message>, Vec<bool>, Vec<Value>), &'static str> {
    match body {
        Body::Text { .. } => Err("plain text is no conversation"),
        Body::Completion { prompt, completion } => {
            let messages = vec![Message::new("user", prompt.clone()), Message::new("assistant", completion.clone())];
            Ok((messages, vec![false, true], Vec::new()))
        }
        Body::Conversation { messages, learnt, tools } => Ok((messages.clone(), learnt.clone(), tools.clone())),
    }
}

fn messages(body: &Body) -> Result<Map<String, Value>, &'static str> {
    let (mut messages, learnt, tools) = turns(body)?;
    for (message, learnt) in std::iter::zip(&mut messages, learnt) {
        if message.role == "assistant" && !learnt {
            message.extra.insert("weight".into(), 0.into());
        }
    }
    let mut row = Map::from_iter([("messages".to_owned(), json!(messages))]);
    if !tools.is_empty() {
        row.insert("tools".into(), tools.into());
    }
    Ok(row)
}

/// The prompt is what precedes the first message that is learnt; all behind it must be learnt where the assistant speaks.
fn prompt_completion(body: &Body) -> Result<Map<String, Value>, &'static str> {
    let (prompt, completion, tools) = match body {
        Body::Text { .. } => return Err("plain text has no prompt"),
        Body::Completion { prompt, completion } => (json!(prompt), json!(completion), &[][..]),
        Body::Conversation { messages, learnt, tools } => {
            let first = learnt.iter().position(|on| *on).ok_or("nothing of it is learnt")?;
            let rest = std::iter::zip(&messages[first..], &learnt[first..]);
            if rest.into_iter().any(|(message, on)| message.role == "assistant" && !on) {
                return Err("a message of the assistant that is not learnt stands behind one that is");
            }
            (json!(messages[..first]), json!(messages[first..]), tools.as_slice())
        }
    };
    let mut row = Map::from_iter([("prompt".to_owned(), prompt), ("completion".to_owned(), completion)]);
    if !tools.is_empty() {
        row.insert("tools".into(), tools.into());
    }
    Ok(row)
}

/// What is said of a message whose weight a shape cannot say.
const WEIGHTS: &str = "some messages of the assistant are not learnt, which this shape cannot say";

fn all_learnt(messages: &[Message], learnt: &[bool]) -> bool {
    std::iter::zip(messages, learnt).all(|(message, on)| message.role != "assistant" || *on)
}

fn sharegpt(body: &Body) -> Result<Map<String, Value>, &'static str> {
    let (messages, learnt, tools) = turns(body)?;
    if !all_learnt(&messages, &learnt) {
        return Err(WEIGHTS);
    }
    let mut conversations = Vec::new();
    let mut system = None;
    for (i, message) in messages.iter().enumerate() {
        let turn = |from: &str, value: Value| json!({"from": from, "value": value});
        let content = Value::from(with_thought(message));
        match message.role.as_str() {
            "system" | "developer" if i == 0 => system = Some(message.content.clone()),
            "system" | "developer" => conversations.push(turn("system", content)),
            "user" => conversations.push(turn("human", content)),
            "tool" | "function" => conversations.push(turn("observation", content)),
            "assistant" => {
                let calls = message.extra.get("tool_calls").and_then(Value::as_array).cloned().unwrap_or_default();
                if !message.content.is_empty() || calls.is_empty() {
                    conversations.push(turn("gpt", content));
                }
                let bare: Vec<Value> = calls.iter().map(|call| call["function"].clone()).collect();
                match bare.as_slice() {
                    [] => {}
                    [one] => conversations.push(turn("function_call", one.to_string().into())),
                    several => conversations.push(turn("function_call", Value::from(several).to_string().into())),
                }
            }
            _ => return Err("a role that this shape does not know"),
        }
    }
    let mut row = Map::from_iter([("conversations".to_owned(), conversations.into())]);
    row.extend(system.map(|text| ("system".to_owned(), text.into())));
    if !tools.is_empty() {
        let bare: Vec<&Value> = tools.iter().map(|tool| tool.get("function").unwrap_or(tool)).collect();
        row.insert("tools".into(), json!(bare).to_string().into());
    }
    Ok(row)
}

fn alpaca(body: &Body) -> Result<Map<String, Value>, &'static str> {
    let (messages, learnt, tools) = turns(body)?;
    if !tools.is_empty() || messages.iter().any(|m| m.role == "tool" || m.extra.contains_key("tool_calls")) {
        return Err("tools, which this shape cannot say");
    }
    if !all_learnt(&messages, &learnt) {
        return Err(WEIGHTS);
    }
    let (system, rest) = match messages.split_first() {
        Some((first, rest)) if first.role == "system" => (Some(first.content.clone()), rest),
        _ => (None, messages.as_slice()),
    };
    let pairs = rest.chunks_exact(2);
    let ordered =
        pairs.remainder().is_empty() && pairs.clone().all(|p| p[0].role == "user" && p[1].role == "assistant");
    let Some((last, history)) = rest.split_last_chunk::<2>().map(|(history, last)| (last, history)).filter(|_| ordered)
    else {
        return Err("turns that are not of user and assistant by turns");
    };
    let mut row = Map::from_iter([
        ("instruction".to_owned(), last[0].content.clone().into()),
        ("input".to_owned(), "".into()),
        ("output".to_owned(), with_thought(&last[1]).into()),
    ]);
    row.extend(system.map(|text| ("system".to_owned(), text.into())));
    if !history.is_empty() {
        let pairs: Vec<Value> = history.chunks_exact(2).map(|p| json!([p[0].content, with_thought(&p[1])])).collect();
        row.insert("history".into(), pairs.into());
    }
    Ok(row)
}

fn text(body: &Body) -> Result<String, &'static str> {
    Ok(match body {
        Body::Text { text } => text.clone(),
        Body::Completion { prompt, completion } => format!("{prompt}{completion}"),
        Body::Conversation { messages, .. } => {
            let calls = messages.iter().any(|message| message.extra.contains_key("tool_calls"));
            if calls {
                return Err("calls of tools, which plain text cannot say");
            }
            messages.iter().map(with_thought).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
        }
    })
}

/// The text of a message with its reasoning in front, where that has a field of its own.
fn with_thought(message: &Message) -> String {
    match message.extra.get("reasoning_content").and_then(Value::as_str) {
        Some(thought) => crate::shape::inline(thought, &message.content),
        None => message.content.clone(),
    }
}
