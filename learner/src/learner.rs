//! The `Learner`: asks for a batch, steps, checkpoints, commits, publishes the policy.
//!
//! The order within a step is what makes a crash harmless: metrics are written before the checkpoint that covers them (a
//! resume cuts them back), the checkpoint before the commit, and the policy is published last: so a learner whose epoch is
//! over is refused before anybody samples from it, and no sample comes in of a policy that replay has not heard of. Whatever
//! is lost in between is done again from the recorded batches, with the same result.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use folgore_actors::{BoxFuture, CallError, Context, Lane, Service, ServiceError};
use folgore_config::EvalSection;
use folgore_model::{
    backend::Backend,
    files::{
        peft::{AdapterFile, LoraConfig},
        safetensors,
    },
};
use folgore_protocol::{
    Batch, Digest, PolicyId,
    replay::{ReplayReply, ReplayRequest},
};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::{
    alarm::{Alarm, Alarms},
    ask::{Publication, Waited, ask_replay, evaluate, publish_surely, unexpected},
    checkpoint::{CheckpointMeta, CheckpointStore, MetricsLog, TrainerState, state},
    evaluation::Evaluated,
    schedule::{NonFiniteGuard, Schedule},
    spans,
    step::{StepReport, StepSettings, train_step},
    trainee::Trainee,
};

/// What the learner has to do.
#[derive(Clone, Debug)]
pub struct LearnerPlan {
    /// One step.
    pub step: StepSettings,
    /// Saves after every so many steps, and after the last.
    pub save_steps: u64,
    /// What is evaluated, and when.
    pub eval: EvalSection,
    /// Held-out tasks that there are.
    pub held_out: u64,
    /// Name or path of the base, for the adapter's files.
    pub base_model: String,
    /// The adapter's configuration.
    pub lora: LoraConfig,
    /// Files that each checkpoint holds besides, by name.
    pub beside: BTreeMap<String, String>,
    /// What the run is, for the manifest of a checkpoint.
    pub identity: BTreeMap<String, String>,
    /// The least epoch to take: what this head was given where heads are fenced over a network, else 0.
    pub min_epoch: u32,
}

/// Where a run stands: nothing done, or what a checkpoint says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Steps done.
    pub step: u64,
    /// Ids of groups below this one are used up.
    pub first_free_group: u64,
    /// Sums over the run, by name.
    pub counters: BTreeMap<String, f64>,
}

/// Who is told how the run goes. Called between steps, on the runtime: quick, and never failing.
pub trait Witness: Send + Sync {
    /// Replay has let the run go on from `step`: nothing was touched before.
    fn goes_on(&self, step: u64);
    /// A step is trained; `line` is what `metrics.jsonl` got.
    fn stepped(&self, step: u64, line: &Map<String, Value>, batch: &Batch);
    /// An evaluation is complete.
    fn evaluated(&self, evaluated: &Evaluated);
    /// A checkpoint is durable.
    fn saved(&self, step: u64, path: &std::path::Path);
    /// Something that is waited for, in words.
    fn waiting(&self, reason: &str);
    /// Something that the user has to hear.
    fn alarm(&self, alarm: &Alarm);
}

/// Name of [`Standing::first_free_group`] among the cursors of a checkpoint.
pub const FIRST_FREE_GROUP: &str = "first_free_group";

/// Everything that the learner owns. It is moved into the one service that runs.
pub struct LearnerParts<B: Backend> {
    /// What trains.
    pub trainee: Trainee<B>,
    /// Where checkpoints go.
    pub checkpoints: CheckpointStore,
    /// Where metrics go.
    pub metrics: MetricsLog,
}

/// The service. A learner that failed is not restarted: its weights went with it, and `--resume` begins from its last
/// checkpoint.
pub struct Learner<B: Backend> {
    parts: Arc<Mutex<Option<LearnerParts<B>>>>,
    plan: LearnerPlan,
    standing: Standing,
    gate: Option<Arc<Semaphore>>,
    witness: Arc<dyn Witness>,
}

impl<B: Backend> Learner<B> {
    /// A learner that goes on from `standing`. With a `gate`, it computes only while it holds the gate's permit.
    pub fn new(
        parts: LearnerParts<B>,
        plan: LearnerPlan,
        standing: Standing,
        gate: Option<Arc<Semaphore>>,
        witness: Arc<dyn Witness>,
    ) -> Self {
        Self { parts: Arc::new(Mutex::new(Some(parts))), plan, standing, gate, witness }
    }
}

impl<B: Backend> Clone for Learner<B> {
    fn clone(&self) -> Self {
        Self {
            parts: self.parts.clone(),
            plan: self.plan.clone(),
            standing: self.standing.clone(),
            gate: self.gate.clone(),
            witness: self.witness.clone(),
        }
    }
}

impl<B: Backend> Service for Learner<B> {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move {
            let parts = parts.ok_or("the learner's weights are gone: go on with --resume")?;
            let schedule = Schedule::new(&self.plan.step.optim, total_updates(&self.plan.step));
            let run = Run {
                context,
                plan: self.plan,
                gate: self.gate,
                witness: self.witness,
                schedule,
                lane: Lane::new("learner")?,
                epoch: 0,
                alarms: Alarms::default(),
            };
            run.run(parts, self.standing).await
        })
    }
}

fn total_updates(step: &StepSettings) -> u64 {
    step.optim.max_steps * step.algo.updates_per_batch()
}

struct Run {
    context: Context,
    plan: LearnerPlan,
    gate: Option<Arc<Semaphore>>,
    witness: Arc<dyn Witness>,
    schedule: Schedule,
    /// Where steps and checkpoints are computed.
    lane: Lane,
    /// Fences this learner's policies from those of one that held the run before.
    epoch: u32,
    alarms: Alarms,
}

impl Run {
    async fn run<B: Backend>(mut self, mut parts: LearnerParts<B>, mut standing: Standing) -> Result<(), ServiceError> {
        let Waited::Got(epoch) = self.take_over(&parts.trainee, &standing).await? else { return Ok(()) };
        self.epoch = epoch;
        self.count_draws(false).await;
        // Not earlier: a run that is held, or has changed, is refused and stays as it is.
        parts.metrics.cut_back(standing.step).map_err(|e| format!("{}: {e}", parts.metrics.path().display()))?;
        self.witness.goes_on(standing.step);
        let max_steps = self.plan.step.optim.max_steps;
        let mut guard = NonFiniteGuard::default();
        let mut saved = standing.step;
        let mut policy = self.publish(self.publication(&parts.trainee, standing.step)).await?;
        parts.trainee.published(policy);
        // Also where a run goes on: a kill may have come between a checkpoint and its evaluation. What the record has of it is kept.
        if standing.step == 0 && self.plan.eval.before {
            self.evaluate("before", standing.step, policy, &mut parts.metrics).await?;
        } else {
            self.evaluate_between(standing.step, policy, &mut parts.metrics).await?;
        }
        while standing.step < max_steps && !self.context.shutdown.is_stopping() {
            let step = standing.step + 1;
            let begin = Instant::now();
            let Waited::Got(batch) = self.batch(step).await? else { break };
            let generated = begin.elapsed();
            let (trained, back, guard_back) = self.train(parts, batch, guard).await?;
            (parts, guard) = (back, guard_back);
            let (batch, report) = trained;
            let line = line(&mut standing, &batch, &report, generated, begin.elapsed());
            parts.metrics.append(&line).map_err(|e| format!("{}: {e}", parts.metrics.path().display()))?;
            standing.step = step;
            let newest = batch.groups.iter().map(|g| g.id.0 + 1).max();
            standing.first_free_group = standing.first_free_group.max(newest.unwrap_or(0));
            if step.is_multiple_of(self.plan.save_steps) || step == max_steps {
                parts = self.save(parts, &standing).await?;
                saved = step;
            }
            let publication = self.publication(&parts.trainee, step);
            self.commit(step, publication.policy).await?;
            policy = self.publish(publication).await?;
            parts.trainee.published(policy);
            self.witness.stepped(step, &line, &batch);
            self.alarms.observe(&batch).iter().for_each(|alarm| self.tell(alarm));
            self.count_draws(false).await;
            self.evaluate_between(step, policy, &mut parts.metrics).await?;
        }
        if saved < standing.step {
            parts = self.save(parts, &standing).await?;
        }
        if standing.step == max_steps && self.plan.eval.after {
            self.evaluate("after", standing.step, policy, &mut parts.metrics).await?;
        }
        Ok(())
    }

    /// Tells replay where this learner stands; gives the epoch of its policies.
    async fn take_over<B: Backend>(
        &self,
        trainee: &Trainee<B>,
        standing: &Standing,
    ) -> Result<Waited<u32>, ServiceError> {
        let policy = self.policy_id(standing.step, &self.adapter_file(trainee).to_bytes());
        let Standing { step, first_free_group, .. } = *standing;
        let resume =
            ReplayRequest::Resume { step, policy: Some(policy), first_free_group, min_epoch: self.plan.min_epoch };
        let ask = self.ask(resume, format!("resume-{step}"));
        match self.context.shutdown.unless_stopping(ask).await {
            None => Ok(Waited::Stopping),
            Some(Ok(ReplayReply::Resumed { epoch, .. })) => Ok(Waited::Got(epoch)),
            Some(Ok(other)) => Err(unexpected("Resume", &other)),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// The batch of `step`, however long it takes; the reason of the wait is shown.
    async fn batch(&mut self, step: u64) -> Result<Waited<Batch>, ServiceError> {
        loop {
            let ask = self.ask(ReplayRequest::NextBatch { step }, format!("batch-{step}"));
            match self.context.shutdown.unless_stopping(ask).await {
                None => return Ok(Waited::Stopping),
                Some(Ok(ReplayReply::Batch(batch))) => return Ok(Waited::Got(batch)),
                Some(Ok(ReplayReply::NotYet { reason })) => {
                    self.show_wait(&reason);
                    self.count_draws(true).await;
                }
                Some(Ok(other)) => return Err(unexpected("NextBatch", &other)),
                Some(Err(CallError::Link(folgore_actors::LinkError::Deadline { .. }))) => {
                    self.show_wait("replay is busy")
                }
                Some(Err(error)) => return Err(error.into()),
            }
        }
    }

    /// One step, with the gate held where compute alternates.
    async fn train<B: Backend>(
        &self,
        mut parts: LearnerParts<B>,
        batch: Batch,
        mut guard: NonFiniteGuard,
    ) -> Result<((Batch, StepReport), LearnerParts<B>, NonFiniteGuard), ServiceError> {
        let mut span = spans::step(&self.context.links.run, self.epoch, &batch);
        let permit = self.permit().await?;
        let (settings, schedule) = (self.plan.step.clone(), self.schedule.clone());
        let work = move || {
            tracing::debug!(step = batch.step, "training");
            let report = train_step(&mut parts.trainee, &batch, &settings, &schedule, &mut guard);
            // what comes next makes copies of the adapter, and samplers need little
            parts.trainee.decoder().backend().trim();
            drop(permit);
            (report, batch, parts, guard)
        };
        let (report, batch, parts, guard) = span.scope(self.lane.run(work)).await?;
        spans::trained(&mut span, &report);
        Ok(((batch, report?), parts, guard))
    }

    async fn permit(&self) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, ServiceError> {
        match &self.gate {
            Some(gate) => Ok(Some(gate.clone().acquire_owned().await?)),
            None => Ok(None),
        }
    }

    /// Writes a checkpoint; the metrics of its steps are durable first.
    async fn save<B: Backend>(
        &self,
        mut parts: LearnerParts<B>,
        standing: &Standing,
    ) -> Result<LearnerParts<B>, ServiceError> {
        let file = self.adapter_file(&parts.trainee);
        let meta = CheckpointMeta {
            step: standing.step,
            epoch: self.epoch,
            policy: Some(self.policy_id(standing.step, &file.to_bytes())),
            identity: self.plan.identity.clone(),
        };
        let trainer = TrainerState {
            step: standing.step,
            epoch: self.epoch,
            schedule: json!({ "updates": parts.trainee.updates() }),
            optim: self.plan.step.optim.optim,
            counters: standing.counters.clone(),
            cursors: [(FIRST_FREE_GROUP.to_owned(), standing.first_free_group)].into(),
        };
        let beside = self.plan.beside.clone();
        let work = move || -> Result<(PathBuf, Vec<u64>, LearnerParts<B>), ServiceError> {
            parts.metrics.sync()?;
            let trainer = trainer.to_bytes()?;
            let mut files = vec![(state::TRAINER, trainer.as_slice())];
            files.extend(beside.iter().map(|(name, text)| (name.as_str(), text.as_bytes())));
            let LearnerParts { trainee, checkpoints, .. } = &mut parts;
            // one after the other, so that no more is copied at once than has to be
            let path = checkpoints.save_with(&meta, &files, |folder| -> Result<(), ServiceError> {
                file.write(folder)?;
                drop(file);
                let optimizer = folder.join(state::OPTIMIZER);
                std::fs::create_dir_all(optimizer.parent().unwrap_or(folder))?;
                Ok(safetensors::write(&optimizer, &trainee.moments())?)
            })?;
            let kept = parts.checkpoints.prune()?;
            Ok((path, kept, parts))
        };
        let (path, kept, parts) = self.lane.run(work).await??;
        if let Some(step) = kept.first().filter(|_| !self.context.shutdown.is_stopping()) {
            self.ask(ReplayRequest::Forget { step: *step }, format!("forget-{step}")).await?;
        }
        self.witness.saved(standing.step, &path);
        Ok(parts)
    }

    /// Puts the trained values where samplers find them.
    async fn publish(&self, publication: Publication) -> Result<PolicyId, ServiceError> {
        let policy = publication.policy;
        let (links, shutdown) = (&self.context.links, &self.context.shutdown);
        publish_surely(links, shutdown, &publication, |reason| self.show_wait(reason)).await?;
        self.context.status.set(json!({ "step": policy.step, "policy": policy.to_string() }));
        Ok(policy)
    }

    async fn commit(&self, step: u64, policy: PolicyId) -> Result<(), ServiceError> {
        let commit = self.ask(ReplayRequest::Commit { step, policy }, format!("commit-{step}"));
        match self.context.shutdown.unless_stopping(commit).await {
            Some(Ok(ReplayReply::Done {})) => Ok(()),
            Some(Ok(other)) => Err(unexpected("Commit", &other)),
            Some(Err(error)) if !self.context.shutdown.is_stopping() => Err(error.into()),
            // replay may be gone already; the checkpoint is what a resume goes by, and the commit is made up for there
            _ => {
                tracing::info!(step, "commit overtaken by the shutdown");
                Ok(())
            }
        }
    }

    /// Evaluates the policy of `step`, if it is one of every so many.
    async fn evaluate_between(
        &self,
        step: u64,
        policy: PolicyId,
        metrics: &mut MetricsLog,
    ) -> Result<(), ServiceError> {
        let every = u64::from(self.plan.eval.eval_steps);
        if step > 0 && step.is_multiple_of(every) && step < self.plan.step.optim.max_steps {
            self.evaluate(&format!("step-{step}"), step, policy, metrics).await?;
        }
        Ok(())
    }

    async fn evaluate(
        &self,
        when: &str,
        step: u64,
        policy: PolicyId,
        metrics: &mut MetricsLog,
    ) -> Result<(), ServiceError> {
        let (links, shutdown) = (&self.context.links, &self.context.shutdown);
        let asked = evaluate(links, shutdown, &self.plan.eval, self.plan.held_out, when, step, policy);
        if let Some(evaluated) = asked.await? {
            metrics.append(&evaluated.line()).map_err(|e| format!("{}: {e}", metrics.path().display()))?;
            self.witness.evaluated(&evaluated);
        }
        Ok(())
    }

    async fn ask(&self, request: ReplayRequest, key: String) -> Result<ReplayReply, CallError> {
        ask_replay(&self.context.links, request, &key).await
    }

    /// Tells if the reward fails often. Replay that does not answer now is asked again after the next step.
    async fn count_draws(&mut self, waiting: bool) {
        let asked = self.context.shutdown.unless_stopping(self.ask(ReplayRequest::Status {}, "status".into())).await;
        if let Some(Ok(ReplayReply::Status(status))) = asked {
            self.alarms.draws(status.draws, waiting).iter().for_each(|alarm| self.tell(alarm));
        }
    }

    fn tell(&self, alarm: &Alarm) {
        tracing::warn!(alarm = alarm.label(), "{alarm}");
        self.witness.alarm(alarm);
    }

    fn show_wait(&self, reason: &str) {
        self.context.status.set_field("waiting", reason);
        self.witness.waiting(reason);
    }

    fn adapter_file<B: Backend>(&self, trainee: &Trainee<B>) -> AdapterFile {
        AdapterFile {
            config: self.plan.lora.clone(),
            base_model: Some(self.plan.base_model.clone()),
            tensors: trainee.values(),
        }
    }

    /// The policy of `step`, as it is put where samplers find it.
    fn publication<B: Backend>(&self, trainee: &Trainee<B>, step: u64) -> Publication {
        let bytes = self.adapter_file(trainee).to_bytes();
        let policy = self.policy_id(step, &bytes);
        Publication { policy, bytes: Some(bytes.into()), fingerprint: trainee.fingerprint() }
    }

    fn policy_id(&self, step: u64, bytes: &[u8]) -> PolicyId {
        PolicyId { epoch: self.epoch, step, digest: Digest::of(bytes) }
    }
}

/// One line of `metrics.jsonl`. What depends on the clock is under `step_time`, `time/` and `perf/`; all else is the same in
/// every repetition of the run.
fn line(
    standing: &mut Standing,
    batch: &Batch,
    report: &StepReport,
    generated: Duration,
    whole: Duration,
) -> Map<String, Value> {
    let sampled: u64 =
        batch.groups.iter().flat_map(|g| &g.members).flat_map(|m| &m.rows).map(|r| r.sampled_len() as u64).sum();
    let total: u64 = batch.groups.iter().flat_map(|g| &g.members).flat_map(|m| &m.rows).map(|r| r.len() as u64).sum();
    let num_tokens = standing.counters.entry("num_tokens".into()).or_default();
    *num_tokens += total as f64;
    let num_tokens = *num_tokens;
    let mut line = Map::new();
    line.insert("step".into(), json!(batch.step));
    line.insert("num_tokens".into(), json!(num_tokens));
    line.insert("tokens_sampled".into(), json!(sampled));
    line.insert("tokens_trained".into(), json!(report.tokens_trained));
    line.extend(report.metrics.iter().map(|(name, value)| (name.clone(), json!(value))));
    let (generated, whole) = (generated.as_secs_f64(), whole.as_secs_f64());
    line.insert("step_time".into(), json!(whole));
    line.insert("time/generate".into(), json!(generated));
    line.insert("time/train".into(), json!(whole - generated));
    line.insert("perf/tokens_per_s".into(), json!(total as f64 / whole.max(1e-9)));
    line
}
