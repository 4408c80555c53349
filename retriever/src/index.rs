//! A store with a ranking over it: what answers queries.

use std::{path::Path, sync::Arc};

use folgore_actors::link::BoxFuture;
use folgore_protocol::{Digest, Passage, Passages, Search};

use crate::{
    Document, Hit, Plan, Ranked, Ranking, Retriever, SearchError,
    chunk::ChunkSettingsError,
    encode::EncodeError,
    encoding,
    lexical::{Bm25, Bm25Settings, SettingsError},
    store::{Batch, ChunkSet, ChunkText, EncoderRow, Filter, Store, StoreError},
    vectors::VectorsError,
};

/// Why an index cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ranking.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// How documents are to be cut.
    #[error(transparent)]
    Chunks(#[from] ChunkSettingsError),
    /// The encoder.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The vectors.
    #[error(transparent)]
    Vectors(#[from] VectorsError),
    /// Two documents have one id.
    #[error("document {0:?} is there twice")]
    Twice(String),
    /// A setting of the plan.
    #[error("ranking by words and vectors: {0}")]
    Plan(String),
    /// It is to be ranked by vectors, and there are none.
    #[error("{0}: it has no vectors: index again with --encoder, or rank by words")]
    NoVectors(String),
    /// It is to be ranked by vectors, and nothing makes those of queries.
    #[error("{0}: ranking by vectors needs the encoder that made them")]
    NoEncoder(String),
    /// Its vectors cannot be compared with those of the encoder that is there.
    #[error(
        "{index}: its vectors are of the encoder {} ({}, {} numbers), and {} ({}, {} numbers) is another one: name that one, or index again \
         with --encoder",
        made_by.name, made_by.digest.short(), made_by.dim, given.name, given.digest.short(), given.dim
    )]
    OtherEncoder {
        /// The index.
        index: String,
        /// What made its vectors.
        made_by: Box<EncoderRow>,
        /// What was given.
        given: Box<EncoderRow>,
    },
    /// Indexing was cut off.
    #[error("{index}: {what}: indexing was cut off; index again, or rank by words")]
    Behind {
        /// The index.
        index: String,
        /// What is not there.
        what: String,
    },
}

/// Documents that can be searched. Cheap to clone.
#[derive(Clone)]
pub struct Index(Arc<Inner>);

struct Inner {
    name: String,
    store: Arc<Store>,
    ranking: Arc<dyn Ranking>,
    digest: Digest,
    allowed: Option<ChunkSet>,
}

/// BM25 over all chunks of `store`: their titles, headers and texts.
///
/// # Errors
/// If the settings mean nothing, or the store cannot be read.
pub fn bm25(store: &Store, settings: Bm25Settings) -> Result<Ranked, IndexError> {
    let ranking = Bm25::new(settings)?;
    store.each_chunk(|chunk| ranking.add(chunk.id, &chunk.ranked()))?;
    Ok(Ranked { ranking: Arc::new(ranking), name: format!("{settings:?}") })
}

impl Index {
    /// An index in memory over `documents`, by BM25 as it is by default.
    ///
    /// # Errors
    /// If two documents have one id.
    pub fn of(name: &str, documents: impl IntoIterator<Item = Document>) -> Result<Self, IndexError> {
        Self::in_memory(name, documents, &Plan::default())
    }

    /// An index in memory over `documents`, ranked as `plan` says; its encoder makes their vectors.
    ///
    /// # Errors
    /// If two documents have one id, they cannot be encoded, or the plan means nothing.
    pub fn in_memory(
        name: &str,
        documents: impl IntoIterator<Item = Document>,
        plan: &Plan,
    ) -> Result<Self, IndexError> {
        let encoder = plan.encoder.as_ref().filter(|_| plan.by.takes_vectors());
        let chunker = encoding::chunker(encoder, None, None)?;
        let store = Store::in_memory(name, chunker.settings())?;
        let mut batch = Batch::default();
        let mut ids = std::collections::HashSet::new();
        for document in documents {
            if !ids.insert(document.id.clone()) {
                return Err(IndexError::Twice(document.id));
            }
            let chunks = chunker.chunks(&document);
            batch.put("", document, chunks);
        }
        store.apply(batch)?;
        if let Some(encoder) = encoder {
            store.set_encoder(Some(&EncoderRow::of(encoder.name(), &**encoder)))?;
            encoding::encode(&store, &**encoder, &mut |_, _| ())?;
        }
        Self::over(store, None, |store| plan.rank(store))
    }

    /// The index in `folder`, as `folgore index` made it, ranked as `plan` says.
    ///
    /// # Errors
    /// If there is none, another process writes it, it is damaged, or it cannot be ranked so.
    pub fn open(folder: &Path, plan: &Plan, filter: Option<&Filter>) -> Result<Self, IndexError> {
        Self::over(Store::read(folder)?, filter, |store| plan.rank(store))
    }

    /// An index over `store` with the ranking that `rank` builds from it. Only documents that `filter` lets through are found.
    ///
    /// # Errors
    /// If the store cannot be read, or `rank` fails.
    pub fn over(
        store: Store,
        filter: Option<&Filter>,
        rank: impl FnOnce(&Arc<Store>) -> Result<Ranked, IndexError>,
    ) -> Result<Self, IndexError> {
        let store = Arc::new(store);
        let Ranked { ranking, name } = rank(&store)?;
        let allowed = filter.map(|filter| store.matching(filter)).transpose()?;
        let asked = filter.map(|filter| format!("{:?}", filter.0)).unwrap_or_default();
        let digest = Digest::of(format!("{}\n{name}\n{asked}", store.digest()?).as_bytes());
        Ok(Self(Arc::new(Inner { name: store.name().to_owned(), store, ranking, digest, allowed })))
    }

    /// What it searches.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The best chunks for a query with their scores, best first.
    ///
    /// # Errors
    /// If the ranking fails, or the store cannot be read.
    pub fn find(&self, query: &str, top_k: usize) -> Result<Vec<(ChunkText, f32)>, SearchError> {
        Ok(self.find_all(&[query], top_k)?.into_iter().flatten().collect())
    }

    /// The same for several queries, which are ranked together.
    ///
    /// # Errors
    /// As [`Index::find`]: one of them is enough.
    pub fn find_all(&self, queries: &[&str], top_k: usize) -> Result<Vec<Vec<(ChunkText, f32)>>, SearchError> {
        let Inner { store, ranking, allowed, .. } = &*self.0;
        let lets = |chunk| allowed.as_ref().is_none_or(|set| set.holds(chunk));
        let texts = |hits: Vec<Hit>| {
            let mut found = Vec::with_capacity(hits.len());
            for Hit { chunk, score } in hits {
                // it may have gone since
                found.extend(store.chunk(chunk)?.map(|text| (text, score)));
            }
            Ok(found)
        };
        ranking.search(queries, top_k, &lets)?.into_iter().map(texts).collect()
    }

    /// Answers in order. Queries that ask for as many passages are ranked together; where that fails, each by itself, so that a query that
    /// cannot be answered costs no other its answer.
    fn answers(&self, asked: &[Search]) -> Vec<Result<Passages, SearchError>> {
        let mut answers: Vec<(usize, Result<Passages, SearchError>)> = Vec::with_capacity(asked.len());
        let mut order: Vec<usize> = (0..asked.len()).collect();
        order.sort_by_key(|&i| asked[i].top_k);
        for alike in order.chunk_by(|&a, &b| asked[a].top_k == asked[b].top_k) {
            let queries: Vec<&str> = alike.iter().map(|&i| asked[i].query.as_str()).collect();
            let top_k = asked[alike[0]].top_k as usize;
            let passages = |found: Vec<(ChunkText, f32)>| Passages {
                passages: found.into_iter().map(|(chunk, score)| passage(chunk, score)).collect(),
            };
            match self.find_all(&queries, top_k) {
                Ok(found) => {
                    answers.extend(alike.iter().copied().zip(found.into_iter().map(|found| Ok(passages(found)))))
                }
                Err(error) if alike.len() == 1 => answers.push((alike[0], Err(error))),
                Err(_) => {
                    let alone = |&i: &usize| (i, self.find(&asked[i].query, top_k).map(passages));
                    answers.extend(alike.iter().map(alone));
                }
            }
        }
        answers.sort_by_key(|(i, _)| *i);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}

/// A chunk as others see it: the id of its document, with its number if it has several, and what it is about beside the title.
pub fn passage(chunk: ChunkText, score: f32) -> Passage {
    let ChunkText { document, title, place: (number, count), chunk, text, .. } = chunk;
    let id = if count == 1 { document } else { format!("{document}#{number}") };
    let title = match chunk.header {
        header if header.is_empty() => title,
        // the first heading of a page is often its title
        header if title.is_empty() || header.starts_with(&title) => header,
        header => format!("{title} > {header}"),
    };
    Passage { id, title, text, score }
}

impl Retriever for Index {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn corpus(&self) -> Option<Digest> {
        Some(self.0.digest)
    }

    fn search<'a>(&'a self, queries: &'a [Search]) -> BoxFuture<'a, Vec<Result<Passages, SearchError>>> {
        let (index, asked) = (self.clone(), queries.to_vec());
        Box::pin(async move {
            let count = asked.len();
            let answers = tokio::task::spawn_blocking(move || index.answers(&asked));
            answers.await.unwrap_or_else(|error| {
                let failed = SearchError::Unavailable(format!("{}: the search ended early: {error}", self.0.name));
                vec![Err(failed); count]
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Kind, chunk::Chunker};

    fn fact(id: &str, title: &str, text: &str, region: &str) -> Document {
        Document {
            id: id.into(),
            title: title.into(),
            text: text.into(),
            kind: Kind::Passage,
            metadata: BTreeMap::from([("region".to_owned(), region.to_owned())]),
        }
    }

    fn facts() -> Vec<Document> {
        vec![
            fact("1", "Chad", "The capital of Chad is N'Djamena.", "Africa"),
            fact("2", "Peru", "The capital of Peru is Lima.", "America"),
            fact("3", "Mali", "The capital of Mali is Bamako.", "Africa"),
        ]
    }

    #[tokio::test]
    async fn queries_are_answered_in_order_with_titles_and_texts() {
        let index = Index::of("facts", facts()).unwrap();
        let ask = |query: &str, top_k| Search { query: query.into(), top_k };
        let answers =
            index.search(&[ask("capital of Peru", 1), ask("Mali", 3), ask("unheard", 3), ask("capital", 0)]).await;
        let ids: Vec<Vec<&str>> =
            answers.iter().map(|a| a.as_ref().unwrap().passages.iter().map(|p| p.id.as_str()).collect()).collect();
        assert_eq!(ids, [vec!["2"], vec!["3"], vec![], vec![]]);
        let peru = &answers[0].as_ref().unwrap().passages[0];
        assert_eq!((peru.title.as_str(), peru.text.as_str()), ("Peru", "The capital of Peru is Lima."));
        assert_eq!(index.name(), "facts");
    }

    #[test]
    fn filters_hold_back_and_change_the_digest() {
        let index = |filter: Option<&Filter>| {
            let chunker = Chunker::default();
            let store = Store::in_memory("facts", chunker.settings()).unwrap();
            let mut batch = Batch::default();
            for document in facts() {
                let chunks = chunker.chunks(&document);
                batch.put("", document, chunks);
            }
            store.apply(batch).unwrap();
            Index::over(store, filter, |store| bm25(store, Bm25Settings::default())).unwrap()
        };
        let africa = Filter::default().with("region=Afr*").unwrap();
        let ids =
            |index: &Index| index.find("capital", 9).unwrap().into_iter().map(|(c, _)| c.document).collect::<Vec<_>>();
        assert_eq!(ids(&index(None)).len(), 3);
        assert_eq!(ids(&index(Some(&africa))), ["1", "3"]);
        assert_ne!(index(None).corpus(), index(Some(&africa)).corpus());
        assert_eq!(index(None).corpus(), Index::of("other name", facts()).unwrap().corpus());
    }

    #[test]
    fn a_document_that_is_there_twice_is_refused() {
        let twice = facts().into_iter().chain(facts());
        assert!(Index::of("facts", twice).err().unwrap().to_string().contains("\"1\" is there twice"));
    }
}
