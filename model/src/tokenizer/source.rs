//! A tokenizer from the files of a Hugging Face folder.

use std::path::Path;

use serde_json::{Value, json};

use super::{SpecialTokens, Tokenizer};
use crate::{
    ModelError,
    files::{fault, read_text, read_text_if_there},
};

const TOKENIZER_LIMIT: u64 = 64 << 20;
const CONFIG_LIMIT: u64 = 4 << 20;

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they are, `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja` (which wins over a template in the configuration).
    pub fn from_folder(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            let slow = ["tokenizer.model", "vocab.json"].into_iter().find(|name| folder.join(name).exists());
            let what = match slow {
                Some(name) => {
                    format!("tokenizer.json (there is only {name}: save the tokenizer anew with transformers)")
                }
                None => "tokenizer.json".into(),
            };
            return Err(fault::missing(folder.display(), what));
        }
        let place = path.display().to_string();
        let optional = |name: &str| read_text_if_there(&folder.join(name), CONFIG_LIMIT);
        let config = object(folder, "tokenizer_config.json", optional("tokenizer_config.json")?)?;
        let map = object(folder, "special_tokens_map.json", optional("special_tokens_map.json")?)?;
        let mut special = SpecialTokens::from_configs(&config, &map);
        if let Some(template) = optional("chat_template.jinja")? {
            special.chat_template = Some(template);
        }
        Self::build(&place, parse(&place, &read_text(&path, TOKENIZER_LIMIT)?)?, special)
    }

    /// Like [`Tokenizer::from_folder`] from texts; `place` is for errors, `config` may be `{}`.
    pub fn from_json(
        place: &str,
        tokenizer: &str,
        config: &str,
        chat_template: Option<&str>,
    ) -> Result<Self, ModelError> {
        let mut special = SpecialTokens::from_configs(&parse(place, config)?, &json!({}));
        if let Some(template) = chat_template {
            special.chat_template = Some(template.into());
        }
        Self::build(place, parse(place, tokenizer)?, special)
    }
}

fn parse(place: &str, text: &str) -> Result<Value, ModelError> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(fault::invalid(place, "content", "a JSON object", "another JSON value")),
        Err(e) => Err(fault::invalid(place, "content", "a JSON object", e)),
    }
}

fn object(folder: &Path, name: &str, text: Option<String>) -> Result<Value, ModelError> {
    text.map_or(Ok(json!({})), |text| parse(&folder.join(name).display().to_string(), &text))
}
