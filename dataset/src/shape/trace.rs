//! Questions with what somebody better said to them: verl's rows with LUFFY's `target`, exports with reasoning, OpenR1-Math.

use folgore_config::data::{DataSection, Reasoning};
use folgore_protocol::Message;
use serde_json::{Map, Value};

use super::{
    Said,
    fields::{Fault, Fields, fault, first, kind, needed, parsed, present, text, truth},
    messages::{self, Chat, tools},
};

/// Fields that hold a question.
const QUESTION: [&str; 6] = ["question", "problem", "prompt", "instruction", "query", "input"];
/// Fields that hold what was thought of it.
pub(crate) const THOUGHT: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Fields that hold what was said to it.
const CONTENT: [&str; 5] = ["content", "response", "output", "completion", "answer"];

/// A verl row; `target` is a trace, and so is the first of `target_lst`.
pub(super) fn verl(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let name = section.prompt_column.as_deref().unwrap_or("prompt");
    let prompt = match fields.remove(name) {
        None => return fault(name, "a text or a list of messages", "no such field"),
        Some(Value::String(text)) if text.is_empty() => {
            return fault(name, "a text or a list of messages", "an empty text");
        }
        // as text it may be written in CSV
        Some(value) => match parsed(&value) {
            Value::String(text) => Err(text),
            list => Ok(messages::messages(name, &list, section.reasoning)?.0),
        },
    };
    let graded = if fields.contains_key("reward_spec") { "reward_spec" } else { "reward_model" };
    if let Some(text @ Value::String(_)) = fields.get(graded) {
        let read = parsed(text);
        fields.insert(graded.into(), read);
    }
    let truth = present(fields, &format!("{graded}.ground_truth"))?.clone();
    // Search-R1 keeps a list of right answers inside of it
    fields.entry("answer").or_insert_with(|| truth.get("target").unwrap_or(&truth).clone());
    fields.insert("ground_truth".into(), truth);
    let target = ["target", "completion", "response"].iter().find_map(|name| trace(fields, name));
    let target = target.or_else(|| match fields.get("target_lst").map(parsed) {
        Some(Value::Array(several)) => several.into_iter().find(|one| !one.is_null()).map(|one| ("target_lst[0]", one)),
        _ => None,
    });
    let answer = match target {
        None => None,
        Some((_, Value::String(text))) => Some((vec![Message::new("assistant", text)], vec![true])),
        Some((name, one @ Value::Object(_))) => {
            Some(messages::messages(name, &Value::Array(vec![one]), section.reasoning)?)
        }
        Some((name, list)) => Some(messages::messages(name, &list, section.reasoning)?),
    };
    let said = match (prompt, answer) {
        (Err(prompt), None) => Said::Plain { prompt, completion: None },
        (Err(prompt), Some((answer, _))) if answer.len() == 1 => {
            Said::Plain { prompt, completion: answer.into_iter().next().map(|message| message.content) }
        }
        (prompt, answer) => {
            let question = prompt.unwrap_or_else(|text| vec![Message::new("user", text)]);
            let (answer, counts) = answer.unwrap_or_default();
            let mut chat = Chat::answered(question, answer, tools(fields)?);
            chat.learnt.splice(chat.asked.., counts);
            Said::Chat(chat)
        }
    };
    if let Some(answer) = said.answer() {
        super::beside(fields, "completion", answer);
    }
    Ok(said)
}

fn trace<'a>(fields: &Fields, name: &'a str) -> Option<(&'a str, Value)> {
    let value = fields.get(name).map(parsed)?;
    let empty = value.is_null() || value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty);
    (!empty).then_some((name, value))
}

/// A question, what was thought, and what was said: as DeepSeek's interface gives it, and data sets made with it.
pub(super) fn reasoning(fields: &mut Fields, section: &DataSection) -> Result<Said, Fault> {
    let thought = needed(fields, &THOUGHT)?;
    let content = first(fields, &CONTENT).map(|(name, _)| name.to_owned());
    let content = content.map(|name| text(fields, &name)).transpose()?.flatten().unwrap_or_default();
    let mut extra = Map::new();
    extra.insert("reasoning_content".into(), thought.into());
    let (answer, _) = messages::finished("answer", "assistant".into(), content, extra, section.reasoning)?;
    let listed = fields.get("messages").filter(|value| !value.is_null()).cloned();
    let question = match listed {
        Some(list) => {
            let (mut question, _) = messages::messages("messages", &list, section.reasoning)?;
            question.pop_if(|last| last.role == "assistant");
            fields.remove("messages");
            question
        }
        None => {
            let name = section.prompt_column.clone();
            let name = name.or_else(|| first(fields, &QUESTION).map(|(name, _)| name.to_owned()));
            let name = name.unwrap_or_else(|| QUESTION[0].to_owned());
            let asked = text(fields, &name)?;
            let Some(asked) = asked else { return fault(&name, "the text of a question", "none") };
            fields.remove(&name);
            let system = text(fields, "system")?.map(|system| Message::new("system", system));
            system.into_iter().chain([Message::new("user", asked)]).collect()
        }
    };
    if question.is_empty() {
        return fault("messages", "a message before the assistant's", "none");
    }
    let chat = Chat::answered(question, vec![answer], tools(fields)?);
    fields.extend(chat.answer().map(|answer| ("completion".to_owned(), answer.into())));
    Ok(Said::Chat(chat))
}

/// A problem with several generations, of which the first that was found right is taken: by math-verify, else by the model that judged;
/// where nobody judged, the first that is complete. All that the same judge found right are `target_lst`, for groups with several
/// experts. What was found wrong is no column: nobody may take it for an expert's.
pub(super) fn openr1(
    fields: &mut Fields,
    section: &DataSection,
    unfit: &mut Option<&'static str>,
) -> Result<Said, Fault> {
    let problem = needed(fields, &["problem", "question", "prompt"])?;
    let generations = match present(fields, "generations").map(parsed)? {
        Value::Array(items) => items,
        other => return fault("generations", "a list of texts", kind(&other)),
    };
    let verdicts = |name: &str| match fields.get(name).map(parsed) {
        Some(Value::Array(items)) => items.iter().map(truth).collect(),
        _ => Vec::new(),
    };
    let (verified, judged) = (verdicts("correctness_math_verify"), verdicts("correctness_llama"));
    let complete = verdicts("is_reasoning_complete");
    let at = |list: &[Option<bool>], i: usize| list.get(i).copied().flatten();
    let right =
        |list: &[Option<bool>]| (0..generations.len()).filter(|i| at(list, *i) == Some(true)).collect::<Vec<_>>();
    let known = verified.iter().chain(&judged).any(Option::is_some);
    let chosen = match (right(&verified), right(&judged)) {
        _ if !known => (0..generations.len()).filter(|i| at(&complete, *i) != Some(false)).take(1).collect(),
        (verified, judged) if verified.is_empty() => judged,
        (verified, _) => verified,
    };
    let said = |i: usize| match &generations[i] {
        Value::String(text) if section.reasoning == Reasoning::Drop => {
            let read =
                messages::finished("generations", "assistant".into(), text.clone(), Map::new(), Reasoning::Drop)?;
            Ok(read.0.content)
        }
        Value::String(text) => Ok(text.clone()),
        other => fault("generations", "a list of texts", kind(other)),
    };
    let right: Vec<String> = chosen.into_iter().map(said).collect::<Result<_, Fault>>()?;
    let answer = right.first().cloned();
    if answer.is_none() {
        *unfit = Some("no generation was found right");
    }
    for name in ["problem", "messages", "generations"] {
        fields.remove(name);
    }
    if right.len() > 1 {
        fields.insert("target_lst".into(), right.into());
    }
    fields.extend(answer.clone().map(|text| ("completion".to_owned(), text.into())));
    Ok(Said::question(section, problem, answer))
}
