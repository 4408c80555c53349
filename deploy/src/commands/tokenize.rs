//! `folgore tokenize`: text or conversations to token ids. Needs no weights.
//!
//! `{"text"}` is encoded as a prompt of a dataset is: plain text in which no added token counts, after the begin token where
//! the tokenizer puts one. With `--trusted`, added tokens in it count, as in other libraries by default. `{"messages", ...}`
//! goes through the chat template, whose own added tokens count; every other key is one of its variables.

use anyhow::{Result, bail};
use folgore_model::tokenizer::Tokenizer;
use folgore_protocol::Prompt;
use serde::Serialize;
use serde_json::Map;

use crate::{cli::TokenizeArgs, policy, stream, stream::Row};

#[derive(Serialize)]
struct Reply {
    text: String,
    ids: Vec<u32>,
}

/// Runs the command.
pub fn run(args: TokenizeArgs) -> Result<()> {
    if let Some(folder) = args.plumbing.adapter.as_ref().filter(|folder| !folder.is_dir()) {
        bail!("{}: no such adapter folder", folder.display());
    }
    let tokenizer = policy::open_tokenizer(&args.plumbing.model)?;
    stream::each(&args.plumbing.stream, |row| reply(&tokenizer, args.trusted, row))
}

fn reply(tokenizer: &Tokenizer, trusted: bool, mut row: Row) -> Result<Reply> {
    if row.one_of(&["text", "messages"])? == "messages" {
        let messages = row.messages("messages")?;
        let rendered = tokenizer.render_chat(&messages, &row.fields, false)?;
        return Ok(Reply { text: rendered.text, ids: rendered.ids });
    }
    let text = row.text("text")?;
    row.end()?;
    let ids = match trusted {
        false => text_ids(tokenizer, &text)?,
        true => [text_ids(tokenizer, "")?, tokenizer.encode_trusted(&text)?].concat(),
    };
    Ok(Reply { text, ids })
}

/// Ids of plain text, after the begin token where the tokenizer puts one.
pub fn text_ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(tokenizer.encode_prompt(&Prompt::Text(text.to_owned()), &Map::new())?)
}
