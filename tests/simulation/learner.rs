//! A learner without a model: asks for batches, saves, commits, publishes, and loses what it had not saved when it dies.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use folgore_actors::{CallError, LinkError, Links};
use folgore_protocol::{
    Batch, Digest, PolicyId, PolicyPublished, ReplayReply, ReplayRequest, replay::EvalSummary, subjects,
};
use tokio::time::sleep;

use super::{Log, dice::Dice};

const PATIENCE: Duration = Duration::from_secs(20);

/// What is on the learner's disk, and what is remembered of all its lives.
#[derive(Default)]
pub struct Disk {
    /// The newest checkpoint: step, its policy, the first free group.
    pub saved: (u64, Option<PolicyId>, u64),
    /// Epoch that the network has given out.
    pub fence: u32,
    /// Each batch that was ever trained on, by step, as text.
    trained: BTreeMap<u64, String>,
    pub done: bool,
}

/// One life of a learner.
pub struct Learner {
    pub links: Links,
    pub disk: Arc<Mutex<Disk>>,
    pub log: Log,
    pub dice: Dice,
    /// Steps to do.
    pub target: u64,
    /// Saves after every so many steps.
    pub save_steps: u64,
    /// Trains to the same policy from the same batch, whichever life does it.
    pub exact: bool,
    pub evaluates: bool,
    pub max_staleness: u64,
}

/// Why a life ended early.
type Trouble = String;

impl Learner {
    /// Lives until the target is reached or something refuses to go on.
    pub async fn live(mut self) {
        if let Err(trouble) = self.run().await {
            self.log.say(format_args!("learner ends: {trouble}"));
        }
    }

    async fn run(&mut self) -> Result<(), Trouble> {
        let (saved, fence) = {
            let mut disk = self.disk.lock().unwrap();
            disk.fence += u32::from(self.dice.one_in(2)) * (1 + self.dice.below(3) as u32);
            (disk.saved, disk.fence)
        };
        let (mut step, policy, first_free_group) = saved;
        let policy = policy.unwrap_or_else(|| PolicyId { epoch: 0, step: 0, digest: Digest::of(b"begin") });
        let resume = ReplayRequest::Resume { step, policy: Some(policy), first_free_group, min_epoch: fence };
        let ReplayReply::Resumed { epoch, .. } = self.ask(resume).await? else { return Err("no epoch".into()) };
        if epoch < fence {
            panic!("epoch {epoch} was given, {fence} is the least");
        }
        self.log.say(format_args!("learner takes over at step {step} in epoch {epoch}"));
        let mut policy = PolicyId { epoch, ..policy };
        self.publish(policy).await?;
        if self.evaluates && step == 0 {
            self.evaluate("before", policy).await?;
        }
        while step < self.target {
            let batch = self.batch(step + 1).await?;
            self.look_at(&batch);
            sleep(Duration::from_millis(50 + self.dice.below(2000))).await;
            step += 1;
            let salt = if self.exact { 0 } else { epoch };
            let weights = format!("{step} {salt} {:?}", ids(&batch));
            policy = PolicyId { epoch, step, digest: Digest::of(weights.as_bytes()) };
            let first_free = batch.groups.iter().map(|g| g.id.0 + 1).max().unwrap_or(0);
            if step.is_multiple_of(self.save_steps) || step == self.target {
                self.save(step, policy, first_free).await?;
            }
            if self.dice.one_in(12) {
                return Err(format!("dies before the commit of step {step}"));
            }
            self.ask(ReplayRequest::Commit { step, policy }).await?;
            self.log.say(format_args!("step {step} committed in epoch {epoch}: {:?}", ids(&batch)));
            if self.dice.one_in(12) {
                return Err(format!("dies before it publishes step {step}"));
            }
            self.publish(policy).await?;
        }
        if self.evaluates {
            self.evaluate("after", policy).await?;
        }
        self.disk.lock().unwrap().done = true;
        Ok(())
    }

    async fn save(&mut self, step: u64, policy: PolicyId, first_free: u64) -> Result<(), Trouble> {
        let first_free = {
            let mut disk = self.disk.lock().unwrap();
            let first_free = disk.saved.2.max(first_free);
            disk.saved = (step, Some(policy), first_free);
            first_free
        };
        self.log.say(format_args!("step {step} saved, groups from {first_free} on are free"));
        if self.dice.one_in(3) {
            self.ask(ReplayRequest::Forget { step }).await?;
        }
        Ok(())
    }

    async fn batch(&mut self, step: u64) -> Result<Batch, Trouble> {
        loop {
            match self.ask(ReplayRequest::NextBatch { step }).await? {
                ReplayReply::Batch(batch) => return Ok(batch),
                ReplayReply::NotYet { .. } => {}
                other => return Err(format!("{other:?}")),
            }
        }
    }

    /// What a learner relies on: whole groups, fresh policies, and the same batch for the same step in every life.
    fn look_at(&self, batch: &Batch) {
        for group in &batch.groups {
            assert_eq!(group.members.len(), 2, "step {}: group {} is not whole", batch.step, group.id);
            for member in &group.members {
                assert!(member.outcome.total().is_some_and(f64::is_finite), "step {}: no score", batch.step);
                let steps = member.policies().into_iter().map(|policy| policy.step);
                let oldest = (batch.step - 1).saturating_sub(self.max_staleness);
                assert!(steps.clone().all(|s| s >= oldest && s < batch.step), "step {}: stale", batch.step);
            }
        }
        let text = format!("{:?}", batch.groups);
        let mut disk = self.disk.lock().unwrap();
        let before = disk.trained.entry(batch.step).or_insert_with(|| text.clone());
        assert_eq!(*before, text, "step {} was served otherwise than before", batch.step);
    }

    async fn evaluate(&mut self, label: &str, policy: PolicyId) -> Result<(), Trouble> {
        let open = ReplayRequest::OpenEval { label: label.into(), policy, greedy: true, samples: 1, tasks: 0..3 };
        self.ask(open).await?;
        loop {
            match self.ask(ReplayRequest::EvalResult { label: label.into() }).await? {
                ReplayReply::Eval(summary) if summary.complete() => {
                    self.log.say(format_args!("evaluated {label}: {:?}", totals(&summary)));
                    return Ok(());
                }
                _ => sleep(Duration::from_millis(500)).await,
            }
        }
    }

    /// Tells the samplers; a network that loses the answer is asked again, and so is one that was faster.
    async fn publish(&mut self, policy: PolicyId) -> Result<(), Trouble> {
        for _ in 0..50 {
            let before = match self.links.get_state::<PolicyPublished>(subjects::POLICY).await {
                Ok(before) => before,
                Err(_) => continue,
            };
            if before.as_ref().is_some_and(|b| b.value.policy.epoch > policy.epoch) {
                return Err(format!("fenced: {policy} comes after its time"));
            }
            let revision = before.map_or(0, |b| b.revision);
            let published = PolicyPublished { policy, blob: None, bytes: 0, fingerprint: Vec::new(), kept: Vec::new() };
            match self.links.put_state_if(subjects::POLICY, revision, &published).await {
                Ok(_) => return Ok(()),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
        Err(format!("policy {policy} cannot be published"))
    }

    /// Asks replay, again while it is away.
    async fn ask(&self, request: ReplayRequest) -> Result<ReplayReply, Trouble> {
        let key = format!("{request:?}").chars().take(40).collect::<String>();
        for _ in 0..60 {
            match self.links.call_when_served(subjects::REPLAY, &request, &key, PATIENCE).await {
                Err(CallError::Link(
                    LinkError::Deadline { .. } | LinkError::NoResponder { .. } | LinkError::Closed { .. },
                )) => {}
                // Replay was killed with the question in hand.
                Err(CallError::Link(LinkError::Refused { reason, .. })) if reason.contains("replay has ended") => {
                    sleep(Duration::from_millis(100)).await;
                }
                other => return other.map_err(|e| e.to_string()),
            }
        }
        Err(format!("replay does not answer {key}"))
    }
}

fn ids(batch: &Batch) -> Vec<u64> {
    batch.groups.iter().map(|group| group.id.0).collect()
}

fn totals(summary: &EvalSummary) -> Vec<Option<f64>> {
    summary.items.iter().map(|item| item.outcome.total()).collect()
}
