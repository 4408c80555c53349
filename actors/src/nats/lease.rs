//! One head at a time: a lease that has to be renewed, and an epoch that grows with every head.
//!
//! The lease is a key in a bucket whose values expire. Who creates it is the head, raises the epoch of the run and writes it
//! into everything that it publishes; readers refuse a lower one, so that also what a former head sent late harms nobody. A
//! head that was stopped for a while (a paused process, a laptop's lid) does not know that it was: before it writes where
//! others can see it, it asks its [`Fence`].

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use folgore_protocol::{Digest, decode, encode, subjects};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{Nats, NatsError, admin, bucket::Bucket, connection::refused, state::NatsState};
use crate::{LinkError, Shutdown, State, Versioned};

/// The one key of the bucket.
pub(super) const KEY: &str = "head";
/// Renewals per lifetime of the lease.
const RENEWALS: u32 = 3;
/// How long a server may be away before taking the lease is given up.
const OUTAGE: Duration = Duration::from_secs(60);
const LOOK_LEAST: Duration = Duration::from_millis(50);
const LOOK_MOST: Duration = Duration::from_secs(1);

/// Who holds the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its name.
    pub name: String,
    /// The machine it runs on.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// When it took the lease, by its own clock: milliseconds since 1970.
    pub since: u64,
    /// Its epoch; 0 while it is about to take one.
    pub epoch: u32,
    /// Tells it from every other holder.
    #[serde(default)]
    pub id: String,
}

impl Holder {
    /// This process, as `name` on `host`.
    pub fn here(name: &str, host: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let (name, host, pid) = (name.to_owned(), host.to_owned(), std::process::id());
        Self { name, host, pid, since, epoch: 0, id: String::new() }
    }

    /// The holder in `value`; what cannot be read is a holder too, without a name.
    pub(super) fn read(value: &[u8]) -> Self {
        serde_json::from_slice(value).unwrap_or_else(|_| Self {
            name: "unreadable".into(),
            host: "unknown".into(),
            pid: 0,
            since: 0,
            epoch: 0,
            id: Digest::of(value).hex(),
        })
    }

    fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {} (process {})", self.name, self.host, self.pid)
    }
}

/// Somebody else is the head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease was lost to {}, epoch {epoch}", by.as_ref().map_or("somebody who is gone".to_owned(), Holder::to_string))]
pub struct LeaseLost {
    /// Who; none if it has left already.
    pub by: Option<Holder>,
    /// The highest epoch known; 0 if the new head is about to take one.
    pub epoch: u32,
}

/// Why nothing may be written now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fenced {
    /// For good.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
    /// For now: the lease may have run out, and the next renewal tells.
    #[error("the lease was last renewed {ago_ms} ms ago, and is good for {good_ms} ms")]
    Stale {
        /// Time since the last renewal.
        ago_ms: u64,
        /// How long one lasts.
        good_ms: u64,
    },
    /// It was given back.
    #[error("the lease was given back")]
    Released,
}

/// A point in time by two clocks: the steady one stands still while the machine sleeps, and the other one may be set.
#[derive(Clone, Copy, Debug)]
struct Moment {
    steady: Instant,
    wall: SystemTime,
}

impl Moment {
    fn now() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }

    /// Time since then, by the clock that says more.
    fn elapsed(self) -> Duration {
        self.steady.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }
}

/// Where the lease stands.
#[derive(Clone, Debug)]
enum Standing {
    /// Renewed by a request that was sent at that time.
    Held(Moment),
    Lost(LeaseLost),
    Released,
}

/// Tells whether this process is the head at this moment. Cheap; clones look at the same lease.
#[derive(Clone)]
pub struct Fence {
    standing: Arc<watch::Sender<Standing>>,
    good: Duration,
    epoch: u32,
}

impl Fence {
    fn new(good: Duration, epoch: u32, renewed: Moment) -> Self {
        Self { standing: Arc::new(watch::Sender::new(Standing::Held(renewed))), good, epoch }
    }

    /// Epoch of this head.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// To be asked before every write that others can see.
    ///
    /// # Errors
    /// If the lease is lost, given back, or was not renewed for as long as it lasts.
    pub fn check(&self) -> Result<(), Fenced> {
        match &*self.standing.borrow() {
            Standing::Held(renewed) => {
                let ago = renewed.elapsed();
                if ago < self.good {
                    return Ok(());
                }
                Err(Fenced::Stale { ago_ms: ago.as_millis() as u64, good_ms: self.good.as_millis() as u64 })
            }
            Standing::Lost(lost) => Err(lost.clone().into()),
            Standing::Released => Err(Fenced::Released),
        }
    }

    /// [`Fence::check`], waiting at most `within` for the renewal that a stale lease needs.
    ///
    /// # Errors
    /// As [`Fence::check`].
    pub async fn confirmed(&self, within: Duration) -> Result<(), Fenced> {
        let mut standing = self.standing.subscribe();
        let settled = async {
            loop {
                standing.borrow_and_update();
                match self.check() {
                    Err(Fenced::Stale { .. }) => {}
                    settled => return settled,
                }
                // The sender lives in self, hence waiting cannot fail.
                let _ = standing.changed().await;
            }
        };
        timeout(within, settled).await.unwrap_or_else(|_| self.check())
    }

    fn set(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }
}

/// The lease of this process. It has to be kept: [`Lease::keep`].
pub struct Lease {
    bucket: Bucket,
    state: NatsState,
    holder: Holder,
    fence: Fence,
}

/// Waits until nobody else holds the lease of the run, takes it and raises the run's epoch above `floor_epoch`. `on_wait` is
/// told who holds it, each time that this is somebody else.
///
/// # Errors
/// If the bucket is missing, or the server is away for a minute.
pub async fn acquire(
    nats: &Nats,
    holder: Holder,
    floor_epoch: u32,
    on_wait: impl Fn(&Holder),
) -> Result<Lease, NatsError> {
    let bucket_name = nats.config().run.lease_bucket();
    let missing = || NatsError::Admin { what: bucket_name.clone(), reason: "the bucket is not there".into() };
    let stream = admin::find(nats, &format!("KV_{bucket_name}")).await?.ok_or_else(missing)?;
    let good = stream.cached_info().config.max_age;
    let bucket = Bucket::new(nats, bucket_name.clone(), nats.config().request_timeout.min(good / RENEWALS));
    let state = NatsState::new(nats);
    let mut holder = Holder { epoch: 0, id: nats.unique_id(), ..holder };
    let mut patience = Patience::new();
    loop {
        let taken = take(&bucket, &mut holder, &on_wait, good, &mut patience).await?;
        match raise_epoch(&state, floor_epoch).await {
            Ok(epoch) => holder.epoch = epoch,
            Err(error) => {
                patience.spend("epoch", error).await?;
                continue;
            }
        }
        let fence = Fence::new(good, holder.epoch, taken);
        let lease = Lease { bucket: bucket.clone(), state: NatsState::new(nats), holder: holder.clone(), fence };
        // Says the epoch to whoever looks. Where the server does not answer, the next renewal does.
        match lease.renew().await {
            Ok(_) => return Ok(lease),
            Err(lost) => tracing::warn!(%lost, "the lease ran out while the epoch was raised"),
        }
    }
}

/// Creates the key, or finds that it is ours already; gives the time of the request.
async fn take(
    bucket: &Bucket,
    holder: &mut Holder,
    on_wait: &impl Fn(&Holder),
    good: Duration,
    patience: &mut Patience,
) -> Result<Moment, NatsError> {
    let mut told = String::new();
    loop {
        let sent = Moment::now();
        let done = match bucket.get(KEY).await {
            Ok(None) => bucket.put_if(KEY, 0, &holder.write()).await.map(|_| true),
            Ok(Some(found)) => match Holder::read(&found.value) {
                other if other.id != holder.id => {
                    if told != other.id {
                        on_wait(&other);
                        told = other.id;
                    }
                    Ok(false)
                }
                // Taken in an earlier try whose answer was lost.
                _ => bucket.put_if(KEY, found.revision, &holder.write()).await.map(|_| true),
            },
            Err(error) => Err(error),
        };
        match done {
            Ok(true) => return Ok(sent),
            Ok(false) => patience.renew(),
            Err(LinkError::Conflict { .. }) => continue,
            Err(error) => patience.spend("lease", error).await?,
        }
        sleep((good / 30).clamp(LOOK_LEAST, LOOK_MOST)).await;
    }
}

/// Raises the epoch of the run above what it was and above `floor`.
async fn raise_epoch(state: &NatsState, floor: u32) -> Result<u32, LinkError> {
    loop {
        let found = state.get(subjects::EPOCH).await?;
        let highest = epoch_in(found.as_ref())?.unwrap_or(0).max(floor);
        let epoch = highest.checked_add(1).ok_or_else(|| odd_epoch(format!("there is none above {highest}")))?;
        match state.put_if(subjects::EPOCH, found.map_or(0, |found| found.revision), written(epoch)?).await {
            Ok(_) => return Ok(epoch),
            Err(LinkError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

fn epoch_in(found: Option<&Versioned>) -> Result<Option<u32>, LinkError> {
    found.map(|found| decode(&found.value).map_err(|error| odd_epoch(error.to_string()))).transpose()
}

fn written(epoch: u32) -> Result<Arc<[u8]>, LinkError> {
    encode(&epoch).map(Into::into).map_err(|error| odd_epoch(error.to_string()))
}

fn odd_epoch(reason: String) -> LinkError {
    refused(subjects::EPOCH, reason)
}

impl Lease {
    /// Epoch of this head.
    pub fn epoch(&self) -> u32 {
        self.holder.epoch
    }

    /// What tells whether this process is the head.
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Renews the lease until `done`, and gives it back then: `done` must come after the last write of this head. An outage
    /// of the server is waited out, and a lease that ran out meanwhile is taken again unless there was another head.
    ///
    /// # Errors
    /// If there was another head.
    pub async fn keep(self, done: Shutdown) -> Result<(), LeaseLost> {
        let good = self.fence.good;
        let mut well = true;
        loop {
            let renewed = done.unless_stopping(async {
                let renewed = self.renew().await?;
                match (std::mem::replace(&mut well, renewed), renewed) {
                    (true, false) => tracing::warn!("the lease cannot be renewed"),
                    (false, true) => tracing::info!("the lease is renewed again"),
                    _ => {}
                }
                sleep(if renewed { good / RENEWALS } else { (good / 15).max(LOOK_LEAST) }).await;
                Ok(())
            });
            match renewed.await {
                Some(Ok(())) => {}
                Some(Err(lost)) => {
                    tracing::error!(%lost, "not the head any more");
                    self.fence.set(Standing::Lost(LeaseLost::clone(&lost)));
                    return Err(lost);
                }
                None => {
                    self.release().await;
                    return Ok(());
                }
            }
        }
    }

    /// One renewal; false if the server did not do it.
    async fn renew(&self) -> Result<bool, LeaseLost> {
        let sent = Moment::now();
        match self.write_key().await? {
            true if self.epoch_stands().await? => {
                self.fence.set(Standing::Held(sent));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Writes the key if it is ours or nobody's.
    async fn write_key(&self) -> Result<bool, LeaseLost> {
        let Ok(found) = self.bucket.get(KEY).await else { return Ok(false) };
        let revision = match found {
            Some(found) => {
                let holder = Holder::read(&found.value);
                if holder.id != self.holder.id {
                    return Err(LeaseLost { epoch: holder.epoch, by: Some(holder) });
                }
                found.revision
            }
            None => 0,
        };
        // After a conflict the next look tells who was there.
        Ok(self.bucket.put_if(KEY, revision, &self.holder.write()).await.is_ok())
    }

    /// Whether the epoch is still ours; put back if the server lost it. With the lease in hand nobody else raises it.
    async fn epoch_stands(&self) -> Result<bool, LeaseLost> {
        let Ok(found) = self.state.get(subjects::EPOCH).await else { return Ok(false) };
        let Ok(stored) = epoch_in(found.as_ref()) else { return Ok(false) };
        if let Some(epoch) = stored.filter(|stored| *stored > self.holder.epoch) {
            self.release().await;
            return Err(LeaseLost { by: None, epoch });
        }
        if stored == Some(self.holder.epoch) {
            return Ok(true);
        }
        let Ok(value) = written(self.holder.epoch) else { return Ok(false) };
        Ok(self.state.put_if(subjects::EPOCH, found.map_or(0, |found| found.revision), value).await.is_ok())
    }

    /// Best effort: what is not given back runs out.
    async fn release(&self) {
        self.fence.set(Standing::Released);
        let given_back = async {
            let found = self.bucket.get(KEY).await?;
            match found.filter(|found| Holder::read(&found.value).id == self.holder.id) {
                Some(found) => self.bucket.delete_if(KEY, found.revision).await,
                None => Ok(false),
            }
        };
        if let Err(error) = given_back.await {
            tracing::debug!(%error, "the lease was not given back and runs out by itself");
        }
    }
}

/// How long trouble has lasted.
struct Patience {
    since: Option<Instant>,
}

impl Patience {
    fn new() -> Self {
        Self { since: None }
    }

    fn renew(&mut self) {
        self.since = None;
    }

    /// Waits a little after `error`; gives up if it began too long ago or does not pass.
    async fn spend(&mut self, what: &str, error: LinkError) -> Result<(), NatsError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() > OUTAGE || !matches!(error, LinkError::Deadline { .. }) {
            return Err(NatsError::Link { what: what.to_owned(), source: error });
        }
        sleep(LOOK_LEAST).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fence_holds_what_was_not_renewed_and_what_was_lost() {
        let long = Duration::from_secs(3600);
        let fence = Fence::new(long, 3, Moment::now());
        assert_eq!((fence.check(), fence.epoch()), (Ok(()), 3));
        let stale = Fence::new(Duration::ZERO, 3, Moment::now());
        assert!(matches!(stale.check(), Err(Fenced::Stale { .. })));
        assert!(matches!(stale.confirmed(Duration::from_millis(1)).await, Err(Fenced::Stale { .. })));
        let lost = LeaseLost { by: Some(Holder::here("other", "h")), epoch: 4 };
        let waiting = tokio::spawn({
            let stale = stale.clone();
            async move { stale.confirmed(Duration::from_secs(60)).await }
        });
        stale.set(Standing::Lost(lost.clone()));
        assert_eq!(waiting.await.unwrap(), Err(Fenced::Lost(lost.clone())), "news end the waiting");
        assert!(lost.to_string().contains("other on h") && lost.to_string().contains("epoch 4"));
        fence.set(Standing::Released);
        assert_eq!(fence.confirmed(long).await, Err(Fenced::Released));
    }

    #[test]
    fn a_machine_that_slept_does_not_take_its_lease_for_fresh() {
        let good = Duration::from_secs(15);
        let slept = |by_the_wall: Duration| Moment { wall: SystemTime::now() - by_the_wall, ..Moment::now() };
        assert!(matches!(Fence::new(good, 1, slept(4 * good)).check(), Err(Fenced::Stale { .. })));
        assert_eq!(Fence::new(good, 1, slept(Duration::ZERO)).check(), Ok(()));
        let set_back = Moment { wall: SystemTime::now() + 4 * good, ..Moment::now() };
        assert_eq!(Fence::new(good, 1, set_back).check(), Ok(()));
    }

    #[test]
    fn holders_read_back_and_an_unreadable_one_is_somebody() {
        let holder = Holder { epoch: 7, id: "x.1".into(), ..Holder::here("head", "box") };
        assert_eq!(Holder::read(&holder.write()), holder);
        assert_eq!(Holder::read(b"?"), Holder::read(b"?"));
        assert_ne!(Holder::read(b"?").id, Holder::read(b"!").id);
    }
}
