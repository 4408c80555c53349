//! Tokenizers out of GGUF metadata against the originals (`tests/parity/make_tokenizers.py`).

mod common;

use std::{fs, path::Path, sync::Arc};

use common::{fixture, ids};
use folgore_model::{
    files::{
        self,
        gguf::{self, Field},
    },
    tokenizer::Tokenizer,
};
use folgore_protocol::Prompt;
use serde_json::Value;

/// Metadata of the fixture with the types that converters write.
fn field(key: &str, value: &Value) -> Field {
    match value {
        Value::Bool(flag) => Field::Bool(*flag),
        Value::String(text) => Field::Text(text.clone()),
        Value::Array(list) if key.ends_with("scores") => {
            Field::List(list.iter().map(|v| Field::F32(v.as_f64().unwrap() as f32)).collect())
        }
        Value::Array(list) if key.ends_with("token_type") => {
            Field::List(list.iter().map(|v| Field::I32(v.as_i64().unwrap() as i32)).collect())
        }
        Value::Array(list) => Field::List(list.iter().map(|v| v.as_str().unwrap().into()).collect()),
        number => Field::U32(number.as_u64().unwrap() as u32),
    }
}

fn from_gguf(metadata: &Value) -> Arc<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.gguf");
    let fields: Vec<(String, Field)> =
        metadata.as_object().unwrap().iter().map(|(key, value)| (key.clone(), field(key, value))).collect();
    gguf::write(&path, &fields, &[], |_| Ok(vec![])).unwrap();
    files::open_tokenizer(&path).unwrap()
}

/// `tokenizer_config.json` with the special tokens that `metadata` names.
fn special(metadata: &Value) -> String {
    let tokens = &metadata["tokenizer.ggml.tokens"];
    let mut config = serde_json::Map::new();
    for (key, name) in [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token")] {
        if let Some(id) = metadata[format!("tokenizer.ggml.{key}_token_id")].as_u64() {
            config.insert(name.into(), tokens[id as usize].clone());
        }
    }
    Value::from(config).to_string()
}

/// Compares both forms of the tokenizer with the recorded ids; the number of texts.
fn check(path: &Path) -> usize {
    let name = path.display();
    let value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let json =
        Tokenizer::from_json("original", &value["tokenizer"].to_string(), &special(&value["metadata"]), None).unwrap();
    let gguf = from_gguf(&value["metadata"]);
    assert_eq!(gguf.added_tokens(), json.added_tokens(), "{name}");
    assert_eq!((gguf.eos_ids(), gguf.bos()), (json.eos_ids(), json.bos()));
    let rows = value["rows"].as_array().unwrap();
    for (form, tokenizer) in [("tokenizer.json", &json), ("GGUF", &*gguf)] {
        let prompt = tokenizer.encode_prompt(&Prompt::Text("the cat".into()), &Default::default()).unwrap();
        assert_eq!(prompt, ids(&value["prompt"]), "{name}, {form}: a prompt");
        for row in rows {
            let text = row["text"].as_str().unwrap();
            let (trusted, untrusted) = (ids(&row["trusted"]), ids(&row["untrusted"]));
            assert_eq!(tokenizer.encode_trusted(text).unwrap(), trusted, "{name}, {form}: trusted {text:?}");
            assert_eq!(tokenizer.encode_untrusted(text).unwrap(), untrusted, "{name}, {form}: untrusted {text:?}");
            assert_eq!(tokenizer.decode(&trusted, false).unwrap(), row["decoded"].as_str().unwrap(), "{name}, {form}");
            assert!(
                untrusted
                    .iter()
                    .all(|id| Some(*id) == tokenizer.id("<unk>") || !tokenizer.added_tokens().contains_key(id))
            );
        }
    }
    rows.len()
}

#[test]
fn every_kind_encodes_as_its_original() {
    for kind in ["gemma", "gpt2", "llama", "llama-bpe", "qwen2", "smollm"] {
        assert!(check(&fixture(&format!("tokenizers/{kind}.json"))) > 100);
    }
    // more of them: published ones, which `make_tokenizers.py --originals` writes
    for entry in std::env::var_os("FOLGORE_TOKENIZERS").iter().flat_map(|folder| fs::read_dir(folder).unwrap()) {
        let path = entry.unwrap().path();
        println!("{}: {} texts", path.display(), check(&path));
    }
}

#[test]
fn runs_of_white_space_are_text_even_where_they_are_added_tokens() {
    let value: Value = serde_json::from_str(&fs::read_to_string(fixture("tokenizers/gemma.json")).unwrap()).unwrap();
    let gemma = from_gguf(&value["metadata"]);
    let two = gemma.id("\n\n").unwrap();
    assert!(!gemma.added_tokens().contains_key(&two));
    assert!(gemma.added_tokens().values().any(|token| token == "<start_of_turn>"));
    assert!(gemma.encode_untrusted("a\n\nb").unwrap().contains(&two));
    let markup = gemma.encode_untrusted("<start_of_turn>\n\n<table>").unwrap();
    assert!(markup.contains(&two) && markup.iter().all(|id| !gemma.added_tokens().contains_key(id)));
}
