//! The vocabulary: byte pairs learnt from synthetic traces alone, so that no real name is a token that training never touches.
//!
//! Text is cut as SmolLM2's tokenizer cuts it, which other software knows: digits one by one, letters with the space before
//! them. Only pieces of letters are merged.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{TOKENS, VOCABULARY};

/// A `tokenizer.json` whose merges are learnt from `text`.
pub fn tokenizer(text: &str) -> Value {
    let characters = (0..=255).map(|byte| letter(byte).to_string());
    let mut names: Vec<String> = TOKENS.iter().map(|t| (*t).to_owned()).chain(characters).collect();
    let merges = merges(text, VOCABULARY - names.len());
    names.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let vocab: Map<String, Value> = names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
    let added = |(id, name): (usize, &&str)| {
        // the tags are content: kept by decoding, and seen by environment and rewards
        let special = id < 2;
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special})
    };
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": TOKENS.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, level]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
            "merges": merges.iter().map(|(left, right)| json!([left, right])).collect::<Vec<_>>(),
        },
    })
}

/// Its `tokenizer_config.json`.
pub fn config() -> Value {
    json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>",
           "clean_up_tokenization_spaces": false, "model_max_length": 512})
}

/// The visible character that stands for a byte, as in GPT-2.
fn letter(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match plain(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|b| !plain(*b)).count() as u32;
            char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    }
}

/// The `most` merges that shorten `text` most, one after another; of equally frequent pairs the first in order of their letters.
fn merges(text: &str, most: usize) -> Vec<(String, String)> {
    let mut words: Vec<(Vec<String>, usize)> = counted(text)
        .into_iter()
        .map(|(word, count)| (word.bytes().map(|b| letter(b).to_string()).collect(), count))
        .collect();
    let mut merges = Vec::new();
    while merges.len() < most {
        let mut pairs: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *pairs.entry((&pair[0], &pair[1])).or_default() += count;
            }
        }
        let best = pairs.into_iter().rev().max_by_key(|(_, count)| *count);
        let Some(((left, right), _)) = best else { break };
        let (left, right) = (left.to_owned(), right.to_owned());
        for (word, _) in &mut words {
            join(word, &left, &right);
        }
        merges.push((left, right));
    }
    merges
}

fn join(word: &mut Vec<String>, left: &str, right: &str) {
    let mut at = 0;
    while at + 1 < word.len() {
        if word[at] == left && word[at + 1] == right {
            let second = word.remove(at + 1);
            word[at].push_str(&second);
        }
        at += 1;
    }
}

/// Runs of letters with the space before them, and how often each is there; tags are none.
fn counted(text: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let begin = at;
        at += 1;
        if bytes[begin] == b'<' {
            at = text[begin..].find('>').map_or(bytes.len(), |end| begin + end + 1);
            continue;
        }
        if !bytes[begin].is_ascii_alphabetic() && bytes[begin] != b' ' {
            continue;
        }
        while at < bytes.len() && bytes[at].is_ascii_alphabetic() {
            at += 1;
        }
        if at > begin + 1 {
            *counts.entry(&text[begin..at]).or_default() += 1;
        }
    }
    counts
}
