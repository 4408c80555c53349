//! A prompt and what follows it: TRL's prompt, prompt-completion, preference and unpaired preference rows.

use folgore_config::data::DataSection;
use folgore_protocol::Message;
use serde_json::Value;

use super::{
    Said,
    fields::{Fault, Fields, fault, first, kind, parsed, present, truth},
    messages::{Chat, messages, tools},
};

/// Fields that hold what was said to a prompt.
pub(crate) const COMPLETION: [&str; 4] = ["completion", "response", "output", "target"];

const PROMPT: &str = "a text or a list of messages";

/// One side of a pair.
enum Half {
    Text(String),
    Messages(Vec<Message>, Vec<bool>),
}

fn half(name: &str, value: Option<&Value>, section: &DataSection) -> Result<Half, Fault> {
    match value {
        None => fault(name, PROMPT, "no such field"),
        Some(Value::String(text)) if text.is_empty() => fault(name, PROMPT, "an empty text"),
        Some(Value::String(text)) => Ok(Half::Text(text.clone())),
        Some(list @ Value::Array(_)) => {
            let (messages, learnt) = messages(name, list, section.reasoning)?;
            Ok(Half::Messages(messages, learnt))
        }
        Some(other) => fault(name, PROMPT, kind(other)),
    }
}

/// Both sides in one form: plain text if both are, else a conversation.
fn joined(prompt: Half, completion: Option<Half>, tools: Vec<Value>) -> Said {
    let (messages, mut learnt) = match (prompt, &completion) {
        (Half::Text(prompt), None) => return Said::Plain { prompt, completion: None },
        (Half::Text(prompt), Some(Half::Text(text))) => {
            return Said::Plain { prompt, completion: Some(text.clone()) };
        }
        (Half::Text(prompt), Some(Half::Messages(..))) => (vec![Message::new("user", prompt)], vec![false]),
        (Half::Messages(messages, _), _) => {
            let given = vec![false; messages.len()];
            (messages, given)
        }
    };
    let asked = messages.len();
    let mut messages = messages;
    match completion {
        None => {}
        Some(Half::Text(text)) => {
            messages.push(Message::new("assistant", text));
            learnt.push(true);
        }
        Some(Half::Messages(more, counts)) => {
            messages.extend(more);
            learnt.extend(counts);
        }
    }
    Said::Chat(Chat { messages, asked, learnt, tools })
}

fn taken(fields: &mut Fields, name: &str, section: &DataSection) -> Result<Half, Fault> {
    let value = fields.remove(name);
    half(name, value.as_ref(), section)
}

fn column(section: &DataSection) -> &str {
    section.prompt_column.as_deref().unwrap_or("prompt")
}

/// A prompt, and the answer that slime and OpenRLHF call its label.
pub(super) fn prompt(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let prompt = taken(fields, column(section), section)?;
    if let Some(label @ (Value::String(_) | Value::Number(_))) = fields.get("label").cloned() {
        super::beside(fields, "answer", label);
    }
    Ok(joined(prompt, None, tools(fields)?))
}

pub(super) fn prompt_completion(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let prompt = taken(fields, column(section), section)?;
    let Some((name, value)) = first(fields, &COMPLETION) else {
        // the fault is of the field that it is usually called
        return present(fields, "completion").map(|_| Said::Text(String::new()));
    };
    let said = joined(prompt, Some(half(name, Some(value), section)?), tools(fields)?);
    if let Some(answer) = said.answer() {
        super::beside(fields, "completion", answer);
    }
    Ok(said)
}

/// What was chosen is the completion. A prompt that stands in both is what they have in common.
pub(super) fn preference(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let tools = tools(fields)?;
    let (chosen, rejected) = (present(fields, "chosen")?.clone(), fields.get("rejected").cloned().unwrap_or_default());
    let said = if fields.get(column(section)).is_some_and(|prompt| !prompt.is_null()) {
        joined(taken(fields, column(section), section)?, Some(half("chosen", Some(&chosen), section)?), tools)
    } else {
        match (half("chosen", Some(&chosen), section)?, half("rejected", Some(&rejected), section)?) {
            (Half::Text(chosen), Half::Text(rejected)) => {
                let prompt = common(&chosen, &rejected);
                if prompt.is_empty() || prompt.len() == chosen.len() {
                    return fault("prompt", "a prompt, or one in front of both chosen and rejected", "none");
                }
                Said::Plain { prompt: prompt.to_owned(), completion: Some(chosen[prompt.len()..].to_owned()) }
            }
            (Half::Messages(chosen, learnt), Half::Messages(rejected, _)) => {
                let same = std::iter::zip(&chosen, &rejected).take_while(|(a, b)| a == b).count();
                if same == 0 || same == chosen.len() {
                    return fault("prompt", "messages that chosen and rejected begin with alike", "none");
                }
                let learnt = learnt.iter().enumerate().map(|(i, counts)| i >= same && *counts).collect();
                Said::Chat(Chat { messages: chosen, asked: same, learnt, tools })
            }
            _ => return fault("rejected", "the same kind as chosen", kind(&rejected)),
        }
    };
    if let Some(answer) = said.answer() {
        super::beside(fields, "completion", answer);
    }
    Ok(said)
}

/// What both begin with; a space before the difference belongs to what differs.
fn common<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y);
    let end = same.map_or(a.len().min(b.len()), |((at, _), _)| at);
    a[..end].strip_suffix(' ').unwrap_or(&a[..end])
}

/// A completion counts where its label is true; a wrong one is kept as `rejected`.
pub(super) fn unpaired(
    fields: &mut Fields,
    section: &DataSection,
    unfit: &mut Option<&'static str>,
) -> Result<Said, Fault> {
    let label = present(fields, "label")?;
    let Some(right) = truth(label) else { return fault("label", "true or false", label.to_string()) };
    if right {
        return prompt_completion(fields, section);
    }
    let prompt = taken(fields, column(section), section)?;
    let completion = present(fields, "completion")?.clone();
    fields.remove("completion");
    fields.insert("rejected".into(), completion);
    *unfit = Some("its label is false");
    Ok(joined(prompt, None, tools(fields)?))
}

/// Steps with a verdict on each (TRL's stepwise supervision). Where all are right they are one completion, a line each; a row with a
/// wrong step keeps its steps and teaches nothing.
pub(super) fn stepwise(
    fields: &mut Fields,
    section: &DataSection,
    unfit: &mut Option<&'static str>,
) -> Result<Said, Fault> {
    let list = |name: &str| match present(fields, name).map(parsed)? {
        Value::Array(items) => Ok(items),
        other => fault(name, "a list", kind(&other)),
    };
    let (steps, labels) = (list("completions")?, list("labels")?);
    if steps.is_empty() || steps.len() != labels.len() {
        let got = format!("{} steps and {} labels", steps.len(), labels.len());
        return fault("labels", "a label for each of at least one step", got);
    }
    let texts: Option<Vec<&str>> = steps.iter().map(Value::as_str).collect();
    let Some(texts) = texts else { return fault("completions", "a list of texts", "another list") };
    let right: Option<Vec<bool>> = labels.iter().map(truth).collect();
    let Some(right) = right else {
        return fault("labels", "true or false for each step", Value::from(labels).to_string());
    };
    let completion = texts.join("\n");
    let prompt = taken(fields, column(section), section)?;
    if right.contains(&false) {
        *unfit = Some("one of its steps is labelled false");
        return Ok(joined(prompt, None, tools(fields)?));
    }
    let said = joined(prompt, Some(Half::Text(completion)), tools(fields)?);
    fields.extend(said.answer().map(|answer| ("completion".to_owned(), answer.into())));
    Ok(said)
}
