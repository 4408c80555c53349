//! The `Coordinator` service: turns open seats into jobs, no faster than they are worked off.
//!
//! It keeps no durable state: which seats are open is replay's to know. It only sees to it that the queue of jobs is never
//! empty while seats are open, and never longer than it has to be. A queue may lose what it holds; so when nothing has been
//! on its way for a while, seats that were handed out before are issued again. Two trajectories for one seat do no harm.

use std::time::Duration;

use folgore_actors::{BoxFuture, CallError, Context, LinkError, Links, Service, ServiceError, Status};
use folgore_protocol::{ReplayReply, ReplayRequest, RolloutJob, subjects};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep},
};

/// Jobs on their way into the queue at once.
const ISSUED_AT_ONCE: usize = 32;

/// Settings of the coordinator.
#[derive(Clone, Copy, Debug)]
pub struct CoordinatorConfig {
    /// Jobs that may wait in the queue.
    pub jobs_ahead: usize,
    /// Trajectories that may wait for replay before no more jobs are issued.
    pub backlog_max: usize,
    /// How soon to look again when there was nothing to do.
    pub poll: Duration,
    /// Longest wait for replay.
    pub replay_deadline: Duration,
    /// How long nothing must have been on its way before seats are issued again.
    pub reissue_after: Duration,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            jobs_ahead: 256,
            backlog_max: 1024,
            poll: Duration::from_millis(10),
            replay_deadline: Duration::from_secs(60),
            reissue_after: Duration::from_secs(30),
        }
    }
}

/// The service.
pub struct Coordinator {
    config: CoordinatorConfig,
}

impl Coordinator {
    /// A coordinator.
    pub fn new(config: CoordinatorConfig) -> Self {
        Self { config }
    }
}

impl Service for Coordinator {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let mut desk = Desk {
                config: self.config,
                links: context.links,
                status: context.status,
                idle_since: None,
                started: false,
                issued: 0,
                reissued: 0,
            };
            // Dropping the work between two publishes is safe: a seat without a job is issued again.
            context.shutdown.unless_stopping(desk.work()).await.unwrap_or(Ok(()))
        })
    }
}

struct Desk {
    config: CoordinatorConfig,
    links: Links,
    status: Status,
    /// Since when nothing has been on its way.
    idle_since: Option<Instant>,
    /// False until the first seats were asked for.
    started: bool,
    issued: u64,
    reissued: u64,
}

impl Desk {
    async fn work(&mut self) -> Result<(), ServiceError> {
        loop {
            let issued = self.round().await?;
            if issued == 0 {
                sleep(self.config.poll).await;
            }
        }
    }

    /// Looks once; returns how many jobs it issued.
    async fn round(&mut self) -> Result<usize, ServiceError> {
        let depths = async {
            let jobs = self.links.queue.depth(subjects::JOBS).await?;
            Ok((jobs, self.links.queue.depth(subjects::TRAJECTORIES).await?))
        };
        let ((waiting, held), (backlog, taken)) = match depths.await {
            Ok(depths) => depths,
            // The server is away, or has lost its queues: look again.
            Err(error @ LinkError::Deadline { .. }) => {
                tracing::debug!(%error, "the queues do not answer");
                self.status.set_field("unavailable", error.to_string());
                self.idle_since = None;
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        let room = self.config.jobs_ahead.saturating_sub(waiting);
        let paused = room == 0 || backlog >= self.config.backlog_max;
        self.status.set(serde_json::json!({
            "issued": self.issued, "reissued": self.reissued, "jobs_waiting": waiting, "jobs_held": held,
            "trajectories_waiting": backlog, "trajectories_held": taken, "paused": paused,
        }));
        if paused {
            return Ok(0);
        }
        let reissue = self.is_stuck(waiting + held + backlog + taken);
        let jobs = match self.open_seats(room, reissue).await {
            Ok(jobs) => jobs,
            // Replay is being restarted, or busy: look again.
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "replay does not answer");
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        self.started = true;
        let count = jobs.len();
        self.reissued += if reissue { count as u64 } else { 0 };
        self.issue_all(jobs).await?;
        Ok(count)
    }

    /// True if seats handed out before should be issued again: at the start with nothing on its way, or after nothing was
    /// for a while.
    fn is_stuck(&mut self, on_their_way: usize) -> bool {
        if on_their_way > 0 {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        let stuck = !self.started || since.elapsed() >= self.config.reissue_after;
        if stuck {
            self.idle_since = None;
        }
        stuck
    }

    async fn open_seats(&self, room: usize, reissue: bool) -> Result<Vec<RolloutJob>, CallError> {
        let request = ReplayRequest::OpenSeats { max: room.min(u32::MAX as usize) as u32, reissue };
        // Replay holds the question until a seat is open. No longer than jobs may be lost unnoticed: meanwhile nobody looks.
        let deadline = self.config.replay_deadline.min(self.config.reissue_after);
        match self.links.call_when_served(subjects::REPLAY, &request, "open-seats", deadline).await? {
            ReplayReply::Seats { jobs } => Ok(jobs),
            other => {
                let reason = format!("expected seats, got {other:?}").chars().take(200).collect();
                Err(LinkError::Refused { subject: subjects::REPLAY.into(), reason }.into())
            }
        }
    }

    /// Puts jobs into the queue, several at once: a server far away, or with a slow disk, takes its time over each.
    async fn issue_all(&mut self, jobs: Vec<RolloutJob>) -> Result<(), ServiceError> {
        let mut under_way = JoinSet::new();
        for job in jobs {
            if under_way.len() >= ISSUED_AT_ONCE {
                self.note_issued(under_way.join_next().await)?;
            }
            under_way.spawn(issue(self.links.clone(), job));
        }
        while !under_way.is_empty() {
            self.note_issued(under_way.join_next().await)?;
        }
        Ok(())
    }

    fn note_issued(&mut self, ended: Option<Result<Result<(), CallError>, JoinError>>) -> Result<(), ServiceError> {
        if let Some(ended) = ended {
            ended??;
            self.issued += 1;
        }
        Ok(())
    }
}

/// Puts one job into the queue, waiting as long as it is full.
async fn issue(links: Links, job: RolloutJob) -> Result<(), CallError> {
    let key = job.seat.to_string();
    loop {
        match links.publish_job_waiting(subjects::JOBS, &job, &key, Duration::from_secs(60)).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_transient() => tracing::warn!(seat = key, %error, "queue of jobs is still full"),
            Err(error) => return Err(error),
        }
    }
}
