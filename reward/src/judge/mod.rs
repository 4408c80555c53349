//! A language model that judges by a rubric, behind an API like OpenAI's.
//!
//! A verdict is taken in one form only ([`verdict`]); whatever else comes back is a failure that may pass, and never a number.
//! The score is divided by the greatest one, so that it lies between 0 and 1 whatever the rubric counts in. A completion that
//! was judged before, by the same model and rubric, is not judged again ([`cache`]).

mod cache;
mod verdict;

use std::path::Path;

use folgore_actors::{
    http::{HeaderMap, HeaderValue, Poster, header},
    link::BoxFuture,
};
use folgore_config::JudgeSpec;
use folgore_protocol::{Digest, Outcome, Prompt, ScoreItem, ScoreRequest};
use serde_json::{Value, json};

use crate::external::{Carrier, Failure};
use cache::Cache;

/// Longest reply read, in bytes.
const MAX_REPLY: usize = 1 << 20;

/// A model that judges.
pub(crate) struct Judge {
    name: String,
    spec: JudgeSpec,
    headers: HeaderMap,
    poster: Poster,
    cache: Cache,
}

impl Judge {
    /// The judge of `spec`, as the reward `name`. Nothing is connected yet.
    ///
    /// # Errors
    /// If its address is none, its key is not in the environment, or its cache cannot be opened.
    pub(crate) fn new(name: &str, spec: &JudgeSpec) -> Result<Self, String> {
        let url = format!("{}/chat/completions", spec.base_url.trim_end_matches('/'));
        let poster = Poster::new(&url).map_err(|e| format!("judge.base_url: {e}"))?;
        let cache = Cache::open(spec.cache.as_deref().map(Path::new))?;
        Ok(Self { name: name.to_owned(), headers: key(spec)?, poster, cache, spec: spec.clone() })
    }

    async fn judged(&self, item: &ScoreItem) -> Result<Outcome, Failure> {
        let question = text(&item.prompt);
        let known = self.digest(&question, &item.completion);
        if let Some(score) = self.cache.get(&known) {
            return Ok(Outcome::scored(&self.name, score));
        }
        let score = self.ask(&question, &item.completion).await? / self.spec.max_score;
        self.cache.put(known, score);
        Ok(Outcome::scored(&self.name, score))
    }

    /// One verdict, from 0 to the greatest score.
    async fn ask(&self, question: &str, completion: &str) -> Result<f64, Failure> {
        let (max, nonce) = (self.spec.max_score, nonce()?);
        let request = json!({
            "model": self.spec.model,
            "messages": verdict::messages(&self.spec.rubric, max, &nonce, question, completion),
            "temperature": 0,
            "response_format": verdict::response_format(max),
        });
        let body = self.poster.post(&self.headers, request.to_string().into_bytes(), MAX_REPLY).await?;
        let reply: Value = serde_json::from_slice(&body)
            .map_err(|e| Failure::passing(format!("expected a JSON reply of the judge ({e})")))?;
        verdict::content(&reply).and_then(|text| verdict::parse(text, &nonce, max)).map_err(Failure::passing)
    }

    /// Names what is judged and by whom.
    fn digest(&self, question: &str, completion: &str) -> Digest {
        let JudgeSpec { base_url, model, rubric, max_score, .. } = &self.spec;
        Digest::of(json!([base_url, model, rubric, max_score, question, completion]).to_string().as_bytes())
    }
}

impl Carrier for Judge {
    /// One completion after another. After a failure the whole request is tried again, and what was judged is known by then.
    fn carry<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Result<Vec<Outcome>, Failure>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(request.items.len());
            for item in &request.items {
                outcomes.push(self.judged(item).await?);
            }
            Ok(outcomes)
        })
    }
}

/// The header that bears the key, if there is to be one; it is never shown.
fn key(spec: &JudgeSpec) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    if let Some(variable) = &spec.api_key_env {
        let key = std::env::var(variable).map_err(|e| format!("judge.api_key_env: {variable}: {e}"))?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.trim()))
            .map_err(|_| format!("judge.api_key_env: {variable}: expected a key of printable characters"))?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(headers)
}

/// 32 hexadecimal digits that nobody could know before the request.
fn nonce() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Failure::lasting(format!("no random numbers from the system: {e}")))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The question as the judge reads it.
fn text(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Messages(messages) => {
            messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect::<Vec<_>>().join("\n")
        }
    }
}
