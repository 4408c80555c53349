//! One connection to the server. It reconnects for as long as the process lives; what waits for it has its own deadline.

use std::{
    error::Error,
    fmt::Display,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerError, connection::State, jetstream, rustls};
use folgore_protocol::seed;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{NatsConfig, NatsError, memory::Memory};
use crate::{Backoff, LinkError, backoff, hash, lock};

/// The oldest server that is taken: earlier ones lack fixes of the permissions that a fleet relies on.
const OLDEST: (u32, u32) = (2, 14);
const OLDEST_TEXT: &str = "2.14";
/// Messages of one subscription that may wait for their reader; what comes then is lost, and counted in [`Faults`].
const SUBSCRIPTION_CAPACITY: usize = 1024;
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Waits between attempts to connect, jittered so that a fleet does not come back as one.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(5);

/// What went wrong behind the back of every call: a denied publish returns as if it had worked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Errors that the server told, most of them denied permissions.
    pub server_errors: u64,
    /// Messages that came faster than they were read, and were dropped.
    pub slow_consumer: u64,
    /// The text of the last one.
    pub last: Option<String>,
}

/// A connection; clones share it.
#[derive(Clone)]
pub struct Nats {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) config: Arc<NatsConfig>,
    /// What this process wrote last.
    pub(super) memory: Arc<Memory>,
    events: Arc<Events>,
    /// Makes ids of this connection unlike those of any other.
    session: Arc<str>,
    ids: Arc<AtomicU64>,
}

/// What the client told.
struct Events {
    connected: watch::Sender<bool>,
    faults: Mutex<Faults>,
}

impl Events {
    fn note(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.connected.send_replace(true);
                tracing::info!("connected to the NATS server");
            }
            Event::Disconnected | Event::Closed => {
                self.connected.send_replace(false);
                tracing::warn!(%event, "the NATS server is gone");
            }
            Event::ServerError(ServerError::SlowConsumer(_)) | Event::SlowConsumer(_) => {
                self.fault(event, |faults| &mut faults.slow_consumer);
            }
            Event::ServerError(_) => self.fault(event, |faults| &mut faults.server_errors),
            Event::ClientError(_) | Event::LameDuckMode | Event::Draining => {
                tracing::debug!(%event, "NATS client");
            }
        }
    }

    fn fault(&self, event: &Event, counter: impl Fn(&mut Faults) -> &mut u64) {
        let text = event.to_string();
        tracing::error!(fault = text, "NATS");
        let mut faults = lock(&self.faults);
        *counter(&mut faults) += 1;
        faults.last = Some(text);
    }
}

/// Connects as `config` says, trying again for `connect_within` while nobody answers.
///
/// # Errors
/// If nobody answers in time, the server refuses the identity, or it is too old.
pub async fn connect(config: NatsConfig) -> Result<Nats, NatsError> {
    let events = Arc::new(Events { connected: watch::Sender::new(false), faults: Mutex::default() });
    let until = Instant::now() + config.connect_within;
    let mut backoff = Backoff::new(RETRY_BASE, RETRY_CAP, hash(&["connect", &config.name]));
    let client = loop {
        let error = match options(&config, events.clone()).connect(config.url.split(',').collect::<Vec<_>>()).await {
            Ok(client) => break client,
            Err(error) => error,
        };
        let nobody = matches!(error.kind(), ConnectErrorKind::Io | ConnectErrorKind::TimedOut | ConnectErrorKind::Dns);
        let left = until.saturating_duration_since(Instant::now());
        if !nobody || is_tls(&error) || left.is_zero() {
            return Err(NatsError::Connect { url: config.url, reason: error.to_string() });
        }
        sleep(backoff.next_wait().min(left)).await;
    };
    let got = client.server_info().version;
    if !new_enough(&got) {
        return Err(NatsError::Version { url: config.url, wanted: OLDEST_TEXT, got });
    }
    let jetstream = jetstream::context::ContextBuilder::new().timeout(config.request_timeout).build(client.clone());
    let session = client.new_inbox().rsplit('.').next().unwrap_or_default().into();
    let (config, memory) = (Arc::new(config), Arc::default());
    let nats = Nats { client, jetstream, config, memory, events, session, ids: Arc::default() };
    // The event comes a moment after the connection.
    nats.ready("connection", nats.config.request_timeout)
        .await
        .map_err(|e| NatsError::Connect { url: nats.config.url.clone(), reason: e.to_string() })?;
    Ok(nats)
}

/// True if one side refused the other's certificate: trying again changes nothing.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let here = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    here.is_some_and(|inner| inner.is::<rustls::Error>()) || error.source().is_some_and(is_tls)
}

fn options(config: &NatsConfig, events: Arc<Events>) -> ConnectOptions {
    let jitter = hash(&["reconnect", &config.name]);
    let mut options = ConnectOptions::new()
        .name(format!("folgore {} {}", config.role, config.name))
        .custom_inbox_prefix(format!("_INBOX.{}", config.name))
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(config.request_timeout))
        .connection_timeout(config.request_timeout)
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempts| {
            backoff::wait(RETRY_BASE, RETRY_CAP, attempts as u32, seed::uniform(jitter, attempts as u64))
        })
        .event_callback(move |event| {
            events.note(&event);
            std::future::ready(())
        });
    if let Some(identity) = &config.identity {
        options = options.nkey(identity.seed.clone());
        if let Some(ca) = &identity.ca {
            options = options.add_root_certificates(ca.clone()).require_tls(true).tls_first();
        }
        if let (Some(cert), Some(key)) = (&identity.cert, &identity.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
    }
    options
}

fn new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST)
}

impl Nats {
    /// What went wrong so far that no call told.
    pub fn faults(&self) -> Faults {
        lock(&self.events.faults).clone()
    }

    /// Whether the connection is up; follows it.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.events.connected.subscribe()
    }

    /// How it was connected.
    pub fn config(&self) -> &NatsConfig {
        &self.config
    }

    /// Numbers the connections: what was learnt of the server in an earlier one may not be true any more.
    pub(crate) fn connections(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::SeqCst)
    }

    /// An id that nobody else has.
    pub(crate) fn unique_id(&self) -> String {
        format!("{}.{}", self.session, self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits until the connection is up, so that nothing piles up in the client to arrive when nobody waits any more.
    ///
    /// # Errors
    /// [`LinkError::Deadline`] for `subject` after `within`.
    pub(crate) async fn ready(&self, subject: &str, within: Duration) -> Result<(), LinkError> {
        if self.client.connection_state() == State::Connected {
            // Events may be lost when many come at once; this is not.
            self.events.connected.send_if_modified(|up| !std::mem::replace(up, true));
            return Ok(());
        }
        let mut connected = self.connected();
        let up = timeout(within, connected.wait_for(|up| *up)).await;
        if matches!(up, Ok(Ok(_))) { Ok(()) } else { Err(late(subject, within)) }
    }
}

/// Does `sending` within `within`: the client waits where the connection takes no more, as that to a server which hangs does.
pub(crate) async fn taken<T, E: Display>(
    subject: &str,
    within: Duration,
    sending: impl Future<Output = Result<T, E>>,
) -> Result<T, LinkError> {
    let sent = timeout(within, sending).await.map_err(|_| late(subject, within))?;
    sent.map_err(|error| refused(subject, error.to_string()))
}

/// It cannot be done, now or later.
pub(crate) fn refused(subject: &str, reason: String) -> LinkError {
    LinkError::Refused { subject: subject.to_owned(), reason }
}

/// No answer after `waited`.
pub(crate) fn late(subject: &str, waited: Duration) -> LinkError {
    LinkError::Deadline { subject: subject.to_owned(), waited_ms: waited.as_millis() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_odd_servers_are_refused() {
        for good in ["2.14.0", "2.15.1", "3.0.0-RC.1"] {
            assert!(new_enough(good), "{good}");
        }
        for bad in ["2.9.10", "2.13.9", "1.99.0", "", "2", "two.fifteen"] {
            assert!(!new_enough(bad), "{bad}");
        }
    }
}
