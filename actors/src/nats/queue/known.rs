//! What this process knows of one queue: its names, and the consumer as the server last described it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use folgore_protocol::{
    names::{REPLAY_CONSUMER, ROLLOUT_CONSUMER},
    subjects,
};
use serde_json::Value;

use super::super::{Nats, bodies, request::ApiError, streams};
use crate::lock;

/// One queue.
pub(super) struct Known {
    pub(super) nats: Nats,
    pub(super) name: String,
    pub(super) publish_to: String,
    pub(super) stream: String,
    pub(super) durable: String,
    /// Largest body that travels in the message itself.
    pub(super) inline_max: usize,
    /// Subjects of messages begin like this; what follows is the sender.
    sender_after: Option<String>,
    consumer: Mutex<Option<Consumer>>,
    /// True once the stream was created, where this process may.
    ensured: AtomicBool,
    trouble: Mutex<Option<String>>,
}

/// The consumer, as the server described it in one connection.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Consumer {
    /// Number of the connection.
    pub(super) connection: u64,
    /// When it was created: another one of the same name is another one.
    pub(super) created: Arc<str>,
    pub(super) ack_wait: Duration,
    pub(super) waiting: usize,
    pub(super) held: usize,
}

impl Known {
    pub(super) fn new(nats: &Nats, name: &str) -> Self {
        let config = nats.config();
        let run = &config.run;
        let (publish_to, stream, durable, max) = match name {
            subjects::JOBS => (run.rollout_jobs(), run.jobs_stream(), ROLLOUT_CONSUMER, streams::JOB_MAX),
            subjects::TRAJECTORIES => {
                let publish_to = run.trajectories_by(&config.name);
                (publish_to, run.trajectories_stream(), REPLAY_CONSUMER, streams::MESSAGE_MAX)
            }
            other => {
                let publish_to = streams::other_subject(run, other);
                (publish_to, streams::other_stream(run, other), streams::WORK_CONSUMER, streams::MESSAGE_MAX)
            }
        };
        Self {
            nats: nats.clone(),
            name: name.to_owned(),
            publish_to,
            stream,
            durable: durable.to_owned(),
            inline_max: max - bodies::BESIDE,
            sender_after: (name == subjects::TRAJECTORIES).then(|| run.trajectories_by("")),
            consumer: Mutex::default(),
            ensured: AtomicBool::new(false),
            trouble: Mutex::default(),
        }
    }

    /// Who sent what came on `subject`, where the subject is proof of it.
    pub(super) fn sender(&self, subject: &str) -> Option<String> {
        subject.strip_prefix(self.sender_after.as_deref()?).map(str::to_owned)
    }

    /// Creates the stream and its consumer if this process may and it is none of the run's own two. Trouble shows at the
    /// next use.
    pub(super) async fn ensure(&self) {
        let config = self.nats.config();
        let own = self.durable != streams::WORK_CONSUMER;
        if own || !config.create_queues || self.ensured.swap(true, Ordering::SeqCst) {
            return;
        }
        let stream = streams::other(&config.run, &self.name, config);
        let consumer = streams::other_consumer(&config.run, &self.name, config);
        let created = async {
            self.nats.jetstream.create_stream(stream).await.map_err(|e| e.to_string())?;
            let created = self.nats.jetstream.create_consumer_on_stream(consumer, self.stream.as_str()).await;
            created.map_err(|e| e.to_string()).map(|_| ())
        };
        if let Err(reason) = created.await {
            tracing::warn!(queue = self.name, reason, "queue not created");
            self.ensured.store(false, Ordering::SeqCst);
        }
    }

    /// Forgets what the server said: it may not be so any more.
    pub(super) fn forget(&self) {
        *lock(&self.consumer) = None;
        self.ensured.store(false, Ordering::SeqCst);
    }

    /// The consumer, as described in this connection.
    pub(super) async fn consumer(&self, within: Duration) -> Result<Consumer, ApiError> {
        let known = lock(&self.consumer).clone();
        match known.filter(|consumer| consumer.connection == self.nats.connections()) {
            Some(consumer) => Ok(consumer),
            None => self.look(within).await,
        }
    }

    /// The consumer, as the server describes it now.
    pub(super) async fn look(&self, within: Duration) -> Result<Consumer, ApiError> {
        // Before the question: an answer of an earlier connection must not pass for one of a later.
        let connection = self.nats.connections();
        let info = self.nats.api(&format!("CONSUMER.INFO.{}.{}", self.stream, self.durable), within).await?;
        let consumer = read(connection, &info)?;
        *lock(&self.consumer) = Some(consumer.clone());
        Ok(consumer)
    }

    /// Logs what holds the queue up, and that nothing does any more: once per change.
    pub(super) fn note(&self, trouble: Option<String>) {
        let mut last = lock(&self.trouble);
        if *last == trouble {
            return;
        }
        match &trouble {
            Some(trouble) => tracing::warn!(queue = self.name, trouble, "nothing can be pulled"),
            None => tracing::info!(queue = self.name, "pulling again"),
        }
        *last = trouble;
    }
}

fn read(connection: u64, info: &Value) -> Result<Consumer, ApiError> {
    let number = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or_default();
    let created = info.get("created").and_then(Value::as_str);
    let ack_wait = info.get("config").and_then(|config| config.get("ack_wait")).and_then(Value::as_u64);
    let (Some(created), Some(ack_wait)) = (created, ack_wait) else {
        let text = "the description of a consumer has no created or no ack_wait".to_owned();
        return Err(ApiError::Refused { code: 0, err_code: 0, text });
    };
    Ok(Consumer {
        connection,
        created: created.into(),
        ack_wait: Duration::from_nanos(ack_wait),
        waiting: number(info.get("num_pending")) as usize,
        held: number(info.get("num_ack_pending")) as usize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_read_or_refused() {
        let info = serde_json::json!({
            "created": "2026-01-01T00:00:00Z", "num_pending": 3, "num_ack_pending": 2,
            "config": { "ack_wait": 500_000_000 },
        });
        let consumer = read(4, &info).unwrap();
        assert_eq!((consumer.connection, consumer.waiting, consumer.held), (4, 3, 2));
        assert_eq!(consumer.ack_wait, Duration::from_millis(500));
        assert!(read(4, &serde_json::json!({ "created": "x" })).unwrap_err().to_string().contains("ack_wait"));
    }
}
