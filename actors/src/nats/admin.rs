//! Streams, consumers and buckets of a run: made, compared, told of and removed. All of it may be done again at any time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    time::Duration,
};

use async_nats::jetstream::{
    ErrorCode,
    consumer::pull,
    context::{ConsumerInfoErrorKind, CreateStreamErrorKind, GetStreamErrorKind},
    stream::{self, DiscardPolicy, StorageType, Stream},
};
use folgore_protocol::{decode, subjects};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{Nats, NatsError, bucket::Bucket, lease, lease::Holder, streams};

const MIB: u64 = 1 << 20;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Writes of one key that the server keeps.
const STATE_HISTORY: i64 = 16;
/// Longest time without a renewal after which a lease is free, unless told otherwise.
const LEASE_AGE: Duration = Duration::from_secs(15);
/// Least that a store is given: below, one message could fill it.
const LEAST: u64 = 8 * MIB;

/// Bytes that the stores of a run may take; the server sets them aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Jobs.
    pub jobs: u64,
    /// Trajectories.
    pub trajectories: u64,
    /// Rejected messages.
    pub dead_letters: u64,
    /// Progress.
    pub events: u64,
    /// Latest values.
    pub state: u64,
    /// The lease.
    pub lease: u64,
    /// Policies: about sixteen of them should fit.
    pub adapters: u64,
    /// Bodies that do not fit into a message.
    pub bodies: u64,
    /// Time without a renewal after which the lease is free.
    pub lease_age: Duration,
}

impl Default for Limits {
    /// About 8 GiB.
    fn default() -> Self {
        Self {
            jobs: 256 * MIB,
            trajectories: 2048 * MIB,
            dead_letters: 256 * MIB,
            events: 256 * MIB,
            state: 16 * MIB,
            lease: MIB,
            adapters: 1024 * MIB,
            bodies: 4096 * MIB,
            lease_age: LEASE_AGE,
        }
    }
}

impl Limits {
    /// The usual limits, smaller where `free` bytes of disk ask for it: together they take at most half of them. Where that
    /// is less than about 60 MiB, the least that works.
    pub fn within(free: u64) -> Self {
        let usual = Self::default();
        let share = (free as f64 / 2.0 / usual.total() as f64).min(1.0);
        let scaled = |bytes: u64| ((bytes as f64 * share) as u64).max(LEAST);
        Self {
            jobs: scaled(usual.jobs),
            trajectories: scaled(usual.trajectories),
            dead_letters: scaled(usual.dead_letters),
            events: scaled(usual.events),
            state: scaled(usual.state),
            lease: usual.lease,
            adapters: scaled(usual.adapters),
            bodies: scaled(usual.bodies),
            lease_age: usual.lease_age,
        }
    }

    /// Bytes of all stores together.
    pub fn total(&self) -> u64 {
        let Self { jobs, trajectories, dead_letters, events, state, lease, adapters, bodies, lease_age: _ } = self;
        jobs + trajectories + dead_letters + events + state + lease + adapters + bodies
    }
}

/// What a server holds of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the run.
    pub run: String,
    /// Version of the server.
    pub server: String,
    /// Streams and buckets, by name.
    pub stores: BTreeMap<String, StoreStatus>,
    /// Consumers, by stream and name.
    pub consumers: BTreeMap<String, ConsumerStatus>,
    /// What should be there and is not.
    pub missing: Vec<String>,
    /// Revision of the policy that is served; none if there is none yet.
    pub policy_revision: Option<u64>,
    /// Epoch that the last head took.
    pub epoch: Option<u32>,
    /// The head.
    pub head: Option<Holder>,
}

/// One stream or bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Messages (values, chunks) in it.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Most messages; none: as many as there is room for.
    pub max_messages: Option<u64>,
    /// Most bytes; none: as many as there is room for.
    pub max_bytes: Option<u64>,
}

/// One consumer of a work queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerStatus {
    /// Messages that nobody holds yet.
    pub waiting: u64,
    /// Messages that were handed out and not settled.
    pub held: u64,
    /// Messages that were handed out more than once, of those.
    pub redelivered: u64,
}

/// Makes what is not there and changes what differs; tells each of these.
///
/// # Errors
/// If the server refuses or does not answer; what was done before stays.
pub async fn ensure(nats: &Nats, limits: &Limits) -> Result<Vec<String>, NatsError> {
    let mut done = make(nats, limits, true).await?;
    done.sort();
    Ok(done)
}

/// Names what should be there and is not.
///
/// # Errors
/// If the server does not answer.
pub async fn missing(nats: &Nats) -> Result<Vec<String>, NatsError> {
    let mut missing = Vec::new();
    for wanted in stores(nats, &Limits::default()) {
        if find(nats, &wanted.name).await?.is_none() {
            missing.push(wanted.name);
        }
    }
    for (stream, wanted) in consumers(nats) {
        let name = consumer_name(&stream, &wanted);
        if !missing.contains(&stream) && consumer_info(nats, &stream, &wanted).await?.is_none() {
            missing.push(name);
        }
    }
    Ok(missing)
}

/// Makes what is not there, as it was when this process saw it last (or with the usual limits), and leaves the rest as it
/// is.
pub(super) async fn make_missing(nats: &Nats) -> Result<Vec<String>, NatsError> {
    make(nats, &Limits::default(), false).await
}

/// What the server holds of the run.
///
/// # Errors
/// If the server does not answer.
pub async fn status(nats: &Nats) -> Result<Status, NatsError> {
    let mut stores_found = BTreeMap::new();
    for wanted in stores(nats, &Limits::default()) {
        if let Some(found) = find(nats, &wanted.name).await? {
            stores_found.insert(wanted.name, store_status(found.cached_info()));
        }
    }
    let mut consumers_found = BTreeMap::new();
    for (stream, wanted) in consumers(nats) {
        if let Some(info) = consumer_info(nats, &stream, &wanted).await? {
            consumers_found.insert(consumer_name(&stream, &wanted), consumer_status(&info));
        }
    }
    let (run, patience) = (&nats.config().run, nats.config().request_timeout);
    let state = Bucket::new(nats, run.state_bucket(), patience);
    let lease = Bucket::new(nats, run.lease_bucket(), patience);
    // A bucket that is missing is told above, and holds nothing.
    let value = async |bucket: &Bucket, key: &str| bucket.get(key).await.ok().flatten();
    Ok(Status {
        run: run.run().to_owned(),
        server: nats.client.server_info().version,
        missing: missing(nats).await?,
        policy_revision: value(&state, subjects::POLICY).await.map(|found| found.revision),
        epoch: value(&state, subjects::EPOCH).await.and_then(|found| decode(&found.value).ok()),
        head: value(&lease, lease::KEY).await.map(|found| Holder::read(&found.value)),
        stores: stores_found,
        consumers: consumers_found,
    })
}

/// Deletes everything of the run; names what there was. The bucket of bodies is every run's, and goes with the last one.
///
/// # Errors
/// If the server refuses or does not answer; what was done before stays.
pub async fn remove(nats: &Nats) -> Result<Vec<String>, NatsError> {
    let mut removed = Vec::new();
    let run = &nats.config().run;
    let bodies = format!("OBJ_{}", run.bodies_bucket());
    let last = runs(nats).await?.iter().all(|other| other == run.run());
    for store in stores(nats, &Limits::default()) {
        let ours = last || store.name != bodies;
        if ours && find(nats, &store.name).await?.is_some() {
            answer(nats, &store.name, nats.jetstream.delete_stream(&store.name)).await?;
            removed.push(store.name);
        }
    }
    Ok(removed)
}

/// The runs that have streams on the server, by name.
///
/// # Errors
/// If the server refuses or does not answer.
pub async fn runs(nats: &Nats) -> Result<Vec<String>, NatsError> {
    let names: Vec<String> = answer(nats, "list of streams", nats.jetstream.stream_names().try_collect()).await?;
    let runs: BTreeSet<String> = names.iter().filter_map(|name| run_of(name)).map(str::to_owned).collect();
    Ok(runs.into_iter().collect())
}

/// The run that stream `name` belongs to.
fn run_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("RL_")?;
    ["_JOBS", "_TRAJ"].iter().find_map(|what| rest.strip_suffix(what))
}

async fn make(nats: &Nats, limits: &Limits, change: bool) -> Result<Vec<String>, NatsError> {
    let mut done = Vec::new();
    for wanted in stores(nats, limits) {
        let name = wanted.name.clone();
        match find(nats, &name).await? {
            None => {
                let as_before = nats.memory.how(&name).filter(|_| !change);
                create(nats, as_before.unwrap_or(wanted)).await?;
                done.push(format!("created {name}"));
            }
            Some(found) if change => {
                let mut config = found.cached_info().config.clone();
                let changes = adapt(&mut config, &wanted);
                if !changes.is_empty() {
                    answer(nats, &name, nats.jetstream.update_stream(&config)).await?;
                    done.push(format!("changed {name}: {}", changes.join(", ")));
                }
                nats.memory.made(config);
            }
            Some(found) => nats.memory.made(found.cached_info().config.clone()),
        }
    }
    for (stream, wanted) in consumers(nats) {
        let (name, found) = (consumer_name(&stream, &wanted), consumer_info(nats, &stream, &wanted).await?);
        let same = found.as_ref().is_some_and(|found| {
            found.config.ack_wait == wanted.ack_wait && found.config.max_ack_pending == wanted.max_ack_pending
        });
        if found.is_none() || (change && !same) {
            answer(nats, &name, nats.jetstream.create_consumer_on_stream(wanted, stream)).await?;
            done.push(format!("{} {name}", if found.is_none() { "created" } else { "changed" }));
        }
    }
    Ok(done)
}

async fn create(nats: &Nats, wanted: stream::Config) -> Result<(), NatsError> {
    let made = async {
        match nats.jetstream.create_stream(&wanted).await {
            // Somebody else made it meanwhile.
            Err(error) if code(error.kind()) == Some(ErrorCode::STREAM_NAME_EXIST) => Ok(()),
            made => made.map(|_| ()),
        }
    };
    answer(nats, &wanted.name, made).await?;
    nats.memory.made(wanted);
    Ok(())
}

fn code(kind: CreateStreamErrorKind) -> Option<ErrorCode> {
    match kind {
        CreateStreamErrorKind::JetStream(error) => Some(error.error_code()),
        _ => None,
    }
}

/// Brings `config` to what `wanted` says; tells the changes.
fn adapt(config: &mut stream::Config, wanted: &stream::Config) -> Vec<String> {
    let mut changes = Vec::new();
    let mut set = |what: &str, is: &mut i64, wanted: i64| {
        if *is != wanted {
            changes.push(format!("{what} from {is} to {wanted}"));
            *is = wanted;
        }
    };
    // The server says -1 for "no bound".
    let bound = |bound: i64| if bound == 0 { -1 } else { bound };
    set("max_bytes", &mut config.max_bytes, bound(wanted.max_bytes));
    set("max_messages", &mut config.max_messages, bound(wanted.max_messages));
    set("history", &mut config.max_messages_per_subject, bound(wanted.max_messages_per_subject));
    let mut size = i64::from(config.max_message_size);
    set("max_message_size", &mut size, bound(i64::from(wanted.max_message_size)));
    config.max_message_size = size as i32;
    let mut replicas = config.num_replicas as i64;
    set("replicas", &mut replicas, wanted.num_replicas as i64);
    config.num_replicas = replicas as usize;
    if config.max_age != wanted.max_age {
        changes.push(format!("max_age from {:?} to {:?}", config.max_age, wanted.max_age));
        config.max_age = wanted.max_age;
        // The server refuses a window that is longer; it makes it two minutes where none is asked for.
        if !config.max_age.is_zero() && config.duplicate_window > config.max_age {
            config.duplicate_window = config.max_age;
        }
    }
    changes
}

/// The streams and buckets of a run.
fn stores(nats: &Nats, limits: &Limits) -> Vec<stream::Config> {
    let (config, run) = (nats.config(), &nats.config().run);
    let sized = |config: stream::Config, bytes: u64| stream::Config { max_bytes: bytes as i64, ..config };
    let values = |bucket: String, history: i64, max_age: Duration| stream::Config {
        name: format!("KV_{bucket}"),
        subjects: vec![format!("$KV.{bucket}.>")],
        max_messages_per_subject: history,
        max_age,
        allow_rollup: true,
        deny_delete: true,
        ..store(config.replicas)
    };
    let objects = |bucket: String, max_age: Duration| stream::Config {
        name: format!("OBJ_{bucket}"),
        subjects: vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
        max_age,
        allow_rollup: true,
        ..store(config.replicas)
    };
    vec![
        sized(streams::jobs(run, config), limits.jobs),
        sized(streams::trajectories(run, config), limits.trajectories),
        sized(streams::dead_letters(run, config), limits.dead_letters),
        sized(streams::events(run, config), limits.events),
        sized(values(run.state_bucket(), STATE_HISTORY, Duration::ZERO), limits.state),
        sized(values(run.lease_bucket(), 1, limits.lease_age), limits.lease),
        sized(objects(run.adapters_bucket(), Duration::ZERO), limits.adapters),
        sized(objects(run.bodies_bucket(), DAY), limits.bodies),
    ]
}

/// What buckets of both kinds have in common.
fn store(replicas: usize) -> stream::Config {
    stream::Config {
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        allow_direct: true,
        num_replicas: replicas,
        ..stream::Config::default()
    }
}

/// The consumers of a run, with their streams.
fn consumers(nats: &Nats) -> [(String, pull::Config); 2] {
    let (config, run) = (nats.config(), &nats.config().run);
    [
        (run.jobs_stream(), streams::rollout_consumer(run, config)),
        (run.trajectories_stream(), streams::replay_consumer(run, config)),
    ]
}

fn consumer_name(stream: &str, consumer: &pull::Config) -> String {
    format!("{stream}/{}", consumer.durable_name.as_deref().unwrap_or_default())
}

/// The stream, if it is there.
pub(super) async fn find(nats: &Nats, name: &str) -> Result<Option<Stream>, NatsError> {
    let found = async {
        match nats.jetstream.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(error),
            },
        }
    };
    answer(nats, name, found).await
}

async fn consumer_info(
    nats: &Nats,
    stream: &str,
    consumer: &pull::Config,
) -> Result<Option<async_nats::jetstream::consumer::Info>, NatsError> {
    let Some(found) = find(nats, stream).await? else { return Ok(None) };
    let name = consumer.durable_name.as_deref().unwrap_or_default();
    let info = async {
        match found.consumer_info(name).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    };
    answer(nats, &consumer_name(stream, consumer), info).await
}

/// Waits for the server, and no longer than a request may take.
async fn answer<T, E: Display>(
    nats: &Nats,
    what: &str,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, NatsError> {
    let within = nats.config().request_timeout;
    let refused = |reason: String| NatsError::Admin { what: what.to_owned(), reason };
    nats.ready(what, within).await.map_err(|error| refused(error.to_string()))?;
    match timeout(within, asked).await {
        Ok(answered) => answered.map_err(|error| refused(error.to_string())),
        Err(_) => Err(refused(format!("no answer within {within:?}"))),
    }
}

fn store_status(info: &stream::Info) -> StoreStatus {
    StoreStatus {
        messages: info.state.messages,
        bytes: info.state.bytes,
        max_messages: u64::try_from(info.config.max_messages).ok(),
        max_bytes: u64::try_from(info.config.max_bytes).ok(),
    }
}

fn consumer_status(info: &async_nats::jetstream::consumer::Info) -> ConsumerStatus {
    ConsumerStatus {
        waiting: info.num_pending,
        held: info.num_ack_pending as u64,
        redelivered: info.num_redelivered as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_shrink_with_the_disk_and_never_to_nothing() {
        const GIB: u64 = 1 << 30;
        assert_eq!(Limits::within(100 * GIB), Limits::default());
        let tight = Limits::within(2 * GIB);
        assert!(tight.total() <= GIB + 2 * LEAST, "{}", tight.total());
        assert!(tight.bodies > tight.jobs && tight.lease_age == LEASE_AGE);
        let none = Limits::within(0);
        assert!(none.jobs == LEAST && none.total() == 7 * LEAST + MIB, "{none:?}");
    }

    #[test]
    fn runs_are_read_from_the_names_of_their_streams() {
        assert_eq!(run_of("RL_demo_1_JOBS"), Some("demo_1"));
        assert_eq!(run_of("RL_demo_TRAJ"), Some("demo"));
        for other in ["KV_rl_demo_state", "RL_demo", "RLdemo_JOBS", "RL_demo_Q_work"] {
            assert_eq!(run_of(other), None, "{other}");
        }
    }

    #[test]
    fn what_differs_is_changed_and_told() {
        let wanted = stream::Config { max_bytes: 10, max_age: Duration::from_secs(9), num_replicas: 1, ..store(1) };
        let mut config = stream::Config {
            max_messages: -1,
            max_messages_per_subject: -1,
            max_message_size: -1,
            duplicate_window: Duration::from_secs(100),
            ..wanted.clone()
        };
        assert_eq!(adapt(&mut config, &wanted), Vec::<String>::new(), "no bound is no difference");
        config.max_bytes = 5;
        config.max_age = Duration::from_secs(200);
        let changes = adapt(&mut config, &wanted);
        assert_eq!(changes, ["max_bytes from 5 to 10", "max_age from 200s to 9s"]);
        assert_eq!((config.max_bytes, config.duplicate_window), (10, wanted.max_age));
        assert!(adapt(&mut config, &wanted).is_empty());
    }
}
