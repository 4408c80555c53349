//! `retriever`: where passages come from, for runs in which the policy searches.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::Problems;

/// What the chunks of an index are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankBy {
    /// Words: BM25.
    Words,
    /// Vectors, as the index's encoder makes them.
    Vectors,
    /// Words and vectors, fused.
    Both,
}

/// How words and vectors become one ranking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FusionRule {
    /// By their places: `weight / (60 + rank)`, added up.
    #[default]
    ReciprocalRank,
    /// By their scores, each ranking's brought to 0 to 1, times the weights.
    Weighted,
}

/// What each ranking counts where both are fused.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FusionWeights {
    /// Words.
    pub words: f64,
    /// Vectors.
    pub vectors: f64,
}

impl Default for FusionWeights {
    fn default() -> Self {
        Self { words: 1.0, vectors: 1.0 }
    }
}

/// The section `retriever`. Where none of `index`, `url` and `web` is set, the embedded knowledge base is searched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrieverSection {
    /// Folder of an index (`folgore index`).
    pub index: Option<PathBuf>,
    /// What the index is ranked by; without it by both where the index has vectors, else by words.
    pub by: Option<RankBy>,
    /// Encoder of the index, where it lies elsewhere than when the index was made: `hashed`, a folder, or a name on the hub. It must be
    /// the same encoder.
    pub encoder: Option<String>,
    /// How words and vectors are fused.
    pub fusion: FusionRule,
    /// What they weigh.
    pub weights: FusionWeights,
    /// Cross-encoder or ColBERT that looks at the best again: a folder, or a name on the hub.
    pub rerank: Option<String>,
    /// Passages that are fused of each ranking and looked at again; as many as are asked for, at least.
    pub candidates: u32,
    /// BM25: how much a word's second occurrence adds.
    pub k1: f64,
    /// BM25: how much long chunks are held back, 0 to 1.
    pub b: f64,
    /// Metadata that documents must have: values, or beginnings that end in `*`.
    pub filter: BTreeMap<String, String>,
    /// Address of a server with the interface of Search-R1's: `http://host:8000/retrieve`.
    pub url: Option<String>,
    /// Address of a web search with the interface of Serper's; its key is read from SERPER_API_KEY.
    pub web: Option<String>,
    /// Searches are asked of retriever workers (`folgore worker --role retriever`) and not answered where samples are made.
    pub remote: bool,
    /// Seconds that a search may take.
    pub timeout_s: f64,
    /// Answers that are kept, each for a query that may come again.
    pub cache: u32,
    /// Most bytes of a query that are searched for.
    pub max_query_bytes: u32,
    /// Most bytes of a passage.
    pub max_passage_bytes: u32,
}

impl Default for RetrieverSection {
    fn default() -> Self {
        Self {
            index: None,
            by: None,
            encoder: None,
            fusion: FusionRule::default(),
            weights: FusionWeights::default(),
            rerank: None,
            candidates: 50,
            k1: 1.5,
            b: 0.75,
            filter: BTreeMap::new(),
            url: None,
            web: None,
            remote: false,
            timeout_s: 30.0,
            cache: 4096,
            max_query_bytes: 8 << 10,
            max_passage_bytes: 64 << 10,
        }
    }
}

impl RetrieverSection {
    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(self.url.is_none() || self.web.is_none(), "web", "none where url is set", "both");
        let elsewhere = self.url.is_some() || self.web.is_some();
        p.expect(self.index.is_none() || !elsewhere, "index", "none where url or web is set", "both");
        for (key, url) in [("url", &self.url), ("web", &self.web)] {
            let Some(url) = url else { continue };
            let is_address = url.starts_with("http://") || url.starts_with("https://");
            p.expect(is_address, key, "an address that begins with http:// or https://", format_args!("{url:?}"));
        }
        self.check_ranking(p);
        p.range("timeout_s", 0.001, 600.0, self.timeout_s);
        p.range("cache", 0.0, 10_000_000.0, self.cache.into());
        p.range("max_query_bytes", 16.0, 1_048_576.0, self.max_query_bytes.into());
        p.range("max_passage_bytes", 16.0, 4_194_304.0, self.max_passage_bytes.into());
    }

    fn check_ranking(&self, p: &mut Problems) {
        p.range("candidates", 1.0, 10_000.0, self.candidates.into());
        p.range("k1", 0.0, 100.0, self.k1);
        p.range("b", 0.0, 1.0, self.b);
        let FusionWeights { words, vectors } = self.weights;
        p.range("weights.words", 0.0, 1e6, words);
        p.range("weights.vectors", 0.0, 1e6, vectors);
        p.expect(words + vectors != 0.0, "weights", "one that is above 0", "0 and 0");
        // what only an index has a use for
        let (plain, has_index) = (Self::default(), self.index.is_some());
        for (key, set) in [
            ("by", self.by.is_some()),
            ("encoder", self.encoder.is_some()),
            ("rerank", self.rerank.is_some()),
            ("filter", !self.filter.is_empty()),
            ("fusion", self.fusion != plain.fusion),
            ("weights", self.weights != plain.weights),
            ("candidates", self.candidates != plain.candidates),
        ] {
            p.expect(has_index || !set, key, "none where no index is searched", "one");
        }
        // whoever answers elsewhere ranks as it likes; the embedded facts are ranked by words
        let elsewhere = self.url.is_some() || self.web.is_some();
        for (key, got, or) in [("k1", self.k1, plain.k1), ("b", self.b, plain.b)] {
            p.expect(!elsewhere || got == or, key, "none where url or web is set", got);
        }
        let words_alone = self.by == Some(RankBy::Words);
        p.expect(!words_alone || self.encoder.is_none(), "encoder", "none where by is words", "one");
        let fused = self.fusion != plain.fusion || self.weights != plain.weights;
        let alone = self.by.is_some_and(|by| by != RankBy::Both);
        p.warn(fused && alone, "fusion", "nothing is fused: by names one ranking");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_source_and_it_is_an_address() {
        let wrong = |url: Option<&str>, web: Option<&str>| {
            let section = RetrieverSection {
                url: url.map(str::to_owned),
                web: web.map(str::to_owned),
                ..RetrieverSection::default()
            };
            let mut p = Problems::default();
            section.check(p.section("retriever"));
            p.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(wrong(None, None), "");
        assert_eq!(wrong(Some("http://127.0.0.1:8000/retrieve"), None), "");
        assert!(wrong(Some("http://a"), Some("https://b")).contains("retriever.web: expected none where url is set"));
        assert!(wrong(Some("127.0.0.1:8000"), None).contains("retriever.url: expected an address"));
    }

    #[test]
    fn an_index_is_ranked_and_nothing_else_is() {
        let told = |section: &str| {
            let yaml = format!("{{retriever: {section}, reward: [{{name: search_em}}]}}");
            match crate::load_text("a test", &yaml, &[""; 0]) {
                Ok(loaded) => loaded.warnings.join("; "),
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(
            told("{index: i, by: both, fusion: weighted, weights: {words: 0.3}, rerank: r, filter: {path: 'a*'}}"),
            ""
        );
        for (yaml, said) in [
            ("{by: both}", "retriever.by: expected none where no index is searched"),
            ("{rerank: r, url: 'http://a/b'}", "retriever.rerank: expected none where no index"),
            ("{url: 'http://a/b', k1: 1.2}", "retriever.k1: expected none where url or web is set, got 1.2"),
            ("{index: i, weights: {words: 0, vectors: 0}}", "retriever.weights: expected one that is above 0"),
            ("{index: i, b: 1.1}", "retriever.b: expected 0 to 1, got 1.1"),
            ("{index: i, candidates: 0}", "retriever.candidates: expected 1 to 10000"),
            ("{index: i, by: words, encoder: hashed}", "retriever.encoder: expected none where by is words"),
            ("{index: i, by: meaning}", "meaning"),
            ("{index: i, by: words, fusion: weighted}", "retriever.fusion: nothing is fused"),
        ] {
            let told = told(yaml);
            assert!(told.contains(said), "{yaml}: {told}");
        }
    }
}
