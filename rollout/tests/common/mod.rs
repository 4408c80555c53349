//! What the tests of services share: links in one process, an encoder by bytes, simple answers.

#![allow(dead_code, reason = "each test target uses its part")]

use std::{sync::Arc, time::Duration};

use folgore_actors::{Context, Links, LocalConfig, Service, ServiceError, Shutdown, Status, local};
use folgore_protocol::*;
use folgore_rollout::PromptEncoder;
use tokio::task::JoinHandle;

/// Links in one process; the folder goes with the second value.
pub fn links() -> (Links, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = LocalConfig { redeliver_after: Duration::from_secs(30), ..LocalConfig::new(folder.path()) };
    (local("test", config), folder)
}

pub fn context(name: &str, links: &Links) -> Context {
    Context { name: name.into(), links: links.clone(), shutdown: Shutdown::new(), status: Status::new() }
}

/// Runs a service; its context and its end.
pub fn spawn(service: impl Service, name: &str, links: &Links) -> (Context, JoinHandle<Result<(), ServiceError>>) {
    let context = context(name, links);
    (context.clone(), tokio::spawn(Box::new(service).run(context)))
}

impl Bytes {
    /// Text of ids, whatever they are.
    pub fn decode_lossy(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&ids.iter().map(|id| *id as u8).collect::<Vec<_>>()).into_owned()
    }
}

/// One id per byte; a conversation is written as `role:content`.
pub struct Bytes;

pub const CONTEXT: usize = 100;

impl PromptEncoder for Bytes {
    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, String> {
        match prompt {
            Prompt::Text(text) => self.text(text),
            Prompt::Messages(messages) => {
                self.text(&messages.iter().map(|m| format!("{}:{}", m.role, m.content)).collect::<String>())
            }
        }
    }

    fn text(&self, text: &str) -> Result<Vec<u32>, String> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn own(&self, text: &str) -> Result<Vec<u32>, String> {
        self.text(text)
    }

    fn trace(&self, text: &str) -> Result<Vec<u32>, String> {
        self.text(text)
    }

    fn eos(&self) -> u32 {
        0
    }

    fn decode(&self, ids: &[u32]) -> Result<String, String> {
        Ok(self.decode_lossy(ids))
    }

    fn vocab_size(&self) -> usize {
        256
    }

    fn context(&self) -> usize {
        CONTEXT
    }
}

pub fn policy(step: u64) -> PolicyId {
    PolicyId { epoch: 0, step, digest: Digest::of(&step.to_le_bytes()) }
}

/// Publishes `step` without a blob, after whatever was published before.
pub async fn publish_policy(links: &Links, step: u64) {
    let published =
        PolicyPublished { policy: policy(step), blob: None, bytes: 0, fingerprint: Vec::new(), kept: Vec::new() };
    let revision = links.get_state::<PolicyPublished>(subjects::POLICY).await.unwrap().map_or(0, |s| s.revision);
    links.put_state_if(subjects::POLICY, revision, &published).await.unwrap();
}

pub fn job(group: u64, text: &str) -> RolloutJob {
    RolloutJob {
        seat: SeatKey { group: GroupId(group), sample: 0, draw: 0 },
        task: Task { id: format!("task-{group}"), prompt: Prompt::Text(text.into()), columns: Default::default() },
        seed: 100 + group,
        purpose: Purpose::Train,
        min_policy_step: 0,
        environment: "single_turn".into(),
        sampling: SamplingParams::default(),
        token: format!("token-{group}"),
        given: None,
    }
}

/// Puts a job into the queue.
pub async fn issue(links: &Links, job: &RolloutJob) {
    links.publish_job(subjects::JOBS, job, &job.seat.to_string()).await.unwrap();
}

/// The next trajectory, acked.
pub async fn trajectory(links: &Links) -> Trajectory {
    for _ in 0..200 {
        let pulled =
            links.pull_jobs::<Trajectory>(subjects::TRAJECTORIES, 1, Duration::from_millis(100)).await.unwrap();
        if let Some(job) = pulled.jobs.into_iter().next() {
            job.ack().await.unwrap();
            return job.body;
        }
    }
    panic!("no trajectory came");
}

/// Waits until `true`.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..1000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came true: {what}");
}

/// What a fake generator says: the ids of `text`.
pub fn generated(text: &str, policy: PolicyId) -> Generated {
    let ids: Vec<u32> = text.bytes().map(u32::from).collect();
    let logprobs = vec![-0.5; ids.len()];
    let policies = RunLength::of(policy, ids.len() as u32);
    Generated { ids, logprobs, policies, stop_reason: StopReason::Eos }
}

/// Scores 1 where the completion is `right`.
pub async fn serve_reward(links: &Links, right: &'static str) -> folgore_actors::Served {
    let score = move |request: ScoreRequest| async move {
        let outcome = |item: &ScoreItem| Outcome::scored("exact", f64::from(u8::from(item.completion == right)));
        let outcomes = request.items.iter().map(|item| (item.id, outcome(item))).collect();
        Ok::<_, String>(ScoreReply { outcomes })
    };
    links.serve_typed(subjects::REWARD, 8, score).await.unwrap()
}

/// Records every request and answers with `answer`.
pub async fn serve_generator(
    links: &Links,
    answer: impl Fn(&Generate) -> Result<Generated, String> + Send + Sync + 'static,
) -> (folgore_actors::Served, Arc<std::sync::Mutex<Vec<Generate>>>) {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = seen.clone();
    let generate = move |request: Generate| {
        let reply = answer(&request);
        log.lock().unwrap().push(request);
        async move { reply }
    };
    (links.serve_typed(subjects::GENERATE, 8, generate).await.unwrap(), seen)
}
