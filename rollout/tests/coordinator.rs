//! The coordinator between a fake replay and a queue.

mod common;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::*;
use folgore_actors::{BoxFuture, Delivery, LinkError, Links, Message, Queue};
use folgore_protocol::*;
use folgore_rollout::{Coordinator, CoordinatorConfig};

/// Seats of a fake replay: those never handed out, those handed out, and the requests seen.
#[derive(Default)]
struct Seats {
    open: BTreeSet<u64>,
    out: BTreeSet<u64>,
    reissues: u32,
}

async fn serve_replay(links: &Links, open: std::ops::Range<u64>) -> (folgore_actors::Served, Arc<Mutex<Seats>>) {
    let seats = Arc::new(Mutex::new(Seats { open: open.collect(), ..Seats::default() }));
    let shared = seats.clone();
    let answer = move |request: ReplayRequest| {
        let shared = shared.clone();
        async move {
            let ReplayRequest::OpenSeats { max, reissue } = request else { return Err("not asked here".to_owned()) };
            let mut seats = shared.lock().unwrap();
            seats.reissues += u32::from(reissue);
            if reissue {
                let out = std::mem::take(&mut seats.out);
                seats.open.extend(out);
            }
            let given: Vec<u64> = seats.open.iter().copied().take(max as usize).collect();
            for group in &given {
                seats.open.remove(group);
                seats.out.insert(*group);
            }
            Ok(ReplayReply::Seats { jobs: given.into_iter().map(|group| job(group, "?")).collect() })
        }
    };
    (links.serve_typed(subjects::REPLAY, 1, answer).await.unwrap(), seats)
}

fn config() -> CoordinatorConfig {
    CoordinatorConfig {
        jobs_ahead: 4,
        backlog_max: 2,
        poll: Duration::from_millis(5),
        reissue_after: Duration::from_secs(3600),
        ..CoordinatorConfig::default()
    }
}

async fn depth(links: &Links) -> (usize, usize) {
    links.queue.depth(subjects::JOBS).await.unwrap()
}

#[tokio::test]
async fn jobs_are_issued_no_faster_than_they_are_worked_off() {
    let (links, _folder) = links();
    let (_replay, seats) = serve_replay(&links, 0..10).await;
    let (context, end) = spawn(Coordinator::new(config()), "coordinator", &links);
    until("four jobs wait", async || depth(&links).await == (4, 0)).await;
    assert_eq!(seats.lock().unwrap().open.len(), 6);
    let mut seen = BTreeSet::new();
    while seen.len() < 10 {
        for job in links.pull_jobs::<RolloutJob>(subjects::JOBS, 3, Duration::from_secs(5)).await.unwrap().jobs {
            assert!(seen.insert(job.body.seat), "{} was issued twice", job.body.seat);
            job.ack().await.unwrap();
        }
        assert!(depth(&links).await.0 <= 4);
    }
    assert_eq!(seats.lock().unwrap().reissues, 1, "only the first look asks for seats handed out before");
    context.shutdown.request(folgore_actors::Level::Stopping);
    end.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_backlog_of_trajectories_pauses_it() {
    let (links, _folder) = links();
    for i in 0..2 {
        links.publish_job(subjects::TRAJECTORIES, &job(i, "stands for a trajectory"), "t").await.unwrap();
    }
    let (_replay, seats) = serve_replay(&links, 0..10).await;
    let (context, _end) = spawn(Coordinator::new(config()), "coordinator", &links);
    until("it says so", async || context.status.get()["paused"] == true).await;
    assert_eq!((depth(&links).await, seats.lock().unwrap().open.len()), ((0, 0), 10));
    let waiting = links.pull_jobs::<RolloutJob>(subjects::TRAJECTORIES, 2, Duration::from_secs(5)).await.unwrap();
    for trajectory in waiting.jobs {
        trajectory.ack().await.unwrap();
    }
    until("jobs are issued again", async || depth(&links).await == (4, 0)).await;
}

#[tokio::test]
async fn seats_of_a_lost_queue_are_issued_again() {
    let (links, _folder) = links();
    let (_replay, _seats) = serve_replay(&links, 0..2).await;
    let config = CoordinatorConfig { reissue_after: Duration::from_millis(50), ..config() };
    let (_context, _end) = spawn(Coordinator::new(config), "coordinator", &links);
    for round in 0..2 {
        let mut seen = BTreeSet::new();
        while seen.len() < 2 {
            // Taken and never answered: as if the queue had lost them.
            for job in links.pull_jobs::<RolloutJob>(subjects::JOBS, 2, Duration::from_secs(5)).await.unwrap().jobs {
                seen.insert(job.body.seat.group.0);
                job.ack().await.unwrap();
            }
        }
        assert_eq!(seen, BTreeSet::from([0, 1]), "round {round}");
    }
}

#[tokio::test]
async fn a_late_replay_is_waited_for() {
    let (links, _folder) = links();
    let (_context, _end) = spawn(Coordinator::new(config()), "coordinator", &links);
    tokio::time::sleep(Duration::from_millis(30)).await;
    let (_replay, _seats) = serve_replay(&links, 0..1).await;
    until("the job is there", async || depth(&links).await == (1, 0)).await;
}

/// A queue that takes no job before eight are on their way.
struct Eight {
    inner: Arc<dyn Queue>,
    under_way: tokio::sync::Barrier,
}

impl Queue for Eight {
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            self.under_way.wait().await;
            self.inner.publish(subject, message).await
        })
    }

    fn pull<'a>(
        &'a self,
        subject: &'a str,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Delivery>, LinkError>> {
        self.inner.pull(subject, max, wait)
    }

    fn depth<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<(usize, usize), LinkError>> {
        self.inner.depth(subject)
    }
}

#[tokio::test]
async fn a_queue_far_away_gets_several_jobs_at_once() {
    let (near, _folder) = links();
    let queue = Arc::new(Eight { inner: near.queue.clone(), under_way: tokio::sync::Barrier::new(8) });
    let links = Links { queue, ..near };
    let (_replay, _seats) = serve_replay(&links, 0..64).await;
    let config = CoordinatorConfig { jobs_ahead: 64, ..config() };
    let (_context, _end) = spawn(Coordinator::new(config), "coordinator", &links);
    until("all jobs wait", async || depth(&links).await == (64, 0)).await;
}
