//! An address that scores: requests are posted there as JSON.

use std::sync::atomic::{AtomicU64, Ordering};

use folgore_actors::{
    http::{HeaderMap, PostError, Poster},
    link::BoxFuture,
};
use folgore_protocol::{Outcome, ScoreRequest};

use super::{Carrier, Failure, wire};

impl From<PostError> for Failure {
    fn from(error: PostError) -> Self {
        if error.passing { Failure::passing(error.reason) } else { Failure::lasting(error.reason) }
    }
}

/// An address that scores.
pub struct Http {
    name: String,
    poster: Poster,
    asked: AtomicU64,
}

impl Http {
    /// The address `url`, as the reward `name`. Nothing is connected yet.
    ///
    /// # Errors
    /// If `url` is none.
    pub fn new(name: &str, url: &str) -> Result<Self, String> {
        Ok(Self { name: name.to_owned(), poster: Poster::new(url)?, asked: AtomicU64::new(1) })
    }

    async fn attempt(&self, request: &ScoreRequest) -> Result<Vec<Outcome>, Failure> {
        let id = self.asked.fetch_add(1, Ordering::Relaxed);
        let question = wire::question(id, request)?;
        let body = self.poster.post(&HeaderMap::new(), question, wire::MAX_ANSWER).await?;
        wire::answer(&body, &self.name, id, false, request)
    }
}

impl Carrier for Http {
    fn carry<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Result<Vec<Outcome>, Failure>> {
        Box::pin(self.attempt(request))
    }
}
