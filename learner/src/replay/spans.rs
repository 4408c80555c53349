//! What replay tells OpenTelemetry: the whole life of each sample, and its taking-in.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use folgore_actors::{
    Job, Span, SpanKind, TraceContext,
    telemetry::{self, names, span::LINKS_MAX},
};
use folgore_protocol::{Outcome, Purpose, RolloutJob, SeatKey, Trajectory};

use super::ingest::{Ingested, Refusal};

/// Seats whose beginning is remembered. Beyond, or after a restart, a sample begins when its worker began.
const REMEMBERED: usize = 1 << 16;

/// When the seats that are out were handed out first.
#[derive(Default)]
pub(super) struct Seats(Mutex<HashMap<SeatKey, SystemTime>>);

impl Seats {
    /// Notes that `jobs` are handed out, if anybody wants to know.
    pub(super) fn handed_out(&self, jobs: &[RolloutJob]) {
        if !telemetry::is_on() {
            return;
        }
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for job in jobs {
            if begun.len() < REMEMBERED {
                begun.entry(job.seat).or_insert_with(SystemTime::now);
            }
        }
    }

    fn begun(&self, trajectory: &Trajectory) -> SystemTime {
        let begun = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&trajectory.seat);
        // What a worker says of its time is not believed beyond a day.
        let worked = Duration::from_millis(trajectory.duration_ms).min(Duration::from_secs(86_400));
        begun.unwrap_or_else(|| SystemTime::now().checked_sub(worked).unwrap_or(SystemTime::UNIX_EPOCH))
    }

    /// Notes on `span` what came of a trajectory; where its seat is over, that is told as the sample's own span.
    pub(super) fn note(&self, span: &mut Span, run: &str, trajectory: &Trajectory, ingested: &Ingested) {
        span.set(names::OUTCOME, label(ingested));
        if let Ingested::Refused(_, reason) = ingested {
            span.fail("refused", reason);
        }
        self.ended(run, trajectory, ingested);
    }

    /// Tells the sample of `trajectory` as a span of its own, if its seat is over with what came of it.
    pub(super) fn ended(&self, run: &str, trajectory: &Trajectory, ingested: &Ingested) {
        let is_over = match ingested {
            Ingested::Taken => !matches!(trajectory.outcome, Outcome::Unjudged { .. }),
            Ingested::Redrawn(_) => true,
            Ingested::Duplicate => false,
            Ingested::Refused(refusal, _) => matches!(refusal, Refusal::Rows | Refusal::Reward),
        };
        if !is_over {
            return;
        }
        let mut sample = Span::root(root(run, trajectory), SpanKind::Internal, names::SAMPLE);
        sample.began_at(self.begun(trajectory));
        sample.set(names::RUN, run.to_owned());
        sample.set(names::CONVERSATION, trajectory.seat.to_string());
        sample.set(names::GROUP, trajectory.seat.group.0.to_string());
        sample.set(names::SEAT, i64::from(trajectory.seat.sample));
        sample.set(names::DRAW, i64::from(trajectory.seat.draw));
        sample.set(names::WORKER, trajectory.worker.clone());
        sample.set(names::OUTCOME, label(ingested));
        sample.set(
            names::PURPOSE,
            match &trajectory.purpose {
                Purpose::Train => "train".to_owned(),
                Purpose::Eval { label, .. } => label.clone(),
            },
        );
        if let Some(total) = trajectory.outcome.total() {
            sample.set(names::REWARD, total);
        }
        if let Ingested::Redrawn(reason) | Ingested::Refused(_, reason) = ingested {
            sample.fail("redrawn", reason);
        }
    }
}

fn label(ingested: &Ingested) -> &'static str {
    match ingested {
        Ingested::Taken => "taken",
        Ingested::Redrawn(_) => "redrawn",
        Ingested::Duplicate => "duplicate",
        Ingested::Refused(refusal, _) => refusal.label(),
    }
}

/// Names a group with its present draws, as `g5.2`: what is asked of it is the same under the same name.
pub(super) fn group_key(members: &[Trajectory]) -> String {
    let draws: u32 = members.iter().map(|member| member.seat.draw).sum();
    members.first().map_or_else(String::new, |first| format!("{}.{draws}", first.seat.group))
}

/// The span of judging a group, linked to its samples as far as links go.
pub(super) fn judging(run: &str, members: &[Trajectory]) -> Span {
    let trace = TraceContext::root(run, &group_key(members));
    let mut span = Span::root(trace, SpanKind::Internal, names::SCORE_GROUP);
    if let Some(first) = members.first().filter(|_| span.is_on()) {
        span.set(names::RUN, run.to_owned());
        span.set(names::GROUP, first.seat.group.0.to_string());
        members.iter().take(LINKS_MAX).for_each(|member| span.link(&root(run, member)));
    }
    span
}

/// The span of taking `job` in. Its trace is that of its seat, whatever the sender says.
pub(super) fn taking_in(run: &str, job: &Job<Trajectory>) -> Span {
    job.checked_span(root(run, &job.body))
}

fn root(run: &str, trajectory: &Trajectory) -> TraceContext {
    TraceContext::root(run, &trajectory.seat.to_string())
}
