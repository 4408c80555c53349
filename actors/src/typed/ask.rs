//! Typed request and reply.

use std::{fmt::Display, future::Future, marker::PhantomData, sync::Arc, time::Duration};

use folgore_protocol::{Envelope, Format};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep_until};

use super::{CallError, open, seal};
use crate::{Backoff, BoxFuture, Handler, LinkError, Links, Message, Served, TraceContext, hash};

/// Why there is no answer, however often it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{error} (asked {times} times within {:.1} s)", waited.as_secs_f64())]
pub struct GaveUp {
    /// The last error.
    pub error: CallError,
    /// How often it was asked.
    pub times: u32,
    /// How long it took.
    pub waited: Duration,
}

impl GaveUp {
    /// True if nobody was there who could have answered.
    pub fn nobody_serves(&self) -> bool {
        matches!(self.error, CallError::Link(LinkError::NoResponder { .. }))
    }
}

impl Links {
    /// Asks `subject`, waits at most `deadline`, reads the reply. `key` names the thing asked: the same for every attempt.
    pub async fn call<Req: Serialize, Rep: DeserializeOwned>(
        &self,
        subject: &str,
        request: &Req,
        key: &str,
        deadline: Duration,
    ) -> Result<Rep, CallError> {
        self.call_as(Format::MessagePack, subject, request, key, deadline).await
    }

    /// As [`Links::call`], with the body in `format`: JSON where any language may answer.
    pub async fn call_as<Req: Serialize, Rep: DeserializeOwned>(
        &self,
        format: Format,
        subject: &str,
        request: &Req,
        key: &str,
        deadline: Duration,
    ) -> Result<Rep, CallError> {
        let message = seal(&self.run, subject, request, key, format, Some(deadline))?;
        let reply = self.ask.ask(subject, message, deadline).await?;
        open(&self.run, subject, &reply)
    }

    /// As [`Links::call`], but waits while nobody serves `subject`: for a server that is starting or being restarted.
    pub async fn call_when_served<Req: Serialize, Rep: DeserializeOwned>(
        &self,
        subject: &str,
        request: &Req,
        key: &str,
        deadline: Duration,
    ) -> Result<Rep, CallError> {
        self.call_as_when_served(Format::MessagePack, subject, request, key, deadline).await
    }

    /// As [`Links::call_when_served`], with the body in `format`.
    pub async fn call_as_when_served<Req: Serialize, Rep: DeserializeOwned>(
        &self,
        format: Format,
        subject: &str,
        request: &Req,
        key: &str,
        deadline: Duration,
    ) -> Result<Rep, CallError> {
        let until = Instant::now() + deadline;
        let mut backoff =
            Backoff::new(Duration::from_millis(5), Duration::from_millis(500), hash(&["call", subject, key]));
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let answer = self.call_as(format, subject, request, key, left).await;
            if !matches!(answer, Err(CallError::Link(LinkError::NoResponder { .. }))) {
                return answer;
            }
            sleep_until(until.min(Instant::now() + backoff.next_wait())).await;
            if Instant::now() >= until {
                return answer;
            }
        }
    }

    /// As [`Links::call_as_when_served`], asked up to `attempts` times where asking again may help. Who waited for somebody to
    /// serve does not wait again.
    ///
    /// # Errors
    /// What came of the last time.
    pub async fn call_again<Req: Serialize, Rep: DeserializeOwned>(
        &self,
        format: Format,
        subject: &str,
        request: &Req,
        key: &str,
        deadline: Duration,
        attempts: u32,
    ) -> Result<Rep, GaveUp> {
        let begin = Instant::now();
        let mut backoff =
            Backoff::new(Duration::from_millis(50), Duration::from_secs(5), hash(&["again", subject, key]));
        let mut times = 1;
        loop {
            let error = match self.call_as_when_served(format, subject, request, key, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let gave_up = GaveUp { error, times, waited: begin.elapsed() };
            if gave_up.nobody_serves() || !gave_up.error.is_transient() || times >= attempts {
                return Err(gave_up);
            }
            tracing::debug!(subject, key, error = %gave_up.error, times, "asking again");
            sleep_until(Instant::now() + backoff.next_wait()).await;
            times += 1;
        }
    }

    /// Serves `subject` with `handler`, `concurrency` requests at once at most, until the result is dropped. A request
    /// that cannot be read is refused with the reason, and so is an `Err` of the handler.
    pub async fn serve_typed<Req, Rep, E, F, Fut>(
        &self,
        subject: &str,
        concurrency: usize,
        handler: F,
    ) -> Result<Served, LinkError>
    where
        Req: DeserializeOwned + Send + 'static,
        Rep: Serialize + Send + 'static,
        E: Display + 'static,
        F: Fn(Req) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Rep, E>> + Send + 'static,
    {
        self.serve_enveloped(subject, concurrency, move |_, request| handler(request)).await
    }

    /// As [`Links::serve_typed`], with the envelope of the request: its key, its budget, its policy.
    pub async fn serve_enveloped<Req, Rep, E, F, Fut>(
        &self,
        subject: &str,
        concurrency: usize,
        handler: F,
    ) -> Result<Served, LinkError>
    where
        Req: DeserializeOwned + Send + 'static,
        Rep: Serialize + Send + 'static,
        E: Display + 'static,
        F: Fn(Envelope, Req) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Rep, E>> + Send + 'static,
    {
        let typed = Typed { run: self.run.clone(), subject: subject.to_owned(), handler, types: PhantomData };
        self.ask.serve(subject, concurrency, Arc::new(typed)).await
    }
}

/// A typed function as a [`Handler`].
struct Typed<Req, Rep, F> {
    run: String,
    subject: String,
    handler: F,
    types: PhantomData<fn(Req) -> Rep>,
}

impl<Req, Rep, E, F, Fut> Handler for Typed<Req, Rep, F>
where
    Req: DeserializeOwned + Send + 'static,
    Rep: Serialize + Send + 'static,
    E: Display + 'static,
    F: Fn(Envelope, Req) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Rep, E>> + Send + 'static,
{
    fn handle(&self, request: Message) -> BoxFuture<'_, Result<Message, String>> {
        let context = TraceContext::of(&request.envelope);
        Box::pin(context.scope(async move {
            let body = open(&self.run, &self.subject, &request).map_err(|e| e.to_string())?;
            let (format, key) = (Format::of(&request.body), request.envelope.key.clone());
            let answer = (self.handler)(request.envelope, body).await.map_err(|e| e.to_string())?;
            seal(&self.run, &self.subject, &answer, &key, format, None).map_err(|e| e.to_string())
        }))
    }
}
