//! `retriever`: where passages come from, for runs in which the policy searches.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `retriever`. Where none of `index`, `url` and `web` is set, the embedded knowledge base is searched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrieverSection {
    /// Folder of an index (`folgore index`).
    pub index: Option<PathBuf>,
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
        p.range("timeout_s", 0.001, 600.0, self.timeout_s);
        p.range("cache", 0.0, 10_000_000.0, self.cache.into());
        p.range("max_query_bytes", 16.0, 1_048_576.0, self.max_query_bytes.into());
        p.range("max_passage_bytes", 16.0, 4_194_304.0, self.max_passage_bytes.into());
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
}
