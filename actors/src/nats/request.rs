//! One request to the server or to whoever serves a subject, with a deadline of our own.

use std::time::Duration;

use async_nats::{HeaderMap, Message, Request, RequestErrorKind};
use serde_json::Value;
use tokio::time::timeout;

use super::Nats;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Nobody serves the subject.
    Nobody,
    /// Nothing came in time.
    Late,
    /// It could not be sent.
    Unsent(String),
}

/// What the JetStream API of the server said instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ApiError {
    /// The request was not answered.
    Unanswered(Unanswered),
    /// The server refused, with an HTTP-like code, its own code and a text.
    Refused { code: u64, err_code: u64, text: String },
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ApiError::Unanswered(Unanswered::Nobody) => f.write_str("nobody answers"),
            ApiError::Unanswered(Unanswered::Late) => f.write_str("no answer in time"),
            ApiError::Unanswered(Unanswered::Unsent(reason)) => write!(f, "not sent: {reason}"),
            ApiError::Refused { err_code, text, .. } => write!(f, "{text} ({err_code})"),
        }
    }
}

impl Nats {
    /// Asks `subject` and waits at most `within`.
    pub(super) async fn request(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Message, Unanswered> {
        let mut request = Request::new().payload(body.into()).timeout(None);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        // Around the sending too: it waits while the connection cannot take more.
        let Ok(answer) = timeout(within, self.client.send_request(subject, request)).await else {
            return Err(Unanswered::Late);
        };
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Unanswered::Nobody,
            RequestErrorKind::TimedOut => Unanswered::Late,
            _ => Unanswered::Unsent(error.to_string()),
        })
    }

    /// Asks the JetStream API (`$JS.API.` is put before `subject`), or whatever answers as it does.
    pub(super) async fn api(&self, subject: &str, within: Duration) -> Result<Value, ApiError> {
        let answer = self.request(format!("$JS.API.{subject}"), None, Vec::new(), within).await;
        read_answer(&answer.map_err(ApiError::Unanswered)?.payload)
    }
}

/// Reads an answer of JetStream: its error, or all of it.
pub(super) fn read_answer(payload: &[u8]) -> Result<Value, ApiError> {
    let odd = |text: String| ApiError::Refused { code: 0, err_code: 0, text };
    let answer: Value = serde_json::from_slice(payload).map_err(|e| odd(format!("an answer that is not JSON: {e}")))?;
    let Some(error) = answer.get("error") else { return Ok(answer) };
    let number = |name| error.get(name).and_then(Value::as_u64).unwrap_or_default();
    let text = error.get("description").and_then(Value::as_str).unwrap_or("an error without a text");
    Err(ApiError::Refused { code: number("code"), err_code: number("err_code"), text: text.to_owned() })
}
