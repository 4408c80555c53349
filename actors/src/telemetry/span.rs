//! One span: what was done, when, for whom, and what came of it. Costs an atomic load where nobody listens.
//!
//! Spans are built here and not by the SDK's tracer, because their ids are those of [`TraceContext`]: what travels in an
//! envelope is what is exported.

use std::{
    borrow::Cow,
    fmt::{self, Display},
    future::Future,
    sync::Arc,
    time::{Instant, SystemTime},
};

use opentelemetry::{
    Key, KeyValue, Value,
    trace::{Event, Link, SpanContext, SpanId, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::{Active, names};
use crate::TraceContext;

pub use opentelemetry::trace::SpanKind;

/// Most links of a span.
pub const LINKS_MAX: usize = 128;
/// Most events of a span.
const EVENTS_MAX: usize = 128;

/// A span that ends, and is exported, when it is dropped. Off, it only passes its context on.
#[derive(Default)]
pub struct Span {
    context: Option<TraceContext>,
    open: Option<Box<Open>>,
}

/// What a span that is on gathers.
struct Open {
    to: Arc<Active>,
    data: SpanData,
    /// When it was made, on both clocks: its end is taken from the one that only grows.
    made: (SystemTime, Instant),
}

impl Open {
    fn now(to: Arc<Active>, context: &TraceContext, parent: SpanId, kind: SpanKind, name: impl Display) -> Box<Self> {
        let made = (SystemTime::now(), Instant::now());
        let data = SpanData {
            span_context: span_context(context, false),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: kind,
            name: Cow::Owned(name.to_string()),
            start_time: made.0,
            end_time: made.0,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: to.scope.clone(),
        };
        Box::new(Self { to, data, made })
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.open.as_ref().map(|open| &open.data.name);
        f.debug_struct("Span").field("name", &name).field("context", &self.context).finish_non_exhaustive()
    }
}

impl Span {
    /// The span that `context` names: nobody's child.
    pub fn root(context: TraceContext, kind: SpanKind, name: impl Display) -> Self {
        let open = super::listening(&context).map(|to| Open::now(to, &context, SpanId::INVALID, kind, name));
        Self { context: Some(context), open }
    }

    /// A part of what the running task works on; off where it works on nobody's message.
    pub fn child(kind: SpanKind, name: impl Display) -> Self {
        TraceContext::current().map_or_else(Self::default, |parent| Self::child_of(parent, kind, name))
    }

    /// A part of `parent`, with an id that no other span has.
    pub fn child_of(parent: TraceContext, kind: SpanKind, name: impl Display) -> Self {
        Self::part(parent, || parent.with_span(super::fresh_id()), kind, name)
    }

    /// A part of `parent` under an id that others know: its context is `own`.
    pub(crate) fn known(
        own: impl FnOnce() -> TraceContext,
        parent: TraceContext,
        kind: SpanKind,
        name: impl Display,
    ) -> Self {
        Self::part(parent, own, kind, name)
    }

    fn part(parent: TraceContext, own: impl FnOnce() -> TraceContext, kind: SpanKind, name: impl Display) -> Self {
        let Some(to) = super::listening(&parent) else { return Self { context: Some(parent), open: None } };
        let context = own();
        let open = Open::now(to, &context, SpanId::from_bytes(*parent.span_bytes()), kind, name);
        Self { context: Some(context), open: Some(open) }
    }

    /// True if somebody listens: where an attribute is costly to make.
    pub fn is_on(&self) -> bool {
        self.open.is_some()
    }

    /// What messages sent from within carry.
    pub fn context(&self) -> Option<TraceContext> {
        self.context
    }

    /// Sets the attribute `name`.
    pub fn set(&mut self, name: impl Into<Key>, value: impl Into<Value>) {
        if let Some(open) = &mut self.open {
            open.data.attributes.push(KeyValue::new(name, value));
        }
    }

    /// Says when it began, where that was before it was made.
    pub fn began_at(&mut self, begin: SystemTime) {
        if let Some(open) = &mut self.open {
            open.data.start_time = begin.min(open.data.start_time);
        }
    }

    /// Something happened; `attributes` are made only if somebody listens.
    pub fn event(&mut self, name: &'static str, attributes: impl FnOnce() -> Vec<KeyValue>) {
        let Some(open) = &mut self.open else { return };
        if open.data.events.events.len() < EVENTS_MAX {
            open.data.events.events.push(Event::new(name, SystemTime::now(), attributes(), 0));
        } else {
            open.data.events.dropped_count += 1;
        }
    }

    /// Points at another span; at most [`LINKS_MAX`], further ones are counted.
    pub fn link(&mut self, to: &TraceContext) {
        let Some(open) = &mut self.open else { return };
        if open.data.links.links.len() < LINKS_MAX {
            open.data.links.links.push(Link::new(span_context(to, true), Vec::new(), 0));
        } else {
            open.data.links.dropped_count += 1;
        }
    }

    /// It did not succeed: `kind` is one of few words, `reason` is for people. The first failure counts.
    pub fn fail(&mut self, kind: &'static str, reason: impl Display) {
        if let Some(open) = self.open.as_mut().filter(|open| open.data.status == Status::Unset) {
            open.data.attributes.push(KeyValue::new(names::ERROR_TYPE, kind));
            open.data.status = Status::error(reason.to_string());
        }
    }

    /// Runs `work` in it: what `work` sends and does belongs to it.
    pub async fn scope<F: Future>(&self, work: F) -> F::Output {
        match self.context {
            Some(context) => context.scope(work).await,
            None => work.await,
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            let Open { to, mut data, made: (wall, instant) } = *open;
            data.end_time = wall + instant.elapsed();
            to.outbox.put(data);
        }
    }
}

fn span_context(context: &TraceContext, remote: bool) -> SpanContext {
    let (trace, span) = (TraceId::from_bytes(*context.trace_bytes()), SpanId::from_bytes(*context.span_bytes()));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, remote, TraceState::NONE)
}
