//! The `RolloutWorker` service: pulls jobs, plays episodes, has them scored, hands trajectories in.
//!
//! Each episode is a task that the worker owns and holds a permit of its own. A job that has to wait for a newer policy
//! waits without a permit, so that jobs which could run (an evaluation of the present policy) are never blocked by jobs
//! that could not. A job is acked only after its trajectory is in the queue; whatever ends earlier gives the job back.
//!
//! # What a trajectory without rows means
//! A seat for which there is no episode is answered all the same, because replay must learn of it: `rows` is empty and the
//! outcome says what to do. [`Outcome::Unscorable`]: the task can never be played (its prompt is too long), so drop the
//! group. [`Outcome::Error`]: it failed as often as it may (`max_deliveries`), another draw may succeed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use folgore_actors::{BoxFuture, Context, Job, Links, Service, ServiceError, Shutdown, Status};
use folgore_protocol::{
    Answer, Format, Given, Outcome, PolicyId, PolicyPublished, Purpose, RolloutJob, Scope, ScoreItem, ScoreRequest,
    StopReason, Trajectory, UNJUDGED_BYTES_MAX, subjects,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    environment::Environments,
    episode::{Episode, EpisodeError, EpisodeLimits, PromptEncoder, Stage},
    spans,
};

/// Settings of a rollout worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Name of the worker in its trajectories; none: that of its actor.
    pub name: Option<String>,
    /// Episodes at once.
    pub concurrency: usize,
    /// Limits of each episode.
    pub episode: EpisodeLimits,
    /// Where scores are asked for.
    pub reward_subject: String,
    /// Completions for training are handed in without a score, to be judged with their group.
    pub judge_groups: bool,
    /// Longest wait for a score.
    pub score_deadline: Duration,
    /// How often a score is asked for where nobody answers in time.
    pub score_attempts: u32,
    /// Longest wait for a policy that is new enough; the job is given back after it.
    pub policy_deadline: Duration,
    /// Most jobs that wait for a policy; further ones are given back for a while.
    pub max_waiting: usize,
    /// Longest wait for room in the queue of trajectories.
    pub publish_deadline: Duration,
    /// How often the queue is told that a job is still worked on; well below its redelivery time.
    pub progress_every: Duration,
    /// A job delivered this often without success is answered with an error instead of being tried again.
    pub max_deliveries: u32,
    /// How long a job that failed rests before it is delivered again.
    pub retry_after: Duration,
    /// Name of the model, for spans.
    pub model: String,
    /// Spans show prompts and completions.
    pub show_content: bool,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            name: None,
            concurrency: 64,
            episode: EpisodeLimits::default(),
            reward_subject: subjects::REWARD.to_owned(),
            judge_groups: false,
            score_deadline: Duration::from_secs(60),
            score_attempts: 4,
            policy_deadline: Duration::from_secs(3600),
            max_waiting: 4096,
            publish_deadline: Duration::from_secs(600),
            progress_every: Duration::from_secs(10),
            max_deliveries: 5,
            retry_after: Duration::from_secs(1),
            model: "policy".to_owned(),
            show_content: false,
        }
    }
}

/// The service.
pub struct RolloutWorker {
    config: WorkerConfig,
    encoder: Arc<dyn PromptEncoder>,
    environments: Environments,
}

impl RolloutWorker {
    /// A worker that encodes with `encoder` and plays in `environments`.
    pub fn new(config: WorkerConfig, encoder: Arc<dyn PromptEncoder>, environments: Environments) -> Self {
        Self { config, encoder, environments }
    }

    async fn work(self, context: Context) -> Result<(), ServiceError> {
        let (policy, published) = watch::channel(None);
        let permits = Arc::new(Semaphore::new(self.config.concurrency.max(1)));
        let name = self.config.name.clone().unwrap_or(context.name);
        let crew = Arc::new(Crew {
            waiting: Semaphore::new(self.config.max_waiting),
            permits,
            published,
            counters: Counters::default(),
            config: self.config,
            encoder: self.encoder,
            environments: self.environments,
            links: context.links.clone(),
            shutdown: context.shutdown.clone(),
            name,
            status: context.status,
        });
        let mut episodes = JoinSet::new();
        let result = tokio::select! {
            biased;
            () = context.shutdown.stopping() => Ok(()),
            followed = follow_policy(&context.links, policy) => followed,
            pulled = crew.pull(&mut episodes) => pulled,
        };
        // Each episode sees the shutdown too and gives its job back; after an error they are dropped and redelivered.
        if result.is_ok() {
            while episodes.join_next().await.is_some() {}
        }
        result
    }
}

impl Service for RolloutWorker {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(self.work(context))
    }
}

/// Keeps `latest` at the policy published last.
async fn follow_policy(links: &Links, latest: watch::Sender<Option<PolicyId>>) -> Result<(), ServiceError> {
    let mut watch = links.watch_state::<PolicyPublished>(subjects::POLICY).await?;
    while let Some(stored) = watch.next().await {
        match stored {
            Ok(stored) => drop(latest.send_replace(Some(stored.value.policy))),
            Err(error) => tracing::error!(%error, "published policy not readable"),
        }
    }
    Err(format!("state {}: the link is closed", subjects::POLICY).into())
}

#[derive(Default)]
struct Counters {
    done: AtomicU64,
    unscored: AtomicU64,
    given_back: AtomicU64,
    lost: AtomicU64,
    rejected: AtomicU64,
    redelivered: AtomicU64,
    sampled_tokens: AtomicU64,
}

/// What all episodes of a worker share.
struct Crew {
    name: String,
    config: WorkerConfig,
    links: Links,
    shutdown: Shutdown,
    status: Status,
    encoder: Arc<dyn PromptEncoder>,
    environments: Environments,
    published: watch::Receiver<Option<PolicyId>>,
    permits: Arc<Semaphore>,
    waiting: Semaphore,
    counters: Counters,
}

/// What became of a job.
enum Made {
    /// Its trajectory is in the queue.
    Done,
    /// To be delivered again, after a while.
    Later(String),
}

impl Crew {
    /// Pulls as many jobs as there are permits, for ever.
    async fn pull(self: &Arc<Self>, episodes: &mut JoinSet<()>) -> Result<(), ServiceError> {
        loop {
            let permit = self.permits.clone().acquire_owned().await?;
            let more = self.permits.available_permits();
            let pulled = self.links.pull_jobs::<RolloutJob>(subjects::JOBS, 1 + more, Duration::from_secs(1)).await?;
            self.counters.rejected.fetch_add(pulled.rejected.len() as u64, Relaxed);
            let mut permit = Some(permit);
            for job in pulled.jobs {
                let permit = match permit.take() {
                    Some(permit) => permit,
                    None => self.permits.clone().acquire_owned().await?,
                };
                let crew = self.clone();
                episodes.spawn(async move { crew.carry_out(job, permit).await });
            }
            while let Some(ended) = episodes.try_join_next() {
                if let Err(error) = ended {
                    // The job of a panicked episode was not settled: it is delivered again.
                    tracing::error!(worker = self.name, %error, "episode ended badly");
                }
            }
            self.show();
        }
    }

    /// Sees one job to its end and settles it.
    async fn carry_out(&self, job: Job<RolloutJob>, permit: OwnedSemaphorePermit) {
        self.counters.redelivered.fetch_add(u64::from(job.attempt > 1), Relaxed);
        let work = job.keep_while(self.config.progress_every, self.attempt(&job, permit));
        let settled = match self.shutdown.unless_stopping(work).await {
            Some(Ok(Made::Done)) => job.ack().await,
            Some(Ok(Made::Later(reason))) => {
                tracing::warn!(seat = %job.body.seat, attempt = job.attempt, reason, "job given back");
                self.counters.given_back.fetch_add(1, Relaxed);
                job.nak(self.config.retry_after).await
            }
            Some(Err(lost)) => Err(lost),
            None => {
                self.counters.given_back.fetch_add(1, Relaxed);
                job.nak(Duration::ZERO).await
            }
        };
        if let Err(error) = settled {
            // Somebody else has the job by now; replay tells the two trajectories of a seat apart by its key.
            tracing::warn!(seat = %job.body.seat, %error, "job not settled");
            self.counters.lost.fetch_add(1, Relaxed);
        }
    }

    async fn attempt(&self, job: &Job<RolloutJob>, permit: OwnedSemaphorePermit) -> Made {
        let permit = match self.wait_for_policy(&job.body, permit).await {
            Ok(permit) => permit,
            Err(reason) => return Made::Later(reason),
        };
        let mut span = spans::episode(&self.links.run, &job.body);
        let made = span.scope(self.play(job, permit)).await;
        match made {
            Ok(trajectory) => {
                spans::ended(&mut span, &trajectory);
                span.scope(self.hand_in(trajectory)).await
            }
            Err(reason) => {
                span.fail("failed", &reason);
                Made::Later(reason)
            }
        }
    }

    /// Plays the episode and has it scored; the error says why it should be tried again.
    async fn play(&self, job: &Job<RolloutJob>, permit: OwnedSemaphorePermit) -> Result<Trajectory, String> {
        let begin = Instant::now();
        let stage = Stage {
            links: &self.links,
            encoder: &*self.encoder,
            published: &self.published,
            limits: self.config.episode,
            model: &self.config.model,
            show_content: self.config.show_content,
        };
        let (episode, outcome) = match self.carry_through(&stage, &job.body).await {
            Ok((episode, outcome)) => (Some(episode), outcome),
            Err(EpisodeError::Impossible(reason) | EpisodeError::Unusable(reason)) => {
                (None, Outcome::Unscorable { reason })
            }
            Err(EpisodeError::Failed(reason)) if job.attempt >= self.config.max_deliveries => {
                (None, Outcome::Error { reason: format!("{reason} (delivered {} times)", job.attempt) })
            }
            Err(EpisodeError::Failed(reason)) => return Err(reason),
        };
        drop(permit);
        Ok(self.trajectory(&job.body, episode, outcome, begin))
    }

    /// The episode of `job` with its score. What its seat is given is used if it can be and is worth it; else the policy plays.
    async fn carry_through(&self, stage: &Stage<'_>, job: &RolloutJob) -> Result<(Episode, Outcome), EpisodeError> {
        let given = match &job.given {
            None => None,
            Some(Given::Experience { past }) => stage.remember(job, past).await?,
            Some(trace @ Given::Trace { .. }) => match self.perform(stage, job, Some(trace)).await {
                Err(EpisodeError::Unusable(reason)) => {
                    tracing::warn!(seat = %job.seat, reason, "a trace is not used");
                    None
                }
                followed => Some(followed?),
            },
        };
        if let Some(episode) = given {
            let outcome = self.score(job, &episode).await;
            match (&job.given, outcome.total()) {
                (Some(Given::Trace { min_reward: Some(least), .. }), Some(total)) if total < *least => {
                    tracing::debug!(seat = %job.seat, total, least, "a trace is not worth enough");
                }
                _ => return Ok((episode, outcome)),
            }
        }
        let episode = self.perform(stage, job, None).await?;
        let outcome = self.score(job, &episode).await;
        Ok((episode, outcome))
    }

    /// Plays `job`, along a trace if there is one.
    async fn perform(
        &self,
        stage: &Stage<'_>,
        job: &RolloutJob,
        trace: Option<&Given>,
    ) -> Result<Episode, EpisodeError> {
        let mut environment = self.environments.make(&job.environment).map_err(EpisodeError::Impossible)?;
        stage.play(job, &mut *environment, trace).await
    }

    /// Waits, without a permit, until a policy is published that may begin `job`.
    async fn wait_for_policy(
        &self,
        job: &RolloutJob,
        permit: OwnedSemaphorePermit,
    ) -> Result<OwnedSemaphorePermit, String> {
        let mut published = self.published.clone();
        let new_enough = |policy: &Option<PolicyId>| policy.is_some_and(|p| p.step >= job.min_policy_step);
        if new_enough(&published.borrow()) {
            return Ok(permit);
        }
        drop(permit);
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(format!("{} jobs wait for a policy already", self.config.max_waiting));
        };
        let waited = timeout(self.config.policy_deadline, published.wait_for(new_enough)).await;
        let came = matches!(waited, Ok(Ok(_)));
        drop(waited);
        if !came {
            return Err(format!("no policy of step {} or later was published", job.min_policy_step));
        }
        self.permits.clone().acquire_owned().await.map_err(|e| e.to_string())
    }

    /// Asks for the score of `episode`. What cannot be had becomes [`Outcome::Error`], never a number.
    async fn score(&self, job: &RolloutJob, episode: &Episode) -> Outcome {
        if self.config.judge_groups && job.purpose == Purpose::Train {
            return unjudged(episode);
        }
        let item = ScoreItem {
            id: job.seat,
            columns: job.task.columns.clone(),
            prompt: job.task.prompt.clone(),
            completion: episode.completion.clone(),
            completion_ids: episode.completion_ids.clone(),
            stop_reason: episode.stop_reason,
            said: episode.said.clone(),
        };
        let deadline = self.config.score_deadline;
        let request = ScoreRequest { items: vec![item], scope: Scope::Sample, budget_ms: deadline.as_millis() as u64 };
        let (subject, key) = (&self.config.reward_subject, job.seat.to_string());
        let attempts = self.config.score_attempts;
        match self.links.call_again(Format::Json, subject, &request, &key, deadline, attempts).await {
            Ok(answer) => outcome_of(job, answer),
            Err(gave_up) => Outcome::Error { reason: format!("score: {gave_up}") },
        }
    }

    fn trajectory(&self, job: &RolloutJob, episode: Option<Episode>, outcome: Outcome, begin: Instant) -> Trajectory {
        let (rows, stop_reason) = episode.map_or((Vec::new(), StopReason::Context), |e| (e.rows, e.stop_reason));
        Trajectory {
            seat: job.seat,
            task_id: job.task.id.clone(),
            purpose: job.purpose.clone(),
            rows,
            outcome,
            stop_reason,
            worker: self.name.clone(),
            duration_ms: begin.elapsed().as_millis() as u64,
            token: job.token.clone(),
        }
    }

    /// Puts a trajectory into the queue, waiting while it is full.
    async fn hand_in(&self, trajectory: Trajectory) -> Made {
        let tokens: usize = trajectory.rows.iter().map(|row| row.sampled_len()).sum();
        let scored = matches!(trajectory.outcome, Outcome::Scored { .. } | Outcome::Unjudged { .. });
        let key = trajectory.seat.to_string();
        let deadline = self.config.publish_deadline;
        match self.links.publish_job_waiting(subjects::TRAJECTORIES, &trajectory, &key, deadline).await {
            Ok(()) => {
                tracing::debug!(seat = key, tokens, scored, "trajectory handed in");
                self.counters.done.fetch_add(1, Relaxed);
                self.counters.unscored.fetch_add(u64::from(!scored), Relaxed);
                self.counters.sampled_tokens.fetch_add(tokens as u64, Relaxed);
                Made::Done
            }
            Err(error) => Made::Later(error.to_string()),
        }
    }

    fn show(&self) {
        let c = &self.counters;
        let active = self.config.concurrency.max(1) - self.permits.available_permits();
        self.status.set(serde_json::json!({
            "active": active,
            "waiting_for_policy": self.config.max_waiting - self.waiting.available_permits(),
            "trajectories": c.done.load(Relaxed),
            "unscored": c.unscored.load(Relaxed),
            "given_back": c.given_back.load(Relaxed),
            "lost": c.lost.load(Relaxed),
            "rejected": c.rejected.load(Relaxed),
            "redelivered": c.redelivered.load(Relaxed),
            "sampled_tokens": c.sampled_tokens.load(Relaxed),
        }));
    }
}

/// What is handed in of an `episode` that is judged with its group.
fn unjudged(episode: &Episode) -> Outcome {
    let outcome = Outcome::Unjudged { completion: episode.completion.clone(), said: episode.said.clone() };
    let (bytes, most) = (outcome.unjudged_bytes(), UNJUDGED_BYTES_MAX);
    if bytes <= most {
        return outcome;
    }
    Outcome::Unscorable { reason: format!("a completion of {bytes} bytes, at most {most} are judged with their group") }
}

/// The outcome of `job` in an answer, whose form is any that a reward may choose.
fn outcome_of(job: &RolloutJob, answer: Answer) -> Outcome {
    let error = |reason: String| Outcome::Error { reason: format!("score: {reason}") };
    match answer.outcomes(subjects::REWARD, &[job.seat]).map(|mut outcomes| outcomes.pop()) {
        Ok(Some(Outcome::Error { reason })) | Err(reason) => error(reason),
        Ok(Some(outcome)) => outcome,
        Ok(None) => error("the answer is empty".to_owned()),
    }
}
