//! Passages that are held in memory and found by their words: a small corpus that comes with a program.

use folgore_actors::link::BoxFuture;
use folgore_protocol::{Digest, Passage, Passages, Search};

use crate::{
    ChunkId, Hit, Ranking, Retriever, SearchError,
    lexical::{Bm25, Bm25Settings, SettingsError},
};

/// A list of passages under BM25; a title counts as words of its passage.
pub struct Listed {
    name: String,
    digest: Digest,
    passages: Vec<Passage>,
    ranking: Bm25,
}

impl Listed {
    /// A corpus called `name` of `passages`, whose scores are not read.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn new(name: &str, passages: Vec<Passage>, settings: Bm25Settings) -> Result<Self, SettingsError> {
        let ranking = Bm25::new(settings)?;
        let mut written = format!("{settings:?}");
        for (i, Passage { id, title, text, .. }) in passages.iter().enumerate() {
            ranking.add(i as ChunkId, &format!("{title}\n{text}"));
            // lengths first, so that no text can look like the beginning of another
            written.push_str(&format!("{} {} {} {id}{title}{text}", id.len(), title.len(), text.len()));
        }
        Ok(Self { name: name.to_owned(), digest: Digest::of(written.as_bytes()), passages, ranking })
    }

    fn find(&self, search: &Search) -> Result<Passages, SearchError> {
        let hits = self.ranking.search(&[&search.query], search.top_k as usize, &|_| true)?;
        let passage = |Hit { chunk, score }: Hit| Some(Passage { score, ..self.passages.get(chunk as usize)?.clone() });
        Ok(Passages { passages: hits.into_iter().flatten().filter_map(passage).collect() })
    }
}

impl Retriever for Listed {
    fn name(&self) -> &str {
        &self.name
    }

    fn corpus(&self) -> Option<Digest> {
        Some(self.digest)
    }

    fn search<'a>(&'a self, queries: &'a [Search]) -> BoxFuture<'a, Vec<Result<Passages, SearchError>>> {
        Box::pin(async move { queries.iter().map(|search| self.find(search)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(texts: &[(&str, &str)]) -> Listed {
        let passage = |(i, (title, text)): (usize, &(&str, &str))| Passage {
            id: i.to_string(),
            title: (*title).to_owned(),
            text: (*text).to_owned(),
            score: 0.0,
        };
        Listed::new("test", texts.iter().enumerate().map(passage).collect(), Bm25Settings::default()).unwrap()
    }

    #[tokio::test]
    async fn passages_are_found_by_title_and_text() {
        let corpus = [("Chad", "capital: N'Djamena"), ("Peru", "capital: Lima"), ("Peru", "currency: PEN")];
        let found =
            listed(&corpus).search(&[Search { query: "Peru capital".into(), top_k: 2 }]).await.remove(0).unwrap();
        let ids: Vec<&str> = found.passages.iter().map(|p| p.id.as_str()).collect();
        assert_eq!(ids[0], "1");
        assert_eq!(ids.len(), 2);
        assert!(found.passages[0].score > found.passages[1].score && found.passages[1].score > 0.0);
        assert_eq!(listed(&corpus).corpus(), listed(&corpus).corpus());
        assert_ne!(listed(&corpus).corpus(), listed(&corpus[..2]).corpus());
        assert_ne!(listed(&[("a", "bc")]).corpus(), listed(&[("ab", "c")]).corpus());
    }
}
