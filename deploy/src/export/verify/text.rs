//! Text in and out: the vocabulary, ids of awkward texts, the chat template and what it renders, the Modelfile.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use folgore_model::{
    files::{self, ModelFiles},
    tokenizer::{Flags, Tokenizer},
};
use folgore_protocol::{Message, Prompt};
use serde_json::Map;

use super::PROMPTS;
use crate::{
    agent::AgentConfig,
    export::{Kind, Report, Source, ollama, reopen::Reopened},
};

/// Texts that tokenizers like to disagree about.
const TEXTS: [&str; 6] = [
    "What is 1234567 + 89?\n\n  Two  spaces\tand a tab ",
    "It's I'LL don't na\u{ef}ve cafe\u{301} \u{fb01}n",
    "\u{4f60}\u{597d} \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{0645}\u{0631}\u{062d}\u{0628}\u{0627} \u{1f642}",
    "fn main() { a_b[0] += 3.14e-10; } // <tag/>",
    "HTTPServer2XML 1,000.50 ...!!!",
    "391+566=",
];

/// What is wrong with the texts of an export, in words.
pub(super) fn compare(
    source: &Source,
    report: &Report,
    folder: &Path,
    base: &ModelFiles,
    reopened: &Reopened,
) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let own = if report.kind == Kind::Peft { Some(files::open_tokenizer(folder)?) } else { None };
    let tokenizer = own.as_ref().or(reopened.own_model.then_some(&reopened.model.tokenizer));
    if let Some(tokenizer) = tokenizer {
        let rows = if report.kind.is_gguf() { Some(base.config.vocab_size) } else { None };
        faults.extend(vocabulary(&base.tokenizer, tokenizer, rows));
        same_text(&base.tokenizer, tokenizer, &source.agent, &mut faults);
    }
    if let Some(text) = &reopened.modelfile {
        let names: Vec<String> = report.files.iter().map(|file| file.name.clone()).collect();
        let expected = ollama::modelfile(&names, base, &source.agent)?.text;
        if let Some(line) = expected.lines().zip(text.lines()).find(|(a, b)| a != b) {
            faults.push(format!("{}: expected {:?}, got {:?}", ollama::FILE, line.0, line.1));
        } else if expected != *text {
            faults.push(format!("{}: expected {} bytes, got {}", ollama::FILE, expected.len(), text.len()));
        }
    }
    Ok(faults)
}

/// Every token's text and flags, and which tokens are special. A GGUF file has no more tokens than `rows`, and of the flags only
/// whether a token is special; and it may name a begin token that the tokenizer does not.
fn vocabulary(ours: &Tokenizer, theirs: &Tokenizer, rows: Option<usize>) -> Vec<String> {
    let mut faults = Vec::new();
    let end = rows.unwrap_or(ours.vocab_size().max(theirs.vocab_size())) as u32;
    let other = |id: &u32| ours.token(*id) != theirs.token(*id);
    if let Some(id) = (0..end).find(other) {
        faults.push(format!("token {id}: expected {:?}, got {:?}", ours.token(id), theirs.token(id)));
    }
    let flags = |tokenizer: &Tokenizer| -> BTreeMap<u32, Flags> {
        let said = |flags: Flags| match rows {
            None => flags,
            Some(_) => {
                Flags { special: flags.special, normalized: false, lstrip: false, rstrip: false, single_word: false }
            }
        };
        tokenizer.added_flags().into_iter().filter(|(id, _)| *id < end).map(|(id, flags)| (id, said(flags))).collect()
    };
    let (a, b) = (flags(ours), flags(theirs));
    if let Some(id) = a.keys().chain(b.keys()).find(|id| a.get(id) != b.get(id)) {
        let of = |flags: &BTreeMap<u32, Flags>| flags.get(id).map_or("none".into(), |flags| format!("{flags:?}"));
        faults.push(format!("added token {id}: expected {}, got {}", of(&a), of(&b)));
    }
    let ends = |tokenizer: &Tokenizer| {
        let mut ids = tokenizer.eos_ids().to_vec();
        ids.sort_unstable();
        ids
    };
    let one = |id: Option<u32>| id.into_iter().collect::<Vec<_>>();
    // there the ends of the configuration are among them, and are compared with it
    let theirs_end = if rows.is_some() { ends(ours) } else { ends(theirs) };
    let bos = if rows.is_some() { ours.bos().or(theirs.bos()) } else { ours.bos() };
    for (what, a, b) in [
        ("ends", ends(ours), theirs_end),
        ("begins", one(bos), one(theirs.bos())),
        ("is put before a text", ours.prefix().to_vec(), theirs.prefix().to_vec()),
        ("fills up", one(ours.pad()), one(theirs.pad())),
    ] {
        if a != b {
            faults.push(format!("token that {what}: expected {a:?}, got {b:?}"));
        }
    }
    faults
}

/// Ids, texts, template and what it renders.
fn same_text(ours: &Tokenizer, theirs: &Tokenizer, agent: &AgentConfig, faults: &mut Vec<String>) {
    let ids =
        |tokenizer: &Tokenizer, text: &str| tokenizer.encode_prompt(&Prompt::Text(text.to_owned()), &Map::new()).ok();
    for text in TEXTS {
        let (a, b) = (ids(ours, text), ids(theirs, text));
        if a != b {
            faults.push(format!("ids of {text:?}: expected {a:?}, got {b:?}"));
        } else if a.is_some_and(|ids| ours.decode(&ids, false).ok() != theirs.decode(&ids, false).ok()) {
            faults.push(format!("decoding of the ids of {text:?}"));
        }
    }
    if ours.chat_template() != theirs.chat_template() {
        faults.push("the chat template is another one".into());
    }
    if ours.chat_template().is_none() {
        return;
    }
    for conversation in conversations(agent) {
        let render = |tokenizer: &Tokenizer| {
            tokenizer.render_chat(&conversation, &agent.variables(), true).map_err(|e| e.to_string())
        };
        if render(ours) != render(theirs) {
            let last = conversation.last().map_or("", |message| message.content.as_str());
            faults.push(format!("what the chat template makes of a conversation that ends with {last:?}"));
        }
    }
}

fn conversations(agent: &AgentConfig) -> Vec<Vec<Message>> {
    let user = |text: &str| Message::new("user", text);
    let system = Message::new("system", agent.system_prompt.as_deref().unwrap_or("Be brief."));
    vec![
        vec![user(PROMPTS[0])],
        vec![system.clone(), user(PROMPTS[1])],
        vec![user("Hello."), Message::new("assistant", "Hello, what can I do?"), user(PROMPTS[3])],
    ]
}
