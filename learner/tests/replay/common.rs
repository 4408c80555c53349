//! A run without a model: tasks, a worker whose samples follow from the seat alone, and a disk in memory that can fail.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use folgore_config::replay::OnEmptyBatch;
use folgore_learner::{
    record::{Record, RecordError},
    replay::{Ledger, ReplaySettings, ReplaySetup, RunIdentity, Store},
};
use folgore_protocol::{
    Batch, Digest, Outcome, PolicyId, Prompt, Purpose, RolloutJob, Row, RunLength, SamplingParams, SeatKey, Segment,
    SegmentKind, Source, StopReason, Task, Trajectory, seed,
};
use redb::StorageBackend;

pub const VOCAB: u32 = 50;

pub fn tasks(count: u64, name: &str) -> Vec<Task> {
    let task =
        |i| Task { id: format!("{name}-{i}"), prompt: Prompt::Text(format!("{i}?")), columns: Default::default() };
    (0..count).map(task).collect()
}

pub fn settings() -> ReplaySettings {
    ReplaySettings {
        run_seed: 11,
        num_prompts: 3,
        num_generations: 2,
        max_staleness: 0,
        max_open_seats: 64,
        max_draws: 3,
        reissue_after_ms: 1000,
        max_issues: 3,
        max_strikes: 3,
        drop_equal_rewards: false,
        max_generation_batches: 10,
        on_empty_batch: OnEmptyBatch::Stop,
        retention_steps: 0,
        vocab_size: VOCAB,
        environment: "single_turn".into(),
        sampling: SamplingParams::default(),
        judge_groups: false,
        judge_deadline: Duration::from_secs(10),
        judge_concurrency: 4,
        traces: None,
        experience: None,
        curriculum: None,
    }
}

pub fn setup(settings: ReplaySettings, disk: &MemoryDisk) -> ReplaySetup {
    let disk = disk.clone();
    ReplaySetup {
        open: Arc::new(move || Record::on_backend(disk.clone())),
        settings,
        identity: RunIdentity::new().with("seed", 11),
        force: false,
        train: Arc::new(tasks(7, "train")),
        held_out: Arc::new(tasks(5, "held-out")),
    }
}

pub fn open(settings: ReplaySettings, disk: &MemoryDisk) -> Store {
    Store::open(&setup(settings, disk)).unwrap()
}

/// The policy that the fake learner makes of `step`.
pub fn policy(step: u64) -> PolicyId {
    PolicyId { epoch: u32::MAX, step, digest: Digest::of(&step.to_le_bytes()) }
}

/// How often the fake worker's reward fails, and how many values it takes.
#[derive(Clone, Copy, Debug)]
pub struct Temper {
    /// One sample of so many has no score; 0: none.
    pub fails_one_in: u64,
    /// Rewards are 0 to this.
    pub reward_max: u64,
}

pub const CALM: Temper = Temper { fails_one_in: 0, reward_max: 9 };

/// Carries `job` out: everything follows from its seed and `policy`.
pub fn play(job: &RolloutJob, policy: PolicyId, temper: Temper) -> Trajectory {
    let draw = |index| seed::below(job.seed, index, u64::from(VOCAB)) as u32;
    let count = 1 + seed::below(job.seed, 100, 4);
    let ids: Vec<u32> = (0..count).map(draw).collect();
    let logprobs = (0..count).map(|i| -seed::uniform(job.seed, 200 + i)).collect();
    let none = RunLength::default();
    let prompt = Segment { kind: SegmentKind::Prompt, ids: vec![1, 2], logprobs: vec![], policies: none };
    let policies = RunLength::of(policy, ids.len() as u32);
    let sampled = Segment { kind: SegmentKind::Sampled, ids, logprobs, policies };
    let fails = temper.fails_one_in > 0 && seed::below(job.seed, 300, temper.fails_one_in) == 0;
    let outcome = match seed::below(job.seed, 301, 2) {
        _ if !fails => Outcome::scored("fake", seed::below(job.seed, 302, temper.reward_max + 1) as f64),
        0 => Outcome::Error { reason: "the reward timed out".into() },
        _ => Outcome::Unscorable { reason: "no gold".into() },
    };
    Trajectory {
        seat: job.seat,
        task_id: job.task.id.clone(),
        purpose: job.purpose.clone(),
        rows: vec![Row { segments: vec![prompt, sampled], source: Source::OnPolicy }],
        outcome,
        stop_reason: StopReason::Eos,
        worker: "fake".into(),
        duration_ms: 1,
        token: job.token.clone(),
    }
}

pub fn judged_settings() -> ReplaySettings {
    ReplaySettings { judge_groups: true, ..settings() }
}

/// The same, to be judged with its group.
pub fn unjudged(trajectory: Trajectory) -> Trajectory {
    let outcome = match trajectory.outcome {
        Outcome::Scored { .. } => {
            Outcome::Unjudged { completion: format!("{:?}", trajectory.completion_ids()), said: vec![] }
        }
        other => other,
    };
    Trajectory { outcome, ..trajectory }
}

/// What a judge says of a group: everything follows from who is in it.
pub fn verdict(seats: &[SeatKey]) -> Vec<Outcome> {
    let together: Vec<u64> = seats.iter().map(|seat| seed::seat(5, *seat)).collect();
    let one = |seat: &SeatKey| {
        let own = seed::mix(&[seed::mix(&together), seed::seat(5, *seat)]);
        match seed::below(own, 0, 8) {
            0 => Outcome::Error { reason: "the judge is not sure".into() },
            _ => Outcome::scored("judge", seed::below(own, 1, 3) as f64),
        }
    };
    seats.iter().map(one).collect()
}

/// The policy that a job is to be played with at staleness 0.
pub fn policy_for(job: &RolloutJob) -> PolicyId {
    match &job.purpose {
        Purpose::Train => policy(job.min_policy_step),
        Purpose::Eval { policy, .. } => *policy,
    }
}

pub fn change<T>(store: &mut Store, decide: impl FnOnce(&mut Ledger) -> T) -> T {
    store.change(decide).unwrap().0
}

/// Hands out and plays until nothing is open.
pub fn play_all(store: &mut Store, temper: Temper) {
    play_all_by(store, |job| play(job, policy_for(job), temper));
}

/// The same, with a worker of one's own.
pub fn play_all_by(store: &mut Store, mut play: impl FnMut(&RolloutJob) -> Trajectory) {
    loop {
        let jobs = store.open_seats(0, 1000, false).unwrap().0;
        if jobs.is_empty() {
            return;
        }
        for job in jobs {
            let trajectory = play(&job);
            change(store, |ledger| ledger.ingest(trajectory));
        }
    }
}

/// Trains `steps` steps in order, without any trouble; gives their batches.
pub fn run_calmly(store: &mut Store, steps: std::ops::RangeInclusive<u64>, temper: Temper) -> Vec<Batch> {
    let train = |step| {
        play_all(store, temper);
        let batch = store.batch(step).unwrap().unwrap_or_else(|| panic!("no batch {step}"));
        change(store, |ledger| ledger.commit(step, policy(step))).unwrap();
        batch
    };
    steps.map(train).collect()
}

/// A file in memory. What was written but not synced is lost by [`MemoryDisk::crash`]; operation `fail_at`, and all after
/// it, fail.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<Bytes>>);

#[derive(Debug, Default)]
struct Bytes {
    live: Vec<u8>,
    durable: Vec<u8>,
    operations: u64,
    fail_at: Option<u64>,
    kind: Option<io::ErrorKind>,
}

impl Bytes {
    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fail_at {
            Some(n) if self.operations >= n => Err(self.kind.unwrap_or(io::ErrorKind::Other).into()),
            _ => Ok(()),
        }
    }
}

impl MemoryDisk {
    /// The disk after a power cut: what was synced, or with `written` all that was written.
    pub fn crash(&self, written: bool) -> Self {
        let bytes = self.0.lock().unwrap();
        let left = if written { bytes.live.clone() } else { bytes.durable.clone() };
        Self(Arc::new(Mutex::new(Bytes { live: left.clone(), durable: left, ..Bytes::default() })))
    }

    pub fn operations(&self) -> u64 {
        self.0.lock().unwrap().operations
    }

    /// From operation `at` on (counted from now) everything fails with `kind`; none: nothing does.
    pub fn fail(&self, at: Option<u64>, kind: io::ErrorKind) {
        let mut bytes = self.0.lock().unwrap();
        bytes.fail_at = at.map(|at| bytes.operations + at);
        bytes.kind = Some(kind);
    }
}

impl StorageBackend for MemoryDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let at = offset as usize;
        let part = bytes.live.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        bytes.operation()?;
        bytes.live.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        bytes.operation()?;
        bytes.durable = bytes.live.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        bytes.operation()?;
        let (at, end) = (offset as usize, offset as usize + data.len());
        if bytes.live.len() < end {
            bytes.live.resize(end, 0);
        }
        bytes.live[at..end].copy_from_slice(data);
        Ok(())
    }
}

pub fn is_disk_full(error: &RecordError) -> bool {
    matches!(error, RecordError::DiskFull { .. })
}
