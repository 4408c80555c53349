//! From a row that is to be imitated to token ids, and which of them are learnt.
//!
//! **A turn is learnt in the context in which it would be said.** For each message of the assistant that is learnt, the conversation
//! before it is rendered with a generation prompt, as a prompt of a rollout is, and the conversation with it as it is remembered.
//! What the second has beyond the first is what is said; if it does not begin with the first, the template prompts for one thing and
//! remembers another, and the row is refused by name. A turn whose context goes on where the last learnt turn ended becomes part of
//! the same sequence; where a template rewrites history (drops earlier thinking), it begins a sequence of its own.
//!
//! **Tokens are those of a rollout**: given text is encoded by itself and what was said to it after that, up to the token that ends
//! the turn, which is learnt too. What stands behind it (a line end of the template) nobody says.
//!
//! Text of rows never acts: an added token counts only where the template wrote it. Those that are content (`<think>`, `<tool_call>`) count
//! in what is said too, because a policy that says them says these tokens. Nothing is left out silently: what is too long is
//! counted, and a template that drops a part of what was said is an error.

use folgore_config::sft::Truncation;
use folgore_model::{ModelError, chat::Pieces, tokenizer::Tokenizer};
use folgore_protocol::{
    Message,
    example::{Body, Example},
};
use serde_json::{Map, Value};

/// Keys under which messages carry reasoning.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// Tokens to learn from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Id of the row.
    pub example: String,
    /// Where the row came from.
    pub source: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// By token: true where it is learnt; never the first, which nothing predicts.
    pub learnt: Vec<bool>,
}

impl Sequence {
    /// Tokens that are learnt.
    pub fn learnt_tokens(&self) -> usize {
        self.learnt.iter().filter(|on| **on).count()
    }
}

/// How rows are read.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// Text to ids, and the chat template.
    pub tokenizer: &'a Tokenizer,
    /// Ids that end a generation.
    pub ends: &'a [u32],
    /// Further variables of the template, as rollouts give it.
    pub variables: &'a Map<String, Value>,
    /// False: every token is learnt.
    pub completion_only_loss: bool,
    /// Most tokens of a sequence.
    pub max_length: usize,
    /// What to do with more.
    pub truncation: Truncation,
}

/// What became of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows read.
    pub examples: u64,
    /// Sequences made of them.
    pub sequences: u64,
    /// Tokens of those.
    pub tokens: u64,
    /// Tokens of those that are learnt.
    pub learnt: u64,
    /// Sequences left out because they are too long.
    pub dropped: u64,
    /// Sequences of which only the beginning is kept.
    pub truncated: u64,
    /// Rows of which nothing is learnt, left out.
    pub nothing_learnt: u64,
    /// Learnt turns that end with no token that ends a generation: a policy trained on them does not stop by itself.
    pub endless: u64,
    /// Sequences that a row has beyond its first, because its template rewrites history.
    pub split: u64,
}

/// Why a row cannot be learnt from.
#[derive(Debug, thiserror::Error)]
#[error("row {example}: {fault}")]
pub struct EncodeError {
    /// Id of the row.
    pub example: String,
    /// What is wrong with it.
    #[source]
    pub fault: Box<EncodeFault>,
}

/// What is wrong with a row.
#[derive(Debug, thiserror::Error)]
pub enum EncodeFault {
    /// It cannot be rendered or encoded.
    #[error("{0}")]
    Model(#[from] ModelError),
    /// The same of a message.
    #[error("message {message}: {source}")]
    Message {
        /// Place of the message, from 0.
        message: usize,
        /// What is wrong.
        source: ModelError,
    },
    /// Its template prompts for something else than it remembers.
    #[error(
        "message {message}: the chat template asks for an answer with {asked:?} and remembers {remembered:?} in its place, so what \
         would be said cannot be told: choose another model.chat_template"
    )]
    Unfaithful {
        /// Place of the message, from 0.
        message: usize,
        /// End of the prompt.
        asked: String,
        /// What stands there afterwards.
        remembered: String,
    },
    /// Its template does not render what was said.
    #[error(
        "message {message}: the chat template leaves out (a part of) its {part}: choose another model.chat_template, or leave that out"
    )]
    LeftOut {
        /// Place of the message, from 0.
        message: usize,
        /// What is missing.
        part: &'static str,
    },
    /// Flags that do not fit the messages.
    #[error("expected {expected} flags of what is learnt, one by message, got {got}")]
    Flags {
        /// Messages.
        expected: usize,
        /// Flags.
        got: usize,
    },
    /// It is too long.
    #[error("{tokens} tokens, more than {limit}: shorten it, or set sft.truncation_mode to drop or keep_start")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// Most that are allowed.
        limit: usize,
    },
}

/// A sequence in the making.
#[derive(Default)]
struct Draft {
    /// What the ids spell.
    text: String,
    ids: Vec<u32>,
    learnt: Vec<bool>,
}

impl Draft {
    fn push(&mut self, ids: &[u32], learnt: bool) {
        self.ids.extend_from_slice(ids);
        self.learnt.resize(self.ids.len(), learnt);
    }
}

impl Encoder<'_> {
    /// The sequences of `example`: usually one, none if nothing of it is learnt or it is too long. What became of it is added to
    /// `tally`.
    ///
    /// # Errors
    /// If it cannot be rendered, or its template does not render what was said.
    pub fn encode(&self, example: &Example, tally: &mut Tally) -> Result<Vec<Sequence>, EncodeError> {
        let refused = |fault| EncodeError { example: example.id.clone(), fault: Box::new(fault) };
        let drafts = match &example.body {
            Body::Text { text } => self.text(text, tally).map_err(refused)?,
            Body::Completion { prompt, completion } => self.completion(prompt, completion, tally).map_err(refused)?,
            Body::Conversation { messages, learnt, tools } => {
                self.conversation(messages, learnt, tools, tally).map_err(refused)?
            }
        };
        tally.examples += 1;
        tally.split += drafts.len().saturating_sub(1) as u64;
        let mut sequences = Vec::with_capacity(drafts.len());
        let (mut made, mut too_long) = (false, false);
        for Draft { mut ids, mut learnt, .. } in drafts {
            let Some(last) = last_learnt(&mut learnt) else { continue };
            made = true;
            ids.truncate(last + 1);
            learnt.truncate(last + 1);
            if ids.len() > self.max_length {
                match self.truncation {
                    Truncation::Stop => {
                        return Err(refused(EncodeFault::TooLong { tokens: ids.len(), limit: self.max_length }));
                    }
                    Truncation::Drop => learnt.clear(),
                    Truncation::KeepStart => learnt.truncate(self.max_length),
                }
                // its beginning may have nothing that is learnt
                let Some(last) = last_learnt(&mut learnt) else {
                    tally.dropped += 1;
                    too_long = true;
                    continue;
                };
                tally.truncated += 1;
                ids.truncate(last + 1);
                learnt.truncate(last + 1);
            }
            let sequence = Sequence { example: example.id.clone(), source: example.source.clone(), ids, learnt };
            tally.sequences += 1;
            tally.tokens += sequence.ids.len() as u64;
            tally.learnt += sequence.learnt_tokens() as u64;
            sequences.push(sequence);
        }
        tally.nothing_learnt += u64::from(!made && !too_long);
        Ok(sequences)
    }

    fn text(&self, text: &str, tally: &mut Tally) -> Result<Vec<Draft>, EncodeFault> {
        let mut draft = Draft::default();
        if !text.is_empty() {
            draft.push(self.tokenizer.prefix(), false);
            draft.push(&self.tokenizer.encode_untrusted(text)?, true);
            self.end(&mut draft, tally);
        }
        Ok(vec![draft])
    }

    fn completion(&self, prompt: &str, completion: &str, tally: &mut Tally) -> Result<Vec<Draft>, EncodeFault> {
        let mut draft = Draft::default();
        if completion.is_empty() {
            return Ok(vec![draft]);
        }
        draft.push(self.tokenizer.prefix(), false);
        let given = if prompt.is_empty() { Vec::new() } else { self.tokenizer.encode_untrusted(prompt)? };
        draft.push(&given, !self.completion_only_loss);
        let said = match prompt.is_empty() {
            true => self.tokenizer.encode_untrusted(completion)?,
            false => self.tokenizer.encode_said(completion)?,
        };
        draft.push(&said, true);
        self.end(&mut draft, tally);
        Ok(vec![draft])
    }

    /// Ends a plain text with the tokenizer's own token for that, if it ends a generation, else with one that does.
    fn end(&self, draft: &mut Draft, tally: &mut Tally) {
        let own = self.tokenizer.eos_ids().iter().find(|id| self.ends.contains(id));
        match own.or(self.ends.first()) {
            Some(end) => draft.push(&[*end], true),
            None => tally.endless += 1,
        }
    }

    fn conversation(
        &self,
        messages: &[Message],
        learnt: &[bool],
        tools: &[Value],
        tally: &mut Tally,
    ) -> Result<Vec<Draft>, EncodeFault> {
        if learnt.len() != messages.len() {
            return Err(EncodeFault::Flags { expected: messages.len(), got: learnt.len() });
        }
        let messages = &self.reasoning_apart(messages);
        let mut variables = self.variables.clone();
        if !tools.is_empty() {
            variables.insert("tools".into(), Value::Array(tools.to_vec()));
        }
        if !self.completion_only_loss {
            let whole = self.tokenizer.render_pieces(messages, &variables, false)?;
            let mut draft = Draft::default();
            draft.push(&whole.ids(self.tokenizer, 0..whole.text().len())?, true);
            return Ok(vec![draft]);
        }
        let mut drafts: Vec<Draft> = Vec::new();
        for (i, _) in learnt.iter().enumerate().filter(|(i, on)| **on && messages[*i].role == "assistant") {
            let render = |messages: &[Message], prompt| self.tokenizer.render_pieces(messages, &variables, prompt);
            let at = |source| EncodeFault::Message { message: i, source };
            let context = render(&messages[..i], true).map_err(at)?;
            let whole = render(&messages[..=i], false).map_err(at)?;
            let Some(said) = whole.text().strip_prefix(context.text()) else {
                return Err(unfaithful(i, context.text(), whole.text()));
            };
            left_out(&messages[i], said).map_or(Ok(()), |part| Err(EncodeFault::LeftOut { message: i, part }))?;
            let said = self.said(&context, &whole).map_err(at)?;
            match drafts.last_mut().and_then(|last| Some((self.goes_on(last, &context)?, last))) {
                Some((between, last)) => last.push(&between, false),
                None => {
                    let ids = context.ids(self.tokenizer, 0..context.text().len()).map_err(at)?;
                    let mut draft = Draft::default();
                    draft.push(&ids, false);
                    drafts.push(draft);
                }
            }
            let Some(draft) = drafts.last_mut() else { continue };
            let ended = self.ended(&said, tally);
            draft.push(&said[..ended], true);
            draft.push(&said[ended..], false);
            whole.text().clone_into(&mut draft.text);
        }
        Ok(drafts)
    }

    /// The messages, with `<think>` ... `</think>` at the beginning of what the assistant said in the field of its own that the template
    /// has for it: in text it could not be told from text of others, which may not act, and would stay in a history that forgets it.
    fn reasoning_apart(&self, messages: &[Message]) -> Vec<Message> {
        let field = REASONING[0];
        let mut messages = messages.to_vec();
        if !self.tokenizer.chat_template().is_some_and(|source| source.contains(field)) {
            return messages;
        }
        for message in messages.iter_mut().filter(|m| m.role == "assistant" && !m.extra.contains_key(field)) {
            let parts =
                message.content.trim_start().strip_prefix("<think>").and_then(|rest| rest.split_once("</think>"));
            let Some((thought, said)) = parts else { continue };
            let (thought, said) = (thought.trim_matches('\n').to_owned(), said.trim_start_matches('\n').to_owned());
            message.content = said;
            if !thought.is_empty() {
                message.extra.insert(field.into(), thought.into());
            }
        }
        messages
    }

    /// What `whole` says beyond `context`, which its text begins with.
    fn said(&self, context: &Pieces, whole: &Pieces) -> Result<Vec<u32>, ModelError> {
        let (cut, end) = (context.text().len(), whole.text().len());
        let said = whole.said(self.tokenizer, cut..end)?;
        // text that goes on within a run is encoded with what is before it where that changes nothing of the latter: pre-tokenizers
        // may treat the beginning of a text in their own way
        let given = context.ids(self.tokenizer, 0..cut)?;
        let (all, plain) = (whole.ids(self.tokenizer, 0..end)?, whole.ids(self.tokenizer, cut..end)?);
        Ok(match all.strip_prefix(given.as_slice()) {
            Some(rest) if said == plain => rest.to_vec(),
            _ => said,
        })
    }

    /// What stands between the end of `last` and the end of `context`, if the latter goes on with the former.
    fn goes_on(&self, last: &Draft, context: &Pieces) -> Option<Vec<u32>> {
        let begins = context.text().starts_with(&last.text);
        begins.then(|| context.ids(self.tokenizer, last.text.len()..context.text().len()).ok()).flatten()
    }

    /// How many of the ids of a turn are said: those up to the token that ends it.
    fn ended(&self, said: &[u32], tally: &mut Tally) -> usize {
        if let Some(end) = said.iter().rposition(|id| self.ends.contains(id)) {
            return end + 1;
        }
        tally.endless += 1;
        said.len()
    }
}

/// Place of the last learnt token. The first of a sequence is never learnt.
fn last_learnt(learnt: &mut [bool]) -> Option<usize> {
    if let Some(first) = learnt.first_mut() {
        *first = false;
    }
    learnt.iter().rposition(|on| *on)
}

/// What of `message` does not stand in `said`. White space aside, which templates trim.
fn left_out(message: &Message, said: &str) -> Option<&'static str> {
    let squeeze = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let said = squeeze(said);
    if !said.contains(&squeeze(&message.content)) {
        return Some("content");
    }
    let reasoning = REASONING.iter().filter_map(|key| message.extra.get(*key)?.as_str());
    if reasoning.into_iter().any(|text| !said.contains(&squeeze(text))) {
        return Some("reasoning");
    }
    let calls = message.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    let mut names = calls.filter_map(|call| call.get("function").unwrap_or(call).get("name")?.as_str());
    names.any(|name| !said.contains(&squeeze(name))).then_some("tool_calls")
}

/// The places where the two texts part.
fn unfaithful(message: usize, asked: &str, remembered: &str) -> EncodeFault {
    let same = asked.chars().zip(remembered.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    let rest = |text: &str| text[same..].chars().take(40).collect();
    EncodeFault::Unfaithful { message, asked: rest(asked), remembered: rest(remembered) }
}
