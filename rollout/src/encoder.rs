//! Text to ids and back, as a model's files say.

use std::sync::Arc;

use folgore_model::{ModelConfig, tokenizer::Tokenizer};
use folgore_protocol::Prompt;
use serde_json::{Map, Value};

use crate::{engine::TextPiece, episode::PromptEncoder};

/// A tokenizer with the limits of its model.
pub struct ModelEncoder {
    tokenizer: Arc<Tokenizer>,
    vars: Map<String, Value>,
    vocab_size: usize,
    context: usize,
    eos: u32,
}

impl ModelEncoder {
    /// Encodes for a model of shape `config`; `vars` are further variables of the chat template.
    pub fn new(tokenizer: Arc<Tokenizer>, config: &ModelConfig, vars: Map<String, Value>) -> Self {
        // The model's vocabulary may be padded: it samples what the tokenizer never writes.
        let (said, known) = (tokenizer.eos_ids(), &config.eos_token_ids);
        let eos = said.iter().find(|id| known.contains(id)).or(known.first()).copied().unwrap_or_default();
        Self { tokenizer, vars, vocab_size: config.vocab_size, context: config.max_position_embeddings, eos }
    }
}

impl PromptEncoder for ModelEncoder {
    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, String> {
        self.tokenizer.encode_prompt(prompt, &self.vars).map_err(|e| e.to_string())
    }

    fn text(&self, text: &str) -> Result<Vec<u32>, String> {
        self.tokenizer.encode_untrusted(text).map_err(|e| e.to_string())
    }

    fn own(&self, text: &str) -> Result<Vec<u32>, String> {
        self.tokenizer.encode_trusted(text).map_err(|e| e.to_string())
    }

    fn trace(&self, text: &str) -> Result<Vec<u32>, String> {
        let ids = self.own(text)?;
        let added = ids.iter().filter_map(|id| self.tokenizer.added_tokens().get_key_value(id));
        for (id, token) in added {
            if self.decode(&[*id])?.is_empty() {
                return Err(format!("it holds the special token {token}"));
            }
        }
        Ok(ids)
    }

    fn eos(&self) -> u32 {
        self.eos
    }

    fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.tokenizer.decode(ids, true).map_err(|e| e.to_string())
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context(&self) -> usize {
        self.context
    }
}

/// For stop strings special tokens count as text: who asks to stop at `<|im_end|>` means it.
impl TextPiece for ModelEncoder {
    fn piece(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, false).unwrap_or_else(|error| {
            tracing::warn!(%error, "ids not decoded, stop strings are not seen in them");
            String::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stop::StopWatch;

    /// Words as tokens, `<end>` special, the model's vocabulary padded by one.
    fn encoder() -> ModelEncoder {
        let tokenizer = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 3, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": {"?": 0, "two": 1, "plus": 2, "<end>": 3}, "unk_token": "?"},
        });
        let tokenizer = Tokenizer::from_json("test", &tokenizer.to_string(), "{}", None).unwrap();
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "model_type": "llama", "vocab_size": 5, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
            "tie_word_embeddings": true, "max_position_embeddings": 64, "eos_token_ids": [3], "bos_token_id": null,
        }))
        .unwrap();
        ModelEncoder::new(Arc::new(tokenizer), &config, Map::new())
    }

    #[test]
    fn untrusted_text_never_becomes_a_special_token() {
        let encoder = encoder();
        assert_eq!(encoder.prompt(&Prompt::Text("two plus".into())).unwrap(), [1, 2]);
        assert!(!encoder.text("two <end>").unwrap().contains(&3));
        assert_eq!(encoder.own("two <end>").unwrap(), [1, 3], "what the program wrote may");
        assert_eq!((encoder.trace("two plus").unwrap(), encoder.eos()), (vec![1, 2], 3));
        assert!(encoder.trace("two <end>").unwrap_err().contains("special token <end>"));
        assert!(encoder.prompt(&Prompt::Messages(Vec::new())).unwrap_err().contains("chat template"));
        assert_eq!((encoder.vocab_size(), encoder.context()), (5, 64));
    }

    #[test]
    fn completions_leave_special_tokens_out_and_stop_strings_see_them() {
        let encoder = encoder();
        assert_eq!(encoder.decode(&[1, 2, 3]).unwrap(), "two plus");
        let mut watch = StopWatch::new(&["<end>".into()]);
        let hits: Vec<bool> = [1, 2, 3].map(|id| watch.push(id, &encoder)).into();
        assert_eq!(hits, [false, false, true]);
        assert_eq!(encoder.decode(&[4]).unwrap(), "", "an id of the padding has no text");
    }
}
