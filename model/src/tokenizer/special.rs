//! The special tokens and the template that come beside a `tokenizer.json`.

use serde_json::{Value, json};

/// Tokens by role, as texts, and the chat template.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SpecialTokens {
    pub(crate) bos: Option<String>,
    /// The first is the one that templates see as `eos_token`.
    pub(crate) eos: Vec<String>,
    pub(crate) unk: Option<String>,
    pub(crate) pad: Option<String>,
    pub(crate) chat_template: Option<String>,
}

impl SpecialTokens {
    /// Reads `tokenizer_config.json` (an object; may be empty), then `special_tokens_map.json` for what it leaves out.
    pub(crate) fn from_configs(config: &Value, map: &Value) -> Self {
        let token = |key: &str| [config, map].into_iter().find_map(|object| content(object.get(key)?));
        Self {
            bos: token("bos_token"),
            eos: token("eos_token").into_iter().collect(),
            unk: token("unk_token"),
            pad: token("pad_token"),
            chat_template: config.get("chat_template").and_then(template),
        }
    }

    /// Names and texts of the variables that a template sees.
    pub(crate) fn variables(&self) -> [(&'static str, Option<&str>); 4] {
        [
            ("bos_token", self.bos.as_deref()),
            ("eos_token", self.eos.first().map(String::as_str)),
            ("unk_token", self.unk.as_deref()),
            ("pad_token", self.pad.as_deref()),
        ]
    }

    pub(crate) fn config_json(&self) -> String {
        let mut value = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
        for (name, token) in self.variables() {
            if let Some(token) = token {
                value[name] = json!(token);
            }
        }
        if let Some(template) = &self.chat_template {
            value["chat_template"] = json!(template);
        }
        format!("{value:#}\n")
    }
}

/// A token is a text, or an object that describes it.
fn content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// A template is a text, or a list of named ones of which `default` counts.
fn template(value: &Value) -> Option<String> {
    let named = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    text(value).or_else(|| text(value.as_array()?.iter().find(named)?.get("template")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_are_read() {
        let config = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null,
            "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
        let map = json!({"eos_token": "</s>", "bos_token": "ignored"});
        let special = SpecialTokens::from_configs(&config, &map);
        assert_eq!((special.bos.as_deref(), special.eos.as_slice()), (Some("<s>"), ["</s>".to_owned()].as_slice()));
        assert_eq!(special.chat_template.as_deref(), Some("d"));
        let written: Value = serde_json::from_str(&special.config_json()).unwrap();
        assert_eq!(SpecialTokens::from_configs(&written, &json!({})), special);
    }
}
