//! Replay as an actor: takes trajectories from the queue, answers on the ask `replay`.
//!
//! The record blocks, so each use of it runs on a blocking thread, one at a time. While the disk refuses a write, nothing is
//! taken in and nothing acked: the queue fills, which is the back-pressure, and the record is opened again every second.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use folgore_actors::{BoxFuture, Context, Job, Links, Service, ServiceError, Span, telemetry};
use folgore_protocol::{Envelope, ReplayReply, ReplayRequest, Trajectory, subjects};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout_at},
};

use super::{
    events::ReplayEvent,
    ingest::Ingested,
    judge::judge_groups,
    spans::{self, Seats},
    store::{ReplayError, ReplaySetup, Store},
};
use crate::record::RecordError;

/// Trajectories of one transaction: a durable commit costs the same for one and for many.
const PULL_MAX: usize = 256;
const PULL_WAIT: Duration = Duration::from_secs(1);
/// How long a record that failed is left alone.
pub(super) const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Requests answered at once; most of them wait.
const ASKS_MAX: usize = 64;
/// Trajectories being settled at once.
const SETTLED_AT_ONCE: usize = 32;
/// Longest wait for an answer that may still come.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);

/// The actor; made anew for every restart.
pub struct ReplayService {
    /// What it needs.
    pub setup: ReplaySetup,
}

impl Service for ReplayService {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(run(self.setup, context))
    }
}

async fn run(setup: ReplaySetup, context: Context) -> Result<(), ServiceError> {
    let store = {
        let setup = setup.clone();
        off_the_runtime(move || Store::open(&setup)).await??
    };
    let desk = Arc::new(Desk::new(setup, context.links.clone(), store));
    // Requests in flight hold the desk: without this, a restarted replay would find the record in use.
    let _end = EndOnDrop(desk.clone());
    let mut fatal = desk.fatal.subscribe();
    let serving = desk.clone();
    let served = context.links.serve_enveloped(subjects::REPLAY, ASKS_MAX, move |envelope, request| {
        let desk = serving.clone();
        async move { desk.answer(envelope, request).await }
    });
    let _served = served.await?;
    let judging = judge_groups(desk.clone());
    tokio::pin!(judging);
    loop {
        tokio::select! {
            biased;
            () = context.shutdown.stopping() => return Ok(()),
            _ = fatal.changed() => {
                let reason = fatal.borrow().clone().unwrap_or_default();
                return Err(reason.into());
            }
            ended = &mut judging => return ended,
            taken = desk.take_in() => {
                taken?;
                desk.show(&context);
            }
        }
    }
}

/// Runs what blocks where it disturbs nobody. A runtime of one thread has nobody to disturb, and there the order of things
/// must not hang on another thread: tests play runs again in virtual time.
fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => tokio::spawn(async move { work() }),
        _ => tokio::task::spawn_blocking(work),
    }
}

/// Where the record stands open, or why it does not.
enum Slot {
    Open(Box<Store>),
    Failed { at: Instant, reason: String },
    Ended,
}

/// What all requests share.
pub(super) struct Desk {
    pub(super) setup: ReplaySetup,
    pub(super) links: Links,
    slot: Mutex<Slot>,
    /// Rung after every change. Who waits for it is woken in the order of asking.
    pub(super) changed: Notify,
    fatal: watch::Sender<Option<String>>,
    /// The clock of re-issues.
    began: Instant,
    /// For the spans of samples.
    pub(super) seats: Seats,
}

struct EndOnDrop(Arc<Desk>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        *self.0.slot.lock().unwrap_or_else(PoisonError::into_inner) = Slot::Ended;
    }
}

impl Desk {
    fn new(setup: ReplaySetup, links: Links, store: Store) -> Self {
        let slot = Mutex::new(Slot::Open(Box::new(store)));
        let (changed, fatal) = (Notify::new(), watch::Sender::new(None));
        Self { setup, links, slot, changed, fatal, began: Instant::now(), seats: Seats::default() }
    }

    /// Runs `work` on the open store, off the runtime; the error says why the record cannot be used now.
    pub(super) async fn with<T, W>(self: &Arc<Self>, work: W) -> Result<T, String>
    where
        T: Send + 'static,
        W: FnOnce(&mut Store) -> Result<(T, Vec<ReplayEvent>), RecordError> + Send + 'static,
    {
        let desk = self.clone();
        let done = off_the_runtime(move || desk.with_blocking(work)).await;
        let (value, events) = done.unwrap_or_else(|panic| {
            self.fatal.send_replace(Some(format!("replay: {panic}")));
            (Err(format!("replay: {panic}")), Vec::new())
        });
        if !events.is_empty() {
            self.changed.notify_waiters();
        }
        for event in events {
            if let Err(error) = self.links.publish_event(subjects::EVENTS, &event, "replay").await {
                tracing::debug!(%error, "event not told");
            }
        }
        value
    }

    fn with_blocking<T>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<(T, Vec<ReplayEvent>), RecordError>,
    ) -> (Result<T, String>, Vec<ReplayEvent>) {
        let mut slot = self.slot.lock().unwrap_or_else(|poisoned| {
            // A panic left the ledger half changed; the record is whole.
            let mut slot = poisoned.into_inner();
            *slot = Slot::Failed { at: Instant::now(), reason: "replay panicked".into() };
            self.slot.clear_poison();
            slot
        });
        if let Err(reason) = self.reopen(&mut slot) {
            return (Err(reason), Vec::new());
        }
        let Slot::Open(store) = &mut *slot else { return (Err("replay has ended".into()), Vec::new()) };
        match work(store) {
            Ok((value, events)) => (Ok(value), events),
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(reason, "the record cannot be used");
                *slot = Slot::Failed { at: Instant::now(), reason: reason.clone() };
                if !error.is_transient() {
                    self.fatal.send_replace(Some(reason.clone()));
                }
                (Err(reason.clone()), vec![ReplayEvent::RecordUnavailable { reason }])
            }
        }
    }

    /// Opens the record again if it failed a while ago.
    fn reopen(&self, slot: &mut Slot) -> Result<(), String> {
        let Slot::Failed { at, reason } = slot else { return Ok(()) };
        if at.elapsed() < REOPEN_AFTER {
            return Err(reason.clone());
        }
        match Store::open(&self.setup) {
            Ok(store) => {
                tracing::info!("the record is open again");
                *slot = Slot::Open(Box::new(store));
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                *slot = Slot::Failed { at: Instant::now(), reason: reason.clone() };
                if !matches!(&error, ReplayError::Record(record) if record.is_transient()) {
                    self.fatal.send_replace(Some(reason.clone()));
                }
                Err(reason)
            }
        }
    }

    /// Pulls trajectories, makes them durable in one transaction, and only then acks them.
    async fn take_in(self: &Arc<Self>) -> Result<(), ServiceError> {
        if let Err(reason) = self.with(|_| Ok(((), Vec::new()))).await {
            // Not pulling is what slows the workers down.
            tracing::debug!(reason, "nothing is taken in");
            tokio::time::sleep(REOPEN_AFTER / 2).await;
            return Ok(());
        }
        let pulled = self.links.pull_jobs::<Trajectory>(subjects::TRAJECTORIES, PULL_MAX, PULL_WAIT).await?;
        let unreadable = pulled.rejected;
        let trajectories: Vec<(Option<String>, Trajectory)> =
            pulled.jobs.iter().map(|job| (job.sender.clone(), job.body.clone())).collect();
        if trajectories.is_empty() && unreadable.is_empty() {
            return Ok(());
        }
        let run = &self.links.run;
        let listened = telemetry::is_on();
        let spans: Vec<Span> = pulled.jobs.iter().filter(|_| listened).map(|job| spans::taking_in(run, job)).collect();
        let ingest = move |store: &mut Store| {
            store.change(|ledger| {
                let take =
                    |(sender, trajectory): (Option<String>, _)| ledger.ingest_from(sender.as_deref(), trajectory);
                let ingested: Vec<Ingested> = trajectories.into_iter().map(take).collect();
                for rejected in unreadable {
                    ledger.refuse_unreadable(rejected.sender.as_deref(), &rejected.reason);
                }
                ingested
            })
        };
        let ingested = self.with(ingest).await;
        for ((mut span, job), ingested) in spans.into_iter().zip(&pulled.jobs).zip(ingested.iter().flatten()) {
            self.seats.note(&mut span, run, &job.body, ingested);
        }
        settle_all(pulled.jobs, ingested.is_ok()).await;
        Ok(())
    }

    async fn answer(self: Arc<Self>, envelope: Envelope, request: ReplayRequest) -> Result<ReplayReply, String> {
        // Part of the budget is left for the way back.
        let budget = Duration::from_millis(envelope.budget_ms.unwrap_or(0)) * 4 / 5;
        let until = Instant::now() + budget.min(ANSWER_WAIT_MAX);
        match request {
            ReplayRequest::OpenSeats { max, reissue } => self.open_seats(max as usize, reissue, until).await,
            ReplayRequest::NextBatch { step } => self.next_batch(step, until).await,
            ReplayRequest::EvalResult { label } => self.eval_result(label, until).await,
            ReplayRequest::Commit { step, policy } => {
                self.with(move |store| store.change(|ledger| ledger.commit(step, policy))).await??;
                Ok(ReplayReply::Done {})
            }
            ReplayRequest::OpenEval { label, policy, greedy, samples, tasks } => {
                let open = move |store: &mut Store| {
                    store.change(|ledger| ledger.open_eval(&label, policy, greedy, samples, tasks))
                };
                self.with(open).await??;
                self.changed.notify_waiters();
                Ok(ReplayReply::Done {})
            }
            ReplayRequest::Resume { step, policy, first_free_group, min_epoch } => {
                let resume = move |store: &mut Store| {
                    store.change(|ledger| ledger.resume(step, policy, first_free_group, min_epoch))
                };
                let (epoch, recorded_step) = self.with(resume).await??;
                Ok(ReplayReply::Resumed { epoch, recorded_step })
            }
            ReplayRequest::Forget { step } => {
                self.with(move |store| forget(store, step)).await?;
                Ok(ReplayReply::Done {})
            }
            ReplayRequest::Status {} => {
                let status = self.with(|store| Ok((store.ledger().status(), Vec::new()))).await?;
                Ok(ReplayReply::Status(status))
            }
        }
    }

    async fn open_seats(self: &Arc<Self>, max: usize, reissue: bool, until: Instant) -> Result<ReplayReply, String> {
        let mut reissue = reissue;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change slips in between.
            changed.as_mut().enable();
            let now_ms = self.began.elapsed().as_millis() as u64;
            let again = std::mem::take(&mut reissue);
            let jobs = self.with(move |store| store.open_seats(now_ms, max, again)).await?;
            self.seats.handed_out(&jobs);
            if !jobs.is_empty() || timeout_at(until, changed).await.is_err() {
                return Ok(ReplayReply::Seats { jobs });
            }
        }
    }

    async fn next_batch(self: &Arc<Self>, step: u64, until: Instant) -> Result<ReplayReply, String> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change slips in between.
            changed.as_mut().enable();
            let found = self.with(move |store| {
                let batch = match store.ledger().has_batch(step) {
                    Err(never) => return Ok((Err(never), Vec::new())),
                    Ok(true) => store.batch(step)?,
                    Ok(false) => None,
                };
                Ok((Ok(batch.ok_or_else(|| store.ledger().why_not_yet(step))), Vec::new()))
            });
            let reason = match found.await {
                Ok(Ok(Ok(batch))) => return Ok(ReplayReply::Batch(batch)),
                Ok(Ok(Err(not_yet))) => not_yet,
                Ok(Err(never)) => return Err(never),
                Err(unavailable) => unavailable,
            };
            if timeout_at(until, changed).await.is_err() {
                return Ok(ReplayReply::NotYet { reason });
            }
        }
    }

    async fn eval_result(self: &Arc<Self>, label: String, until: Instant) -> Result<ReplayReply, String> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change slips in between.
            changed.as_mut().enable();
            let asked = label.clone();
            let complete = self.with(move |store| store.change(|ledger| ledger.await_eval(&asked))).await?;
            let complete = complete.ok_or_else(|| format!("there is no evaluation {label:?}: open it first"))?;
            if complete || timeout_at(until, changed).await.is_err() {
                let asked = label.clone();
                let summary = self.with(move |store| Ok((store.eval(&asked)?, Vec::new()))).await?;
                let summary = summary.ok_or_else(|| format!("there is no evaluation {label:?}: open it first"))?;
                return Ok(ReplayReply::Eval(summary));
            }
        }
    }

    fn show(&self, context: &Context) {
        // Somebody else may hold the store for the time of a commit: then the next round shows it.
        if let Ok(slot) = self.slot.try_lock() {
            match &*slot {
                Slot::Open(store) => context.status.set(store.ledger().status()),
                Slot::Failed { reason, .. } => context.status.set_field("unavailable", reason),
                Slot::Ended => {}
            }
        }
    }
}

fn forget(store: &mut Store, step: u64) -> Result<((), Vec<ReplayEvent>), RecordError> {
    let (gone, events) = store.change(|ledger| ledger.forget(step))?;
    if !gone.is_empty() {
        store.compact()?;
    }
    Ok(((), events))
}

/// Settles `jobs`, several at once: a server far away takes its time over each.
async fn settle_all(jobs: Vec<Job<Trajectory>>, durable: bool) {
    let mut under_way = JoinSet::new();
    for job in jobs {
        if under_way.len() >= SETTLED_AT_ONCE {
            under_way.join_next().await;
        }
        under_way.spawn(async move { settle(&job, durable).await });
    }
    while under_way.join_next().await.is_some() {}
}

/// Acks what is durable; gives back what is not. A late ack is harmless: the trajectory comes again and is a duplicate.
async fn settle(job: &Job<Trajectory>, durable: bool) {
    let settled = if durable { job.ack().await } else { job.nak(REOPEN_AFTER).await };
    if let Err(error) = settled {
        tracing::debug!(%error, seat = %job.body.seat, "trajectory not settled");
    }
}
