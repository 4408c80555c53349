//! A run over a real server: the head, its workers and the server are processes that a test ends as it likes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

use folgore_actors::nats::{
    Nats, NatsConfig, admin, connect,
    server::{LocalServer, ServerOptions, nats_server_for_tests},
};
use folgore_protocol::{Names, PolicyPublished, Role, RunName, subjects};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    support::{Line, Running, checkpoints, folder, folgore, metrics, number, raw_metrics, run, timeless},
    wire::Wire,
};

/// Name of every run here: each has a server of its own.
pub const RUN: &str = "c";
/// Steps of a run.
pub const STEPS: u64 = 12;
/// Seconds without a word after which the head's lease is free, and after which a job goes to another worker.
pub const PATIENCE: u64 = 3;

/// Small, with several updates of each batch, so that learning takes as long as generating; and impatient, so that what was
/// lost is noticed soon.
const SETTINGS: [&str; 13] = [
    "run.name=c",
    "rollout.num_prompts=4",
    "rollout.num_generations=4",
    "algo.num_iterations=4",
    "optim.max_steps=12",
    "checkpoint.save_steps=2",
    "checkpoint.save_total_limit=2",
    "eval.before=false",
    "eval.after=false",
    "log.report=false",
    "cluster.ack_wait_s=3",
    "cluster.lease_s=3",
    "cluster.reissue_after_s=2",
];

/// What a run comes to that nobody disturbs, in one process and with samples of the newest policy only; and the seconds of
/// each step: generating, learning.
pub struct Calm {
    /// Its metrics but the times.
    pub metrics: Vec<Line>,
    /// Seconds of each step.
    pub seconds: Vec<(f64, f64)>,
}

/// The calm run; made once.
pub fn calm() -> &'static Calm {
    static CALM: OnceLock<Calm> = OnceLock::new();
    CALM.get_or_init(|| {
        let at = folder();
        let mut command = folgore(["train", "arithmetic"]);
        command.args(SETTINGS).arg("--output-dir").arg(at.path());
        run(command).well();
        let lines = metrics(&at.path().join(RUN));
        assert_eq!(lines.len() as u64, STEPS);
        assert!(lines.iter().any(|l| number(l, "grad_norm") > 0.0), "a run that learns nothing proves nothing");
        let seconds = lines.iter().map(|l| (number(l, "time/generate"), number(l, "time/train"))).collect();
        Calm { metrics: lines.into_iter().map(timeless).collect(), seconds }
    })
}

/// A server, a head and workers. Dropping it ends them all.
pub struct Fleet {
    /// Workers by name, the first of them first.
    pub workers: BTreeMap<String, Running>,
    /// The head.
    pub head: Option<Running>,
    /// The server.
    pub server: LocalServer,
    /// The head's way to it.
    pub wire: Arc<Wire>,
    /// What looks at the server.
    pub runtime: Runtime,
    staleness: u32,
    at: Ground,
}

impl Fleet {
    /// A server, and a head with workers `w0` and `w1`; samples may lag `staleness` steps behind.
    pub fn start(staleness: u32) -> Self {
        let mut fleet = Self::without_workers(staleness);
        fleet.join("w0");
        fleet.join("w1");
        fleet
    }

    /// The same without workers.
    pub fn without_workers(staleness: u32) -> Self {
        // Made first: later, the run would go on meanwhile.
        calm();
        let at = Ground(folder());
        let options = ServerOptions::new(at.path().join("server"));
        let server = LocalServer::start_with(nats_server_for_tests().unwrap(), options).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let wire = Arc::new(Wire::to(&server.url(), &format!("$JS.ACK.RL_{RUN}_TRAJ.")));
        let mut fleet = Self { at, server, wire, head: None, workers: BTreeMap::new(), runtime, staleness };
        let mut command = folgore(["train", "arithmetic"]);
        command.args(SETTINGS).arg(format!("rollout.max_staleness={staleness}"));
        fleet.head = Some(fleet.begin(command, &fleet.output_dir()));
        fleet
    }

    /// The folder that holds the run's.
    pub fn output_dir(&self) -> PathBuf {
        self.at.path().join("runs")
    }

    /// The folder of the run.
    pub fn run_dir(&self) -> PathBuf {
        self.output_dir().join(RUN)
    }

    /// Starts a head over the server and waits until it has the run, or waits for it.
    fn begin(&self, mut command: Command, output_dir: &Path) -> Running {
        self.wire.open();
        command.args(["--nats", &self.wire.url()]).arg("--output-dir").arg(output_dir);
        // its log says when it trains
        command.env("RUST_LOG", "info,folgore_learner=debug");
        Running::start(command)
    }

    /// Goes on with the run in `output_dir` (that of the fleet, or a copy of it).
    pub fn resumed(&self, output_dir: &Path) -> Running {
        self.begin(folgore(["train", "--resume", RUN]), output_dir)
    }

    /// Starts the head again.
    pub fn resume(&mut self) {
        self.head = Some(self.resumed(&self.output_dir()));
    }

    /// Starts the worker `name`.
    pub fn join(&mut self, name: &str) {
        let mut command = folgore(["worker", "--nats", &self.server.url(), "--run", RUN, "--name", name]);
        command.env("FOLGORE_CACHE", self.at.path().join("cache"));
        self.workers.insert(name.to_owned(), Running::start(command));
    }

    /// Kills the worker `name`.
    pub fn kill(&mut self, name: &str) {
        self.workers.remove(name).expect("a worker of that name").kill();
    }

    /// Sends the worker `name` a signal.
    pub fn signal(&self, name: &str, signal: &str) {
        self.workers[name].signal(signal);
    }

    /// The head.
    pub fn head(&mut self) -> &mut Running {
        self.head.as_mut().expect("a head")
    }

    /// Steps done so far.
    pub fn steps(&self) -> u64 {
        raw_metrics(&self.run_dir()).len() as u64
    }

    /// Waits until `step` is done.
    #[track_caller]
    pub fn until_step(&mut self, step: u64) {
        let run = self.run_dir();
        let head = self.head.as_mut().expect("a head");
        assert!(head.until(|| raw_metrics(&run).len() as u64 >= step), "the head ended before step {step}");
        assert!(self.steps() < STEPS, "the run was over before it was disturbed");
    }

    /// Waits until `step` is done and then for `share` of the time that the next one generates.
    #[track_caller]
    pub fn until_generating(&mut self, step: u64, share: f64) {
        self.until_step(step);
        let generating = calm().seconds[step as usize].0;
        std::thread::sleep(Duration::from_secs_f64(share * generating));
    }

    /// Looks at the server: as nobody in particular, over a connection of its own.
    pub fn look<T>(&self, look: impl AsyncFnOnce(Nats) -> T) -> T {
        self.runtime.block_on(async {
            let names = Names::new(&RunName::new(RUN).unwrap()).unwrap();
            let mut config = NatsConfig::new(self.server.url(), names, Role::Console, "onlooker").unwrap();
            config.connect_within = Duration::from_secs(30);
            look(connect(config).await.unwrap()).await
        })
    }

    /// Jobs that somebody took and did not settle.
    pub fn jobs_held(&self) -> u64 {
        let status = self.look(async |nats| admin::status(&nats).await.unwrap());
        status.consumers["RL_c_JOBS/rollout"].held
    }

    /// Step of the policy that workers are told to serve.
    pub fn served(&self) -> Option<u64> {
        let stored = self.look(async |nats| nats.links().get_state::<PolicyPublished>(subjects::POLICY).await.unwrap());
        stored.map(|stored| stored.value.policy.step)
    }

    /// Waits for the end of the run, which must have done what it was asked to, and proves it from its record. Without
    /// staleness, it must also have come to the numbers of a calm run. Gives the folder, for what else is to be found there.
    #[track_caller]
    pub fn completes(self, what: &str) -> Ground {
        let (run, alternating) = (self.run_dir(), self.staleness == 0);
        let at = self.completes_with_other_numbers(what);
        if alternating {
            same_as_calm(&run, what);
        }
        at
    }

    /// The same for a run whose seats were drawn again because of what a worker sent: then its numbers are others.
    #[track_caller]
    pub fn completes_with_other_numbers(mut self, what: &str) -> Ground {
        self.head.take().expect("a head").end().well();
        proves(&self.output_dir(), what);
        self.at
    }
}

/// The folder of everything, which stays where a test fails: what it holds tells why.
pub struct Ground(TempDir);

impl Ground {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("left in {}", self.0.path().display());
            self.0.disable_cleanup(true);
        }
    }
}

/// `folgore inspect --check` holds for the run in `output_dir`, and all steps are done.
#[track_caller]
pub fn proves(output_dir: &Path, what: &str) {
    let mut check = folgore(["inspect", RUN, "--check"]);
    check.arg("--output-dir").arg(output_dir);
    let checked = run(check);
    assert!(checked.status.success(), "{what}:\n{}\n{}", checked.stdout, checked.stderr);
    let run = output_dir.join(RUN);
    let steps: Vec<u64> = metrics(&run).iter().map(|line| number(line, "step") as u64).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "{what}");
    assert!(checkpoints(&run).contains(&STEPS), "{what}: the last step is not saved");
}

/// The run in `run` came to the numbers of a calm one.
#[track_caller]
pub fn same_as_calm(run: &Path, what: &str) {
    let found: Vec<Line> = metrics(run).into_iter().map(timeless).collect();
    for (a, b) in calm().metrics.iter().zip(&found) {
        for (key, value) in a {
            assert_eq!(Some(value), b.get(key), "{what}: step {}: {key}", a["step"]);
        }
    }
    assert_eq!(calm().metrics, found, "{what}");
}
