//! Questions and rows to imitate, made of rows in one form.

use folgore_protocol::{Example, Task, example::Body};
use serde_json::Value;

use crate::shape::{Said, Shaped, pairs, trace};

/// Column that names the source of a row.
const SOURCE: &str = "data_source";
/// Columns that an example has in its body already.
const SAID: [&str; 7] = ["completion", "chosen", "tools", "tool_defs", "functions", "history", "system"];

/// A question; what was said to it stays in the columns, as `completion`. The error is why it is none.
pub(crate) fn task(id: &str, source: Option<&str>, shaped: Shaped) -> Result<Task, &'static str> {
    let Shaped { said, mut columns, .. } = shaped;
    if matches!(said, Said::Text(_)) {
        return Err("plain text asks nothing: such rows are for supervised training");
    }
    if let Some(source) = source.filter(|_| columns.get(SOURCE).is_none_or(Value::is_null)) {
        columns.insert(SOURCE.into(), source.into());
    }
    Ok(Task { id: id.to_owned(), prompt: said.prompt(), columns })
}

/// A row to imitate. The error is why there is nothing to imitate.
pub(crate) fn example(id: &str, source: &str, shaped: Shaped) -> Result<Example, &'static str> {
    let Shaped { said, mut columns, unfit } = shaped;
    if let Some(reason) = unfit {
        return Err(reason);
    }
    let body = match said {
        Said::Text(text) => Body::Text { text },
        Said::Plain { prompt, completion } => {
            Body::Completion { prompt, completion: completion.ok_or("no completion to learn")? }
        }
        Said::Chat(chat) => Body::Conversation { messages: chat.messages, learnt: chat.learnt, tools: chat.tools },
    };
    if body.teaches_nothing() {
        return Err("nothing of it is learnt: no message of the assistant, or none with a weight");
    }
    let said = |name: &str| SAID.contains(&name) || pairs::COMPLETION.contains(&name) || trace::THOUGHT.contains(&name);
    columns.retain(|name, _| !said(name));
    Ok(Example { id: id.to_owned(), source: source.to_owned(), body, columns })
}
