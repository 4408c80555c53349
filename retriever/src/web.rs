//! A web search with the interface of Serper's: a query for each request, `{"q": .., "num": k}` with a key in a header, answered
//! with a list `organic` of `title`, `link` and `snippet`.
//!
//! What the web says changes from hour to hour, so there is no digest of it, and a run with it cannot be repeated.

use std::{sync::Arc, time::Duration};

use folgore_actors::{
    http::{HeaderMap, HeaderName, HeaderValue, Poster},
    link::BoxFuture,
};
use folgore_protocol::{Passage, Passages, Search};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{Retriever, SearchError, remote::post};

/// The variable of the environment that holds the key.
pub const KEY_VARIABLE: &str = "SERPER_API_KEY";
/// Longest reply that is read, in bytes.
const REPLY_MAX: usize = 4 << 20;
/// Queries that are asked at once.
const AT_ONCE: usize = 8;

/// A web search.
pub struct Web {
    asker: Arc<Asker>,
}

struct Asker {
    name: String,
    poster: Poster,
    headers: HeaderMap,
    deadline: Duration,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    organic: Vec<Found>,
}

#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    title: String,
    #[serde(default)]
    link: String,
    #[serde(default)]
    snippet: String,
}

impl Web {
    /// The search at `url` with `key`, which has `deadline` for a query. Nothing is connected yet.
    ///
    /// # Errors
    /// If `url` is no address, or `key` is none.
    pub fn new(url: &str, key: &str, deadline: Duration) -> Result<Self, String> {
        let mut key = HeaderValue::from_str(key.trim())
            .ok()
            .filter(|key| !key.is_empty())
            .ok_or_else(|| format!("{KEY_VARIABLE}: expected a key in the environment"))?;
        // never shown
        key.set_sensitive(true);
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-api-key"), key)]);
        let name = format!("web {url}");
        Ok(Self { asker: Arc::new(Asker { name, poster: Poster::new(url)?, headers, deadline }) })
    }
}

impl Asker {
    async fn ask(&self, search: &Search) -> Result<Passages, SearchError> {
        let body = json!({"q": search.query, "num": search.top_k}).to_string().into_bytes();
        let reply = post(&self.name, &self.poster, &self.headers, body, REPLY_MAX, self.deadline).await?;
        let refused = |e: serde_json::Error| SearchError::Refused(format!("{}: the reply: {e}", self.name));
        let Reply { organic } = serde_json::from_slice(&reply).map_err(refused)?;
        let found = organic.into_iter().take(search.top_k as usize).enumerate();
        let passage = |(place, Found { title, link, snippet }): (usize, Found)| Passage {
            id: link,
            title,
            text: snippet,
            score: 1.0 / (1 + place) as f32,
        };
        Ok(Passages { passages: found.map(passage).collect() })
    }
}

impl Retriever for Web {
    fn name(&self) -> &str {
        &self.asker.name
    }

    fn search<'a>(&'a self, queries: &'a [Search]) -> BoxFuture<'a, Vec<Result<Passages, SearchError>>> {
        Box::pin(async move {
            let mut found = vec![Err(SearchError::Unavailable("the query was dropped".into())); queries.len()];
            let mut asking = JoinSet::new();
            for (i, search) in queries.iter().cloned().enumerate() {
                if asking.len() >= AT_ONCE {
                    note(asking.join_next().await, &mut found);
                }
                let asker = self.asker.clone();
                asking.spawn(async move { (i, asker.ask(&search).await) });
            }
            while !asking.is_empty() {
                note(asking.join_next().await, &mut found);
            }
            found
        })
    }
}

type Asked = (usize, Result<Passages, SearchError>);

fn note(joined: Option<Result<Asked, tokio::task::JoinError>>, found: &mut [Result<Passages, SearchError>]) {
    if let Some(Ok((i, answer))) = joined {
        found[i] = answer;
    }
}
