//! The readers. Each takes bytes for the file that it is about; the files around it are those of a small model.

use std::{fs, path::Path, sync::LazyLock};

use folgore_model::{
    ModelError,
    files::{self, ModelFiles, gguf, peft::AdapterFile, safetensors},
    tokenizer::Tokenizer,
};
use folgore_protocol::Message;
use serde_json::{Map, json};
use tempfile::TempDir;

use crate::PROGRAM;

/// One reader.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Reads the bytes to the end, weights too; none if they were refused, or how many more were made of them.
    pub(crate) read: fn(&[u8]) -> Option<usize>,
    /// Bytes of memory that it may take beside what all may.
    pub(crate) more: usize,
    /// Words of its language.
    pub(crate) words: &'static [&'static str],
}

const JSON: &[&str] =
    &["{", "}", "[", "]", ",", ":", "\"", "\\u0000", "\\ud800", "null", "1e999", "-0", "\u{feff}", "😀"];
const STATE: &[&str] = &[
    "\"blocksize\": 64",
    "\"blocksize\": 4096",
    "\"shape\": [48, 112]",
    "\"shape\": [0, 9]",
    "\"nested_blocksize\": 256",
    "\"nested_offset\": 3e38",
    ".weight.absmax",
    ".quant_state.bitsandbytes__nf4",
    "\"U8\"",
    "1e39",
];
const TOKENIZER: &[&str] = &[
    "\"BPE\"",
    "\"WordPiece\"",
    "\"WordLevel\"",
    "\"Unigram\"",
    "\"ByteLevel\"",
    "\"Metaspace\"",
    "\"Split\"",
    "\"Regex\"",
    "(a+)+$",
    "(?:x{1000}){1000}",
    "\"Sequence\"",
    "\"NFKC\"",
    "\"Precompiled\"",
    "\"TemplateProcessing\"",
    "\"\"",
    "\"id\":4294967295",
];
const TEMPLATE: &[&str] = &[
    "{%",
    "%}",
    "{{",
    "}}",
    "{#",
    "#}",
    "{% for i in range(100000) %}",
    "{% endfor %}",
    "{% set x = x ~ 'a' %}",
    "{% if x %}",
    "{% endif %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}",
    "{{ messages | tojson(indent=4) }}",
    " * 1000000000",
    "[::-1]",
    "| join",
    "| replace('a', 'bbbbbbbbbbbbbbbb')",
    "{{ raise_exception(x) }}",
    "namespace(a=1)",
    "| indent(1000000)",
    "%-1000000s",
];

/// All of them.
pub static TARGETS: [Target; 10] = [
    Target { name: "safetensors", read: |bytes| taken(safetensors_file(bytes)), more: 0, words: JSON },
    Target { name: "safetensors_header", read: |bytes| taken(safetensors_header(bytes)), more: 0, words: JSON },
    Target { name: "safetensors_index", read: |bytes| taken(safetensors_index(bytes)), more: 0, words: JSON },
    Target { name: "bitsandbytes", read: |bytes| taken(bitsandbytes(bytes)), more: 0, words: STATE },
    Target { name: "config", read: |bytes| taken(config(bytes)), more: 0, words: JSON },
    Target { name: "tokenizer", read: |bytes| taken(tokenizer(bytes)), more: 0, words: TOKENIZER },
    Target { name: "gguf", read: |bytes| taken(gguf_file(bytes)), more: 0, words: &[] },
    Target { name: "adapter", read: |bytes| taken(adapter(bytes)), more: 0, words: JSON },
    Target { name: "adapter_config", read: |bytes| taken(adapter_config(bytes)), more: 0, words: JSON },
    Target { name: "template", read: template, more: PROGRAM, words: TEMPLATE },
];

/// The files of a small model, read once.
struct Around {
    weights: Vec<u8>,
    config: String,
    tokenizer: String,
    adapter_config: String,
    adapter: Vec<u8>,
    /// `config.json` and `tokenizer.json` of a model in four bits.
    coded: [String; 2],
    folder: TempDir,
}

static AROUND: LazyLock<Around> =
    LazyLock::new(|| around().expect("the fixtures of tests/parity are part of the repository"));

fn around() -> std::io::Result<Around> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures");
    let sharded = fixtures.join("tiny-tied-bf16-sharded");
    let folder = tempfile::tempdir()?;
    for entry in fs::read_dir(&sharded)? {
        let entry = entry?;
        fs::copy(entry.path(), folder.path().join(entry.file_name()))?;
    }
    let text = |path: &str| fs::read_to_string(fixtures.join(path));
    Ok(Around {
        weights: fs::read(fixtures.join("tiny-tied/model.safetensors"))?,
        config: text("tiny-tied/config.json")?,
        tokenizer: text("tiny-tied/tokenizer.json")?,
        adapter_config: text("adapter-tied-rslora/adapter_config.json")?,
        adapter: fs::read(fixtures.join("adapter-tied-rslora/adapter_model.safetensors"))?,
        coded: [text("tiny-untied-nf4/config.json")?, text("tiny-untied-nf4/tokenizer.json")?],
        folder,
    })
}

fn taken(taken: bool) -> Option<usize> {
    taken.then_some(0)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads every weight too, and its codes.
fn whole(model: Result<ModelFiles, ModelError>) -> bool {
    model.is_ok_and(|model| {
        model.tensors.names().iter().all(|name| model.tensors.tensor(name).is_ok() && model.tensors.coded(name).is_ok())
    })
}

fn safetensors_file(bytes: &[u8]) -> bool {
    safetensors::from_bytes("fuzz", bytes.to_vec()).is_ok()
}

/// The bytes are the header, whose length is told truly, before the data of a small model.
fn safetensors_header(bytes: &[u8]) -> bool {
    let data = &AROUND.weights[AROUND.weights.len() - 4096..];
    let file = [&(bytes.len() as u64).to_le_bytes(), bytes, data].concat();
    safetensors::from_bytes("fuzz", file).is_ok()
}

fn safetensors_index(bytes: &[u8]) -> bool {
    let folder = AROUND.folder.path();
    fs::write(folder.join("model.safetensors.index.json"), bytes).is_ok() && whole(files::open(folder))
}

fn config(bytes: &[u8]) -> bool {
    let around = &*AROUND;
    whole(ModelFiles::from_memory("fuzz", around.weights.as_slice(), &text(bytes), &around.tokenizer, "{}", ""))
}

/// The bytes are the weights of a model in four bits.
fn bitsandbytes(bytes: &[u8]) -> bool {
    let [config, tokenizer] = &AROUND.coded;
    whole(ModelFiles::from_memory("fuzz", bytes.to_vec(), config, tokenizer, "{}", ""))
}

fn tokenizer(bytes: &[u8]) -> bool {
    let Ok(tokenizer) = Tokenizer::from_json("fuzz", &text(bytes), "{\"eos_token\": \"<|im_end|>\"}", None) else {
        return false;
    };
    let text = " the cat sat on 12345 mats <|im_end|>\r\n\té🙂 日本語";
    let ids = tokenizer.encode_untrusted(text).and_then(|_| tokenizer.encode_trusted(text));
    ids.and_then(|ids| tokenizer.decode(&ids, false)).is_ok()
}

fn gguf_file(bytes: &[u8]) -> bool {
    whole(gguf::from_bytes("fuzz", bytes.to_vec()))
}

fn adapter_folder(config: &[u8], weights: &[u8]) -> bool {
    let read = || -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("adapter_config.json"), config)?;
        fs::write(folder.path().join("adapter_model.safetensors"), weights)?;
        let around = &*AROUND;
        let file = AdapterFile::read(folder.path())?;
        let base =
            ModelFiles::from_memory("base", around.weights.as_slice(), &around.config, &around.tokenizer, "{}", "")?;
        Ok(file.validate("fuzz", &base.config)?)
    };
    read().is_ok()
}

fn adapter(bytes: &[u8]) -> bool {
    adapter_folder(AROUND.adapter_config.as_bytes(), bytes)
}

fn adapter_config(bytes: &[u8]) -> bool {
    adapter_folder(bytes, &AROUND.adapter)
}

fn template(bytes: &[u8]) -> Option<usize> {
    let tokenizer = Tokenizer::from_json("fuzz", &AROUND.tokenizer, "{}", Some(&text(bytes))).ok()?;
    let mut call = Message::new("assistant", "<think>\nhm\n</think>\n\n ok \n");
    call.extra.insert("tool_calls".into(), json!([{"function": {"name": "f", "arguments": {"a": [1, 2.5, null]}}}]));
    let messages = [Message::new("system", " Be brief. "), Message::new("user", "Hi <|im_end|> é"), call];
    let vars = Map::from_iter([("tools".to_owned(), json!([{"type": "function", "function": {"name": "f"}}]))]);
    tokenizer.render_chat(&messages, &vars, true).ok().map(|rendered| rendered.text.len())
}
