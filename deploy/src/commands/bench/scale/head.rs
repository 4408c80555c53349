//! The head of one configuration: starts it, waits until it runs, and measures.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, bail};
use folgore_actors::{
    ChildPolicy, Level, Links, LocalConfig, local,
    nats::{Nats, admin, server::LocalServer},
    routed,
};
use folgore_config::Config;
use folgore_learner::{
    ask::ask_replay,
    replay::{ReplayService, ReplaySettings, ReplaySetup, RunIdentity, TaskSource},
};
use folgore_protocol::{Digest, Prompt, ReplayReply, ReplayRequest, ReplayStatus, Role, RunName, Task, subjects};
use tokio::time::{Instant, sleep, timeout};

use super::{
    RUN,
    heard::{BEGIN, Begin, Ears, Heard, Journey},
    learner::Learner,
    report::{Line, Memory, Spread},
    sleeper::{PROMPT, Pace, TOKENS, VOCAB},
    wire,
};
use crate::{
    cli::{ServerArgs, bench::ScaleArgs},
    cluster,
    commands::bench::meter::{computed, computed_by_all, resident_memory},
    compose::House,
    crew::Crew,
};

/// Steps that the oldest token may lag behind.
const MAX_STALENESS: u32 = 4;
/// Samples of a question, where a step has as many.
const GENERATIONS: u32 = 8;
/// How long workers may take to come, or a policy to be served by all of them.
const PATIENCE: Duration = Duration::from_secs(120);
const MIB: f64 = 1024.0 * 1024.0;

/// One configuration.
pub struct Plan {
    /// Worker processes.
    pub processes: u32,
    /// Slots of each.
    pub slots: u32,
    args: ScaleArgs,
}

impl Plan {
    /// `processes` of `slots` each, as `args` say.
    pub fn new(args: &ScaleArgs, processes: u32, slots: u32) -> Self {
        Self { processes, slots, args: args.clone() }
    }

    fn all_slots(&self) -> u32 {
        self.processes * self.slots
    }

    fn pace(&self) -> Pace {
        Pace { mean: self.args.mean, sigma: self.args.sigma }
    }

    fn adapter_len(&self) -> usize {
        (self.args.adapter_mb * 1e6) as usize
    }

    /// Questions of a step and samples of each: together what the slots make between two publications. Then a batch is
    /// complete when its time has come, and with the steps that staleness allows ahead, slots never wait for the slowest
    /// sample of the oldest step.
    fn step(&self) -> (u32, u32) {
        let seats = f64::from(self.all_slots()) * self.args.publish_every / self.args.mean;
        let generations = (seats.round() as u32).clamp(1, GENERATIONS);
        let prompts = (seats / f64::from(generations)).round().max(1.0) as u32;
        (prompts, generations)
    }

    fn settings(&self) -> ReplaySettings {
        let mut config = Config::default();
        let (prompts, generations) = self.step();
        (config.rollout.num_prompts, config.rollout.num_generations) = (prompts, generations);
        config.rollout.max_staleness = MAX_STALENESS;
        config.rollout.max_completion_length = TOKENS - PROMPT;
        config.run.seed = self.args.seed;
        // All seats of the steps that may be open: what holds the slots back shall be the links, not this bound.
        let open = (MAX_STALENESS + 1) * prompts * generations;
        config.replay.max_open_seats = config.replay.max_open_seats.max(open);
        ReplaySettings::from_config(&config, VOCAB)
    }

    fn start_crew(&self, url: &str, folder: &Path) -> Result<Crew> {
        let mut crew = Crew::new();
        for i in 0..self.processes {
            let host = if self.args.host_each { i } else { 0 };
            // A host of one process reads each policy once.
            let kept = if self.args.host_each { 1 } else { cluster::POLICIES_KEPT };
            crew.start(&log(folder, i), |command| {
                command.args(["bench-worker", "--nats", url, "--run", RUN, "--name", &worker(i)]);
                command.args(["--slots", &self.slots.to_string(), "--kept", &kept.to_string()]);
                command.args(["--mean", &self.args.mean.to_string(), "--sigma", &self.args.sigma.to_string()]);
                command.arg("--cache").arg(folder.join(format!("host-{host}")));
            })?;
        }
        Ok(crew)
    }
}

fn worker(i: u32) -> String {
    format!("worker-{i}")
}

fn log(folder: &Path, i: u32) -> PathBuf {
    folder.join(format!("{}.log", worker(i)))
}

/// Questions without end.
struct Questions;

impl TaskSource for Questions {
    fn len(&self) -> u64 {
        1 << 32
    }

    fn task(&self, index: u64) -> Task {
        let prompt = Prompt::Text(format!("Question {index}"));
        Task { id: format!("q{index}"), prompt, columns: Default::default() }
    }
}

/// Measures `plan` on `server`.
pub async fn measure(plan: &Plan, server: &LocalServer, folder: &Path) -> Result<Line> {
    let (nats, links) = connect(server, folder).await?;
    let house = House::over(links.clone(), None).await?;
    let measured = tokio::select! {
        measured = with_house(plan, server, folder, &house) => measured,
        () = stopped(&house) => bail!(house.end().await.err().unwrap_or_else(|| anyhow::anyhow!("the head stopped"))),
    };
    house.shutdown().request(Level::Stopping);
    house.end().await?;
    drop(nats);
    measured
}

async fn stopped(house: &House) {
    let shutdown = house.shutdown();
    shutdown.stopping().await;
}

/// The connection of the head, and its links as in a run.
async fn connect(server: &LocalServer, folder: &Path) -> Result<(Nats, Links)> {
    let run = RunName::new(RUN).map_err(anyhow::Error::msg)?;
    let nats =
        cluster::reach(&ServerArgs { nats: server.url(), identity: None }, &run, Role::Head, "head", None).await?;
    admin::ensure(&nats, &admin::Limits::default()).await?;
    let near = local(RUN, LocalConfig::new(folder.join("blobs")));
    let links = routed(near, nats.links(), &[subjects::REPLAY, subjects::GENERATE]);
    Ok((nats, links))
}

async fn with_house(plan: &Plan, server: &LocalServer, folder: &Path, house: &House) -> Result<Line> {
    let links = &house.links;
    let (pace, run_seed) = (plan.pace(), plan.args.seed);
    let ears = Ears::open(links, move |seat| pace.of_seat(run_seed, seat)).await?;
    let len = plan.adapter_len();
    let object = wire::put(links, len, plan.args.seed).await?;
    let one_reader = wire::one_reader(links, object, len).await?;
    start_actors(plan, folder, house, &ears).await?;
    let mut crew = plan.start_crew(&server.url(), folder)?;
    let wire = wait_for_crew(plan, folder, &ears, links, &mut crew, object, one_reader).await;
    let line = match wire {
        Ok(wire) => window(plan, server, folder, links, &ears, &mut crew, wire).await,
        Err(error) => Err(error),
    };
    tokio::task::spawn_blocking(move || crew.end()).await?;
    line
}

async fn start_actors(plan: &Plan, folder: &Path, house: &House, ears: &Ears) -> Result<()> {
    let replay = ReplaySetup {
        open: ReplaySetup::file(folder.join("record.redb")),
        settings: plan.settings(),
        identity: RunIdentity::new(),
        force: false,
        train: Arc::new(Questions),
        held_out: Arc::new(Questions),
    };
    let supervisor = &house.supervisor;
    supervisor
        .spawn_as("replay", ChildPolicy::Critical, move || Box::new(ReplayService { setup: replay.clone() }))
        .await?;
    let learner = Learner::new(plan.adapter_len(), plan.args.seed, ears.note());
    supervisor.spawn_as("learner", ChildPolicy::RunEnds, move || Box::new(learner.clone())).await?;
    house.coordinate(cluster::coordinator(&folgore_config::ClusterSection::default())).await
}

/// Waits until all workers are here and lets them begin; gives the rate of the wire in bytes a second.
async fn wait_for_crew(
    plan: &Plan,
    folder: &Path,
    ears: &Ears,
    links: &Links,
    crew: &mut Crew,
    object: Digest,
    one_reader: f64,
) -> Result<f64> {
    let all = plan.processes as usize;
    until(ears, crew, folder, "come", |heard| heard.begun && heard.ready.len() == all).await?;
    let (mut rate, mut revision) = (one_reader, 0);
    if plan.args.host_each {
        rate = 0.0;
        let bytes = f64::from(plan.processes) * plan.adapter_len() as f64;
        for round in 1..=wire::GETS {
            let begin = Instant::now();
            revision = links.put_state_if(BEGIN, revision, &Begin::Fetch { round, object }).await?;
            let done = |heard: &Heard| heard.fetched.len() == round as usize * all;
            until(ears, crew, folder, "fetch an object", done).await?;
            rate = rate.max(bytes / begin.elapsed().as_secs_f64().max(1e-9));
        }
    }
    links.put_state_if(BEGIN, revision, &Begin::Work).await?;
    Ok(rate)
}

/// Waits until `done`; an error if a worker ends meanwhile, or it takes too long.
async fn until(ears: &Ears, crew: &mut Crew, folder: &Path, what: &str, done: impl Fn(&Heard) -> bool) -> Result<()> {
    let (mut hear, begin) = (ears.hear(), Instant::now());
    loop {
        if let Ok(heard) = timeout(Duration::from_secs(1), hear.wait_for(&done)).await {
            return Ok(heard.map(drop)?);
        }
        if let Some((i, status)) = crew.fallen() {
            let said = fs::read_to_string(log(folder, i as u32)).unwrap_or_default();
            bail!("{} ended with {status}: {}", worker(i as u32), said.trim());
        }
        if begin.elapsed() > PATIENCE {
            bail!("not all workers {what} within {} s", PATIENCE.as_secs());
        }
    }
}

/// Sums at one moment.
struct Moment {
    at: Instant,
    status: ReplayStatus,
    heard: Heard,
    head: Option<f64>,
    server: Option<f64>,
    workers: Option<f64>,
    all: Option<f64>,
}

impl Moment {
    async fn now(links: &Links, ears: &Ears, server: &LocalServer, crew: &Crew) -> Result<Self> {
        let ReplayReply::Status(status) = ask_replay(links, ReplayRequest::Status {}, "status").await? else {
            bail!("replay did not tell its status");
        };
        Ok(Self {
            at: Instant::now(),
            status,
            heard: ears.so_far(),
            head: computed(std::process::id()),
            server: server.pid().and_then(computed),
            workers: crew.pids().map(computed).sum(),
            all: computed_by_all(),
        })
    }
}

async fn window(
    plan: &Plan,
    server: &LocalServer,
    folder: &Path,
    links: &Links,
    ears: &Ears,
    crew: &mut Crew,
    wire: f64,
) -> Result<Line> {
    let all = plan.processes as usize;
    until(ears, crew, folder, "serve the first policy", |heard| heard.served(0) == all).await?;
    sleep(Duration::from_secs_f64(plan.args.warmup)).await;
    let from = Moment::now(links, ears, server, crew).await?;
    let memory = watch_memory(Duration::from_secs_f64(plan.args.seconds)).await;
    let to = Moment::now(links, ears, server, crew).await?;
    let worker_memory = crew.pids().filter_map(resident_memory).max();
    // What was published within the window arrives a little later.
    let within = |journey: &Journey| journey.announced.is_some_and(|at| at >= from.at && at <= to.at);
    let arrived = |heard: &Heard| heard.journeys.values().filter(|j| within(j)).all(|j| j.served_by.len() == all);
    until(ears, crew, folder, "serve the last policy", arrived).await?;
    let journeys: Vec<Journey> = ears.so_far().journeys.into_values().filter(|j| within(j)).collect();
    Ok(line(plan, wire, &from, &to, &journeys, memory, worker_memory))
}

impl Heard {
    fn served(&self, step: u64) -> usize {
        self.journeys.get(&step).map_or(0, |journey| journey.served_by.len())
    }
}

/// Resident memory of this process over `time`, looked at every second.
async fn watch_memory(time: Duration) -> Vec<(f64, f64)> {
    let begin = Instant::now();
    let mut seen = Vec::new();
    loop {
        if let Some(bytes) = resident_memory(std::process::id()) {
            seen.push((begin.elapsed().as_secs_f64(), bytes as f64 / MIB));
        }
        let left = time.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return seen;
        }
        sleep(left.min(Duration::from_secs(1))).await;
    }
}

fn line(
    plan: &Plan,
    wire: f64,
    from: &Moment,
    to: &Moment,
    journeys: &[Journey],
    memory: Vec<(f64, f64)>,
    worker_memory: Option<u64>,
) -> Line {
    let seconds = (to.at - from.at).as_secs_f64();
    let closed = (to.heard.closed - from.heard.closed).max(1) as f64;
    let cores = |of: fn(&Moment) -> Option<f64>| Some((of(to)? - of(from)?) / seconds);
    let (head, server) = (cores(|m| m.head), cores(|m| m.server));
    let workers = cores(|m| m.workers);
    let others = cores(|m| m.all).zip(head).zip(server).zip(workers);
    let (prompts, generations) = plan.step();
    let hosts = if plan.args.host_each { plan.processes } else { 1 };
    let took = |j: &Journey| Some((j.last? - j.announced?).as_secs_f64());
    let refused: BTreeMap<String, u64> = to.status.refused.iter().cloned().collect();
    Line {
        processes: plan.processes,
        slots: plan.slots,
        hosts,
        seats_of_a_step: prompts * generations,
        seconds,
        samples: to.status.trajectories - from.status.trajectories,
        steps: to.status.committed_step - from.status.committed_step,
        mean_drawn_s: (to.heard.drawn - from.heard.drawn) / closed,
        refused,
        events_missed: to.heard.missed - from.heard.missed,
        served_s: Spread::of(journeys.iter().filter_map(took).collect()),
        upload_s: Spread::of(journeys.iter().map(|j| j.upload.as_secs_f64()).collect()),
        wire_mb_s: wire / 1e6,
        bound_s: plan.adapter_len() as f64 * f64::from(hosts) / wire,
        head_memory: Memory::of(&memory),
        worker_mib: worker_memory.map(|bytes| bytes as f64 / MIB),
        head_cores: head,
        server_cores: server,
        workers_cores: workers,
        other_cores: others.map(|(((all, head), server), workers)| (all - head - server - workers).max(0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_what_the_slots_make_between_two_publications() {
        let args = |text: &str| {
            let cli = <crate::cli::Cli as clap::Parser>::parse_from(text.split(' '));
            let crate::cli::Command::Bench(bench) = cli.command else { panic!("{text}") };
            let Some(crate::cli::bench::OtherBench::Scale(args)) = bench.other else { panic!("{text}") };
            args
        };
        let args = args("folgore bench scale");
        let step = |processes, slots| Plan::new(&args, processes, slots).step();
        assert_eq!((step(1, 1), step(4, 1), step(64, 1), step(64, 4)), ((1, 3), (1, 8), (20, 8), (80, 8)));
        let settings = Plan::new(&args, 1024, 4).settings();
        assert!(settings.check().is_ok() && settings.max_open_seats == 5 * 10_240, "{settings:?}");
    }
}
