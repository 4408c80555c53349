//! A retriever elsewhere: a server with the interface of Search-R1's, `POST /retrieve`.
//!
//! `{"queries": [..], "topk": k, "return_scores": true}` is answered with `{"result": [[{"document": .., "score": ..}, ..], ..]}`, a
//! list for each query. A document has an `id` and either `title` and `text`, or `contents`, whose first line is its title.

use std::{collections::BTreeMap, time::Duration};

use folgore_actors::{
    http::{Bytes, HeaderMap, PostError, Poster},
    link::BoxFuture,
};
use folgore_protocol::{Passage, Passages, Search};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;

use crate::{Retriever, SearchError};

/// Longest reply that is read, in bytes.
const REPLY_MAX: usize = 64 << 20;

/// What is asked. Without scores, Search-R1's own server fails.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Retrieve {
    /// What to look for.
    pub queries: Vec<String>,
    /// Passages for each; none or 0: as many as the server likes.
    #[serde(default)]
    pub topk: Option<u32>,
    /// Whether scores are told.
    #[serde(default)]
    pub return_scores: bool,
}

/// What is answered: a list for each query.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Retrieved {
    /// The documents, with scores or without.
    pub result: Vec<Vec<Value>>,
}

/// A server that is asked.
pub struct Remote {
    name: String,
    poster: Poster,
    deadline: Duration,
}

impl Remote {
    /// The server at `url`, which has `deadline` for a request. Nothing is connected yet.
    ///
    /// # Errors
    /// If `url` is no address.
    pub fn new(url: &str, deadline: Duration) -> Result<Self, String> {
        Ok(Self { name: format!("retrieve {url}"), poster: Poster::new(url)?, deadline })
    }

    /// Answers `queries`, all with the same number of passages.
    async fn ask(&self, queries: &[&Search], topk: u32) -> Result<Vec<Passages>, SearchError> {
        let asked = Retrieve {
            queries: queries.iter().map(|search| search.query.clone()).collect(),
            topk: Some(topk),
            return_scores: true,
        };
        let refused = |reason: String| SearchError::Refused(format!("{}: {reason}", self.name));
        let body = serde_json::to_vec(&asked).map_err(|e| refused(e.to_string()))?;
        let reply = post(&self.name, &self.poster, &HeaderMap::new(), body, REPLY_MAX, self.deadline).await?;
        let Retrieved { result } = serde_json::from_slice(&reply).map_err(|e| refused(format!("the reply: {e}")))?;
        if result.len() != queries.len() {
            return Err(refused(format!("expected {} lists, got {}", queries.len(), result.len())));
        }
        let list = |documents: Vec<Value>| {
            let passages =
                documents.into_iter().take(topk as usize).enumerate().map(|(i, document)| passage(document, i));
            Ok(Passages { passages: passages.collect::<Result<_, _>>().map_err(refused)? })
        };
        result.into_iter().map(list).collect()
    }
}

impl Retriever for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    fn search<'a>(&'a self, queries: &'a [Search]) -> BoxFuture<'a, Vec<Result<Passages, SearchError>>> {
        Box::pin(async move {
            let mut by_topk: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            for (i, search) in queries.iter().enumerate() {
                by_topk.entry(search.top_k).or_default().push(i);
            }
            let mut found = vec![Err(SearchError::Unavailable("not asked".into())); queries.len()];
            for (topk, places) in by_topk {
                let asked: Vec<&Search> = places.iter().map(|i| &queries[*i]).collect();
                match self.ask(&asked, topk).await {
                    Ok(lists) => places.iter().zip(lists).for_each(|(i, list)| found[*i] = Ok(list)),
                    Err(error) => places.iter().for_each(|i| found[*i] = Err(error.clone())),
                }
            }
            found
        })
    }
}

/// Posts `body` within `deadline`.
pub(crate) async fn post(
    name: &str,
    poster: &Poster,
    headers: &HeaderMap,
    body: Vec<u8>,
    most: usize,
    deadline: Duration,
) -> Result<Bytes, SearchError> {
    match timeout(deadline, poster.post(headers, body, most)).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(PostError { reason, passing: true })) => Err(SearchError::Unavailable(format!("{name}: {reason}"))),
        Ok(Err(PostError { reason, .. })) => Err(SearchError::Refused(format!("{name}: {reason}"))),
        Err(_) => {
            let waited = deadline.as_secs_f64();
            Err(SearchError::Unavailable(format!("{name}: no reply within {waited:.1} s")))
        }
    }
}

/// The passage that a reply tells, the `place`th of its list: `{"document": .., "score": ..}`, or the document alone.
fn passage(value: Value, place: usize) -> Result<Passage, String> {
    let (document, score) = match value.get("document") {
        Some(document) => (document, value.get("score").and_then(Value::as_f64)),
        None => (&value, None),
    };
    let text = |key: &str| document.get(key).and_then(Value::as_str);
    let id = match document.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => String::new(),
    };
    let (title, text) = match (text("text"), text("contents")) {
        (Some(own), _) => (text("title").unwrap_or_default(), own),
        (None, Some(contents)) => titled(contents),
        (None, None) => return Err(format!("document {id:?}: expected contents, or title and text")),
    };
    // without scores, the order is all that is known
    let score = score.unwrap_or(-(place as f64)) as f32;
    Ok(Passage { id, title: title.to_owned(), text: text.to_owned(), score })
}

/// `contents` as title and text: its first line, and the rest.
pub fn titled(contents: &str) -> (&str, &str) {
    contents.split_once('\n').unwrap_or((contents, ""))
}

/// The document of Search-R1's replies for `passage`.
pub fn document(passage: &Passage) -> Value {
    let Passage { id, title, text, .. } = passage;
    serde_json::json!({"id": id, "title": title, "text": text, "contents": format!("{title}\n{text}")})
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_read_in_every_form_that_is_sent() {
        let contents = json!({"id": "7", "contents": "\"Dune\"\nA novel.\nBy Herbert."});
        let scored = passage(json!({"document": contents, "score": 1.5}), 0).unwrap();
        assert_eq!((scored.id.as_str(), scored.title.as_str(), scored.score), ("7", "\"Dune\"", 1.5));
        assert_eq!(scored.text, "A novel.\nBy Herbert.");
        let plain = passage(json!({"id": 7, "contents": "Title only"}), 2).unwrap();
        assert_eq!(
            (plain.id.as_str(), plain.title.as_str(), plain.text.as_str(), plain.score),
            ("7", "Title only", "", -2.0)
        );
        let own = passage(document(&scored), 0).unwrap();
        assert_eq!(Passage { score: 1.5, ..own }, scored);
        assert!(passage(json!({"document": {"id": "7"}, "score": 1}), 0).unwrap_err().contains("\"7\""));
        assert!(passage(json!("text"), 0).is_err());
    }
}
