//! The actor that hosts one reward and answers [`ScoreRequest`]s.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use folgore_actors::{
    BoxFuture, Context, Service, ServiceError, Span, SpanKind,
    telemetry::{KeyValue, names},
};
use folgore_protocol::{Outcome, ScoreReply, ScoreRequest, subjects};
use serde::Serialize;

use crate::{Reward, host};

/// Serves `subjects::REWARD` with one reward until the process is asked to stop.
///
/// Each request is scored by [`host::score`]: within its own budget, one outcome per item, in order. Rules compute on
/// threads that may block, never on those of the async runtime.
pub struct RewardWorker {
    reward: Arc<dyn Reward>,
    concurrency: usize,
}

/// What the worker shows of itself: outcomes so far.
#[derive(Default)]
struct Counts {
    scored: AtomicU64,
    unscorable: AtomicU64,
    errors: AtomicU64,
    requests: AtomicU64,
    micros: AtomicU64,
}

/// [`Counts`] at one moment.
#[derive(Serialize)]
struct Shown<'a> {
    reward: &'a str,
    scored: u64,
    unscorable: u64,
    errors: u64,
    requests: u64,
    /// That requests took, all together.
    seconds: f64,
}

impl Counts {
    fn add(&self, reply: &ScoreReply, took: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        for (_, outcome) in &reply.outcomes {
            let counter = match outcome {
                Outcome::Scored { .. } => &self.scored,
                Outcome::Unscorable { .. } => &self.unscorable,
                Outcome::Error { .. } | Outcome::Unjudged { .. } => &self.errors,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn shown<'a>(&self, reward: &'a str) -> Shown<'a> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Shown {
            reward,
            scored: read(&self.scored),
            unscorable: read(&self.unscorable),
            errors: read(&self.errors),
            requests: read(&self.requests),
            seconds: read(&self.micros) as f64 / 1e6,
        }
    }
}

/// Tells OpenTelemetry each score.
fn describe(span: &mut Span, reward: &str, reply: &ScoreReply) {
    if !span.is_on() {
        return;
    }
    span.set(names::EVALUATION_NAME, reward.to_owned());
    for (seat, outcome) in &reply.outcomes {
        let (label, said) = match outcome {
            Outcome::Scored { total, .. } => ("scored", KeyValue::new(names::SCORE, *total)),
            Outcome::Unscorable { reason } => ("unscorable", KeyValue::new(names::EXPLANATION, reason.clone())),
            Outcome::Error { reason } => ("error", KeyValue::new(names::EXPLANATION, reason.clone())),
            Outcome::Unjudged { .. } => continue,
        };
        if let Outcome::Error { reason } = outcome {
            span.fail("error", reason);
        }
        span.event(names::EVALUATION, || {
            vec![
                KeyValue::new(names::EVALUATION_NAME, reward.to_owned()),
                KeyValue::new(names::CONVERSATION, seat.to_string()),
                KeyValue::new(names::SCORE_LABEL, label),
                said,
            ]
        });
    }
}

impl RewardWorker {
    /// A worker for `reward` that takes at most `concurrency` requests at once (at least one).
    pub fn new(reward: Arc<dyn Reward>, concurrency: usize) -> Self {
        Self { reward, concurrency: concurrency.max(1) }
    }
}

impl Service for RewardWorker {
    fn run(self: Box<Self>, context: Context) -> BoxFuture<'static, Result<(), ServiceError>> {
        Box::pin(async move {
            let counts = Arc::new(Counts::default());
            context.status.set(counts.shown(self.reward.name()));
            let (reward, status) = (Arc::clone(&self.reward), context.status.clone());
            let handler = move |request: ScoreRequest| {
                let (reward, counts, status) = (Arc::clone(&reward), Arc::clone(&counts), status.clone());
                async move {
                    let begin = Instant::now();
                    let mut span = Span::child(SpanKind::Internal, format_args!("score {}", reward.name()));
                    let reply = span.scope(host::score(Arc::clone(&reward), request)).await;
                    describe(&mut span, reward.name(), &reply);
                    counts.add(&reply, begin.elapsed());
                    status.set(counts.shown(reward.name()));
                    Ok::<_, String>(reply)
                }
            };
            let served = context.links.serve_typed(subjects::REWARD, self.concurrency, handler).await?;
            context.shutdown.stopping().await;
            drop(served);
            Ok(())
        })
    }
}
