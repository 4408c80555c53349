//! What a row says, whatever its shape: [`read`] brings it to one form, of which questions (`Task`) and rows to imitate (`Example`) are
//! made. A row that does not fit is reported with its field.

mod benchmark;
mod dialogue;
pub(crate) mod fields;
pub(crate) mod log;
mod messages;
pub(crate) mod pairs;
pub(crate) mod trace;

use folgore_config::data::{DataFormat, DataSection};
use folgore_protocol::{Message, Prompt};
use serde_json::Value;

pub(crate) use fields::{Fault, Fields, kind};
pub(crate) use messages::{Chat, call, inline, messages, tools};

use self::fields::{fault, present};
use crate::{error::BadRow, rows::RawRow};

/// What was said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    /// Plain text that asks nothing.
    Text(String),
    /// Plain text that goes on.
    Plain {
        /// What is given.
        prompt: String,
        /// What was said to it.
        completion: Option<String>,
    },
    /// A conversation.
    Chat(Chat),
}

impl Said {
    /// A question of a user with its answer, in plain text where examples go in front of plain text.
    fn question(section: &DataSection, text: String, answer: Option<String>) -> Self {
        if section.prompt_prefix.is_some() {
            return Said::Plain { prompt: text, completion: answer };
        }
        let answer = answer.map(|answer| Message::new("assistant", answer));
        Said::Chat(Chat::answered(vec![Message::new("user", text)], answer.into_iter().collect(), Vec::new()))
    }
}

/// A row in one form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shaped {
    /// What was said.
    pub said: Said,
    /// All columns of the row that are not the question.
    pub columns: Fields,
    /// Why there is nothing to learn from it, where the row says so.
    pub unfit: Option<&'static str>,
}

/// Reads `row` as one of `format`.
pub(crate) fn read(row: RawRow, format: DataFormat, section: &DataSection) -> Result<Shaped, BadRow> {
    let (number, line) = (row.number, row.line);
    shaped(row.fields, format, section).map_err(|(field, expected, got)| BadRow {
        row: number,
        line,
        field: Some(field),
        expected,
        got,
    })
}

fn shaped(mut fields: Fields, format: DataFormat, section: &DataSection) -> Result<Shaped, Fault> {
    // Found first: the answer may stand in a field that the shape takes away.
    let answer = section.answer_column.as_deref().map(|name| present(&fields, name).cloned()).transpose()?;
    let mut unfit = None;
    let said = match format {
        DataFormat::Auto | DataFormat::Prompt => pairs::prompt(&mut fields, section)?,
        DataFormat::PromptCompletion => pairs::prompt_completion(&mut fields, section)?,
        DataFormat::Messages => dialogue::messages(&mut fields, section)?,
        DataFormat::Verl => trace::verl(&mut fields, section)?,
        DataFormat::Text => {
            let name = section.prompt_column.as_deref().unwrap_or("text");
            let text = fields::text(&fields, name)?;
            fields.remove(name);
            match text {
                Some(text) => Said::Text(text),
                None => return fault(name, "a text", "none"),
            }
        }
        DataFormat::Preference => pairs::preference(&mut fields, section)?,
        DataFormat::UnpairedPreference => pairs::unpaired(&mut fields, section, &mut unfit)?,
        DataFormat::Stepwise => pairs::stepwise(&mut fields, section, &mut unfit)?,
        DataFormat::Sharegpt => dialogue::sharegpt(&mut fields, section)?,
        DataFormat::Alpaca => dialogue::alpaca(&mut fields, section)?,
        DataFormat::Reasoning => trace::reasoning(&mut fields, section)?,
        DataFormat::Openr1 => trace::openr1(&mut fields, section, &mut unfit)?,
        DataFormat::Gsm8k => benchmark::gsm8k(&mut fields, section)?,
        DataFormat::Math500 => benchmark::math500(&mut fields, section)?,
        DataFormat::Aime => benchmark::aime(&mut fields, section)?,
        DataFormat::Humaneval => benchmark::humaneval(&mut fields, section)?,
        DataFormat::RequestLog => log::exchange(&mut fields, section, &mut unfit)?,
    };
    if let Some(answer) = answer {
        fields.insert("answer".into(), answer);
    }
    Ok(Shaped { said, columns: fields, unfit })
}

/// Puts examples in front of plain text, and the system prompt in front of a conversation that has none; plain text becomes a
/// conversation with it.
pub(crate) fn introduce(said: Said, prefix: Option<&str>, system: Option<&str>) -> Said {
    let said = match (said, prefix) {
        (Said::Plain { prompt, completion }, Some(prefix)) => {
            Said::Plain { prompt: format!("{prefix}{prompt}"), completion }
        }
        (said, _) => said,
    };
    let Some(system) = system else { return said };
    let first = Message::new("system", system);
    match said {
        Said::Text(text) => Said::Text(text),
        Said::Plain { prompt, completion } => {
            let answer = completion.map(|text| Message::new("assistant", text));
            let question = vec![first, Message::new("user", prompt)];
            Said::Chat(Chat::answered(question, answer.into_iter().collect(), Vec::new()))
        }
        Said::Chat(mut chat) => {
            let own = chat.messages.first().is_some_and(|m| matches!(m.role.as_str(), "system" | "developer"));
            if !own {
                chat.messages.insert(0, first);
                chat.learnt.insert(0, false);
                chat.asked += 1;
            }
            Said::Chat(chat)
        }
    }
}

/// The same of a prompt that stands by itself.
pub(crate) fn introduced(prompt: Prompt, prefix: Option<&str>, system: Option<&str>) -> Prompt {
    let said = match prompt {
        Prompt::Text(prompt) => Said::Plain { prompt, completion: None },
        Prompt::Messages(messages) => Said::Chat(Chat::answered(messages, Vec::new(), Vec::new())),
    };
    introduce(said, prefix, system).prompt()
}

impl Said {
    /// What is asked; of plain text that asks nothing, the text.
    pub fn prompt(&self) -> Prompt {
        match self {
            Said::Text(text) => Prompt::Text(text.clone()),
            Said::Plain { prompt, .. } => Prompt::Text(prompt.clone()),
            Said::Chat(chat) => Prompt::Messages(chat.messages[..chat.asked].to_vec()),
        }
    }

    /// What was said to it, as text.
    pub fn answer(&self) -> Option<String> {
        match self {
            Said::Text(_) => None,
            Said::Plain { completion, .. } => completion.clone(),
            Said::Chat(chat) => chat.answer(),
        }
    }
}

/// Puts `value` under `name`, unless the row has something there.
fn beside(fields: &mut Fields, name: &str, value: impl Into<Value>) {
    if fields.get(name).is_none_or(Value::is_null) {
        fields.insert(name.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests;
