//! Text to ids and back.
//!
//! There are two encoders. *Trusted* text may hold added tokens (`<|im_start|>`, `<tool_call>`): only what the chat template
//! itself wrote is trusted. *Untrusted* text (users, tools, documents, datasets, earlier model output) is encoded by a second
//! tokenizer that has no added tokens at all. The library's own switch is not enough: it splits only tokens flagged special.

mod flags;
mod gguf;
mod source;
mod special;
mod stream;
mod untrusted;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

use folgore_protocol::{Digest, Prompt};
use serde_json::{Map, Value};
use tokenizers::{OffsetReferential, OffsetType};

pub use flags::Flags;
pub use stream::StreamDecoder;

use crate::{
    ModelError,
    chat::{Builtin, ChatTemplate, Pieces, Rendered},
};
pub(crate) use special::SpecialTokens;

/// Longest text that is encoded, in bytes: pre-tokenisation runs regular expressions over it.
pub const TEXT_LIMIT: usize = 4 << 20;

/// A tokenizer with its special tokens and chat template.
pub struct Tokenizer {
    trusted: tokenizers::Tokenizer,
    untrusted: untrusted::Encoders,
    /// The added tokens, without the plain ones.
    added: BTreeMap<u32, String>,
    /// Those of them that are content (`<think>`, `<tool_call>`): a policy says them, and decoding keeps them.
    content: BTreeSet<u32>,
    special: SpecialTokens,
    eos_ids: Vec<u32>,
    bos: Option<u32>,
    /// What the tokenizer puts before a plain text.
    prefix: Vec<u32>,
    vocab_size: usize,
    template: TemplateState,
    digest: Digest,
    /// The text of `tokenizer.json`, for export.
    json: String,
}

/// A template that does not compile is an error only for those who use it.
enum TemplateState {
    Absent,
    Ready(Box<ChatTemplate>),
    Broken(String),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("eos", &self.eos_ids)
            .finish_non_exhaustive()
    }
}

/// A run of a rendered chat: an added token, or text.
#[derive(Debug, PartialEq)]
pub(crate) enum Run {
    /// Its id, and the byte range that spells it.
    Added(u32, Range<usize>),
    /// Byte range of the text.
    Text(Range<usize>),
}

impl Tokenizer {
    /// Puts the two encoders together. `json` is a `tokenizer.json`.
    pub(crate) fn build(place: &str, mut json: Value, special: SpecialTokens) -> Result<Self, ModelError> {
        // saved truncation would cut prompts without a word; saved padding would add to them
        json["truncation"] = Value::Null;
        json["padding"] = Value::Null;
        let text = json.to_string();
        let fail = |e: tokenizers::Error| ModelError::Tokenizer(format!("{place}: {e}"));
        let trusted = parse(&text).map_err(fail)?;
        let decoder = trusted.get_added_tokens_decoder();
        let control = |id: &u32| decoder.get(id).is_some_and(|token| token.special);
        let added = decoder.iter().map(|(id, token)| (*id, token.content.clone()));
        let added: BTreeMap<u32, String> = added.filter(|(_, token)| !is_plain(token)).collect();
        let untrusted = untrusted::Encoders::new(json).map_err(fail)?;
        let ids: BTreeSet<u32> = trusted.get_vocab(true).into_values().collect();
        let vocab_size = ids.last().map_or(0, |last| *last as usize + 1);
        let id = |token: &Option<String>| token.as_ref().and_then(|token| trusted.token_to_id(token));
        let (bos, eos_ids) = (id(&special.bos), special.eos.iter().filter_map(|t| trusted.token_to_id(t)).collect());
        let prefix = guarded(|| prefix(&trusted)).map_err(fail)?;
        let template = match special.chat_template.as_deref().map(|source| ChatTemplate::new(source.to_owned())) {
            None => TemplateState::Absent,
            Some(Ok(template)) => TemplateState::Ready(Box::new(template)),
            Some(Err(e)) => TemplateState::Broken(e.to_string()),
        };
        let eos: &Vec<u32> = &eos_ids;
        let content = added.keys().copied().filter(|id| !control(id) && !eos.contains(id)).collect();
        let identity = format!("{text}\n{}", special.chat_template.as_deref().unwrap_or_default());
        let digest = Digest::of(identity.as_bytes());
        Ok(Self {
            trusted,
            untrusted,
            added,
            content,
            special,
            eos_ids,
            bos,
            prefix,
            vocab_size,
            template,
            digest,
            json: text,
        })
    }

    /// Encodes text that may not act: no added token can come out of it.
    pub fn encode_untrusted(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_run(text, true)
    }

    /// Encodes text that goes on after ids that are there already, and may not act: what is said to a prompt.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_run(text, false)
    }

    /// Encodes what a policy is to say: as [`Tokenizer::encode_continuation`], but added tokens that are content (`<think>`,
    /// `</think>`, `<tool_call>`) are the tokens that a policy says. Those that end turns or texts never act.
    pub fn encode_said(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        check_length(text)?;
        let (mut ids, mut done) = (Vec::new(), 0);
        for (id, range) in self.added_places(text).into_iter().filter(|(id, _)| self.content.contains(id)) {
            ids.extend(self.encode_run(&text[done..range.start], false)?);
            ids.push(id);
            done = range.end;
        }
        ids.extend(self.encode_run(&text[done..], false)?);
        Ok(ids)
    }

    /// The same tokenizer with another chat template, given as its source.
    ///
    /// # Errors
    /// If it cannot be read: who chooses a template wants it.
    pub fn with_chat_template(&self, source: &str) -> Result<Self, ModelError> {
        let special = SpecialTokens { chat_template: Some(source.to_owned()), ..self.special.clone() };
        let json = serde_json::from_str(&self.json).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let changed = Self::build("chat template", json, special)?;
        match changed.template {
            TemplateState::Broken(why) => Err(ModelError::Template(why)),
            TemplateState::Ready(_) | TemplateState::Absent => Ok(changed),
        }
    }

    /// Encodes text whose added tokens count. For text that the program itself wrote; adds no begin token.
    pub fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        check_length(text)?;
        let encoding = guarded(|| self.trusted.encode_fast(text, false)).map_err(fault)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a prompt: plain text untrusted, after the begin token if this tokenizer puts one; a conversation through
    /// the chat template with a generation prompt. `vars` are further variables of the template.
    pub fn encode_prompt(&self, prompt: &Prompt, vars: &Map<String, Value>) -> Result<Vec<u32>, ModelError> {
        match prompt {
            Prompt::Text(text) => Ok([self.prefix.clone(), self.encode_untrusted(text)?].concat()),
            Prompt::Messages(messages) => Ok(self.render_chat(messages, vars, true)?.ids),
        }
    }

    /// Renders a conversation and encodes it so that only the template's own added tokens count. A variable named
    /// `add_generation_prompt` in `vars` wins over the argument.
    pub fn render_chat(
        &self,
        messages: &[folgore_protocol::Message],
        vars: &Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<Rendered, ModelError> {
        let pieces = self.render_pieces(messages, vars, add_generation_prompt)?;
        let ids = pieces.ids(self, 0..pieces.text().len())?;
        Ok(Rendered { text: pieces.into_text(), ids })
    }

    /// Renders a conversation as [`Tokenizer::render_chat`] does, for who encodes parts of it.
    pub fn render_pieces(
        &self,
        messages: &[folgore_protocol::Message],
        vars: &Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<Pieces, ModelError> {
        match &self.template {
            TemplateState::Ready(template) => template.render(self, messages, vars, add_generation_prompt),
            TemplateState::Broken(why) => Err(ModelError::Template(why.clone())),
            TemplateState::Absent => Err(ModelError::Template(format!(
                "this model has none: give prompts as text, put a chat_template.jinja beside its tokenizer, or choose one by \
                 model.chat_template: {}, or the path of one",
                Builtin::names()
            ))),
        }
    }

    /// Text of `ids`; with `skip_special` without the tokens flagged special. Bytes that are not UTF-8 become U+FFFD; an id
    /// without a token (a padding row of the embedding) has no text, as in Hugging Face.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ModelError> {
        guarded(|| self.trusted.decode(ids, skip_special)).map_err(fault)
    }

    /// The text of one token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.trusted.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.trusted.token_to_id(token)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Ids that end a generation or a turn.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The id that begins a sequence, where there is one; plain prompts begin with it only if the tokenizer says so.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id that fills up batches, where there is one.
    pub fn pad(&self) -> Option<u32> {
        self.special.pad.as_deref().and_then(|token| self.id(token))
    }

    /// What the tokenizer puts before a plain text.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Ids and texts of the added tokens. Those of white space alone (Gemma has runs of line ends) are not among them: they
    /// are plain text.
    pub fn added_tokens(&self) -> &BTreeMap<u32, String> {
        &self.added
    }

    /// The chat template's source.
    pub fn chat_template(&self) -> Option<&str> {
        self.special.chat_template.as_deref()
    }

    /// Digest of the tokenizer and its template.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The text of a `tokenizer.json` that encodes like this.
    pub fn to_json(&self) -> &str {
        &self.json
    }

    /// The text of a `tokenizer_config.json` that goes with [`Tokenizer::to_json`].
    pub fn config_json(&self) -> String {
        self.special.config_json()
    }

    pub(crate) fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Splits `text` at added tokens exactly as the trusted encoder does.
    pub(crate) fn runs(&self, text: &str) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut done = 0;
        for (id, range) in self.added_places(text) {
            if done < range.start {
                runs.push(Run::Text(done..range.start));
            }
            done = range.end;
            runs.push(Run::Added(id, range));
        }
        if done < text.len() {
            runs.push(Run::Text(done..text.len()));
        }
        runs
    }

    /// The added tokens in `text` and their byte ranges.
    pub(crate) fn added_places(&self, text: &str) -> Vec<(u32, Range<usize>)> {
        let split = self.trusted.get_added_vocabulary().extract_and_normalize(self.trusted.get_normalizer(), text);
        let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let place = |(_, (start, end), tokens): (&str, (usize, usize), &Option<Vec<tokenizers::Token>>)| {
            let id = tokens.as_ref()?.first()?.id;
            self.added.contains_key(&id).then_some((id, start..end))
        };
        splits.into_iter().filter_map(place).collect()
    }

    /// Encodes one run without added tokens; `first` says that it begins the text.
    pub(crate) fn encode_run(&self, run: &str, first: bool) -> Result<Vec<u32>, ModelError> {
        check_length(run)?;
        let ids = guarded(|| self.untrusted.encode(run, first)).map_err(fault)?;
        // holds by construction; a tokenizer for which it does not must not go unnoticed
        let unknown = self.untrusted.unknown();
        match ids.iter().find(|id| self.added.contains_key(id) && Some(**id) != unknown) {
            None => Ok(ids),
            Some(id) => Err(ModelError::Tokenizer(format!("plain text became the added token {:?}", self.added[id]))),
        }
    }
}

/// True for an added token that is nothing but white space.
fn is_plain(token: &str) -> bool {
    token.chars().all(|c| c.is_whitespace() || c == '▁')
}

/// Calls the library, whose panics on some broken files are errors here.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    // nothing of what the call has touched is used after a panic but what it only reads
    let done = catch_unwind(AssertUnwindSafe(call));
    done.unwrap_or_else(|_| Err("a part of it is broken, and the tokenizers library gave up".into()))
}

fn parse(json: &str) -> tokenizers::Result<tokenizers::Tokenizer> {
    guarded(|| tokenizers::Tokenizer::from_bytes(json))
}

fn fault(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}

pub(crate) fn check_length(text: &str) -> Result<(), ModelError> {
    if text.len() <= TEXT_LIMIT {
        return Ok(());
    }
    Err(ModelError::Tokenizer(format!("text of {} bytes: expected at most {TEXT_LIMIT}", text.len())))
}

/// What the post-processor puts before a text.
fn prefix(tokenizer: &tokenizers::Tokenizer) -> tokenizers::Result<Vec<u32>> {
    let plain = tokenizer.encode("a", false)?.get_ids().to_vec();
    let whole = tokenizer.encode("a", true)?.get_ids().to_vec();
    let at = whole.windows(plain.len().max(1)).position(|window| window == plain).unwrap_or(0);
    Ok(whole[..at].to_vec())
}
