//! Whose work a message belongs to: a W3C trace context that follows one sample through every actor.
//!
//! Ids are hashes of what the work is (run and key), so that all actors that touch one sample agree on its trace without
//! talking, also after a restart. A message carries the context of the span that sends it: what the receiver does is its child.

use std::future::Future;

use folgore_protocol::{Digest, Envelope};

use crate::telemetry;

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// Trace id, span id and whether the trace is recorded, as in the W3C Trace Context recommendation, version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

impl TraceContext {
    /// The context in which work on `key` begins.
    pub fn root(run: &str, key: &str) -> Self {
        let digest = Digest::of(format!("{run}\n{key}").as_bytes()).0;
        let (trace, span) = (first::<16>(&digest), first::<8>(&digest[16..]));
        Self { trace, span, sampled: telemetry::samples(&trace) }
    }

    /// The context of `key` as a part of this one: same trace, its own span.
    pub fn child(&self, key: &str) -> Self {
        let digest = Digest::of(&[&self.trace[..], &self.span, key.as_bytes()].concat()).0;
        Self { span: first(&digest), ..*self }
    }

    /// As [`Self::child`], with the id `span`, which must not be 0.
    pub(crate) fn with_span(&self, span: u64) -> Self {
        Self { span: span.to_be_bytes(), ..*self }
    }

    /// The context that `envelope` carries; what it carries is not believed beyond its form. Without one, the root of
    /// its key.
    pub fn of(envelope: &Envelope) -> Self {
        let carried = envelope.traceparent.as_deref().and_then(Self::parse);
        carried.unwrap_or_else(|| Self::root(&envelope.run, &envelope.key))
    }

    /// The context of a message about to be sent: the current one, or the root of its key.
    pub fn outgoing(run: &str, key: &str) -> Self {
        Self::current().unwrap_or_else(|| Self::root(run, key))
    }

    /// Reads a `traceparent`; none if it is not one (version ff and all-zero ids are not).
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let later_version = version != "00";
        if unhex::<1>(version)? == [0xff] || (parts.next().is_some() && !later_version) {
            return None;
        }
        let [flags] = unhex(flags)?;
        let context = Self { trace: unhex(trace)?, span: unhex(span)?, sampled: flags & 1 == 1 };
        (context.trace != [0; 16] && context.span != [0; 8]).then_some(context)
    }

    /// The header: `00-<trace id>-<span id>-<flags>`.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-0{}", hex(&self.trace), hex(&self.span), u8::from(self.sampled))
    }

    /// True if both belong to one trace.
    pub fn is_of_trace(&self, other: &Self) -> bool {
        self.trace == other.trace
    }

    /// True if whoever sent it records the trace.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    pub(crate) fn trace_bytes(&self) -> &[u8; 16] {
        &self.trace
    }

    pub(crate) fn span_bytes(&self) -> &[u8; 8] {
        &self.span
    }

    /// 32 hexadecimal digits that all messages of one sample share.
    pub fn trace_id(&self) -> String {
        hex(&self.trace)
    }

    /// The context of the running task, if it works on somebody's message.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|context| *context).ok()
    }

    /// As [`Self::scope`], for work that blocks.
    pub fn scope_blocking<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }

    /// Runs `work` in this context: what it sends belongs to the same trace.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 2 * N || !text.bytes().all(lower_hex) {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_back_and_bad_ones_are_refused() {
        let context = TraceContext::root("run", "g1.0.0");
        assert_eq!(TraceContext::parse(&context.traceparent()), Some(context));
        assert_eq!(context, TraceContext::root("run", "g1.0.0"));
        assert_ne!(context.trace, TraceContext::root("run", "g1.0.1").trace);
        let child = context.child("reward");
        assert_eq!(child.trace, context.trace);
        assert_ne!(child.span, context.span);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        assert!(TraceContext::parse("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some());
    }
}
