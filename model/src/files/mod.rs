//! Reading and writing what others read and write.
//!
//! [`open`] takes a Hugging Face folder or a GGUF file and gives a [`ModelFiles`]: the shape, the weights under Hugging Face
//! names, the tokenizer with its chat template. [`safetensors`] and [`peft`] also write; [`atomic`] is how every file is
//! written. Files are untrusted: counts, lengths and offsets are checked against the file before memory is taken, and
//! pickles are refused.

pub mod atomic;
pub(crate) mod bitsandbytes;
mod bytes;
pub(crate) mod config_json;
mod family;
pub(crate) mod fault;
mod fingerprint;
mod folder;
pub mod gguf;
mod held;
pub mod peft;
pub mod random;
pub mod safetensors;

use std::{borrow::Cow, path::Path, sync::Arc};

use folgore_protocol::Digest;

use crate::{ModelConfig, ModelError, TensorSource, tokenizer::Tokenizer};
pub(crate) use bytes::{Bytes, read_text, read_text_if_there};
pub(crate) use held::nf4_block;
pub use held::{Held, NestedScales, is_linear};

/// A model as its files describe it; no weight is read yet.
pub struct ModelFiles {
    /// The shape.
    pub config: ModelConfig,
    /// The weights.
    pub tensors: Box<dyn TensorSource + Send + Sync>,
    /// Text and ids, and the chat template.
    pub tokenizer: Arc<Tokenizer>,
    /// Where it came from, for people.
    pub origin: String,
    /// Identity of the weights and the shape; how it is made is said in `files/fingerprint.rs`.
    pub digest: Digest,
}

impl std::fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelFiles").field("origin", &self.origin).field("config", &self.config).finish_non_exhaustive()
    }
}

impl ModelFiles {
    /// A model whose files are in memory: `weights` is a safetensors file, the others are the texts of `config.json`,
    /// `tokenizer.json`, `tokenizer_config.json` (may be `{}`) and the chat template (may be empty).
    pub fn from_memory(
        name: &str,
        weights: impl Into<Cow<'static, [u8]>>,
        config: &str,
        tokenizer: &str,
        tokenizer_config: &str,
        chat_template: &str,
    ) -> Result<Self, ModelError> {
        let config = config_json::parse(name, config, None)?;
        let file = safetensors::SafetensorsFile::memory(name, weights.into(), safetensors::Limits::WEIGHTS)?;
        let template = Some(chat_template).filter(|text| !text.is_empty());
        let tokenizer = Arc::new(Tokenizer::from_json(name, tokenizer, tokenizer_config, template)?);
        folder::Shards::single(file)?.into_model(config, tokenizer, name.to_owned())
    }
}

/// Opens a Hugging Face folder or a GGUF file.
pub fn open(path: &Path) -> Result<ModelFiles, ModelError> {
    match kind(path)? {
        Kind::Folder => folder::open(path),
        Kind::Gguf => gguf::open(path),
    }
}

/// Opens only the tokenizer of a folder (which needs no weights) or of a GGUF file.
pub fn open_tokenizer(path: &Path) -> Result<Arc<Tokenizer>, ModelError> {
    match kind(path)? {
        Kind::Folder => Tokenizer::from_folder(path).map(Arc::new),
        Kind::Gguf => gguf::open_tokenizer(path).map(Arc::new),
    }
}

enum Kind {
    Folder,
    Gguf,
}

fn kind(path: &Path) -> Result<Kind, ModelError> {
    if path.is_dir() {
        return Ok(Kind::Folder);
    }
    let file = Bytes::open(path)?;
    let magic = file.read_at(0, file.len.min(4) as usize)?;
    if magic == b"GGUF" {
        return Ok(Kind::Gguf);
    }
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match extension.as_str() {
        "bin" | "pt" | "pth" | "ckpt" | "pkl" => Err(refuse_pickle(path)),
        "safetensors" => {
            Err(fault::invalid(path.display(), "path", "the folder that also holds config.json", "one weights file"))
        }
        _ => {
            let got = format!("a file that begins with {magic:02x?}");
            Err(fault::invalid(path.display(), "format", "a Hugging Face folder or a GGUF file", got))
        }
    }
}

fn refuse_pickle(path: &Path) -> ModelError {
    let hint = "loading it would run code from it; convert it to safetensors (in transformers: save_pretrained) where you trust it";
    fault::unsupported(path.display(), "a pickle file", hint)
}

/// Added tokens without a row that a tokenizer may have.
const MOST_ROWLESS: usize = 16;

/// A tokenizer may know fewer ids than the embedding has rows, by the padding that makes the number of rows round; and a few
/// added tokens that have no row (Gemma's picture token in models without pictures), which whoever computes ids refuses.
fn check_vocabulary(place: &str, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<(), ModelError> {
    let (rows, ids) = (config.vocab_size, tokenizer.vocab_size());
    let padding = rows.saturating_sub(ids);
    let plausible = padding < 64 || (padding <= 1024 && padding * 16 <= rows);
    let rowless = tokenizer.added_tokens().keys().filter(|id| **id as usize >= rows).count();
    if ids.saturating_sub(rows) == rowless && rowless <= MOST_ROWLESS && plausible {
        return Ok(());
    }
    let expected = format!("the model's {rows} ids, or a little fewer");
    Err(fault::invalid(place, "tokenizer's vocabulary (is it this model's tokenizer?)", expected, format!("{ids} ids")))
}

/// The end ids of the tokenizer end a generation too (chat models end turns with one that `config.json` may not name).
fn merge_end_ids(config: &mut ModelConfig, tokenizer: &Tokenizer) {
    for id in tokenizer.eos_ids() {
        if !config.eos_token_ids.contains(id) {
            config.eos_token_ids.push(*id);
        }
    }
    config.bos_token_id = config.bos_token_id.or(tokenizer.bos());
}
