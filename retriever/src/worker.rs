//! The actor that hosts one retriever and answers [`Search`]es.

use std::sync::Arc;

use folgore_actors::{
    BoxFuture, Context, Service, ServiceError, Span, SpanKind,
    telemetry::{Array, StringValue, Value, names},
};
use folgore_protocol::{Passages, Search, subjects};
use serde_json::json;

use crate::{
    Retriever, SearchError,
    host::{Bounds, Host},
};

/// Serves `subjects::SEARCH` with one retriever until the process is asked to stop.
///
/// Queries that come in while others are answered are asked together; equal ones once. Every answer is within [`Bounds`].
pub struct RetrieverWorker {
    retriever: Arc<dyn Retriever>,
    bounds: Bounds,
}

impl RetrieverWorker {
    /// A worker for `retriever` within `bounds`.
    pub fn new(retriever: Arc<dyn Retriever>, bounds: Bounds) -> Self {
        Self { retriever, bounds }
    }
}

impl Service for RetrieverWorker {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let Self { retriever, bounds } = *self;
            let host = Arc::new(Host::new(retriever.clone(), bounds));
            context.status.set(host.shown());
            let status = context.status.clone();
            let handler = move |search: Search| {
                let (host, retriever, status) = (host.clone(), retriever.clone(), status.clone());
                async move {
                    let mut span =
                        Span::child(SpanKind::Internal, format_args!("{} {}", names::RETRIEVAL, retriever.name()));
                    let found = span.scope(host.search(&search)).await;
                    describe(&mut span, retriever.name(), &found);
                    status.set(host.shown());
                    found.map(|found| (*found).clone())
                }
            };
            let served = context.links.serve_typed(subjects::SEARCH, bounds.waiting, handler).await?;
            context.shutdown.stopping().await;
            drop(served);
            Ok(())
        })
    }
}

/// Tells OpenTelemetry which passages were found; never what they say.
fn describe(span: &mut Span, source: &str, found: &Result<Arc<Passages>, SearchError>) {
    if !span.is_on() {
        return;
    }
    span.set(names::OPERATION, names::RETRIEVAL);
    span.set(names::DATA_SOURCE, source.to_owned());
    match found {
        Ok(found) => {
            let hit =
                |p: &folgore_protocol::Passage| StringValue::from(json!({"id": p.id, "score": p.score}).to_string());
            span.set(names::DOCUMENTS, Value::Array(Array::String(found.passages.iter().map(hit).collect())));
        }
        Err(error) => span.fail("search", error),
    }
}
