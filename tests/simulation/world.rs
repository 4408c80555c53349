//! One schedule: who lives, who is killed, and what is proven at its end.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use folgore_actors::{Context, Links, Service, Shutdown, Status, TypedEvent, TypedSubscription};
use folgore_config::{
    data::{Curriculum, CurriculumMode},
    replay::OnEmptyBatch,
};
use folgore_learner::{
    record::{Record, check::check, evidence::LogEntry},
    replay::{ReplayEvent, ReplayService, ReplaySettings, ReplaySetup, RunIdentity},
};
use folgore_protocol::{Digest, Prompt, SamplingParams, Task, subjects};
use folgore_rollout::{Coordinator, CoordinatorConfig, Environments, EpisodeLimits, RolloutWorker, WorkerConfig};
use redb::StorageBackend;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    Log,
    dice::Dice,
    learner::{Disk, Learner},
    net::Net,
    people::{Bytes, VOCAB, rogue, serve_generator, serve_reward},
};

const WORKERS: u64 = 3;
const ROGUE: &str = "rogue";
/// Virtual time after which a run that has not reached its target is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(4 * 3600);

/// How a schedule ended well.
pub struct Ended {
    pub log: String,
    pub report: String,
    /// Of all that was logged and recorded.
    pub digest: Digest,
    /// What happened, and how often.
    pub seen: BTreeMap<String, u64>,
}

/// The bytes of the record, which outlive the process that writes them.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let from = offset as usize;
        out.copy_from_slice(bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut bytes, from) = (self.0.lock().unwrap(), offset as usize);
        let end = from + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[from..end].copy_from_slice(data);
        Ok(())
    }
}

/// What a schedule is like, drawn once.
struct Plan {
    settings: ReplaySettings,
    target: u64,
    save_steps: u64,
    exact: bool,
    evaluates: bool,
    with_rogue: bool,
    /// Things that go wrong before the run is left in peace.
    troubles: u64,
}

impl Plan {
    fn draw(seed: u64, dice: &mut Dice) -> Self {
        let settings = ReplaySettings {
            run_seed: seed,
            num_prompts: 2,
            num_generations: 2,
            max_staleness: dice.below(3) as u32,
            max_open_seats: 16,
            max_draws: 3,
            reissue_after_ms: 20_000,
            max_issues: 4,
            max_strikes: 3,
            drop_equal_rewards: dice.one_in(2),
            max_generation_batches: 6,
            on_empty_batch: OnEmptyBatch::Skip,
            retention_steps: dice.below(2),
            vocab_size: VOCAB,
            environment: "single_turn".into(),
            sampling: SamplingParams::default(),
            judge_groups: dice.one_in(3),
            judge_deadline: Duration::from_secs(2),
            judge_concurrency: 4,
            traces: None,
            experience: None,
            curriculum: None,
        };
        let mut plan = Self {
            settings,
            target: 4 + dice.below(4),
            save_steps: 1 + dice.below(3),
            exact: dice.one_in(2),
            evaluates: dice.one_in(3),
            with_rogue: dice.one_in(2),
            troubles: dice.below(16),
        };
        let curriculum = || Curriculum { mode: CurriculumMode::Difficulty, revisit_steps: 2, ..Curriculum::default() };
        plan.settings.curriculum = dice.one_in(3).then(curriculum);
        plan
    }
}

/// A task of the schedule and its name.
struct Living {
    name: String,
    task: JoinHandle<String>,
}

impl Living {
    fn service(name: &str, links: Links, service: impl Service) -> Self {
        let context = Context { name: name.into(), links, shutdown: Shutdown::new(), status: Status::new() };
        let run = Box::new(service).run(context);
        let task = tokio::spawn(async move { run.await.map_or_else(|e| e.to_string(), |()| "done".into()) });
        Self { name: name.into(), task }
    }

    async fn kill(self) -> Result<(), String> {
        self.task.abort();
        match self.task.await {
            Err(error) if error.is_panic() => Err(format!("{} panicked: {error}", self.name)),
            _ => Ok(()),
        }
    }

    /// Why it has ended, if it has; an error if it panicked.
    async fn end(&mut self) -> Result<Option<String>, String> {
        if !self.task.is_finished() {
            return Ok(None);
        }
        (&mut self.task).await.map(Some).map_err(|e| format!("{} panicked: {e}", self.name))
    }
}

struct World {
    net: Net,
    plan: Plan,
    setup: ReplaySetup,
    disk: Arc<Mutex<Disk>>,
    log: Log,
    dice: Dice,
    seed: u64,
    /// Lives begun, so that each has dice of its own.
    lives: u64,
    replay: Option<Living>,
    coordinator: Option<Living>,
    learner: Option<Living>,
    workers: BTreeMap<u64, Living>,
    rogue: Option<Living>,
    seen: BTreeMap<String, u64>,
}

/// Plays the schedule of `seed` to its end.
pub async fn schedule(seed: u64, log: Log) -> Result<Ended, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut dice = Dice::new(&[seed, 1]);
    let plan = Plan::draw(seed, &mut dice);
    let memory = Memory::default();
    let senders = (0..WORKERS).map(|place| format!("w{place}")).chain([ROGUE.to_owned()]).collect();
    let net = Net::new(seed, !dice.one_in(4), folder.path(), senders);
    let _served = (serve_generator(&net.plain).await, serve_reward(&net.plain).await);
    let told = net.plain.subscribe_events::<ReplayEvent>(subjects::EVENTS).await.map_err(|e| e.to_string())?;
    let _listener = AbortOnDrop(tokio::spawn(listen(told, log.clone())));
    let mut world = World {
        setup: setup(plan.settings.clone(), &memory),
        net,
        plan,
        disk: Arc::default(),
        log,
        dice,
        seed,
        lives: 0,
        replay: None,
        coordinator: None,
        learner: None,
        workers: BTreeMap::new(),
        rogue: None,
        seen: BTreeMap::new(),
    };
    world.play().await?;
    world.end(&memory).await
}

/// Ends a task with its owner.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Logs what replay tells, as far as the network lets it be heard.
async fn listen(mut told: TypedSubscription<ReplayEvent>, log: Log) {
    while let Some(event) = told.next().await {
        if let Ok(TypedEvent::Happened { body, .. }) = event {
            log.say(format_args!("    {body:?}"));
        }
    }
}

fn setup(settings: ReplaySettings, memory: &Memory) -> ReplaySetup {
    let backend = memory.clone();
    let tasks = |name: &str, count: u64| -> Arc<Vec<Task>> {
        let task = |i| Task {
            id: format!("{name}-{i}"),
            prompt: Prompt::Text(format!("{i}?")),
            columns: serde_json::Map::new(),
        };
        Arc::new((0..count).map(task).collect())
    };
    ReplaySetup {
        open: Arc::new(move || Record::on_backend(backend.clone())),
        settings,
        identity: RunIdentity::new().with("seed", "of the simulation"),
        force: false,
        train: tasks("train", 7),
        held_out: tasks("held-out", 3),
    }
}

impl World {
    async fn play(&mut self) -> Result<(), String> {
        let until = Instant::now() + STUCK_AFTER;
        let mut troubles = self.plan.troubles;
        while !self.disk.lock().unwrap().done {
            if Instant::now() > until {
                return Err("stuck: the target was not reached".into());
            }
            self.mend(troubles == 0).await?;
            sleep(Duration::from_millis(200 + self.dice.below(3000))).await;
            if troubles > 0 {
                troubles -= 1;
                self.make_trouble().await?;
            }
        }
        Ok(())
    }

    fn note(&mut self, what: &str) {
        self.log.say(format_args!("{what}"));
        *self.seen.entry(what.to_owned()).or_default() += 1;
    }

    fn next_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    /// Starts what has ended or was killed; `peace`: also workers, of which there must be one for the run to go on.
    async fn mend(&mut self, peace: bool) -> Result<(), String> {
        for living in [&mut self.replay, &mut self.coordinator, &mut self.learner] {
            let Some(alive) = living else { continue };
            if let Some(why) = alive.end().await? {
                self.log.say(format_args!("{} has ended: {why}", alive.name));
                *living = None;
            }
        }
        let places: Vec<u64> = self.workers.keys().copied().collect();
        for place in places {
            let Some(worker) = self.workers.get_mut(&place) else { continue };
            if let Some(why) = worker.end().await? {
                self.log.say(format_args!("{} has ended: {why}", worker.name));
                self.workers.remove(&place);
            }
        }
        let life = self.next_life();
        let links = self.net.head(life);
        if self.replay.is_none() {
            let service = ReplayService { setup: self.setup.clone() };
            self.replay = Some(Living::service("replay", links.clone(), service));
        }
        if self.coordinator.is_none() {
            self.coordinator = Some(Living::service("coordinator", links.clone(), Coordinator::new(coordinator())));
        }
        if self.learner.is_none() && !self.disk.lock().unwrap().done {
            self.learner = Some(self.new_learner(links, life));
        }
        if self.workers.is_empty() && peace {
            self.join(0);
        }
        if self.rogue.is_none() && self.plan.with_rogue && !peace {
            let (links, dice) = (self.net.worker(ROGUE, WORKERS, life), Dice::new(&[self.seed, 3, life]));
            let judge_groups = self.plan.settings.judge_groups;
            let task = tokio::spawn(async move {
                rogue(links, ROGUE.into(), dice, judge_groups).await;
                String::new()
            });
            self.rogue = Some(Living { name: ROGUE.into(), task });
        }
        Ok(())
    }

    fn new_learner(&self, links: Links, life: u64) -> Living {
        let learner = Learner {
            links,
            disk: self.disk.clone(),
            log: self.log.clone(),
            dice: Dice::new(&[self.seed, 2, life]),
            target: self.plan.target,
            save_steps: self.plan.save_steps,
            exact: self.plan.exact,
            evaluates: self.plan.evaluates,
            max_staleness: self.plan.settings.max_staleness.into(),
        };
        let task = tokio::spawn(async move {
            learner.live().await;
            "its life is over".to_owned()
        });
        Living { name: "learner".into(), task }
    }

    fn join(&mut self, place: u64) {
        let (name, life) = (format!("w{place}"), self.next_life());
        let worker =
            RolloutWorker::new(worker(self.plan.settings.judge_groups), Arc::new(Bytes), Environments::builtin());
        self.log.say(format_args!("{name} joins"));
        self.workers.insert(place, Living::service(&name, self.net.worker(&name, place, life), worker));
    }

    async fn make_trouble(&mut self) -> Result<(), String> {
        let place = self.dice.below(WORKERS);
        match self.dice.below(13) {
            0 => {
                self.note("head killed");
                for living in [self.learner.take(), self.coordinator.take(), self.replay.take()].into_iter().flatten() {
                    living.kill().await?;
                }
                sleep(Duration::from_millis(self.dice.below(4000))).await;
            }
            1 => {
                self.note("replay killed");
                kill(self.replay.take()).await?;
            }
            2 => kill(self.coordinator.take()).await?,
            3 => {
                self.note("learner killed");
                kill(self.learner.take()).await?;
            }
            4 | 5 => {
                if let Some(worker) = self.workers.remove(&place) {
                    self.note("worker killed");
                    worker.kill().await?;
                }
            }
            6 => {
                self.note("queues wiped");
                self.net.wipe();
            }
            7 => {
                self.note("rogue leaves");
                kill(self.rogue.take()).await?;
            }
            8 => {
                self.note("network cut");
                self.net.cut(Duration::from_millis(1000 + self.dice.below(30_000)));
            }
            9..=11 if !self.workers.contains_key(&place) => self.join(place),
            _ => {}
        }
        Ok(())
    }

    /// Stops everybody and looks at what is left.
    async fn end(mut self, memory: &Memory) -> Result<Ended, String> {
        let workers = std::mem::take(&mut self.workers).into_values().map(Some);
        let head = [self.learner.take(), self.coordinator.take(), self.rogue.take()];
        for living in head.into_iter().chain(workers).chain([self.replay.take()]) {
            kill(living).await?;
        }
        let record = Record::on_backend(memory.clone()).map_err(|e| e.to_string())?;
        let report = check(&record).map_err(|e| e.to_string())?;
        if !report.holds() {
            return Err(format!("the record does not hold:\n{report}"));
        }
        let (snapshot, evidence) =
            (record.load().map_err(|e| e.to_string())?, record.evidence().map_err(|e| e.to_string())?);
        if snapshot.counters.committed_step != self.plan.target {
            return Err(format!(
                "step {} is committed, the target is {}",
                snapshot.counters.committed_step, self.plan.target
            ));
        }
        if snapshot.counters.quarantined.iter().any(|name| name != ROGUE) {
            return Err(format!("an honest worker is quarantined: {:?}", snapshot.counters.quarantined));
        }
        let counters = &snapshot.counters;
        let mut seen = self.seen;
        for (what, times) in counters.refused.iter().chain(&counters.dropped_groups) {
            *seen.entry(what.clone()).or_default() += times;
        }
        let voids = |end: &folgore_learner::record::evidence::GroupEnd| {
            let all = end.seats.iter().flat_map(|seat| &seat.rejected);
            all.filter(|draw| draw.label() == "void").count() as u64
        };
        *seen.entry("voided".into()).or_default() += evidence.ends.values().map(voids).sum::<u64>();
        *seen.entry("steps cut".into()).or_default() += cut(&evidence.log);
        *seen.entry("virtual seconds".into()).or_default() += self.log.began.elapsed().as_secs();
        let log = self.log.text.lock().unwrap().clone();
        let all = format!("{log}{counters:?}{:?}{:?}{:?}", evidence.ends, evidence.log, evidence.trajectories);
        Ok(Ended { log, report: report.to_string(), digest: Digest::of(all.as_bytes()), seen })
    }
}

/// Commits that a later takeover cut off.
fn cut(log: &[(u64, LogEntry)]) -> u64 {
    let mut at = 0;
    let mut cut = 0;
    for (_, entry) in log {
        match entry {
            LogEntry::Commit { step, .. } => at = *step,
            LogEntry::Takeover { step, .. } => {
                cut += at.saturating_sub(*step);
                at = *step;
            }
        }
    }
    cut
}

async fn kill(living: Option<Living>) -> Result<(), String> {
    match living {
        Some(living) => living.kill().await,
        None => Ok(()),
    }
}

fn coordinator() -> CoordinatorConfig {
    CoordinatorConfig {
        jobs_ahead: 8,
        backlog_max: 32,
        poll: Duration::from_millis(100),
        replay_deadline: Duration::from_secs(10),
        reissue_after: Duration::from_secs(6),
    }
}

fn worker(judge_groups: bool) -> WorkerConfig {
    WorkerConfig {
        judge_groups,
        concurrency: 3,
        episode: EpisodeLimits {
            turn_deadline: Duration::from_secs(6),
            ask_deadline: Duration::from_secs(2),
            ..EpisodeLimits::default()
        },
        score_deadline: Duration::from_secs(2),
        policy_deadline: Duration::from_secs(30),
        max_waiting: 1,
        publish_deadline: Duration::from_secs(20),
        progress_every: Duration::from_secs(2),
        retry_after: Duration::from_millis(700),
        ..WorkerConfig::default()
    }
}
