//! Fixtures made by other software (`tests/parity/fixtures` of the repository).
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use candle_core::quantized::gguf_file::{self, Value};
use folgore_model::{files, tokenizer::Tokenizer};

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures").join(path)
}

pub fn json(path: &str) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(fixture(path)).unwrap()).unwrap()
}

pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A copy of a fixture's folder, to break.
pub fn copy(path: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(path)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Metadata of the SmolLM2 GGUF, from the committed vocabulary.
pub fn smollm2_metadata(chat_template: Option<&str>) -> HashMap<&'static str, Value> {
    let vocab = json("smollm2/vocab.json");
    let merges = fs::read_to_string(fixture("smollm2/merges.txt")).unwrap();
    let first = vocab["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned());
    let tokens: Vec<String> = first.chain(merges.lines().map(|merge| merge.replacen(' ', "", 1))).collect();
    let special = vocab["special"].as_u64().unwrap() as usize;
    let kinds = (0..tokens.len()).map(|id| Value::I32(if id < special { 3 } else { 1 })).collect();
    let text = |t: &str| Value::String(t.into());
    HashMap::from([
        ("general.architecture", text("llama")),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.ggml.tokens", Value::Array(tokens.into_iter().map(Value::String).collect())),
        ("tokenizer.ggml.token_type", Value::Array(kinds)),
        ("tokenizer.ggml.merges", Value::Array(merges.lines().map(text).collect())),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ("tokenizer.ggml.padding_token_id", Value::U32(2)),
        ("tokenizer.chat_template", text(chat_template.unwrap_or(vocab["chat_template"].as_str().unwrap()))),
    ])
}

/// A GGUF file without tensors, and its tokenizer as we read it.
pub fn gguf_tokenizer(metadata: &HashMap<&'static str, Value>) -> Result<Arc<Tokenizer>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    gguf_file::write(&mut file.as_file(), &metadata, &[]).unwrap();
    files::open_tokenizer(file.path()).map_err(|e| e.to_string())
}

pub static SMOLLM2: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| gguf_tokenizer(&smollm2_metadata(None)).unwrap());
