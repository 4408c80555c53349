//! The generator that sleeps, and the other small parts that a worker without a model needs.

use std::time::Duration;

use folgore_actors::{BoxFuture, Context, Links, Service, ServiceError};
use folgore_protocol::{
    Envelope, Generate, Generated, Outcome, PolicyId, Prompt, RunLength, ScoreItem, SeatKey, StopReason, seed, subjects,
};
use folgore_reward::Rule;
use folgore_rollout::{Policies, PromptEncoder};
use tokio::{sync::watch, time::sleep};

use super::heard::{TOPIC, Told};

/// Tokens of a trajectory, and of its prompt.
pub const TOKENS: u32 = 512;
pub const PROMPT: u32 = 32;
/// Tokens that there are.
pub const VOCAB: u32 = 49_152;

/// Separates the times from all other draws of a seed.
const STREAM: u64 = 0x7061_6365;

/// How long samples take: lognormal.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Mean seconds.
    pub mean: f64,
    /// Deviation of their logarithm.
    pub sigma: f64,
}

impl Pace {
    /// Seconds of the request with this seed.
    fn seconds(&self, seed: u64) -> f64 {
        let z = f64::from(seed::normal(seed::mix(&[seed, STREAM]), 0));
        self.mean * (self.sigma * z - self.sigma * self.sigma / 2.0).exp()
    }

    /// Seconds of the one turn of `seat`.
    pub fn of_seat(&self, run_seed: u64, seat: SeatKey) -> f64 {
        self.seconds(seed::mix(&[seed::seat(run_seed, seat), 0]))
    }
}

/// Serves `generate` and every policy that is published, and says at once when it serves it.
pub struct Sleeper {
    /// Name of the worker.
    pub worker: String,
    /// Samples at once.
    pub slots: usize,
    /// How long they take.
    pub pace: Pace,
}

impl Service for Sleeper {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let Context { links, shutdown, .. } = context;
            shutdown.unless_stopping(self.serve(&links)).await.unwrap_or(Ok(()))
        })
    }
}

impl Sleeper {
    async fn serve(self, links: &Links) -> Result<(), ServiceError> {
        let (serving, newest) = watch::channel(None);
        let pace = self.pace;
        let handler = move |_: Envelope, request: Generate| sample(pace, newest.clone(), request);
        let _served = links.serve_enveloped(subjects::GENERATE, self.slots, handler).await?;
        let mut policies = Policies::follow(links).await?;
        while let Some((published, _bytes)) = policies.next().await {
            serving.send_replace(Some(published.policy));
            let told = Told::Served { worker: self.worker.clone(), step: published.policy.step };
            links.publish_event(TOPIC, &told, &self.worker).await?;
        }
        Err("the link is closed".into())
    }
}

/// Waits for the policy, as an engine does, sleeps, and gives tokens that the seed says.
async fn sample(
    pace: Pace,
    mut newest: watch::Receiver<Option<PolicyId>>,
    request: Generate,
) -> Result<Generated, String> {
    let asked = request.policy.map(|p| (p.epoch, p.step));
    let there = |p: &PolicyId| asked.is_none_or(|asked| (p.epoch, p.step) >= asked) || request.is_content_with(p);
    let policy = newest.wait_for(|served| served.as_ref().is_some_and(there));
    let policy = (*policy.await.map_err(|e| e.to_string())?).ok_or("no policy is served")?;
    sleep(Duration::from_secs_f64(pace.seconds(request.seed))).await;
    let n = request.sampling.max_new_tokens;
    Ok(Generated {
        ids: (0..u64::from(n)).map(|i| seed::below(request.seed, i, u64::from(VOCAB)) as u32).collect(),
        logprobs: (0..u64::from(n)).map(|i| -seed::uniform(request.seed, i)).collect(),
        policies: RunLength::of(policy, n),
        stop_reason: StopReason::Eos,
    })
}

/// Ids without a tokenizer.
pub struct Ids;

impl PromptEncoder for Ids {
    fn prompt(&self, _: &Prompt) -> Result<Vec<u32>, String> {
        Ok((0..PROMPT).collect())
    }

    fn text(&self, _: &str) -> Result<Vec<u32>, String> {
        Ok(Vec::new())
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
        Ok(ids.iter().map(|id| char::from(b'a' + (id % 26) as u8)).collect())
    }

    fn vocab_size(&self) -> usize {
        VOCAB as usize
    }

    fn context(&self) -> usize {
        2 * TOKENS as usize
    }
}

/// Whether the first id is even.
pub struct Even;

impl Rule for Even {
    fn name(&self) -> &str {
        "even"
    }

    fn score(&self, item: &ScoreItem) -> Outcome {
        let even = item.completion_ids.first().is_some_and(|id| id % 2 == 0);
        Outcome::scored(self.name(), f64::from(u8::from(even)))
    }
}

#[cfg(test)]
mod tests {
    use folgore_protocol::{GroupId, SamplingParams};

    use super::*;

    #[test]
    fn times_have_the_mean_and_the_spread_that_were_asked_for() {
        let pace = Pace { mean: 4.0, sigma: 0.5 };
        let seat = |group| SeatKey { group: GroupId(group), sample: 0, draw: 0 };
        let times: Vec<f64> = (0..20_000).map(|group| pace.of_seat(3, seat(group))).collect();
        let mean = |of: &dyn Fn(&f64) -> f64| times.iter().map(of).sum::<f64>() / times.len() as f64;
        let (m, log) = (mean(&|t| *t), mean(&|t| t.ln()));
        let sigma = mean(&|t| (t.ln() - log).powi(2)).sqrt();
        assert!((m - 4.0).abs() < 0.05 && (sigma - 0.5).abs() < 0.01, "mean {m} sigma {sigma}");
    }

    #[tokio::test]
    async fn a_sample_waits_for_its_policy_and_is_whole() {
        let policy = |step| PolicyId { epoch: 1, step, digest: folgore_protocol::Digest::of(b"") };
        let (serving, newest) = watch::channel(Some(policy(1)));
        let sampling = SamplingParams { max_new_tokens: 7, ..SamplingParams::default() };
        let request = Generate {
            ids: vec![1],
            sampling,
            seed: 5,
            policy: Some(policy(4)),
            at_least: Some((1, 2)),
            for_training: false,
        };
        let asked = tokio::spawn(sample(Pace { mean: 0.001, sigma: 0.1 }, newest, request));
        serving.send_replace(Some(policy(3)));
        let generated = asked.await.unwrap().unwrap();
        assert_eq!(generated.policies.runs(), [(policy(3), 7)]);
        assert_eq!((generated.ids.len(), generated.logprobs.len()), (7, 7));
    }
}
