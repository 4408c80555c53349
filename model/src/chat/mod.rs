//! Chat templates: a conversation to text and ids, as transformers' `apply_chat_template` makes them, with two differences.
//!
//! **A template is a program that came with a model.** It runs in minijinja with fuel, a recursion limit, a stack that none
//! can overflow (see `namespaces.rs` for values that would never end), and caps on its source and output. It has no clock: `strftime_now` is not defined, since a prompt that changes with the day cannot be trained on
//! twice (templates that ask whether it is defined fall back to a date of their own). What is not bounded is the memory of
//! one value: a template that doubles a text 30 times inside its fuel takes a gigabyte. Templates are as trusted as weights.
//!
//! **An added token counts only where the template wrote it** (see `provenance.rs`): what a message says cannot end its turn.
//! Wherever the content holds no added token, the ids are those of Hugging Face.

pub mod builtin;
mod namespaces;
mod pieces;
mod provenance;
mod python;

use std::{io, thread};

use folgore_protocol::Message;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, syntax::SyntaxConfig};
use serde_json::{Map, Value};

use crate::{
    ModelError,
    tokenizer::{Run, Tokenizer, check_length},
};
pub use builtin::Builtin;
pub use pieces::Pieces;
use provenance::Disguise;

/// Longest template, in bytes.
const SOURCE_LIMIT: usize = 64 << 10;
/// Longest output, in bytes.
const OUTPUT_LIMIT: usize = crate::tokenizer::TEXT_LIMIT;
/// Instructions that one rendering may take.
const FUEL: u64 = 1_000_000;
/// Depth of macros.
const RECURSION_LIMIT: usize = 100;
/// Bytes of stack on which a template is read and rendered. minijinja bounds most of its recursion but not all: long chains of
/// operators, brackets of a loop's target (a level for each byte), and values nested by a loop (a level for each unit of fuel), for
/// which printing takes 600 bytes a level. Only what is used is ever taken from the machine.
const STACK: usize = FUEL as usize * 1024;
/// Keys that the template's context holds already.
const RESERVED: [&str; 5] = ["messages", "bos_token", "eos_token", "unk_token", "pad_token"];

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// What transformers would render.
    pub text: String,
    /// Its ids, where only the template's added tokens count.
    pub ids: Vec<u32>,
}

/// A compiled template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    pub(crate) fn new(source: String) -> Result<Self, ModelError> {
        if source.len() > SOURCE_LIMIT {
            return Err(fail(format!("{} bytes: expected at most {SOURCE_LIMIT}", source.len())));
        }
        namespaces::check(&source).map_err(fail)?;
        on_deep_stack(|| Self::read(&source))
    }

    fn read(source: &str) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        // as transformers sets its environment up
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(describe)?;
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(python::format);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", python::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(describe)?;
        Ok(Self { environment })
    }

    pub(crate) fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        vars: &Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<Pieces, ModelError> {
        on_deep_stack(|| self.render_here(tokenizer, messages, vars, add_generation_prompt))
    }

    fn render_here(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        vars: &Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<Pieces, ModelError> {
        let input = Input::new(tokenizer, messages, vars, add_generation_prompt)?;
        let mut disguise = Disguise::new(tokenizer, &input.value);
        let quiet = disguise.added_tokens(&input.value)?;
        let mut text = self.execute(&input, &quiet)?;
        let mut runs = tokenizer.runs(&text);
        // a second rendering in which no edge of an added token comes from the content: if the structure differs, pieces of
        // content were joined into a token, and the second one stands
        if let Some(silent) = disguise.edges(&quiet)? {
            let strict = self.execute(&input, &silent)?;
            let strict_runs = tokenizer.runs(&strict);
            if structure(&runs) != structure(&strict_runs) {
                (text, runs) = (strict, strict_runs);
            }
        }
        let mut pieces = Pieces::default();
        for run in runs {
            let (range, id) = match run {
                Run::Added(id, range) => (range, Some(id)),
                Run::Text(range) => (range, None),
            };
            pieces.push(&disguise.remove(&text[range]), id);
        }
        Ok(pieces)
    }

    /// Renders with `data` (messages and variables) beside the tokenizer's own tokens.
    fn execute(&self, input: &Input, data: &Map<String, Value>) -> Result<String, ModelError> {
        let data = data.iter().map(|(key, value)| (key.clone(), python::value(value)));
        let tokens =
            input.tokens.iter().map(|(key, token)| ((*key).to_owned(), minijinja::Value::from(token.as_str())));
        let context = minijinja::Value::from_pairs(data.chain(tokens));
        let mut out = Capped(Vec::new());
        let template = self.environment.get_template(NAME).map_err(describe)?;
        template.render_captured_to(context, &mut out).map_err(describe)?;
        String::from_utf8(out.0).map_err(|e| fail(e.to_string()))
    }
}

/// Runs `work` on a stack of [`STACK`] bytes: threads that serve others have two megabytes, which a template could overflow, and an
/// overflow ends the process. A panic of minijinja is an error.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, ModelError> + Send) -> Result<T, ModelError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("chat template".into()).stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| fail(format!("a thread with {} MB of stack: {e}", STACK >> 20)))?;
        thread.join().unwrap_or_else(|_| Err(fail("minijinja gave up at something in it".into())))
    })
}

/// What a rendering is given.
struct Input {
    /// Messages and variables: untrusted.
    value: Map<String, Value>,
    /// The tokenizer's own: trusted.
    tokens: Vec<(&'static str, String)>,
}

impl Input {
    fn new(
        tokenizer: &Tokenizer,
        messages: &[Message],
        vars: &Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<Self, ModelError> {
        if let Some(key) = vars.keys().find(|key| RESERVED.contains(&key.as_str())) {
            return Err(fail(format!("variable {key} is the template's own: give it another name")));
        }
        for message in messages {
            check_role(tokenizer, &message.role)?;
        }
        let list = serde_json::to_value(messages).map_err(|e| fail(e.to_string()))?;
        // transformers always passes these two
        let mut value = Map::from_iter([("tools".to_owned(), Value::Null), ("documents".into(), Value::Null)]);
        value.insert("add_generation_prompt".into(), add_generation_prompt.into());
        value.extend(vars.clone());
        value.insert("messages".into(), list);
        check_length(&Value::Object(value.clone()).to_string())?;
        let tokens = tokenizer.special().variables();
        let tokens = tokens.into_iter().filter_map(|(name, token)| Some((name, token?.to_owned()))).collect();
        Ok(Self { value, tokens })
    }
}

/// Roles are not disguised, since templates compare them. Templates may also build an added token around one
/// (`'<|' + role + '|>'`): then the role chooses the token. So the usual roles pass, and others only if they are plain words
/// that are no part of an added token.
fn check_role(tokenizer: &Tokenizer, role: &str) -> Result<(), ModelError> {
    const USUAL: [&str; 10] = [
        "system",
        "user",
        "assistant",
        "tool",
        "developer",
        "function",
        "ipython",
        "model",
        "observation",
        "environment",
    ];
    if role.is_empty() || USUAL.contains(&role) {
        return Ok(());
    }
    let expected = || format!("expected one of {} or another plain word", USUAL.join(", "));
    if role.len() > 64 || !role.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) {
        return Err(fail(format!("role {role:?}: {}", expected())));
    }
    match tokenizer.added_tokens().values().find(|token| token.contains(role) || role.contains(token.as_str())) {
        None => Ok(()),
        Some(token) => Err(fail(format!("role {role:?} could complete the token {token:?}: {}", expected()))),
    }
}

fn structure(runs: &[Run]) -> Vec<u32> {
    let id = |run: &Run| match run {
        Run::Added(id, _) => Some(*id),
        Run::Text(_) => None,
    };
    runs.iter().filter_map(id).collect()
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// transformers marks what the assistant said with `{% generation %}`, a tag of its own without effect on the text: replaced
/// by a condition that holds, which trims white space in the same way.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(len) = rest[at + 2..].find("%}") else { break };
        let (before, tag, after) = (&rest[..at + 2], &rest[at + 2..at + 2 + len], &rest[at + 2 + len..]);
        let word = tag.trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        let replaced = match word {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        };
        out.push_str(before);
        out.push_str(&replaced);
        rest = after;
    }
    out + rest
}

/// Takes output up to the limit.
struct Capped(Vec<u8>);

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_LIMIT {
            return Err(io::Error::other(format!("output over {OUTPUT_LIMIT} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn fail(why: String) -> ModelError {
    ModelError::Template(why)
}

/// The line and the reason, with causes.
fn describe(error: minijinja::Error) -> ModelError {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    if error.kind() == ErrorKind::UnknownFunction && text.contains("strftime_now") {
        text =
            "strftime_now is not given, so that prompts do not change with the day: give the date as a variable".into();
    }
    fail(error.line().map_or(text.clone(), |line| format!("{text} (line {line})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_conditions() {
        let source = "a{%- generation %}b{{ '{% generation %}' }}{% endgeneration -%}c{% if x %}d{% endif %}{%";
        let changed = "a{%- if true %}b{{ '{% if true %}' }}{% endif -%}c{% if x %}d{% endif %}{%";
        assert_eq!(without_generation_tags(source), changed);
        assert_eq!(without_generation_tags("%}{%}{% generation %}"), "%}{%}{% generation %}");
    }
}
