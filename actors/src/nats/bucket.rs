//! One key-value bucket: reads that see the last write, and writes that are compared with it.
//!
//! A bucket is the stream `KV_<name>` with a subject per key. The head's reads go to the stream's leader, so that who has
//! written reads it back; all others use direct gets, which work for buckets only: they need no permission to read any
//! message of any stream. A revision is the stream's sequence number of the write. A deleted key is a marker with a revision of its own,
//! which is why "absent" is not always revision 0 on the server, but is here.

use std::{error::Error, sync::Arc, time::Duration};

use async_nats::{
    HeaderMap, HeaderValue,
    header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
    jetstream::{
        self, ErrorCode,
        context::{PublishError, PublishErrorKind},
        message::StreamMessage,
        stream::{DirectGetErrorKind, LastRawMessageErrorKind, Stream},
    },
};
use folgore_protocol::Role;
use tokio::time::{Instant, timeout};

use super::{Nats, connection::refused};
use crate::{LinkError, Versioned};

/// Marks what is not a value.
const OPERATION: &str = "KV-Operation";
/// Set by the server where it removed a value itself.
const MARKER: &str = "Nats-Marker-Reason";
/// Tries of a create whose key was deleted, deleted and written again meanwhile.
const CREATE_TRIES: usize = 4;

/// A key-value bucket.
#[derive(Clone)]
pub(super) struct Bucket {
    nats: Nats,
    name: String,
    patience: Duration,
}

/// What is at a key.
struct Entry {
    /// Revision of the value or of the marker of its deletion; 0: neither.
    at: u64,
    value: Option<Arc<[u8]>>,
}

impl Entry {
    /// The revision that callers see.
    fn revision(&self) -> u64 {
        if self.value.is_some() { self.at } else { 0 }
    }
}

impl Bucket {
    /// Bucket `name`; each request to it takes `patience` at most.
    pub(super) fn new(nats: &Nats, name: String, patience: Duration) -> Self {
        Self { nats: nats.clone(), name, patience }
    }

    /// Subject of `key`.
    pub(super) fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    /// The stream that holds the bucket; nothing is asked.
    pub(super) async fn stream(&self) -> Result<Stream<()>, LinkError> {
        let stream = self.nats.jetstream.get_stream_no_info(format!("KV_{}", self.name)).await;
        stream.map_err(|error| refused(&self.name, error.to_string()))
    }

    /// The current value of `key`.
    pub(super) async fn get(&self, key: &str) -> Result<Option<Versioned>, LinkError> {
        let entry = self.entry(key).await?;
        Ok(entry.value.map(|value| Versioned { revision: entry.at, value }))
    }

    /// Writes if `key` is at revision `expected` (0: absent, also after a deletion); gives the new revision.
    pub(super) async fn put_if(&self, key: &str, expected: u64, value: &[u8]) -> Result<u64, LinkError> {
        let mut at = expected;
        for _ in 0..CREATE_TRIES {
            if let Some(revision) = self.publish(key, at, HeaderMap::new(), value).await? {
                return Ok(revision);
            }
            let entry = self.entry(key).await?;
            let found = entry.revision();
            if found != expected {
                return Err(LinkError::Conflict { key: key.to_owned(), expected, found });
            }
            at = entry.at;
        }
        Err(LinkError::Deadline { subject: key.to_owned(), waited_ms: 0 })
    }

    /// Deletes `key` if it is at revision `expected`; false if it is not.
    pub(super) async fn delete_if(&self, key: &str, expected: u64) -> Result<bool, LinkError> {
        let mut headers = HeaderMap::new();
        headers.insert(OPERATION, HeaderValue::from("DEL"));
        Ok(self.publish(key, expected, headers, b"").await?.is_some())
    }

    /// The value or the marker that is there.
    async fn entry(&self, key: &str) -> Result<Entry, LinkError> {
        check_key(key)?;
        let (stream, subject, begun) = (self.stream().await?, self.subject(key), Instant::now());
        self.nats.ready(key, self.patience).await?;
        let Ok(read) = timeout(self.patience, self.last(&stream, &subject)).await else {
            return Err(passing(key, begun, &"no answer"));
        };
        match read {
            Ok(Some(message)) => {
                let gone = message.headers.get(OPERATION).or_else(|| message.headers.get(MARKER)).is_some();
                Ok(Entry { at: message.sequence, value: (!gone).then(|| Arc::from(&message.payload[..])) })
            }
            Ok(None) => Ok(Entry { at: 0, value: None }),
            Err(error) => Err(passing(key, begun, &error)),
        }
    }

    /// The last message of `subject`.
    async fn last(&self, stream: &Stream<()>, subject: &str) -> Result<Option<StreamMessage>, async_nats::Error> {
        if self.nats.config().role == Role::Head {
            return match stream.get_last_raw_message_by_subject(subject).await {
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
                read => Ok(Some(read?)),
            };
        }
        match stream.direct_get_last_for_subject(subject).await {
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            read => Ok(Some(read?)),
        }
    }

    /// Publishes to the subject of `key` if its last message is number `last`; none if it is not.
    async fn publish(
        &self,
        key: &str,
        last: u64,
        mut headers: HeaderMap,
        body: &[u8],
    ) -> Result<Option<u64>, LinkError> {
        check_key(key)?;
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(last));
        let begun = Instant::now();
        self.nats.ready(key, self.patience).await?;
        let context = &self.nats.jetstream;
        let publish =
            async { context.publish_with_headers(self.subject(key), headers, body.to_vec().into()).await?.await };
        match timeout(self.patience, publish).await {
            Err(_) => Err(passing(key, begun, &"no answer")),
            Ok(Ok(ack)) => Ok(Some(ack.sequence)),
            Ok(Err(error)) if lost_the_comparison(&error) => Ok(None),
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                Err(refused(key, error.to_string()))
            }
            Ok(Err(error)) => Err(passing(key, begun, &error)),
        }
    }
}

/// Whether the key was not at the revision; servers have two numbers for it.
fn lost_the_comparison(error: &PublishError) -> bool {
    let told = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    error.kind() == PublishErrorKind::WrongLastSequence
        || told.is_some_and(|told| told.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)
}

/// Trouble that passes: an outage, a stream that is not there (yet), a full disk. The reason goes to the log.
pub(super) fn passing(subject: &str, begun: Instant, reason: &dyn std::fmt::Display) -> LinkError {
    let waited_ms = begun.elapsed().as_millis() as u64;
    tracing::debug!(subject, waited_ms, %reason, "the server did not do it");
    LinkError::Deadline { subject: subject.to_owned(), waited_ms }
}

/// Checks that `key` is usable as the end of a subject: what is not would fail late, and with another reason.
pub(super) fn check_key(key: &str) -> Result<(), LinkError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let tokens = key.split('.').all(|token| !token.is_empty() && token.chars().all(allowed));
    if tokens && key.len() <= 128 {
        return Ok(());
    }
    let reason = "expected a key of A-Z a-z 0-9 - _, in tokens separated by single dots, 128 bytes at most".to_owned();
    Err(refused(key, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_tokens() {
        for good in ["policy", "ctl.rollout", "a-b_C.9"] {
            assert_eq!(check_key(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a..b", ".a", "a.", "a b", "a>", "*", "a\r\nb", "é", &"x".repeat(129)] {
            let error = check_key(bad).unwrap_err();
            assert!(matches!(&error, LinkError::Refused { subject, .. } if subject == bad), "{error}");
        }
    }
}
