//! Which files of a repository are needed. Pickles never are.

use std::collections::BTreeSet;

use folgore_config::hub::stays_inside;
use serde_json::Value;

use crate::HubError;

/// Weights in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Where the shards of the weights are named.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Files of a pickle, by their ends.
const PICKLES: [&str; 4] = [".bin", ".pt", ".pth", ".ckpt"];
/// GGUF files that a hint names.
const NAMED: usize = 6;

/// What a repository is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Weights, shape and tokenizer.
    Model,
    /// The tokenizer alone.
    Tokenizer,
    /// A LoRA adapter.
    Adapter,
    /// An encoder or a reranker: weights in one file, shape, tokenizer, and what is said about pooling and prefixes.
    Encoder,
}

impl Need {
    /// Files without which nothing goes, small ones first; of a model's weights more is said by [`INDEX`].
    pub(crate) fn required(self) -> &'static [&'static str] {
        match self {
            Self::Model => &["config.json", "tokenizer.json"],
            Self::Tokenizer => &["tokenizer.json"],
            Self::Adapter => &["adapter_config.json", "adapter_model.safetensors"],
            Self::Encoder => &["config.json", "tokenizer.json", SINGLE],
        }
    }

    /// Files that some repositories have and that count where they are.
    pub(crate) fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Model => {
                &["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
            }
            Self::Tokenizer => &["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"],
            Self::Adapter => &[],
            Self::Encoder => &[
                "tokenizer_config.json",
                "modules.json",
                "1_Pooling/config.json",
                "sentence_bert_config.json",
                "config_sentence_transformers.json",
                "artifact.metadata",
            ],
        }
    }

    /// Whether the weights of a model are needed.
    pub(crate) fn weights(self) -> bool {
        self == Self::Model
    }
}

/// The shards that an index names.
///
/// # Errors
/// If it is no index, or names a file elsewhere than beside it. `place` names the index.
pub(crate) fn shards(place: &str, text: &[u8]) -> Result<BTreeSet<String>, HubError> {
    let untrusted = |what, expected, got: String| HubError::Untrusted { place: place.to_owned(), what, expected, got };
    let index: Value =
        serde_json::from_slice(text).map_err(|e| untrusted("content:", "a JSON object", e.to_string()))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| untrusted("weight_map:", "an object", "none".into()))?;
    let mut names = BTreeSet::new();
    for file in map.values() {
        let name = file.as_str().filter(|name| stays_inside(name) && name.ends_with(".safetensors"));
        let wrong = || untrusted("weight_map:", "safetensors files beside the index", file.to_string());
        names.insert(name.filter(|name| !name.contains('/')).ok_or_else(wrong)?.to_owned());
    }
    Ok(names)
}

/// What can be done about a repository that has `files`, but not the one that is needed.
pub(crate) fn hint(repo: &str, files: &[String]) -> String {
    let ends = |ends: &[&str]| -> Vec<&str> {
        let found = files.iter().filter(|file| ends.iter().any(|end| file.ends_with(end)));
        found.map(String::as_str).take(NAMED).collect()
    };
    let gguf = ends(&[".gguf"]);
    if !gguf.is_empty() {
        return format!("; it has GGUF files, which are named as {repo}:{}", gguf.join(&format!(", {repo}:")));
    }
    if let Some(tokenizer) =
        ends(&["tokenizer.model", "vocab.json"]).first().filter(|_| !ends(&[SINGLE, INDEX]).is_empty())
    {
        return format!(" (there is {tokenizer}: save the tokenizer anew with transformers)");
    }
    match ends(&PICKLES).first() {
        Some(pickle) => format!(
            " (there is {pickle}, a pickle: loading one would run code from it; some repositories have safetensors at refs/pr/N)"
        ),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_lie_beside_their_index() {
        let names = shards(
            "a/b",
            br#"{"weight_map": {"x": "m-2.safetensors", "y": "m-1.safetensors", "z": "m-2.safetensors"}}"#,
        );
        assert_eq!(names.unwrap().into_iter().collect::<Vec<_>>(), ["m-1.safetensors", "m-2.safetensors"]);
        for bad in ["../m.safetensors", "/m.safetensors", "x/m.safetensors", "m.bin", ""] {
            let index = serde_json::json!({"weight_map": {"x": bad}}).to_string();
            let told = shards("a/b", index.as_bytes()).unwrap_err().to_string();
            assert!(told.contains("a/b: weight_map") && told.contains(bad), "{told}");
        }
        assert!(shards("a/b", b"[]").is_err() && shards("a/b", b"{").is_err());
    }

    #[test]
    fn a_hint_names_the_way_out() {
        let of = |files: &[&str]| hint("a/b", &files.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>());
        assert!(of(&["x.Q4_0.gguf", "y.gguf"]).contains("a/b:x.Q4_0.gguf, a/b:y.gguf"));
        assert!(of(&["pytorch_model.bin"]).contains("pickle"));
        assert!(of(&["tokenizer.model", "model.safetensors"]).contains("save the tokenizer anew"));
        assert_eq!(of(&["README.md"]), "");
    }
}
