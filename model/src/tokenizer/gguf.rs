//! A tokenizer from the metadata of a GGUF file, as the `tokenizer.json` that the model was published with.
//!
//! `tokenizer.ggml.model = gpt2` is byte-level BPE; `tokenizer.ggml.pre` names the pre-tokenizer. candle's reader takes every
//! unknown name for GPT-2's with a prefix space, and so encodes SmolLM2 wrongly without a word: here an unknown name is an
//! error. `tokenizer.ggml.model = llama` is sentencepiece BPE (Llama 2, Mistral, Gemma): pieces with scores, from which the
//! merges are derived.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{SpecialTokens, Tokenizer};
use crate::{ModelError, files::fault, files::gguf::Header};

/// Kinds in `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// Places at which a piece is cut into two: pieces of real vocabularies are far shorter, and time grows with the square.
const LONGEST: usize = 256;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Tokenizer {
    pub(crate) fn from_gguf(header: &Header) -> Result<Self, ModelError> {
        let place = &header.place;
        let vocabulary = Vocabulary::read(header)?;
        let model =
            header.text("tokenizer.ggml.model")?.ok_or_else(|| fault::missing(place, "tokenizer.ggml.model"))?;
        let mut json = match model {
            "gpt2" => byte_level(header, &vocabulary)?,
            "llama" => sentencepiece(header, &vocabulary)?,
            other => {
                let hint = "served are gpt2 and llama; use the model's Hugging Face folder";
                return Err(fault::unsupported(place, format!("tokenizer.ggml.model {other:?}"), hint));
            }
        };
        json["added_tokens"] = vocabulary.added_tokens();
        let special = vocabulary.special(header)?;
        let adds_bos = header.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(model == "llama" || is_llama3(header)?);
        if let (true, Some(bos)) = (adds_bos, &special.bos) {
            let id = vocabulary.tokens.iter().position(|token| token == bos);
            json["post_processor"] = begin_with(bos, id.unwrap_or(0));
        }
        Self::build(place, json, special)
    }
}

fn is_llama3(header: &Header) -> Result<bool, ModelError> {
    Ok(matches!(header.text("tokenizer.ggml.pre")?, Some("llama-bpe" | "llama3" | "llama-v3")))
}

struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i64>,
}

impl Vocabulary {
    fn read(header: &Header) -> Result<Self, ModelError> {
        let (place, key) = (&header.place, "tokenizer.ggml.tokens");
        let mut tokens = header.texts(key)?.ok_or_else(|| fault::missing(place, key))?.to_vec();
        let kinds = header.integers("tokenizer.ggml.token_type")?.map_or(vec![NORMAL; tokens.len()], <[i64]>::to_vec);
        if kinds.len() != tokens.len() {
            let expected = format!("{} entries, one a token", tokens.len());
            return Err(fault::invalid(place, "tokenizer.ggml.token_type", expected, kinds.len()));
        }
        if header.text("tokenizer.ggml.model")? == Some("llama") {
            // converters write the runs of spaces that are pieces of their own plainly; the vocabulary has them marked
            let spaces =
                |(token, kind): &(&mut String, &i64)| **kind == USER_DEFINED && token.chars().all(|c| c == ' ');
            tokens.iter_mut().zip(&kinds).filter(spaces).for_each(|(token, _)| *token = token.replace(' ', "▁"));
        }
        let mut seen = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = seen.insert(token, id) {
                return Err(fault::invalid(
                    place,
                    key,
                    "every token once",
                    format!("{token:?} as ids {first} and {id}"),
                ));
            }
        }
        Ok(Self { tokens, kinds })
    }

    /// Texts and ids, without the rows that only fill up the embedding.
    fn map(&self) -> Value {
        let used = self.tokens.iter().zip(&self.kinds).enumerate().filter(|(_, (_, kind))| **kind != UNUSED);
        used.map(|(id, (token, _))| (token.clone(), json!(id))).collect::<serde_json::Map<_, _>>().into()
    }

    fn added_tokens(&self) -> Value {
        let added = |(id, kind): (usize, &i64)| {
            let special = matches!(*kind, CONTROL | UNKNOWN);
            let token = || {
                json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special})
            };
            (special || *kind == USER_DEFINED).then(token)
        };
        self.kinds.iter().enumerate().filter_map(added).collect::<Vec<_>>().into()
    }

    fn special(&self, header: &Header) -> Result<SpecialTokens, ModelError> {
        let token = |name: &str| -> Result<Option<String>, ModelError> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let Some(id) = header.unsigned(&key)? else { return Ok(None) };
            let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
            let wrong = || fault::invalid(&header.place, &key, format!("an id below {}", self.tokens.len()), id);
            token.cloned().map(Some).ok_or_else(wrong)
        };
        let mut eos: Vec<String> = Vec::new();
        for name in ["eos", "eot", "eom"] {
            eos.extend(token(name)?.filter(|token| !eos.contains(token)));
        }
        Ok(SpecialTokens {
            bos: token("bos")?,
            eos,
            unk: token("unknown")?,
            pad: token("padding")?,
            chat_template: header.text("tokenizer.chat_template")?.map(str::to_owned),
        })
    }
}

/// A document with everything but the model's own parts.
fn document(model: Value, normalizer: Value, pre_tokenizer: Value, decoder: Value) -> Value {
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model})
}

/// The post-processor that puts `bos` before a text.
fn begin_with(bos: &str, id: usize) -> Value {
    let token = json!({"SpecialToken": {"id": bos, "type_id": 0}});
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    json!({"type": "TemplateProcessing", "single": [token, text("A", 0)], "pair": [token, text("A", 0), text("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}})
}

/// What [`pre_tokenizer`] knows, for messages.
const PRE_TOKENIZERS: [&str; 4] = ["smollm", "gpt-2", "llama-bpe", "qwen2"];

/// The normaliser and the pre-tokenizer that `tokenizer.ggml.pre` names.
fn pre_tokenizer(name: &str) -> Option<(Value, Value)> {
    let level =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "pretokenizers": parts});
    let digits = json!({"type": "Digits", "individual_digits": true});
    Some(match name {
        "smollm" => (Value::Null, sequence(vec![digits, level(true)])),
        "gpt-2" | "gpt2" => (Value::Null, level(true)),
        "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, sequence(vec![split(LLAMA3), level(false)])),
        "qwen2" | "deepseek-r1-qwen" => (json!({"type": "NFC"}), sequence(vec![split(QWEN2), level(false)])),
        // what llama.cpp does for a file that names none
        "default" => {
            let parts = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"].map(split);
            (Value::Null, sequence(parts.into_iter().chain([level(false)]).collect()))
        }
        _ => return None,
    })
}

fn byte_level(header: &Header, vocabulary: &Vocabulary) -> Result<Value, ModelError> {
    let (place, key) = (&header.place, "tokenizer.ggml.merges");
    let merges = header.texts(key)?.ok_or_else(|| fault::missing(place, key))?;
    let pre = header.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let (normalizer, pre_tokenizer) = pre_tokenizer(pre).ok_or_else(|| {
        let hint = format!("served are {} and default; use the model's Hugging Face folder", PRE_TOKENIZERS.join(", "));
        fault::unsupported(place, format!("tokenizer.ggml.pre {pre:?}"), &hint)
    })?;
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": is_llama3(header)?,
        "vocab": vocabulary.map(), "merges": merges});
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    Ok(document(model, normalizer, pre_tokenizer, decoder))
}

/// Sentencepiece BPE. Two pieces merge when their join is a piece, the better score first: the order that Hugging Face's
/// converter gives the merges.
fn sentencepiece(header: &Header, vocabulary: &Vocabulary) -> Result<Value, ModelError> {
    let (place, key) = (&header.place, "tokenizer.ggml.scores");
    let scores = header.floats(key)?.ok_or_else(|| fault::missing(place, key))?;
    if scores.len() != vocabulary.tokens.len() {
        let expected = format!("{} entries, one a token", vocabulary.tokens.len());
        return Err(fault::invalid(place, key, expected, scores.len()));
    }
    let named = header.unsigned("tokenizer.ggml.unknown_token_id")?.and_then(|id| usize::try_from(id).ok());
    let unknown = named.or_else(|| vocabulary.kinds.iter().position(|kind| *kind == UNKNOWN));
    let unknown = unknown.and_then(|id| vocabulary.tokens.get(id));
    let model = json!({"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocabulary.map(), "merges": merges_by_score(vocabulary, scores)});
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let prefix = header.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let prepend = prefix.then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let normalizers: Vec<Value> = prepend.into_iter().chain([replace(" ", "▁")]).collect();
    let strip = prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let decoders: Vec<Value> = [replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})]
        .into_iter()
        .chain(strip)
        .collect();
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    Ok(document(model, normalizer, Value::Null, json!({"type": "Sequence", "decoders": decoders})))
}

fn merges_by_score(vocabulary: &Vocabulary, scores: &[f32]) -> Vec<Value> {
    let tokens = &vocabulary.tokens;
    let length = |text: &str| text.chars().count();
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for ((token, score), kind) in tokens.iter().zip(scores).zip(&vocabulary.kinds) {
        // sentencepiece scores them 0, converters write something else
        let score = if *kind == USER_DEFINED { 0.0 } else { *score };
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at)).take(LONGEST);
        let mut pairs: Vec<(&str, &str)> =
            cuts.filter(|(left, right)| ids.contains_key(left) && ids.contains_key(right)).collect();
        pairs.sort_by_key(|(left, right)| (ids[left], ids[right]));
        // sums make -0 a 0, which it equals
        merges.extend(pairs.into_iter().map(|(left, right)| (score + 0.0, [left, right].map(length), left, right)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    merges.into_iter().map(|(_, _, left, right)| json!([left, right])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_come_by_score_then_by_length() {
        let tokens: Vec<String> = ["a", "b", "ab", "aba", "ba"].map(String::from).to_vec();
        let vocabulary = Vocabulary { kinds: vec![1; tokens.len()], tokens };
        let merges = merges_by_score(&vocabulary, &[0.0, 0.0, -2.0, -3.0, -1.0]);
        assert_eq!(merges, [json!(["b", "a"]), json!(["a", "b"]), json!(["ab", "a"]), json!(["a", "ba"])]);
    }
}
