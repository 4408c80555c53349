//! Late interaction (ColBERT): query and passage are encoded token by token, apart; each token of the query looks for the one of the
//! passage that is nearest to it, and the products add up.

use std::path::Path;

use folgore_model::backend::CpuBuf;
use folgore_protocol::Digest;

use super::Reranker;
use crate::{
    encode::{
        EncodeError,
        bert::{Bert, Linear, Tokens, Vocabulary, json},
    },
    vectors::dot,
};

/// A BERT with a projection, from a folder as ColBERT saves it (`linear.weight`, `artifact.metadata`).
///
/// As there: a query is `[CLS] [Q] tokens [SEP]`, filled with `[MASK]` that no token looks at but that have vectors of their own; a
/// passage is `[CLS] [D] tokens [SEP]`, of which punctuation is left out when products are made. `[Q]` and `[D]` are `[unused0]` and
/// `[unused1]` unless the metadata names others.
pub struct LateInteraction {
    name: String,
    bert: Bert,
    vocabulary: Vocabulary,
    projection: Linear,
    settings: Settings,
}

struct Settings {
    dim: usize,
    query_tokens: usize,
    passage_tokens: usize,
    /// Whether tokens of a query look at the filling.
    see_masks: bool,
    /// `[CLS]`, `[SEP]`, `[MASK]`, what marks a query, what marks a passage.
    ids: [u32; 5],
    /// Ids of passages that have no say, sorted.
    skipped: Vec<u32>,
}

impl LateInteraction {
    /// Opens a folder.
    pub fn open(folder: &Path) -> Result<Self, EncodeError> {
        let fault = |what: String| EncodeError { encoder: folder.display().to_string(), what };
        let bert = Bert::open(folder)?;
        let vocabulary = bert.vocabulary(folder, bert.max_tokens())?;
        let dim = bert.rows_of("linear.weight").ok_or_else(|| fault("tensor linear.weight is not there".into()))?;
        let projection = bert.head("linear", dim, bert.width(), false)?;
        let metadata = json(folder, "artifact.metadata").map_err(fault)?;
        let number =
            |name: &str, or: usize| metadata[name].as_u64().map_or(or, |n| n as usize).clamp(4, bert.max_tokens());
        let token = |name: &str, or: &str| vocabulary.id(metadata[name].as_str().unwrap_or(or));
        let punctuation = if metadata["mask_punctuation"].as_bool().unwrap_or(true) {
            "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~".chars().map(String::from).collect()
        } else {
            Vec::new()
        };
        let mut skipped: Vec<u32> = punctuation.iter().filter_map(|mark| vocabulary.id(mark).ok()).collect();
        skipped.sort_unstable();
        let ids = [
            vocabulary.id("[CLS]")?,
            vocabulary.id("[SEP]")?,
            vocabulary.id("[MASK]")?,
            token("query_token_id", "[unused0]")?,
            token("doc_token_id", "[unused1]")?,
        ];
        let settings = Settings {
            dim,
            query_tokens: number("query_maxlen", 32),
            passage_tokens: number("doc_maxlen", 220),
            see_masks: metadata["attend_to_mask_tokens"].as_bool().unwrap_or(false),
            ids,
            skipped,
        };
        let name = folder.file_name().map_or_else(|| "colbert".into(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, bert, vocabulary, projection, settings })
    }

    /// Marked and cut to `most`, without what fills a query.
    fn marked(&self, text: &str, mark: u32, most: usize) -> Result<Tokens, EncodeError> {
        let [cls, sep, ..] = self.settings.ids;
        let mut ids = vec![cls, mark];
        ids.extend(self.vocabulary.plain(text)?.into_iter().take(most - 3));
        ids.push(sep);
        Ok(Tokens { kinds: vec![0; ids.len()], seen: ids.len(), ids })
    }

    fn query(&self, text: &str) -> Result<Tokens, EncodeError> {
        let [_, _, mask, mark, _] = self.settings.ids;
        let mut tokens = self.marked(text, mark, self.settings.query_tokens)?;
        tokens.ids.resize(self.settings.query_tokens, mask);
        tokens.kinds.resize(self.settings.query_tokens, 0);
        if self.settings.see_masks {
            tokens.seen = tokens.ids.len();
        }
        Ok(tokens)
    }

    /// A vector of length 1 for each token whose hidden state is in `states`.
    fn project(&self, states: &[f32]) -> CpuBuf {
        let mut vectors = self.bert.apply(&self.projection, &self.bert.upload(states));
        vectors.chunks_exact_mut(self.settings.dim).for_each(crate::encode::normalise);
        vectors
    }

    fn score(&self, query: &[f32], passage: &[f32], ids: &[u32]) -> f32 {
        let dim = self.settings.dim;
        let heard: Vec<&[f32]> = passage
            .chunks_exact(dim)
            .zip(ids)
            .filter(|(_, id)| self.settings.skipped.binary_search(id).is_err())
            .map(|(vector, _)| vector)
            .collect();
        let nearest = |token: &[f32]| heard.iter().map(|other| dot(token, other)).fold(f32::NEG_INFINITY, f32::max);
        query.chunks_exact(dim).map(nearest).sum()
    }
}

impl Reranker for LateInteraction {
    fn name(&self) -> &str {
        &self.name
    }

    fn digest(&self) -> Digest {
        self.bert.digest()
    }

    fn scores(&self, query: &str, passages: &[&str]) -> Result<Vec<f32>, EncodeError> {
        let query = &self.bert.each(&[self.query(query)?], |_, states| self.project(states))[0];
        let [.., mark] = self.settings.ids;
        let tokens: Vec<Tokens> = passages
            .iter()
            .map(|text| self.marked(text, mark, self.settings.passage_tokens))
            .collect::<Result<_, _>>()?;
        Ok(self.bert.each(&tokens, |i, states| self.score(query, &self.project(states), &tokens[i].ids)))
    }
}
