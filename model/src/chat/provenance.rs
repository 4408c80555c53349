//! Who wrote what: content is rendered in disguise, so that added tokens found in the output are the template's.
//!
//! A *disguise* replaces characters of the content by private-use characters that stand nowhere in the input, one for one, and
//! is taken off again before the text is encoded. Two disguises are used:
//! - [`Disguise::added_tokens`] covers every added token that a piece of content holds by itself, found by the tokenizer's own
//!   rules (normalisation included). Content without added tokens is not touched, so the template sees it as it is, and trims,
//!   compares and splits it as transformers would.
//! - [`Disguise::edges`] covers every character with which an added token begins or ends. A template may join pieces of
//!   content, or cut them, so that a token appears that none of them held: under this disguise it cannot, since a token's
//!   first and last characters are then the template's. If both renderings have the same structure, the first one is used.
//!
//! Both leave roles alone, which templates compare and which are checked on their own.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Map, Value};

use crate::{ModelError, tokenizer::Tokenizer};

/// Where stand-ins are taken from: plane 16, private use.
const STAND_INS: std::ops::RangeInclusive<char> = '\u{100000}'..='\u{10fffd}';
/// Rounds in which covering one token may uncover another.
const ROUNDS: usize = 8;

pub(super) struct Disguise<'a> {
    tokenizer: &'a Tokenizer,
    /// First and last characters of added tokens, where they are neither letters, digits nor white space.
    edges: HashSet<char>,
    stand_ins: BTreeMap<char, char>,
    originals: BTreeMap<char, char>,
    /// Private-use characters that stand in the input or are in use.
    taken: BTreeSet<char>,
}

impl<'a> Disguise<'a> {
    /// A disguise whose stand-ins occur neither in `input` nor in the template.
    pub(super) fn new(tokenizer: &'a Tokenizer, input: &Map<String, Value>) -> Self {
        let mut taken = BTreeSet::new();
        let mut note = |text: &str| taken.extend(text.chars().filter(|c| STAND_INS.contains(c)));
        note(tokenizer.chat_template().unwrap_or_default());
        for token in tokenizer.added_tokens().values() {
            note(token);
        }
        for (key, value) in input {
            note(key);
            visit(value, &mut note);
        }
        // an edge that is a letter or a space would disguise half of any text
        let edge = |c: &char| !c.is_alphanumeric() && !c.is_whitespace();
        let tokens = tokenizer.added_tokens().values();
        let edges =
            tokens.flat_map(|t| t.chars().next().into_iter().chain(t.chars().next_back())).filter(edge).collect();
        let (stand_ins, originals) = Default::default();
        Self { tokenizer, edges, stand_ins, originals, taken }
    }

    /// The input with every added token in it covered.
    pub(super) fn added_tokens(&mut self, input: &Map<String, Value>) -> Result<Map<String, Value>, ModelError> {
        self.each(input, |disguise, text| disguise.cover(text))
    }

    /// The input with the edges covered too; none if it holds none.
    pub(super) fn edges(&mut self, input: &Map<String, Value>) -> Result<Option<Map<String, Value>>, ModelError> {
        let edges = self.edges.clone();
        let mut found = false;
        let covered = self.each(input, |disguise, text| {
            found |= text.chars().any(|c| edges.contains(&c));
            disguise.disguised(text, |c| edges.contains(&c))
        })?;
        Ok(found.then_some(covered))
    }

    /// Takes every disguise off.
    pub(super) fn remove(&self, text: &str) -> String {
        text.chars().map(|c| self.originals.get(&c).copied().unwrap_or(c)).collect()
    }

    fn cover(&mut self, text: &str) -> Result<String, ModelError> {
        let mut text = text.to_owned();
        for _ in 0..ROUNDS {
            let places = self.tokenizer.added_places(&text);
            if places.is_empty() {
                return Ok(text);
            }
            let mut out = String::with_capacity(text.len());
            let mut done = 0;
            for (_, range) in places {
                out.push_str(&text[done..range.start]);
                out.push_str(&self.disguised(&text[range.clone()], |_| true)?);
                done = range.end;
            }
            text = out + &text[done..];
        }
        Err(ModelError::Template("the content holds an added token that no disguise covers".into()))
    }

    fn stand_in(&mut self, c: char) -> Result<char, ModelError> {
        if self.originals.contains_key(&c) {
            return Ok(c);
        }
        if let Some(known) = self.stand_ins.get(&c) {
            return Ok(*known);
        }
        let free = STAND_INS.into_iter().find(|c| !self.taken.contains(c));
        let free = free.ok_or_else(|| ModelError::Template("the content uses up all private-use characters".into()))?;
        self.taken.insert(free);
        self.stand_ins.insert(c, free);
        self.originals.insert(free, c);
        Ok(free)
    }

    fn disguised(&mut self, text: &str, hide: impl Fn(char) -> bool) -> Result<String, ModelError> {
        text.chars().map(|c| if hide(c) { self.stand_in(c) } else { Ok(c) }).collect()
    }

    /// Applies `change` to every text of `input` but the roles and the names of variables.
    fn each(
        &mut self,
        input: &Map<String, Value>,
        mut change: impl FnMut(&mut Self, &str) -> Result<String, ModelError>,
    ) -> Result<Map<String, Value>, ModelError> {
        let mut out = Map::new();
        for (key, value) in input {
            let value = match (key.as_str(), value) {
                ("messages", Value::Array(messages)) => {
                    let message = |m: &Value| self.message(m, &mut change);
                    Value::Array(messages.iter().map(message).collect::<Result<_, _>>()?)
                }
                _ => self.deep(value, &mut change)?,
            };
            out.insert(key.clone(), value);
        }
        Ok(out)
    }

    fn message(
        &mut self,
        message: &Value,
        change: &mut impl FnMut(&mut Self, &str) -> Result<String, ModelError>,
    ) -> Result<Value, ModelError> {
        let mut out = self.deep(message, change)?;
        if let (Some(role), Some(map)) = (message.get("role"), out.as_object_mut()) {
            map.insert("role".into(), role.clone());
        }
        Ok(out)
    }

    fn deep(
        &mut self,
        value: &Value,
        change: &mut impl FnMut(&mut Self, &str) -> Result<String, ModelError>,
    ) -> Result<Value, ModelError> {
        Ok(match value {
            Value::String(text) => Value::String(change(self, text)?),
            Value::Array(list) => Value::Array(list.iter().map(|v| self.deep(v, change)).collect::<Result<_, _>>()?),
            Value::Object(map) => {
                let mut out = Map::new();
                for (key, value) in map {
                    out.insert(change(self, key)?, self.deep(value, change)?);
                }
                Value::Object(out)
            }
            other => other.clone(),
        })
    }
}

fn visit(value: &Value, note: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => note(text),
        Value::Array(list) => list.iter().for_each(|v| visit(v, note)),
        Value::Object(map) => map.iter().for_each(|(key, v)| {
            note(key);
            visit(v, note);
        }),
        _ => {}
    }
}
