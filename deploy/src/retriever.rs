//! The retriever that a configuration asks for, and what a run must know of it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use folgore_config::{Config, RetrieverSection};
use folgore_dataset::countries;
use folgore_model::tokenizer::Tokenizer;
use folgore_retriever::{Bounds, Index, Listed, Remote, Retriever, Web, lexical::Bm25Settings, web::KEY_VARIABLE};

/// Name of the corpus among the facts of a run.
pub const CORPUS: &str = "corpus";

/// The retriever of `section`.
///
/// # Errors
/// If it cannot be opened, with the setting that names it.
pub fn build(section: &RetrieverSection) -> Result<Arc<dyn Retriever>> {
    let deadline = deadline(section);
    let wrong = |key: &str, reason: String| anyhow::anyhow!("retriever.{key}: {reason}");
    if let Some(url) = &section.url {
        return Ok(Arc::new(Remote::new(url, deadline).map_err(|e| wrong("url", e))?));
    }
    if let Some(url) = &section.web {
        let key = std::env::var(KEY_VARIABLE).unwrap_or_default();
        return Ok(Arc::new(Web::new(url, &key, deadline).map_err(|e| wrong("web", e))?));
    }
    if let Some(folder) = &section.index {
        let index = Index::open(folder, Bm25Settings::default(), None);
        return Ok(Arc::new(index.with_context(|| format!("retriever.index {}", folder.display()))?));
    }
    let passages = countries::passages(countries::countries());
    Ok(Arc::new(Listed::new("countries", passages, Bm25Settings::default())?))
}

fn deadline(section: &RetrieverSection) -> Duration {
    Duration::from_secs_f64(section.timeout_s)
}

/// Its bounds.
pub fn bounds(section: &RetrieverSection) -> Bounds {
    Bounds {
        deadline: deadline(section),
        cache: section.cache as usize,
        query_bytes: section.max_query_bytes as usize,
        passage_bytes: section.max_passage_bytes as usize,
        ..Bounds::default()
    }
}

/// What is searched, as a fact of a run: the digest of the corpus, or where it is, if nobody can know what it holds.
pub fn corpus(retriever: &dyn Retriever) -> String {
    retriever.corpus().map_or_else(|| retriever.name().to_owned(), |digest| digest.short())
}

/// Refuses a base that would hide the tags of a search: what it says is read without its special tokens.
pub fn expect_tags(config: &Config, tokenizer: &Tokenizer) -> Result<()> {
    for name in config.rollout.search.tags.names() {
        for tag in [format!("<{name}>"), format!("</{name}>")] {
            let ids = tokenizer.encode_trusted(&tag).with_context(|| tag.clone())?;
            if !tokenizer.decode(&ids, true)?.contains(&tag) {
                bail!(
                    "rollout.search.tags: the base flags {tag:?} as a special token, so that nobody would see it in what \
                     the policy says: name other tags"
                );
            }
        }
    }
    Ok(())
}
