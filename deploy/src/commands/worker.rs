//! `folgore worker`: works for a run whose head is elsewhere, for as long as it likes.

use std::{cell::RefCell, collections::BTreeMap, io::Read as _, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use folgore_actors::{Level, Links, Shutdown, Telemetry, on_ctrl_c};
use folgore_config::{Config, RetrieverSection, load_text};
use folgore_model::backend::Cpu;
use folgore_protocol::{Digest, Hello, PROTOCOL_VERSION, Role, RunCard, RunName, subjects};
use folgore_retriever::Retriever;
use folgore_rollout::fleet::{JoinError, Pulse, PulseConfig, join};

use crate::{
    base::Base,
    cli::{WorkerArgs, WorkerRole},
    cluster::{self, BUILD, CONFIGURATION},
    compose::{Hands, House},
    metrics::{self, Collector, Door, Metrics},
    policy::Policy,
    retriever::{self, CORPUS, corpus},
    telemetry,
};

/// Exit code of a worker that was refused: its configuration is not that of the run (EX_CONFIG of sysexits.h).
const REFUSED: i32 = 78;
/// Exit code after Ctrl-C, as shells know it.
const INTERRUPTED: i32 = 130;
/// Between two looks at a run that nobody has begun yet.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a worker whose parent is gone may take to leave.
const ORPHANED: Duration = Duration::from_secs(15);
/// Scores at once of a reward worker, unless told otherwise.
const SCORES_AT_ONCE: u32 = 4;

impl From<WorkerRole> for Role {
    fn from(role: WorkerRole) -> Self {
        match role {
            WorkerRole::Rollout => Role::Rollout,
            WorkerRole::Reward => Role::Reward,
            WorkerRole::Retriever => Role::Retriever,
        }
    }
}

/// Runs the command.
pub fn run(args: WorkerArgs) -> Result<()> {
    if args.slots == Some(0) {
        bail!("--slots: expected at least 1, got 0");
    }
    telemetry::log_to(std::io::stderr, "warn,folgore=info");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut telemetry = Telemetry::off();
    let outcome = runtime.block_on(work(&args, &mut telemetry));
    runtime.shutdown_timeout(Duration::from_secs(2));
    telemetry::end(telemetry);
    outcome
}

async fn work(args: &WorkerArgs, telemetry: &mut Telemetry) -> Result<()> {
    let role = Role::from(args.role);
    let run = RunName::new(args.run.clone()).map_err(anyhow::Error::msg).context("--run")?;
    let shutdown = Shutdown::new();
    on_ctrl_c(shutdown.clone(), |level| match level {
        Level::Now => std::process::exit(INTERRUPTED),
        _ => eprintln!("handing back what is not done, and leaving; Ctrl-C again stops now"),
    })?;
    if args.with_parent {
        stop_with_parent(shutdown.clone());
    }
    let name = args.name.clone().unwrap_or_else(|| cluster::worker_name(role));
    let Some(nats) = shutdown.unless_stopping(cluster::reach(&args.server, &run, role, &name, None)).await else {
        return Ok(());
    };
    let nats = nats?;
    let name = nats.config().name.clone();
    println!("{role} worker {name} for run {run} at {}", args.server.nats);
    *telemetry = telemetry::start(run.as_str(), role.name(), &name);
    let seen = Seen::of(args, &run, role, telemetry)?;
    let far = nats.links();
    let mut watch = far.watch_state::<RunCard>(subjects::CONFIG).await?;
    let mut card = None;
    while !shutdown.is_stopping() {
        let Some(current) = (match card.take() {
            Some(card) => Some(card),
            None => first_card(&mut watch, &shutdown, &run).await?,
        }) else {
            break;
        };
        let begun = begin(args, role, &name, &current, &nats, &shutdown).await?;
        let Some(house) = begun else { break };
        seen.shows(&house).await?;
        println!("at work for run {run}");
        let changed = until_changed(&mut watch, &current, &house, &shutdown).await;
        house.shutdown().request(Level::Stopping);
        house.end().await?;
        if let Some(next) = changed {
            println!("the run begins again with another configuration: joining again");
            card = Some(next);
        }
    }
    println!("left");
    Ok(())
}

/// How others see this worker in numbers, if they are to.
struct Seen {
    collector: Arc<Collector>,
    door: Option<Door>,
    sent: bool,
}

impl Seen {
    fn of(args: &WorkerArgs, run: &RunName, role: Role, telemetry: &mut Telemetry) -> Result<Self> {
        let door = args.metrics_port.map(|port| Door::open(args.metrics_address, port)).transpose()?;
        if let Some(door) = &door {
            println!("metrics: {}", door.url()?);
        }
        let collector = Arc::new(Collector::new(run.as_str(), role.name()));
        let sent = metrics::send(telemetry, &collector);
        Ok(Self { collector, door, sent })
    }

    /// From now on, what the actors of `house` show.
    async fn shows(&self, house: &House) -> Result<()> {
        if self.door.is_none() && !self.sent {
            return Ok(());
        }
        Metrics::start(&self.collector, &house.supervisor, self.door.as_ref()).await
    }
}

/// What the run is, waiting for its head as long as it takes. None when asked to stop.
async fn first_card(
    watch: &mut folgore_actors::TypedWatch<RunCard>,
    shutdown: &Shutdown,
    run: &RunName,
) -> Result<Option<RunCard>> {
    let mut told = false;
    loop {
        let looked = shutdown.unless_stopping(tokio::time::timeout(LOOK_EVERY, watch.next())).await;
        match looked {
            None => return Ok(None),
            Some(Ok(Some(Ok(stored)))) => return Ok(Some(stored.value)),
            Some(Ok(Some(Err(error)))) => eprintln!("warning: what the run is cannot be read: {error}"),
            Some(Ok(None)) => bail!("the connection is closed"),
            Some(Err(_)) if !told => {
                println!("waiting for the head of run {run}");
                told = true;
            }
            Some(Err(_)) => {}
        }
    }
}

/// Loads what the run is made of, is let in, and starts the actors. None when asked to stop.
async fn begin(
    args: &WorkerArgs,
    role: Role,
    name: &str,
    card: &RunCard,
    nats: &folgore_actors::nats::Nats,
    shutdown: &Shutdown,
) -> Result<Option<House>> {
    // the revision is that of the head's name
    let model = args.model.iter().map(|model| format!("model.model_name_or_path={model:?}"));
    let model = model.flat_map(|model| [model, "model.model_revision=null".to_owned()]);
    let slots = args.slots.filter(|_| role == Role::Rollout);
    let slots = slots.iter().map(|slots| format!("rollout.max_concurrent_sequences={slots}"));
    let config = load_text("the run's configuration", &card.config, &model.chain(slots).collect::<Vec<_>>())?.config;
    let config = Config { retriever: retriever_here(args, &config.retriever)?, ..config };
    let configuration = (CONFIGURATION.to_owned(), Digest::of(card.config.as_bytes()).short());
    let mut facts = BTreeMap::from([configuration]);
    let policy = match role {
        Role::Rollout => {
            let (section, rollout) = (config.model.clone(), config.rollout.clone());
            let load =
                move || Policy::on(&Base::of(&section)?, Arc::new(Cpu::new())).map(|policy| policy.with_kv(&rollout));
            // a download takes as long as it takes: whoever wants to leave does not wait for it
            let Some(loaded) = shutdown.unless_stopping(tokio::task::spawn_blocking(load)).await else {
                return Ok(None);
            };
            let policy = Arc::new(loaded?.context("--model names the model where it lies here")?);
            facts.extend(cluster::policy_facts(&policy));
            Some(policy)
        }
        _ => None,
    };
    let retriever = match role {
        Role::Rollout => config.rollout.searches() && !config.retriever.remote,
        Role::Retriever => true,
        _ => false,
    };
    let retriever = if retriever { Some(open_retriever(&config.retriever).await?) } else { None };
    facts.extend(retriever.iter().map(|found_by| (CORPUS.to_owned(), corpus(&**found_by))));
    let hello = Hello { protocol: PROTOCOL_VERSION, build: BUILD.into(), role, worker: name.to_owned(), facts };
    let told = RefCell::new(String::new());
    let waiting = |reason: &str| {
        if *told.borrow() != reason {
            eprintln!("waiting: {reason}");
            reason.clone_into(&mut told.borrow_mut());
        }
    };
    match join(&nats.links(), shutdown, &hello, waiting).await {
        Ok(Some(_epoch)) => {}
        Ok(None) => return Ok(None),
        Err(refused @ JoinError::Refused { .. }) => {
            eprintln!("error: {refused}");
            std::process::exit(REFUSED);
        }
        Err(error) => return Err(error.into()),
    }
    let scores_here = !config.rollout.remote_reward;
    let mut here = vec![subjects::GENERATE, subjects::MEASURE];
    here.extend(scores_here.then_some(subjects::REWARD));
    here.extend((role == Role::Rollout && retriever.is_some()).then_some(subjects::SEARCH));
    let links = cluster::worker_links(nats, &cluster::host_cache(), cluster::POLICIES_KEPT, &here);
    start(role, name, config, policy, retriever, scores_here, links, args.slots).await.map(Some)
}

/// The run's `section`, with what lies elsewhere here.
fn retriever_here(args: &WorkerArgs, section: &RetrieverSection) -> Result<RetrieverSection> {
    let mut here = section.clone();
    here.index = args.index.clone().or(here.index);
    if args.encoder.is_some() && here.index.is_none() {
        bail!("--encoder: the run searches no index");
    }
    here.encoder = args.encoder.clone().or(here.encoder);
    if let Some(name) = &args.rerank {
        let of_run = here.rerank.as_mut().context("--rerank: the run has no reranker (retriever.rerank)")?;
        name.clone_into(of_run);
    }
    Ok(here)
}

/// Opens the retriever of `section`, which may take a while.
async fn open_retriever(section: &RetrieverSection) -> Result<Arc<dyn Retriever>> {
    let section = section.clone();
    let opened = tokio::task::spawn_blocking(move || retriever::build(&section)).await?;
    opened.context("--index, --encoder and --rerank name what lies elsewhere here")
}

async fn start(
    role: Role,
    name: &str,
    config: Config,
    policy: Option<Arc<Policy>>,
    retriever: Option<Arc<dyn Retriever>>,
    scores_here: bool,
    links: Links,
    slots: Option<u32>,
) -> Result<House> {
    let house = House::over(links, None).await?;
    let (specs, asked) = (config.reward.clone(), scores_here || role == Role::Reward);
    let build = if asked { crate::reward::build_here } else { crate::reward::build };
    let reward = tokio::task::spawn_blocking(move || build(&specs)).await??;
    let slots = match role {
        Role::Rollout => config.rollout.max_concurrent_sequences,
        _ => slots.unwrap_or(SCORES_AT_ONCE),
    };
    match (policy, retriever) {
        (Some(policy), retriever) => {
            let hands = Hands { config, policy, reward, retriever, scores_here, recall: None };
            house.make_rollouts(&hands, name).await?;
        }
        (None, Some(retriever)) => house.find(&retriever, &config.retriever).await?,
        (None, None) => house.score(&reward, slots as usize).await?,
    }
    let pulse = PulseConfig { role, worker: name.to_owned(), host: cluster::host(), build: BUILD.into(), slots };
    let supervisor = house.supervisor.clone();
    house.supervisor.spawn("pulse", move || Box::new(Pulse::new(pulse.clone(), supervisor.clone()))).await?;
    Ok(house)
}

/// Works until asked to stop (none), an actor fails for good (none), or the run becomes another one.
async fn until_changed(
    watch: &mut folgore_actors::TypedWatch<RunCard>,
    current: &RunCard,
    house: &House,
    shutdown: &Shutdown,
) -> Option<RunCard> {
    let failed = house.shutdown();
    loop {
        let next = tokio::select! {
            () = shutdown.stopping() => return None,
            () = failed.stopping() => return None,
            next = watch.next() => next,
        };
        match next {
            Some(Ok(stored)) if stored.value.facts != current.facts => return Some(stored.value),
            Some(Ok(_)) => {}
            Some(Err(error)) => eprintln!("warning: what the run is now cannot be read: {error}"),
            None => return None,
        }
    }
}

/// Asks to stop when standard input ends, which it does when the parent is gone; the server may be gone with it, so that there
/// is not always somebody to hand jobs back to.
pub fn stop_with_parent(shutdown: Shutdown) {
    std::thread::spawn(move || {
        let mut nothing = [0; 64];
        while matches!(std::io::stdin().lock().read(&mut nothing), Ok(read) if read > 0) {}
        shutdown.request(Level::Stopping);
        std::thread::sleep(ORPHANED);
        std::process::exit(INTERRUPTED);
    });
}
