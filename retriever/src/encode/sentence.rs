//! Sentence encoders of the BERT family, from a folder as sentence-transformers saves it.

use std::path::Path;

use folgore_protocol::Digest;
use serde_json::Value;

use super::{
    EncodeError, Encoder,
    bert::{Bert, Vocabulary, json},
    normalise,
};

/// How the vectors of tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pooling {
    Mean,
    First,
    Largest,
}

/// A BERT with pooling, such as all-MiniLM-L6-v2, bge, e5 and gte in their BERT sizes.
///
/// `config.json`, `model.safetensors` and `tokenizer.json` are needed. Pooling, lengths and prefixes are read from `modules.json`,
/// `1_Pooling/config.json`, `sentence_bert_config.json`, `tokenizer_config.json` and `config_sentence_transformers.json`; without them
/// it is the mean over all tokens. A part of a model that is none of these is refused by name.
pub struct Sentence {
    name: String,
    bert: Bert,
    vocabulary: Vocabulary,
    pooling: Pooling,
    max_tokens: usize,
    /// Tokens that stand around every text.
    special_tokens: usize,
    prefixes: [String; 2],
}

impl Sentence {
    /// Opens a folder.
    pub fn open(folder: &Path) -> Result<Self, EncodeError> {
        let fault = |what: String| EncodeError { encoder: folder.display().to_string(), what };
        let bert = Bert::open(folder)?;
        let pooling = pooling(folder).map_err(fault)?;
        // Newer folders leave the length to the tokenizer, where it may be a number beyond all integers.
        let lengths = json(folder, "sentence_bert_config.json").map_err(fault)?;
        let tokenizer = json(folder, "tokenizer_config.json").map_err(fault)?;
        let wanted = lengths["max_seq_length"].as_f64().or(tokenizer["model_max_length"].as_f64());
        let max_tokens = wanted.map_or(usize::MAX, |n| n as usize).clamp(4, bert.max_tokens());
        let prompts = json(folder, "config_sentence_transformers.json").map_err(fault)?;
        let prompt = |names: &[&str]| {
            let found = names.iter().find_map(|name| prompts["prompts"][name].as_str());
            found.unwrap_or_default().to_owned()
        };
        let name = folder.file_name().map_or_else(|| "bert".into(), |name| name.to_string_lossy().into_owned());
        let vocabulary = bert.vocabulary(folder, max_tokens)?;
        let prefixes = [prompt(&["query"]), prompt(&["passage", "document"])];
        let special_tokens = vocabulary.texts(&[""])?.iter().map(|tokens| tokens.ids.len()).sum();
        Ok(Self { name, bert, vocabulary, pooling, max_tokens, special_tokens, prefixes })
    }

    fn pool(&self, states: &[f32]) -> Vec<f32> {
        let width = self.bert.width();
        let mut vector = match self.pooling {
            Pooling::First => states[..width].to_vec(),
            // Its length does not matter: the sum points where the mean does.
            Pooling::Mean => vec![0.0; width],
            Pooling::Largest => vec![f32::NEG_INFINITY; width],
        };
        let rows = states.chunks_exact(width);
        match self.pooling {
            Pooling::First => {}
            Pooling::Mean => rows.for_each(|row| vector.iter_mut().zip(row).for_each(|(v, x)| *v += x)),
            Pooling::Largest => rows.for_each(|row| vector.iter_mut().zip(row).for_each(|(v, x)| *v = v.max(*x))),
        }
        normalise(&mut vector);
        vector
    }
}

fn pooling(folder: &Path) -> Result<Pooling, String> {
    let modules = json(folder, "modules.json")?;
    let Some(modules) = modules.as_array() else { return Ok(Pooling::Mean) };
    let mut pooling = Pooling::Mean;
    for module in modules {
        let kind = module["type"].as_str().unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" | "Normalize" => {}
            "Pooling" => {
                let path = module["path"].as_str().unwrap_or("1_Pooling");
                pooling =
                    pooling_of(&json(folder, &format!("{path}/config.json"))?).map_err(|e| format!("{path}: {e}"))?;
            }
            _ => {
                return Err(format!(
                    "modules.json: {kind:?} is not known, only Transformer, Pooling and Normalize are"
                ));
            }
        }
    }
    Ok(pooling)
}

fn pooling_of(config: &Value) -> Result<Pooling, String> {
    let modes = config.as_object().into_iter().flatten();
    let on: Vec<&str> = modes
        .filter(|(name, value)| name.starts_with("pooling_mode") && value.as_bool() == Some(true))
        .map(|(name, _)| name.as_str())
        .collect();
    // Newer files name it in one word.
    match (&on[..], config["pooling_mode"].as_str()) {
        (["pooling_mode_mean_tokens"], _) | ([], Some("mean")) => Ok(Pooling::Mean),
        (["pooling_mode_cls_token"], _) | ([], Some("cls")) => Ok(Pooling::First),
        (["pooling_mode_max_tokens"], _) | ([], Some("max")) => Ok(Pooling::Largest),
        (modes, word) => Err(format!("pooling by {modes:?} {}, expected mean, cls or max", word.unwrap_or_default())),
    }
}

impl Encoder for Sentence {
    fn name(&self) -> &str {
        &self.name
    }

    fn dim(&self) -> usize {
        self.bert.width()
    }

    fn digest(&self) -> Digest {
        self.bert.digest()
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn count_tokens(&self, text: &str) -> usize {
        // What cannot be tokenized is reported when it is encoded; until then it counts as it is.
        self.vocabulary.plain(text).map_or(text.len(), |ids| ids.len())
    }

    fn counter(&self) -> String {
        self.vocabulary.digest().hex()
    }

    fn passage_tokens(&self) -> usize {
        let own = self.special_tokens + self.count_tokens(self.passage_prefix());
        self.max_tokens.saturating_sub(own)
    }

    fn query_prefix(&self) -> &str {
        &self.prefixes[0]
    }

    fn passage_prefix(&self) -> &str {
        &self.prefixes[1]
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError> {
        let tokens = self.vocabulary.texts(texts)?;
        Ok(self.bert.each(&tokens, |_, states| self.pool(states)))
    }
}
