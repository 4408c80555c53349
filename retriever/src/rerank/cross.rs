//! Cross-encoders: query and passage go through the model together, and its first token says how well they fit.

use std::path::Path;

use folgore_protocol::Digest;

use super::Reranker;
use crate::encode::{
    EncodeError,
    bert::{Bert, Linear, Vocabulary},
};

/// A BERT with pooler and one logit, such as ms-marco-MiniLM, from a folder of transformers (`BertForSequenceClassification`).
/// Scores are logits.
pub struct CrossEncoder {
    name: String,
    bert: Bert,
    vocabulary: Vocabulary,
    pooler: Linear,
    classifier: Linear,
}

impl CrossEncoder {
    /// Opens a folder.
    pub fn open(folder: &Path) -> Result<Self, EncodeError> {
        let bert = Bert::open(folder)?;
        let width = bert.width();
        let pooler = bert.head("pooler.dense", width, width, true)?;
        let classifier = bert.head("classifier", 1, width, true)?;
        let vocabulary = bert.vocabulary(folder, bert.max_tokens())?;
        let name =
            folder.file_name().map_or_else(|| "cross-encoder".into(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, bert, vocabulary, pooler, classifier })
    }
}

impl Reranker for CrossEncoder {
    fn name(&self) -> &str {
        &self.name
    }

    fn digest(&self) -> Digest {
        self.bert.digest()
    }

    fn scores(&self, query: &str, passages: &[&str]) -> Result<Vec<f32>, EncodeError> {
        let tokens = self.vocabulary.pairs(query, passages)?;
        let width = self.bert.width();
        Ok(self.bert.each(&tokens, |_, states| {
            let mut pooled = self.bert.apply(&self.pooler, &self.bert.upload(&states[..width]));
            pooled.iter_mut().for_each(|x| *x = x.tanh());
            self.bert.apply(&self.classifier, &pooled)[0]
        }))
    }
}
