//! The encoder for text that may not act: the same tokenizer without any added token but plain white space.
//!
//! Not adding the tokens is not enough, since their texts often stand in the model's own vocabulary too, where a rule that
//! looks up whole words could find them. So they are taken out of it, with the merges that would build or use them.

use std::collections::HashSet;

use serde_json::Value;
use tokenizers::{Model, Tokenizer};

use super::{is_plain, parse};

pub(super) struct Encoders {
    /// For a run that begins the text.
    first: Tokenizer,
    /// For later runs, where the pre-tokenizer treats the beginning of a text in its own way.
    later: Option<Box<Tokenizer>>,
    unknown: Option<u32>,
}

impl Encoders {
    /// `json` is the `tokenizer.json` of the trusted encoder.
    pub(super) fn new(mut json: Value) -> tokenizers::Result<Self> {
        let added = take_added_tokens(&mut json);
        remove_from_model(&mut json["model"], &added);
        let first = parse(&json.to_string())?;
        let later = match never_prepend(&mut json["pre_tokenizer"]) {
            true => Some(Box::new(parse(&json.to_string())?)),
            false => None,
        };
        let unknown = unknown_token(&json["model"]).and_then(|token| first.get_model().token_to_id(&token));
        Ok(Self { first, later, unknown })
    }

    pub(super) fn encode(&self, text: &str, first: bool) -> tokenizers::Result<Vec<u32>> {
        let encoder = if first { &self.first } else { self.later.as_deref().unwrap_or(&self.first) };
        Ok(encoder.encode_fast(text, false)?.get_ids().to_vec())
    }

    /// The id that stands for what the vocabulary cannot spell: the one added token that plain text may give.
    pub(super) fn unknown(&self) -> Option<u32> {
        self.unknown
    }
}

/// Takes all `added_tokens` but plain white space; returns their texts. The post-processor, which names such tokens, goes
/// with them.
fn take_added_tokens(json: &mut Value) -> HashSet<String> {
    json["post_processor"] = Value::Null;
    let Value::Array(added) = json["added_tokens"].take() else { return HashSet::new() };
    let content = |token: &Value| token.get("content")?.as_str().map(str::to_owned);
    let (plain, taken): (Vec<_>, Vec<_>) = added.into_iter().partition(|t| content(t).is_some_and(|c| is_plain(&c)));
    json["added_tokens"] = Value::Array(plain);
    taken.iter().filter_map(content).collect()
}

fn unknown_token(model: &Value) -> Option<String> {
    let by_id = |id: &Value| model["vocab"].get(usize::try_from(id.as_u64()?).ok()?)?.get(0)?.as_str();
    model["unk_token"].as_str().or_else(|| by_id(&model["unk_id"])).map(str::to_owned)
}

fn remove_from_model(model: &mut Value, added: &HashSet<String>) {
    let unknown = unknown_token(model);
    let gone = |token: &str| added.contains(token) && unknown.as_deref() != Some(token);
    match &mut model["vocab"] {
        Value::Object(vocab) => vocab.retain(|token, _| !gone(token)),
        // Unigram: places are ids, so the entry stays with a text that no input has and a score that never wins
        Value::Array(vocab) => {
            for (id, entry) in vocab.iter_mut().enumerate() {
                if entry.get(0).and_then(Value::as_str).is_some_and(gone) {
                    *entry = serde_json::json!([format!("\u{10fffe}added {id}"), -1e9]);
                }
            }
        }
        _ => {}
    }
    if let Value::Array(merges) = &mut model["merges"] {
        merges.retain(|merge| match sides(merge) {
            Some((left, right)) => !(gone(left) || gone(right) || gone(&format!("{left}{right}"))),
            None => true,
        });
    }
}

/// Merges are `"a b"` or `["a", "b"]`.
fn sides(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(pair) => Some((pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    }
}

/// Turns every `prepend_scheme: first` to `never`; true if there was one.
fn never_prepend(pre_tokenizer: &mut Value) -> bool {
    match pre_tokenizer {
        Value::Object(map) => {
            let mut found = map.get("prepend_scheme").and_then(Value::as_str) == Some("first");
            if found {
                map.insert("prepend_scheme".into(), "never".into());
                map.remove("add_prefix_space");
            }
            for value in map.values_mut() {
                found |= never_prepend(value);
            }
            found
        }
        Value::Array(list) => list.iter_mut().fold(false, |found, value| never_prepend(value) | found),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_added_token_cannot_come_out_of_any_model() {
        let word_level = json!({"type": "WordLevel", "vocab": {"a": 0, "<x>": 1, "<unk>": 2}, "unk_token": "<unk>"});
        let unigram = json!({"type": "Unigram", "unk_id": 2, "byte_fallback": false,
            "vocab": [["a", -1.0], ["<x>", -0.1], ["<unk>", 0.0], ["<", -2.0], ["x", -2.0], [">", -2.0]]});
        let bpe = json!({"type": "BPE", "unk_token": "<unk>", "ignore_merges": true,
            "vocab": {"a": 0, "<x>": 1, "<unk>": 2, "<": 3, "x": 4, ">": 5, "<x": 6}, "merges": ["< x", "<x >"]});
        for model in [word_level, unigram, bpe] {
            let json = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
                "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model,
                "added_tokens": [{"id": 1, "content": "<x>", "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": false}]});
            let trusted = Tokenizer::from_bytes(json.to_string()).unwrap();
            assert_eq!(trusted.encode("<x>", false).unwrap().get_ids(), [1]);
            let encoders = Encoders::new(json).unwrap();
            assert_eq!(encoders.unknown(), Some(2));
            assert!(!encoders.encode("<x>", true).unwrap().contains(&1));
        }
    }

    #[test]
    fn the_beginning_of_a_text_is_special_only_once() {
        let mut pre = json!({"type": "Sequence", "pretokenizers": [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}]});
        assert!(never_prepend(&mut pre));
        assert_eq!(pre["pretokenizers"][0]["prepend_scheme"], "never");
        assert!(!never_prepend(&mut pre));
    }
}
