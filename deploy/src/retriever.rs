//! The retriever that a configuration asks for, and what a run must know of it.

mod memory;
mod models;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use folgore_config::{Config, FusionRule, RankBy, RetrieverSection};
use folgore_dataset::countries;
use folgore_model::tokenizer::Tokenizer;
use folgore_retriever::{
    Bounds, By, Fusion, Index, IndexError, Listed, Plan, Remote, Retriever, Web, Weights,
    lexical::Bm25Settings,
    store::{EncoderRow, Filter, Store},
    web::KEY_VARIABLE,
};
use serde_json::{Value, json};

pub use memory::memory;
pub use models::{Named, encoder};

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
        let opened = open(folder, section).with_context(|| format!("retriever.index {}", folder.display()))?;
        return Ok(Arc::new(opened.index));
    }
    let passages = countries::passages(countries::countries());
    Ok(Arc::new(Listed::new("countries", passages, bm25(section))?))
}

/// An index that was opened, and what ranks it.
pub struct Opened {
    /// It.
    pub index: Index,
    /// What ranks, for people and scripts.
    pub ranked: Value,
}

/// Opens the index in `folder`, ranked and filtered as `section` says.
///
/// # Errors
/// If it cannot be opened or ranked so.
pub fn open(folder: &Path, section: &RetrieverSection) -> Result<Opened> {
    let store = Store::read(folder)?;
    let made_by = store.encoder()?;
    let by = ranked_by(section, made_by.as_ref());
    if by == By::Words && section.encoder.is_some() {
        bail!("an encoder is named, and ranking by words takes none");
    }
    let encoder = match made_by.filter(|_| by.takes_vectors()) {
        None if by.takes_vectors() => return Err(IndexError::NoVectors(store.name().to_owned()).into()),
        None => None,
        Some(row) => Some(match &section.encoder {
            Some(name) => encoder(name)?,
            None => encoder(&row.name)
                .context("the encoder that the index remembers; where it lies elsewhere now, name it with --encoder or retriever.encoder")?,
        }),
    };
    let reranker = section.rerank.as_deref().map(models::reranker).transpose()?;
    let plan = Plan {
        by,
        bm25: bm25(section),
        encoder: encoder.as_ref().map(|encoder| encoder.model.clone()),
        fusion: match section.fusion {
            FusionRule::ReciprocalRank => Fusion::default(),
            FusionRule::Weighted => Fusion::Weighted,
        },
        weights: Weights { words: section.weights.words as f32, vectors: section.weights.vectors as f32 },
        reranker: reranker.as_ref().map(|reranker| reranker.model.clone()),
        candidates: section.candidates as usize,
        ..Plan::default()
    };
    let ranked = json!({
        "by": by,
        "bm25": (by != By::Vectors).then(|| json!({ "k1": section.k1, "b": section.b })),
        "encoder": encoder.map(|encoder| encoder.name),
        "fusion": (by == By::Both).then_some(section.fusion),
        "weights": (by == By::Both).then_some(section.weights),
        "rerank": reranker.map(|reranker| reranker.name),
        "candidates": (by == By::Both || section.rerank.is_some()).then_some(section.candidates),
    });
    let filter = Filter(section.filter.clone());
    let filter = Some(&filter).filter(|filter| !filter.0.is_empty());
    Ok(Opened { index: Index::over(store, filter, |store| plan.rank(store))?, ranked })
}

/// What ranks an index whose vectors `made_by` made.
fn ranked_by(section: &RetrieverSection, made_by: Option<&EncoderRow>) -> By {
    match section.by {
        Some(RankBy::Words) => By::Words,
        Some(RankBy::Vectors) => By::Vectors,
        Some(RankBy::Both) => By::Both,
        // whoever names an encoder wants vectors
        None if made_by.is_some() || section.encoder.is_some() => By::Both,
        None => By::Words,
    }
}

/// Makes `section` name its models for ever, as [`Base::pin`](crate::base::Base::pin) does with the policy's.
///
/// # Errors
/// If a name is of nothing.
pub fn pin(section: &mut RetrieverSection) -> Result<()> {
    for name in [&mut section.encoder, &mut section.rerank].into_iter().flatten() {
        *name = models::pinned(name)?;
    }
    Ok(())
}

fn bm25(section: &RetrieverSection) -> Bm25Settings {
    Bm25Settings { k1: section.k1 as f32, b: section.b as f32, ..Bm25Settings::default() }
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
