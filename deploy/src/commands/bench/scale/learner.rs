//! A learner that trains nothing: takes batches as they form, commits them and publishes an adapter of noise for each.
//! Workers may come once it has published the first.

use std::sync::Arc;

use folgore_actors::{BoxFuture, CallError, Context, LinkError, Links, Service, ServiceError};
use folgore_learner::ask::{Publication, ask_replay, publish};
use folgore_protocol::{Digest, PolicyId, ReplayReply, ReplayRequest, seed};
use tokio::{sync::watch, time::Instant};

use super::{heard::Heard, wire};

/// Policies published before the first: as many as a head keeps, so that its memory is from the beginning what it is after
/// hours.
const FILLERS: u64 = 6;

/// The service.
#[derive(Clone)]
pub struct Learner {
    /// What the adapter of every step differs from in its first bytes only.
    noise: Arc<[u8]>,
    seed: u64,
    heard: Arc<watch::Sender<Heard>>,
}

impl Learner {
    /// A learner whose adapters have `len` bytes; notes its publications in `heard`.
    pub fn new(len: usize, seed: u64, heard: Arc<watch::Sender<Heard>>) -> Self {
        Self { noise: wire::bytes(len, seed).into(), seed, heard }
    }

    async fn work(&self, links: &Links) -> Result<(), ServiceError> {
        let (first, adapter) = self.policy(0, 0);
        let request = ReplayRequest::Resume { step: 0, policy: Some(first), first_free_group: 0, min_epoch: 0 };
        let ReplayReply::Resumed { epoch, .. } = ask_replay(links, request, "resume").await? else {
            return Err("replay did not let the learner resume".into());
        };
        for filler in 1..=FILLERS {
            let (policy, adapter) = self.policy(epoch, u64::MAX - filler);
            let filler =
                Publication { policy: PolicyId { step: 0, ..policy }, bytes: Some(adapter), fingerprint: Vec::new() };
            publish(links, &filler).await?;
        }
        self.publish(links, PolicyId { epoch, ..first }, adapter).await?;
        self.heard.send_modify(|heard| heard.begun = true);
        for step in 1.. {
            while !matches!(self.batch(links, step).await?, ReplayReply::Batch(_)) {}
            let (policy, adapter) = self.policy(epoch, step);
            ask_replay(links, ReplayRequest::Commit { step, policy }, &format!("commit-{step}")).await?;
            self.publish(links, policy, adapter).await?;
            ask_replay(links, ReplayRequest::Forget { step }, &format!("forget-{step}")).await?;
        }
        Ok(())
    }

    async fn batch(&self, links: &Links, step: u64) -> Result<ReplayReply, CallError> {
        match ask_replay(links, ReplayRequest::NextBatch { step }, &format!("batch-{step}")).await {
            Err(CallError::Link(LinkError::Deadline { .. })) => {
                Ok(ReplayReply::NotYet { reason: "replay is busy".into() })
            }
            answered => answered,
        }
    }

    fn policy(&self, epoch: u32, step: u64) -> (PolicyId, Arc<[u8]>) {
        let mut bytes = self.noise.to_vec();
        let head = bytes.len().min(8);
        bytes[..head].copy_from_slice(&seed::mix(&[self.seed, step]).to_le_bytes()[..head]);
        (PolicyId { epoch, step, digest: Digest::of(&bytes) }, bytes.into())
    }

    /// Publishes in two parts: the bytes first, so that the announcement has a moment of its own.
    async fn publish(&self, links: &Links, policy: PolicyId, adapter: Arc<[u8]>) -> Result<(), ServiceError> {
        let begin = Instant::now();
        links.blob.put(adapter.clone()).await?;
        let upload = begin.elapsed();
        self.heard.send_modify(|heard| {
            let journey = heard.journeys.entry(policy.step).or_default();
            (journey.announced, journey.upload) = (Some(Instant::now()), upload);
        });
        publish(links, &Publication { policy, bytes: Some(adapter), fingerprint: Vec::new() }).await?;
        Ok(())
    }
}

impl Service for Learner {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let Context { links, shutdown, .. } = context;
            shutdown.unless_stopping(self.work(&links)).await.unwrap_or(Ok(()))
        })
    }
}
