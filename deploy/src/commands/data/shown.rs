//! Rows on a terminal: what is given and what is learnt, a line for each piece.

use anyhow::{Context as _, Result};
use folgore_learner::sft::Sequence;
use folgore_model::tokenizer::Tokenizer;
use folgore_protocol::{Body, Prompt};
use serde_json::Value;

use crate::commands::index::plain;

/// Characters of a piece that are shown.
const SHOWN: usize = 400;

/// A row to imitate, by message.
pub fn example(body: &Body) -> String {
    match body {
        Body::Text { text } => piece("learnt", text),
        Body::Completion { prompt, completion } => piece("given", prompt) + &piece("learnt", completion),
        Body::Conversation { messages, learnt, tools } => {
            let mut out = String::new();
            if !tools.is_empty() {
                out += &piece("given  tools", &Value::from(tools.clone()).to_string());
            }
            for (message, learnt) in std::iter::zip(messages, learnt) {
                let which = if *learnt { "learnt" } else { "given " };
                let mut said = message.content.clone();
                for (key, value) in &message.extra {
                    said += &format!("{}{key}: {value}", if said.is_empty() { "" } else { " | " });
                }
                out += &piece(&format!("{which} {}", message.role), &said);
            }
            out
        }
    }
}

/// A question, by message.
pub fn prompt(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => piece("asked", text),
        Prompt::Messages(messages) => {
            messages.iter().map(|m| piece(&format!("asked  {}", m.role), &m.content)).collect()
        }
    }
}

/// A piece of a row on one line, without signs that a terminal acts on.
pub fn piece(which: &str, text: &str) -> String {
    let shown: String = text.chars().take(SHOWN).collect();
    let more = text.chars().count().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" ... and {more} characters") } else { String::new() };
    format!("  {which:<17} {:?}{more}\n", plain(&shown))
}

/// A sequence, by what is given and what is learnt.
pub fn runs(tokenizer: &Tokenizer, sequence: &Sequence) -> Result<String> {
    let mut out = String::new();
    let mut from = 0;
    while from < sequence.ids.len() {
        let learnt = sequence.learnt[from];
        let length = sequence.learnt[from..].iter().take_while(|on| **on == learnt).count();
        let text = tokenizer.decode(&sequence.ids[from..from + length], false).context("a row cannot be shown")?;
        let which = if learnt { "learnt" } else { "given" };
        out += &piece(&format!("{which:<6} {length:>5} t"), &text);
        from += length;
    }
    Ok(out)
}
