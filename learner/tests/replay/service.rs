//! Whole steps over the local links: a fake coordinator and worker, a fake learner, replay killed in between.

use std::{io, sync::Arc, time::Duration};

use folgore_actors::{Context, Links, LocalConfig, Service, Shutdown, Status, local};
use folgore_learner::{
    record::Record,
    replay::{ReplayEvent, ReplayService, ReplaySettings, ReplaySetup, Store},
};
use folgore_protocol::{
    Batch, GroupId, PolicyId, ReplayReply, ReplayRequest, Scope, ScoreReply, ScoreRequest, SeatKey, subjects,
};
use tokio::task::JoinHandle;

use crate::common::*;

const WAIT: Duration = Duration::from_secs(30);

struct Run {
    links: Links,
    setup: ReplaySetup,
    disk: MemoryDisk,
    _dir: tempfile::TempDir,
}

impl Run {
    fn new(settings: ReplaySettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = MemoryDisk::default();
        let links = local("test", LocalConfig::new(dir.path()));
        Self { links, setup: setup(settings, &disk), disk, _dir: dir }
    }

    fn replay(&self) -> (JoinHandle<Result<(), String>>, Shutdown) {
        let shutdown = Shutdown::new();
        let context = Context {
            name: "replay".into(),
            links: self.links.clone(),
            shutdown: shutdown.clone(),
            status: Status::new(),
        };
        let service = Box::new(ReplayService { setup: self.setup.clone() });
        (tokio::spawn(async move { service.run(context).await.map_err(|e| e.to_string()) }), shutdown)
    }

    async fn ask(&self, request: ReplayRequest) -> Result<ReplayReply, String> {
        let asked = self.links.call_when_served(subjects::REPLAY, &request, "test", WAIT).await;
        asked.map_err(|e| e.to_string())
    }

    /// Asks for seats, plays them, hands each in twice.
    fn worker(&self, temper: Temper) -> JoinHandle<()> {
        let (links, judge_groups) = (self.links.clone(), self.setup.settings.judge_groups);
        tokio::spawn(async move {
            let mut reissue = true;
            loop {
                let request = ReplayRequest::OpenSeats { max: 4, reissue };
                let asked =
                    links.call_when_served(subjects::REPLAY, &request, "seats", Duration::from_millis(500)).await;
                let Ok(ReplayReply::Seats { jobs }) = asked else {
                    // Replay is gone for a moment: what it had handed out may be lost.
                    reissue = true;
                    continue;
                };
                reissue = false;
                for job in jobs {
                    let made = play(&job, policy_for(&job), temper);
                    let trajectory = if judge_groups { unjudged(made) } else { made };
                    for _ in 0..2 {
                        let key = job.seat.to_string();
                        links.publish_job_waiting(subjects::TRAJECTORIES, &trajectory, &key, WAIT).await.unwrap();
                    }
                }
            }
        })
    }

    async fn batch(&self, step: u64) -> Result<Batch, String> {
        for _ in 0..100 {
            match self.ask(ReplayRequest::NextBatch { step }).await? {
                ReplayReply::Batch(batch) => return Ok(batch),
                ReplayReply::NotYet { .. } => {}
                other => return Err(format!("{other:?}")),
            }
        }
        Err(format!("no batch {step}"))
    }

    async fn commit(&self, step: u64, epoch: u32) {
        let policy = PolicyId { epoch, ..policy(step) };
        assert_eq!(self.ask(ReplayRequest::Commit { step, policy }).await, Ok(ReplayReply::Done {}));
    }
}

fn troubled() -> (ReplaySettings, Temper) {
    let settings = ReplaySettings { drop_equal_rewards: true, max_issues: 1000, reissue_after_ms: 50, ..settings() };
    (settings, Temper { fails_one_in: 5, reward_max: 2 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_form_over_the_links_and_a_killed_replay_goes_on() {
    let (settings, temper) = troubled();
    let calm = run_calmly(&mut open(settings.clone(), &MemoryDisk::default()), 1..=4, temper);
    let run = Run::new(settings);
    let worker = run.worker(temper);
    let mut events = run.links.subscribe_events::<ReplayEvent>(subjects::EVENTS).await.unwrap();
    let (mut replay, mut shutdown) = run.replay();
    let Ok(ReplayReply::Resumed { epoch, .. }) =
        run.ask(ReplayRequest::Resume { step: 0, policy: None, first_free_group: 0, min_epoch: 0 }).await
    else {
        panic!("no epoch")
    };
    for step in 1..=4 {
        if step == 2 {
            // As a panic or a supervisor would: dropped in the middle of whatever it does.
            replay.abort();
            assert!(replay.await.unwrap_err().is_cancelled());
            (replay, shutdown) = run.replay();
        }
        if step == 3 {
            shutdown.request(folgore_actors::Level::Stopping);
            assert_eq!(replay.await.unwrap(), Ok(()));
            (replay, shutdown) = run.replay();
        }
        assert_eq!(run.batch(step).await.unwrap(), calm[step as usize - 1], "step {step}");
        run.commit(step, epoch).await;
    }
    // A learner that lost its last two steps is served them again.
    assert!(matches!(
        run.ask(ReplayRequest::Resume { step: 2, policy: Some(policy(2)), first_free_group: 0, min_epoch: 0 }).await,
        Ok(ReplayReply::Resumed { recorded_step: 4.., .. })
    ));
    assert_eq!(run.batch(3).await.unwrap(), calm[2]);
    let Ok(ReplayReply::Status(status)) = run.ask(ReplayRequest::Status {}).await else { panic!("no status") };
    assert!(status.refused.iter().any(|(reason, n)| reason == "duplicate" && *n > 0), "{status:?}");
    assert!(events.next().await.unwrap().is_ok());
    worker.abort();
    shutdown.request(folgore_actors::Level::Stopping);
    assert_eq!(replay.await.unwrap(), Ok(()));
}

/// The batches of a run that nobody disturbs, judged as they are completed.
fn judged_calmly(store: &mut Store, steps: std::ops::RangeInclusive<u64>, temper: Temper) -> Vec<Batch> {
    let train = |step| {
        while store.batch(step).unwrap().is_none() {
            for job in change(store, |l| l.open_seats(0, 1000, false)) {
                change(store, |l| l.ingest(unjudged(play(&job, policy_for(&job), temper))));
            }
            let waiting: Vec<GroupId> = store.ledger().unjudged().map(|(id, _)| id).collect();
            for id in waiting {
                let mut members = store.members(id).unwrap();
                let seats: Vec<SeatKey> = members.iter().map(|member| member.seat).collect();
                members.iter_mut().zip(verdict(&seats)).for_each(|(member, outcome)| member.outcome = outcome);
                change(store, |l| l.judged(id, members));
            }
        }
        let batch = store.batch(step).unwrap().unwrap();
        change(store, |l| l.commit(step, policy(step))).unwrap();
        batch
    };
    steps.map(train).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_killed_before_a_verdict_asks_again_and_trains_the_same() {
    let (settings, temper) = troubled();
    let settings = ReplaySettings { judge_groups: true, ..settings };
    let calm = judged_calmly(&mut open(settings.clone(), &MemoryDisk::default()), 1..=4, temper);
    assert!(calm.iter().any(|batch| batch.draws.errors > 0), "the judge never failed");
    let run = Run::new(settings);
    let _worker = run.worker(temper);
    let (mut replay, mut shutdown) = run.replay();
    let resume = ReplayRequest::Resume { step: 0, policy: None, first_free_group: 0, min_epoch: 0 };
    let Ok(ReplayReply::Resumed { epoch, .. }) = run.ask(resume).await else { panic!("no epoch") };
    // Replay waits for whoever judges: nothing is drawn again because he comes late.
    unjudged_groups(&run).await;
    let gate = tokio::sync::watch::Sender::new(true);
    let opened = gate.subscribe();
    let judge = move |request: ScoreRequest| {
        let mut open = opened.clone();
        async move {
            assert_eq!((request.scope, request.items.len()), (Scope::Group, 2));
            assert!(request.items.iter().all(|item| item.completion == format!("{:?}", item.completion_ids)));
            open.wait_for(|open| *open).await.map_err(|e| e.to_string())?;
            let seats: Vec<SeatKey> = request.items.iter().map(|item| item.id).collect();
            let outcomes = verdict(&seats).into_iter().zip(seats).map(|(outcome, seat)| (seat, outcome)).collect();
            Ok::<_, String>(ScoreReply { outcomes })
        }
    };
    let _judge = run.links.serve_typed(subjects::REWARD, 8, judge).await.unwrap();
    for step in 1..=4 {
        assert_eq!(run.batch(step).await.unwrap(), calm[step as usize - 1], "step {step}");
        gate.send_replace(step == 4);
        run.commit(step, epoch).await;
        if step < 4 {
            unjudged_groups(&run).await;
            replay.abort();
            assert!(replay.await.unwrap_err().is_cancelled());
            gate.send_replace(true);
            (replay, shutdown) = run.replay();
        }
    }
    shutdown.request(folgore_actors::Level::Stopping);
    assert_eq!(replay.await.unwrap(), Ok(()));
    assert!(folgore_learner::record::check::check(&(run.setup.open)().unwrap()).unwrap().holds());
}

/// Waits until a group waits to be judged.
async fn unjudged_groups(run: &Run) {
    loop {
        match run.ask(ReplayRequest::Status {}).await {
            Ok(ReplayReply::Status(status)) if status.unjudged_groups > 0 => return,
            Ok(ReplayReply::Status(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evaluation_travels_the_same_path() {
    let run = Run::new(settings());
    let worker = run.worker(CALM);
    let _replay = run.replay();
    let open =
        ReplayRequest::OpenEval { label: "before".into(), policy: policy(0), greedy: true, samples: 1, tasks: 0..5 };
    assert_eq!(run.ask(open).await, Ok(ReplayReply::Done {}));
    let Ok(ReplayReply::Eval(summary)) = run.ask(ReplayRequest::EvalResult { label: "before".into() }).await else {
        panic!("no summary")
    };
    assert!(summary.complete(), "{} of {}", summary.items.len(), summary.expected);
    assert!(run.ask(ReplayRequest::EvalResult { label: "x".into() }).await.unwrap_err().contains("open it first"));
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_nothing_is_acked_and_with_space_it_goes_on() {
    let (settings, temper) = troubled();
    let calm = run_calmly(&mut open(settings.clone(), &MemoryDisk::default()), 1..=2, temper);
    let run = Run::new(settings);
    let (replay, shutdown) = run.replay();
    run.ask(ReplayRequest::Status {}).await.unwrap();
    let mut events = run.links.subscribe_events::<ReplayEvent>(subjects::EVENTS).await.unwrap();
    run.disk.fail(Some(1), io::ErrorKind::StorageFull);
    let worker = run.worker(temper);
    loop {
        let event = events.next().await.unwrap().unwrap();
        if let folgore_actors::TypedEvent::Happened { body: ReplayEvent::RecordUnavailable { reason }, .. } = event {
            assert!(reason.contains("disk is full"), "{reason}");
            break;
        }
    }
    let (waiting, held) = run.links.queue.depth(subjects::TRAJECTORIES).await.unwrap();
    assert!(waiting + held > 0, "a trajectory was acked and lost");
    run.disk.fail(None, io::ErrorKind::Other);
    for step in 1..=2 {
        assert_eq!(run.batch(step).await.unwrap(), calm[step as usize - 1], "step {step}");
        run.commit(step, 0).await;
    }
    worker.abort();
    shutdown.request(folgore_actors::Level::Stopping);
    assert_eq!(replay.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_record_that_cannot_be_opened_ends_the_service_with_its_reason() {
    let mut run = Run::new(settings());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record.redb");
    std::fs::write(&path, b"").unwrap();
    run.setup.open = Arc::new(move || Record::open(&path));
    let error = run.replay().0.await.unwrap().unwrap_err();
    assert!(error.contains("record.redb") && error.contains("restore"), "{error}");
}
