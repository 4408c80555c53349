//! A run whose actors are in several processes: how the head and its workers get hold of the server, and of each other.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::{BuildHasher as _, Hasher as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use folgore_actors::{
    BoxFuture, ChildPolicy, Context, LinkError, Links, LocalConfig, Service, ServiceError,
    cached::cached,
    fenced, local,
    nats::{Fence, Fenced, Holder, Lease, Nats, NatsConfig, acquire, admin, connect},
    routed,
};
use folgore_config::ClusterSection;
use folgore_protocol::{Digest, Names, PROTOCOL_VERSION, Role, RunCard, RunName, subjects};
use folgore_rollout::{
    CoordinatorConfig,
    fleet::{Reception, Roster, Watchdog, WatchdogConfig},
};
use tokio::time::sleep;

use crate::{
    cli::ServerArgs,
    compose::{House, Ingredients, Place, REWARDS_AT_ONCE, judges_groups},
    nats::identities,
    retriever::{self, CORPUS},
};

/// Version of this executable, as it is told to others.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");
/// How long a process tries to reach the server for the first time.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// How long a run may stand still before the watchdog says why.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at whether the server lost something.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Characters of the host in a worker's name, so that the whole stays within what a name may be.
const HOST_IN_NAME: usize = 12;
/// Policies that a host keeps on its disk.
pub const POLICIES_KEPT: usize = 8;

/// Connects to the server as `role`. The name is that of the identity, which is what the server lets it be. `patience` is
/// told to the server by who makes the queues.
pub async fn reach(
    args: &ServerArgs,
    run: &RunName,
    role: Role,
    name: &str,
    patience: Option<&ClusterSection>,
) -> Result<Nats> {
    let names = Names::new(run).map_err(anyhow::Error::msg)?;
    let carried = args.identity.as_deref().map(identities::open).transpose()?;
    if let Some(other) = carried.as_ref().filter(|carried| carried.role != role) {
        bail!("identity {} is made for the role {}, and this is a {role}", other.name, other.role);
    }
    let name = carried.as_ref().map_or(name, |carried| &carried.name);
    let mut config = NatsConfig::new(&args.nats, names, role, name)?;
    config.identity = carried.map(|carried| carried.keys);
    config.connect_within = CONNECT_WITHIN;
    if let Some(patience) = patience {
        config.ack_wait_jobs = seconds(patience.ack_wait_s);
        // Replay settles in milliseconds what it takes: there is no reason to wait longer for it than for a worker.
        config.ack_wait_trajectories = config.ack_wait_trajectories.min(config.ack_wait_jobs);
    }
    Ok(connect(config).await?)
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

/// Name of this machine.
pub fn host() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let name = name.trim().to_owned();
    if name.is_empty() { "host".into() } else { name }
}

/// A name for a worker without an identity: what it does, where, and a draw. Neither host nor process would tell two workers
/// apart: the hosts of a cluster begin alike, and in a container every worker is process 1.
pub fn worker_name(role: Role) -> String {
    worker_name_at(role, &host())
}

/// The end of the host's name is what differs between hosts that are numbered.
fn worker_name_at(role: Role, host: &str) -> String {
    let usable: Vec<char> = host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    let end: String = usable[usable.len().saturating_sub(HOST_IN_NAME)..].iter().collect();
    let drawn = RandomState::new().build_hasher().finish() as u32;
    format!("{role}-{}-{drawn:08x}", end.trim_matches('-'))
}

/// What every process of the run must hold, by name.
pub fn card(run: &str, what: &Ingredients) -> Result<RunCard> {
    let config = what.config.resolved_yaml()?;
    let mut facts = policy_facts(&what.policy);
    facts.insert(CONFIGURATION.into(), Digest::of(config.as_bytes()).short());
    if let Some(found_by) = &what.retriever {
        facts.insert(CORPUS.into(), retriever::corpus(&**found_by));
    }
    Ok(RunCard { run: run.to_owned(), protocol: PROTOCOL_VERSION, build: BUILD.into(), config, facts })
}

/// Name of the configuration among the facts of a run.
pub const CONFIGURATION: &str = "configuration";

/// What a policy is made of.
pub fn policy_facts(policy: &crate::policy::Policy) -> BTreeMap<String, String> {
    let tokenizer = &policy.tokenizer;
    let template = tokenizer.chat_template().map_or("none".into(), |text| Digest::of(text.as_bytes()).short());
    [("base model", policy.digest.short()), ("tokenizer", tokenizer.digest().short()), ("chat template", template)]
        .map(|(name, digest)| (name.to_owned(), digest))
        .into()
}

/// The links of a worker: what its own actors alone answer (`here`) stays in the process; policies are downloaded once a host, which keeps
/// `kept` of them.
pub fn worker_links(nats: &Nats, blobs: &Path, kept: usize, here: &[&str]) -> Links {
    let near = local(nats.config().run.run(), LocalConfig::new(blobs.join("local")));
    let mut far = nats.links();
    far.blob = cached(far.blob, blobs.join("policies"), kept);
    routed(near, far, here)
}

/// Folder of what a host keeps for all its workers: `FOLGORE_CACHE`, or the user's cache.
pub fn host_cache() -> PathBuf {
    let named = std::env::var_os("FOLGORE_CACHE").map(PathBuf::from);
    let user = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    named.or_else(|| user().or_else(home).map(|cache| cache.join("folgore"))).unwrap_or_else(std::env::temp_dir)
}

/// How the coordinator of a head works: over a server, looking costs two round trips.
pub fn coordinator(patience: &ClusterSection) -> CoordinatorConfig {
    let (poll, reissue_after) = (Duration::from_millis(100), seconds(patience.reissue_after_s));
    CoordinatorConfig { poll, reissue_after, ..CoordinatorConfig::default() }
}

/// The head's hold on a run: a connection, the lease, and who is there.
pub struct Head {
    nats: Nats,
    links: Links,
    lease: Lease,
    /// Epoch of this head.
    pub epoch: u32,
    card: RunCard,
    /// Who is there.
    pub roster: Roster,
    remote_reward: bool,
}

impl Head {
    /// Takes the run: makes what is missing on the server, waits for the lease, and says what the run is. `fresh` runs must
    /// not find another run of their name; `recorded` is the highest epoch in the record.
    pub async fn take(
        args: &ServerArgs,
        place: &Place,
        run: &str,
        what: &Ingredients,
        fresh: bool,
        recorded: u32,
        say: impl Fn(&str),
    ) -> Result<Self> {
        let run_name = RunName::new(run).map_err(anyhow::Error::msg)?;
        let patience = &what.config.cluster;
        let nats = reach(args, &run_name, Role::Head, "head", Some(patience)).await?;
        // What an administrator made keeps the sizes that he chose.
        if !admin::missing(&nats).await?.is_empty() {
            let adapter = 4 * what.lora.shape().parameters(what.policy.config()) as u64;
            let limits = admin::Limits { lease_age: seconds(patience.lease_s), ..limits(adapter) };
            let made = admin::ensure(&nats, &limits).await;
            let made = made.with_context(|| {
                format!("{}: no room for the run; `folgore nats rm` deletes runs that are over", args.nats)
            })?;
            made.iter().for_each(|made| tracing::info!(made, "on the server"));
        }
        let near = local(run, LocalConfig::new(&place.blobs));
        let far = nats.links();
        if fresh {
            expect_free(&far, &args.nats).await?;
        }
        let holder = Holder::here("head", &host());
        let lease = acquire(&nats, holder, recorded, |who| say(&format!("waiting: the run is held by {who}"))).await?;
        if fresh {
            // Another head of that name may have come first, and been waited for.
            expect_free(&far, &args.nats).await?;
        }
        let epoch = lease.epoch();
        let card = card(run, what)?;
        put_card(&far, &card).await?;
        let fence = lease.fence();
        let far = fenced(far, Arc::new(move || may_write(&fence)));
        let remote_reward = what.config.rollout.remote_reward;
        // Groups are judged at replay's side; unless others score, that is here.
        let mut stays = vec![subjects::REPLAY, subjects::GENERATE, subjects::MEASURE];
        stays.extend((!remote_reward).then_some(subjects::REWARD));
        let links = routed(near, far, &stays);
        Ok(Self { nats, links, lease, epoch, card, roster: Roster::new(), remote_reward })
    }

    /// Starts the actors of the head, but the learner.
    pub async fn start(
        self,
        place: &Place,
        what: &Ingredients,
        force: bool,
        tell: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Result<House> {
        let house = House::over(self.links.clone(), None).await?;
        let opened = self.open(&house, place, what, force, tell).await;
        house.or_its_end(opened).await
    }

    async fn open(
        self,
        house: &House,
        place: &Place,
        what: &Ingredients,
        force: bool,
        tell: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Result<()> {
        let Self { nats, lease, epoch, card, roster, remote_reward, .. } = self;
        let supervisor = &house.supervisor;
        let (fence, lease) = (lease.fence(), Arc::new(Mutex::new(Some(lease))));
        supervisor
            .spawn_as("lease", ChildPolicy::Critical, move || Box::new(LeaseKeeper { lease: lease.clone() }))
            .await?;
        let restored = nats.clone();
        supervisor.spawn("janitor", move || Box::new(Janitor { nats: restored.clone(), fence: fence.clone() })).await?;
        let (guests, held) = (roster.clone(), card);
        supervisor
            .spawn("reception", move || Box::new(Reception { card: held.clone(), epoch, roster: guests.clone() }))
            .await?;
        if judges_groups(&what.reward) && !remote_reward {
            house.score(&what.reward, REWARDS_AT_ONCE).await?;
        }
        house.keep_record(place, what, force).await?;
        house.coordinate(coordinator(&what.config.cluster)).await?;
        let connected = nats.connected();
        let config = WatchdogConfig {
            patience: PATIENCE,
            remote_reward,
            remote_search: what.config.rollout.searches() && what.config.retriever.remote,
            connected: Arc::new(move || *connected.borrow()),
            tell,
        };
        let watched = supervisor.clone();
        supervisor
            .spawn("watchdog", move || {
                Box::new(Watchdog { config: config.clone(), roster: roster.clone(), supervisor: watched.clone() })
            })
            .await?;
        Ok(())
    }
}

/// What a write is told while the lease is not certain: wait where it may be renewed, and never where it is lost.
fn may_write(fence: &Fence) -> Result<(), LinkError> {
    let subject = || "lease".to_owned();
    match fence.check() {
        Ok(()) => Ok(()),
        Err(Fenced::Stale { ago_ms, .. }) => Err(LinkError::Deadline { subject: subject(), waited_ms: ago_ms }),
        Err(lost) => Err(LinkError::Refused { subject: subject(), reason: lost.to_string() }),
    }
}

/// What a run takes on a server that nobody sized for it: about a gigabyte, and sixteen adapters of `adapter` bytes.
fn limits(adapter: u64) -> admin::Limits {
    const MIB: u64 = 1 << 20;
    admin::Limits {
        jobs: 64 * MIB,
        trajectories: 512 * MIB,
        dead_letters: 32 * MIB,
        events: 32 * MIB,
        adapters: 16 * (adapter + MIB),
        bodies: 256 * MIB,
        ..admin::Limits::default()
    }
}

/// Checks that `server` holds no run of this name.
async fn expect_free(links: &Links, server: &str) -> Result<()> {
    let run = &links.run;
    if links.state.get(subjects::CONFIG).await?.is_some() {
        bail!(
            "{server}: the server holds another run named {run}; choose another --run-name, or delete it with `folgore nats rm {run}`"
        );
    }
    Ok(())
}

/// Says what the run is; nothing to do where it says so already.
async fn put_card(links: &Links, card: &RunCard) -> Result<()> {
    let before = links.get_state::<RunCard>(subjects::CONFIG).await?;
    let revision = before.as_ref().map_or(0, |b| b.revision);
    if before.is_none_or(|b| b.value != *card) {
        links.put_state_if(subjects::CONFIG, revision, card).await?;
    }
    Ok(())
}

/// Renews the lease for as long as the head lives. Losing it ends the head: somebody else has the run.
struct LeaseKeeper {
    lease: Arc<Mutex<Option<Lease>>>,
}

impl Service for LeaseKeeper {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let lease = self.lease.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            let lease = lease.ok_or("the lease of this head is gone: start it again")?;
            Ok(lease.keep(context.shutdown).await?)
        })
    }
}

/// Puts back what the server lost: a server may come back with empty hands, and the record has everything.
struct Janitor {
    nats: Nats,
    fence: Fence,
}

impl Service for Janitor {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            while context.shutdown.unless_stopping(sleep(LOOK_EVERY)).await.is_some() {
                if !*self.nats.connected().borrow() {
                    continue;
                }
                let restored = match self.fence.check() {
                    Ok(()) => self.nats.restore().await,
                    // A server that was away for longer than the lease lasts, and came back empty: the lease needs its
                    // bucket, and all else needs the lease.
                    Err(Fenced::Stale { .. }) => self.nats.restore_stores().await,
                    Err(_) => continue,
                };
                match restored {
                    Ok(restored) if restored.is_empty() => {}
                    Ok(restored) => tracing::warn!(?restored, "the server had lost parts of the run; they are back"),
                    Err(error) => tracing::warn!(%error, "the server cannot be looked at"),
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use folgore_protocol::names::check_name;

    use super::*;

    #[test]
    fn workers_on_hosts_that_begin_alike_have_names_of_their_own() {
        let hosts =
            ["folgore-rollout-5c9d7b8f6-x2k4q", "folgore-rollout-5c9d7b8f6-zz9p1", "a.very.long.example.org", "-", ""];
        let mut names = BTreeSet::new();
        for role in Role::ALL {
            for host in hosts {
                // the same host twice: two containers on it are both process 1
                names.extend([worker_name_at(role, host), worker_name_at(role, host)]);
            }
        }
        assert_eq!(names.len(), 2 * hosts.len() * Role::ALL.len());
        names.iter().for_each(|name| check_name("worker", name).unwrap());
        assert!(worker_name_at(Role::Rollout, hosts[0]).starts_with("rollout-d7b8f6-x2k4q-"));
    }
}
