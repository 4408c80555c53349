//! A tokenizer as GGUF metadata.
//!
//! ggml names a pre-tokenizer where Hugging Face describes one. So each name is tried: the metadata is read back as a reader
//! would, and the name counts whose tokenizer gives the ids of the original on texts in which pre-tokenizers differ.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value as Json;

use crate::{
    ModelConfig, ModelError,
    files::{
        fault,
        gguf::{Field, Header, header::Value},
    },
    tokenizer::Tokenizer,
};

/// Names of ggml for byte-level pre-tokenizers, in the order in which they are tried.
const PRE: [&str; 4] = ["llama-bpe", "qwen2", "smollm", "gpt-2"];

/// Kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Where pre-tokenizers differ: digits, contractions, white space of all kinds, letters with marks, scripts, symbols.
const TEXTS: [&str; 12] = [
    "What is 1234567 + 89?",
    "It's I'LL don't WE'VE o'clock",
    "  two  spaces\tand\t\ttabs \n\n\nlines\r\n end   ",
    "na\u{ef}ve cafe\u{301} \u{fb01}n \u{212b} \u{1e69}",
    "\u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c} \u{65e5}\u{672c}\u{8a9e}\u{30c6}\u{30ad}\u{30b9}\u{30c8}",
    "\u{1f642}\u{1f469}\u{200d}\u{1f680} \u{a0}\u{3000}x",
    "fn main() { a_b[0] += 3.14e-10; } // <tag/> $x^2$",
    "HTTPServer2XML aB1c2D3 100km 1,000.50",
    "\u{41f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{0645}\u{0631}\u{062d}\u{0628}\u{0627} \u{0663}\u{0664} \u{0967}\u{0968}",
    "a\u{1}b\u{7f}c \u{2028}d",
    "...!!!???---___***",
    " x",
];

/// The fields of `tokenizer.ggml`, and the chat template. Refuses by name what cannot be carried.
pub(super) fn fields(config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Vec<(String, Field)>, ModelError> {
    let place = "tokenizer.json";
    let json: Json = serde_json::from_str(tokenizer.to_json())
        .map_err(|e| fault::invalid(place, "content", "JSON as it was read", e))?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(fault::unsupported(
            place,
            format!("model {} in GGUF", model["type"]),
            "GGUF holds BPE; export a folder",
        ));
    }
    let shared = shared(config, tokenizer, &json);
    let merges: Vec<(String, String)> = merges(model)?;
    let attempts: Vec<Vec<(String, Field)>> = match model["byte_fallback"] == true {
        true => [true, false].map(|prefix| sentencepiece(config, tokenizer, &merges, prefix)).into(),
        false => PRE.map(|pre| byte_level(&merges, pre)).into(),
    };
    for attempt in attempts {
        let all: Vec<(String, Field)> = attempt.into_iter().chain(shared.iter().cloned()).collect();
        if reads_alike(&all, tokenizer) {
            return Ok(all);
        }
    }
    let hint = format!("it is none of {} and sentencepiece; export a folder", PRE.join(", "));
    Err(fault::unsupported(place, "this pre-tokenizer in GGUF", &hint))
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

/// What all kinds have: tokens, their kinds, the special ids, the template.
fn shared(config: &ModelConfig, tokenizer: &Tokenizer, json: &Json) -> Vec<(String, Field)> {
    let model = &json["model"];
    let byte_fallback = model["byte_fallback"] == true;
    let unknown = model["unk_token"].as_str().and_then(|token| tokenizer.id(token));
    let added = added(json);
    let (mut tokens, mut kinds) = (Vec::new(), Vec::new());
    for id in 0..config.vocab_size as u32 {
        let (token, kind) = match tokenizer.token(id) {
            // rows of the embedding that no text reaches
            None => (format!("[PAD{id}]"), UNUSED),
            Some(token) => {
                let kind = match added.get(&id) {
                    _ if Some(id) == unknown => UNKNOWN,
                    Some(true) => CONTROL,
                    Some(false) => USER_DEFINED,
                    None if byte_fallback && is_byte(&token) => BYTE,
                    None => NORMAL,
                };
                // a run of spaces is looked for in the text itself, where spaces are not marked
                let run = byte_fallback && kind == USER_DEFINED && token.chars().all(|c| c == '\u{2581}');
                (if run { token.replace('\u{2581}', " ") } else { token }, kind)
            }
        };
        tokens.push(Field::Text(token));
        kinds.push(Field::I32(kind));
    }
    let mut list = vec![(key("tokens"), Field::List(tokens)), (key("token_type"), Field::List(kinds))];
    let ends = tokenizer.eos_ids().iter().chain(&config.eos_token_ids);
    let mut ids: Vec<u32> = Vec::new();
    for id in ends {
        if !ids.contains(id) {
            ids.push(*id);
        }
    }
    let named = ["eos", "eot", "eom"].into_iter().zip(ids);
    let special =
        [("bos", tokenizer.bos().or(config.bos_token_id)), ("padding", tokenizer.pad()), ("unknown", unknown)];
    let special = special.into_iter().filter_map(|(name, id)| Some((name, id?)));
    list.extend(named.chain(special).map(|(name, id)| (key(&format!("{name}_token_id")), Field::U32(id))));
    list.push((key("add_bos_token"), Field::Bool(!tokenizer.prefix().is_empty())));
    list.push((key("add_eos_token"), Field::Bool(false)));
    if let Some(template) = tokenizer.chat_template() {
        list.push(("tokenizer.chat_template".into(), Field::from(template)));
    }
    list
}

/// Ids of the added tokens, and whether each is flagged special.
fn added(json: &Json) -> BTreeMap<u32, bool> {
    let tokens = json["added_tokens"].as_array().into_iter().flatten();
    tokens.filter_map(|token| Some((u32::try_from(token["id"].as_u64()?).ok()?, token["special"] == true))).collect()
}

fn is_byte(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

/// Merges are `"a b"` or `["a", "b"]`.
fn merges(model: &Json) -> Result<Vec<(String, String)>, ModelError> {
    let pair = |merge: &Json| -> Option<(String, String)> {
        match merge {
            Json::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
            Json::Array(pair) => Some((pair.first()?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned())),
            _ => None,
        }
    };
    let wrong = || fault::invalid("tokenizer.json", "merges", "pairs of texts", "another entry");
    model["merges"].as_array().into_iter().flatten().map(|merge| pair(merge).ok_or_else(wrong)).collect()
}

fn byte_level(merges: &[(String, String)], pre: &str) -> Vec<(String, Field)> {
    let merges = merges.iter().map(|(a, b)| Field::Text(format!("{a} {b}"))).collect();
    vec![(key("model"), Field::from("gpt2")), (key("pre"), Field::from(pre)), (key("merges"), Field::List(merges))]
}

/// Pieces with scores: a piece that an earlier merge makes has the better one.
fn sentencepiece(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    merges: &[(String, String)],
    prefix: bool,
) -> Vec<(String, Field)> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, (a, b)) in merges.iter().enumerate() {
        ranks.entry(format!("{a}{b}")).or_insert(rank);
    }
    let last = merges.len();
    let score = |id: u32| match tokenizer.token(id) {
        Some(token) if tokenizer.added_tokens().contains_key(&id) || is_byte(&token) => 0.0,
        Some(token) => -(ranks.get(&token).copied().unwrap_or(last) as f32),
        None => -(last as f32),
    };
    let scores = (0..config.vocab_size as u32).map(|id| Field::F32(score(id))).collect();
    vec![
        (key("model"), Field::from("llama")),
        (key("pre"), Field::from("default")),
        (key("scores"), Field::List(scores)),
        (key("add_space_prefix"), Field::Bool(prefix)),
    ]
}

/// True if a reader of the fields gives the ids of `tokenizer`.
fn reads_alike(fields: &[(String, Field)], tokenizer: &Tokenizer) -> bool {
    let metadata = values(fields);
    let header = Header { metadata, place: "tokenizer as GGUF".into(), ..Header::default() };
    let Ok(read) = Tokenizer::from_gguf(&header) else { return false };
    let alike = |text: &str| {
        let ids = |tokenizer: &Tokenizer| tokenizer.encode_trusted(text).ok();
        ids(&read) == ids(tokenizer)
    };
    let added = tokenizer.added_tokens().values().take(64).map(|token| format!("a{token} b{token}"));
    read.prefix() == tokenizer.prefix() && TEXTS.iter().all(|text| alike(text)) && added.into_iter().all(|t| alike(&t))
}

/// Fields as a reader of the file has them.
pub(super) fn values(fields: &[(String, Field)]) -> BTreeMap<String, Value> {
    fields.iter().filter_map(|(key, field)| Some((key.clone(), value(field)?))).collect()
}

fn value(field: &Field) -> Option<Value> {
    Some(match field {
        Field::U32(value) => Value::Unsigned((*value).into()),
        Field::F32(value) => Value::Float((*value).into()),
        Field::Bool(value) => Value::Bool(*value),
        Field::Text(text) => Value::Text(text.clone()),
        Field::List(list) => match list.first() {
            Some(Field::I32(_)) => Value::Integers(list.iter().filter_map(integer).collect()),
            Some(Field::F32(_)) => Value::Floats(list.iter().filter_map(number).collect()),
            _ => Value::Texts(list.iter().filter_map(text).collect()),
        },
        _ => return None,
    })
}

fn integer(field: &Field) -> Option<i64> {
    if let Field::I32(value) = field { Some((*value).into()) } else { None }
}

fn number(field: &Field) -> Option<f32> {
    if let Field::F32(value) = field { Some(*value) } else { None }
}

fn text(field: &Field) -> Option<String> {
    if let Field::Text(text) = field { Some(text.clone()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_spaces_are_looked_for_as_spaces() {
        let plain = |id: u32, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": false})
        };
        let text = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
            "added_tokens": [plain(2, "\u{2581}\u{2581}"), plain(3, "\u{2581}x")],
            "model": {"type": "BPE", "vocab": {"\u{2581}": 0, "x": 1, "\u{2581}\u{2581}": 2, "\u{2581}x": 3},
                "merges": [], "byte_fallback": true, "unk_token": null, "fuse_unk": true}})
        .to_string();
        let tokenizer = Tokenizer::from_json("t", &text, "{}", None).unwrap();
        let config = ModelConfig { vocab_size: 4, ..ModelConfig::smollm2_135m() };
        let fields = shared(&config, &tokenizer, &serde_json::from_str(&text).unwrap());
        let texts = |list: &[&str]| Field::List(list.iter().map(|text| Field::from(*text)).collect());
        assert_eq!(fields[0].1, texts(&["\u{2581}", "x", "  ", "\u{2581}x"]));
    }
}
