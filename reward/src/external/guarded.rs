//! The reward around a [`Carrier`]: what keeps a slow, broken or lying one from costing more than its own items.

use std::{sync::Arc, time::Duration};

use folgore_actors::{Backoff, link::BoxFuture};
use folgore_config::RewardSpec;
use folgore_protocol::{Outcome, ScoreRequest};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    Carrier, Failure, FailureKind,
    breaker::{Breaker, Leave},
};
use crate::{Reward, Scope};

/// The share of the caller's budget that is kept back, so that the caller hears why there is no score.
const KEPT_BACK: u32 = 20;

/// Between looks at whether a trial of the reward has ended.
const TRIAL_LOOK: Duration = Duration::from_millis(200);

/// What a reward may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest that one attempt takes.
    pub timeout: Duration,
    /// Further attempts after a failure that may pass.
    pub retries: u32,
    /// Requests at once.
    pub concurrency: usize,
    /// Failures in a row after which the reward is left alone.
    pub breaker_failures: u32,
    /// How long it is left alone.
    pub breaker_pause: Duration,
}

impl From<&RewardSpec> for Limits {
    fn from(spec: &RewardSpec) -> Self {
        let seconds = |s: f64| Duration::try_from_secs_f64(s).unwrap_or(Duration::ZERO);
        Self {
            timeout: seconds(spec.timeout_s),
            retries: spec.retries,
            concurrency: spec.concurrency as usize,
            breaker_failures: spec.breaker_failures,
            breaker_pause: seconds(spec.breaker_pause_s),
        }
    }
}

/// A reward that a [`Carrier`] reaches, within [`Limits`]. Every failure is [`Outcome::Error`] for the items of its request.
pub struct Guarded {
    name: String,
    scope: Scope,
    limits: Limits,
    carrier: Arc<dyn Carrier>,
    places: Semaphore,
    breaker: Breaker,
}

impl Guarded {
    /// A reward of the user's own `name`.
    pub fn new(name: &str, scope: Scope, limits: Limits, carrier: Arc<dyn Carrier>) -> Self {
        Self {
            name: name.to_owned(),
            scope,
            limits,
            carrier,
            places: Semaphore::new(limits.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            breaker: Breaker::new(limits.breaker_failures, limits.breaker_pause),
        }
    }

    /// The outcomes, or why there are none.
    async fn ask(&self, request: &ScoreRequest) -> Result<Vec<Outcome>, String> {
        let budget = Duration::from_millis(request.budget_ms).min(crate::host::MAX_BUDGET);
        let until = Instant::now() + (budget - budget / KEPT_BACK);
        let place = timeout_at(until, self.places.acquire()).await;
        let Ok(Ok(_place)) = place else {
            return Err(format!("no place among {} requests at once in time", self.limits.concurrency));
        };
        let seed = request.items.first().map_or(0, |item| item.id.group.0 ^ u64::from(item.id.sample));
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5), seed);
        let mut asked = 1;
        loop {
            let failure = match self.attempt(request, until).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(failure) => failure,
            };
            let wait = backoff.next_wait();
            let last = asked > self.limits.retries || Instant::now() + wait >= until;
            if last || failure.kind != FailureKind::Passing {
                let times = if asked == 1 { String::new() } else { format!(" (asked {asked} times)") };
                return Err(format!("{failure}{times}"));
            }
            tracing::debug!(reward = self.name, %failure, asked, "asking again");
            sleep(wait).await;
            asked += 1;
        }
    }

    async fn attempt(&self, request: &ScoreRequest, until: Instant) -> Result<Vec<Outcome>, Failure> {
        let leave = self.leave(until).await?;
        let most = self.limits.timeout.min(until.saturating_duration_since(Instant::now()));
        let Ok(carried) = timeout(most, self.carrier.carry(request)).await else {
            let reason = format!("no reply within {:.1} s", most.as_secs_f64());
            // who came late and had less time than an attempt may take says nothing of the reward
            if most == self.limits.timeout {
                self.settle(leave, Err(reason.clone()));
            }
            return Err(Failure::passing(reason));
        };
        let result = carried.and_then(|outcomes| whole(outcomes, request));
        let ended = match &result {
            Err(failure) if failure.kind != FailureKind::Said => Err(failure.reason.clone()),
            _ => Ok(()),
        };
        self.settle(leave, ended);
        result
    }

    /// Leave to try: waits while the reward is left alone, if that ends in time.
    async fn leave(&self, until: Instant) -> Result<Leave<'_>, Failure> {
        loop {
            let now = Instant::now();
            let shut = match self.breaker.enter(now) {
                Ok(leave) => return Ok(leave),
                Err(shut) => shut,
            };
            let wait = shut.left.max(TRIAL_LOOK);
            if now + wait >= until {
                let (left, failures, reason) = (shut.left.as_secs_f64(), shut.failures, shut.reason);
                return Err(Failure::lasting(format!(
                    "left alone for {left:.1} s more after {failures} failures in a row, the last: {reason}"
                )));
            }
            sleep(wait).await;
        }
    }

    fn settle(&self, leave: Leave<'_>, ended: Result<(), String>) {
        let reason = ended.clone().err();
        if leave.settle(ended, Instant::now()) {
            let (failures, pause) = (self.limits.breaker_failures, self.limits.breaker_pause.as_secs_f64());
            tracing::warn!(reward = self.name, failures, reason, pause_s = pause, "reward is left alone for a while");
        }
    }
}

fn whole(outcomes: Vec<Outcome>, request: &ScoreRequest) -> Result<Vec<Outcome>, Failure> {
    let (want, got) = (request.items.len(), outcomes.len());
    if want == got { Ok(outcomes) } else { Err(Failure::lasting(format!("expected {want} outcomes, got {got}"))) }
}

impl Reward for Guarded {
    fn name(&self) -> &str {
        &self.name
    }

    fn scope(&self) -> Scope {
        self.scope
    }

    fn score<'a>(&'a self, request: &'a ScoreRequest) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let prefixed = |reason: String| Outcome::Error { reason: format!("reward {}: {reason}", self.name) };
            match self.ask(request).await {
                Ok(outcomes) => outcomes
                    .into_iter()
                    .map(|outcome| match outcome {
                        Outcome::Error { reason } => prefixed(reason),
                        other => other,
                    })
                    .collect(),
                Err(reason) => {
                    tracing::warn!(reward = self.name, items = request.items.len(), reason, "reward failed");
                    vec![prefixed(reason); request.items.len()]
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use super::*;
    use crate::samples::item;

    /// Answers as told, one entry a call; without an entry it never answers.
    struct Scripted {
        script: Mutex<Vec<Result<Vec<Outcome>, Failure>>>,
        calls: AtomicUsize,
        inside: AtomicUsize,
        most: AtomicUsize,
    }

    impl Scripted {
        fn new(mut script: Vec<Result<Vec<Outcome>, Failure>>) -> Arc<Self> {
            script.reverse();
            let zero = AtomicUsize::default;
            Arc::new(Self { script: Mutex::new(script), calls: zero(), inside: zero(), most: zero() })
        }
    }

    impl Carrier for Scripted {
        fn carry<'a>(&'a self, _: &'a ScoreRequest) -> BoxFuture<'a, Result<Vec<Outcome>, Failure>> {
            Box::pin(async move {
                self.calls.fetch_add(1, SeqCst);
                self.most.fetch_max(self.inside.fetch_add(1, SeqCst) + 1, SeqCst);
                sleep(Duration::from_secs(1)).await;
                self.inside.fetch_sub(1, SeqCst);
                let next = self.script.lock().unwrap().pop();
                match next {
                    Some(result) => result,
                    None => std::future::pending().await,
                }
            })
        }
    }

    const LIMITS: Limits = Limits {
        timeout: Duration::from_secs(10),
        retries: 2,
        concurrency: 2,
        breaker_failures: 4,
        breaker_pause: Duration::from_secs(30),
    };

    fn good() -> Result<Vec<Outcome>, Failure> {
        Ok(vec![Outcome::scored("r", 0.5)])
    }

    fn bad() -> Result<Vec<Outcome>, Failure> {
        Err(Failure::passing("gone"))
    }

    async fn ask(guarded: &Guarded, budget_s: u64) -> Outcome {
        let request = ScoreRequest { items: vec![item("x", &[])], budget_ms: budget_s * 1000, scope: Scope::Sample };
        guarded.score(&request).await.remove(0)
    }

    fn reason(outcome: Outcome) -> String {
        match outcome {
            Outcome::Error { reason } => reason,
            other => panic!("expected an error, got {other:?}"),
        }
    }

    fn guard(script: Vec<Result<Vec<Outcome>, Failure>>) -> (Arc<Scripted>, Guarded) {
        let carrier = Scripted::new(script);
        (carrier.clone(), Guarded::new("r", Scope::Sample, LIMITS, carrier))
    }

    #[tokio::test(start_paused = true)]
    async fn only_failures_that_may_pass_are_tried_again() {
        let (carrier, guarded) = guard(vec![bad(), bad(), good()]);
        assert_eq!(ask(&guarded, 60).await.total(), Some(0.5));
        assert_eq!(carrier.calls.load(SeqCst), 3);
        let (carrier, guarded) = guard(vec![bad(), bad(), bad(), good()]);
        assert_eq!(reason(ask(&guarded, 60).await), "reward r: gone (asked 3 times)");
        assert_eq!(carrier.calls.load(SeqCst), 3);
        for failure in [Failure::lasting("404"), Failure::said("ValueError")] {
            let (carrier, guarded) = guard(vec![Err(failure.clone()), good()]);
            assert_eq!(reason(ask(&guarded, 60).await), format!("reward r: {failure}"));
            assert_eq!(carrier.calls.load(SeqCst), 1);
        }
        let (_, guarded) = guard(vec![Ok(vec![])]);
        assert!(reason(ask(&guarded, 60).await).contains("expected 1 outcomes, got 0"));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_with_the_deadline_of_the_attempt_and_within_the_callers() {
        let (carrier, guarded) = guard(vec![]);
        assert_eq!(reason(ask(&guarded, 600).await), "reward r: no reply within 10.0 s (asked 3 times)");
        assert_eq!(carrier.calls.load(SeqCst), 3);
        let (_, guarded) = guard(vec![]);
        let begin = Instant::now();
        assert_eq!(reason(ask(&guarded, 4).await), "reward r: no reply within 3.8 s");
        assert!(begin.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_requests_than_allowed_are_under_way() {
        let (carrier, guarded) = guard((0..6).map(|_| good()).collect());
        let guarded = Arc::new(guarded);
        let asking = |budget_s: u64| {
            let guarded = guarded.clone();
            tokio::spawn(async move { ask(&guarded, budget_s).await })
        };
        let tasks: Vec<_> = (0..6).map(|_| asking(60)).collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().total(), Some(0.5));
        }
        assert_eq!(carrier.most.load(SeqCst), 2);
        let _silent = [asking(60), asking(60)];
        tokio::task::yield_now().await;
        let told = reason(asking(2).await.unwrap());
        assert!(told.contains("no place among 2 requests"), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_failures_in_a_row_it_is_left_alone_and_then_tried() {
        let (carrier, guarded) = guard(vec![bad(), bad(), bad(), bad(), good(), good()]);
        ask(&guarded, 60).await;
        let told = reason(ask(&guarded, 20).await);
        assert!(told.contains("s more after 4 failures in a row, the last: gone"), "{told}");
        let calls = carrier.calls.load(SeqCst);
        assert_eq!(calls, 4);
        let begin = Instant::now();
        assert!(reason(ask(&guarded, 20).await).contains("left alone for"));
        assert!(begin.elapsed() < Duration::from_millis(1), "who cannot wait so long hears it at once");
        let (first, second) = tokio::join!(ask(&guarded, 60), ask(&guarded, 60));
        assert_eq!([first.total(), second.total()], [Some(0.5); 2], "who can waits");
        assert!(begin.elapsed() >= LIMITS.breaker_pause);
        assert_eq!(carrier.calls.load(SeqCst), calls + 2);
    }
}
