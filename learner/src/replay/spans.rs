//! What replay tells OpenTelemetry: the whole life of each sample, and its taking-in.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use folgore_actors::{
    Job, Span, SpanKind, TraceContext,
    telemetry::{self, names},
};
use folgore_protocol::{Purpose, RolloutJob, SeatKey, Trajectory};

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
        let (outcome, is_over) = match ingested {
            Ingested::Taken => ("taken", true),
            Ingested::Redrawn(_) => ("redrawn", true),
            Ingested::Duplicate => ("duplicate", false),
            Ingested::Refused(refusal, _) => (refusal.label(), matches!(refusal, Refusal::Rows | Refusal::Reward)),
        };
        span.set(names::OUTCOME, outcome);
        if let Ingested::Refused(_, reason) = ingested {
            span.fail("refused", reason);
        }
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
        sample.set(names::OUTCOME, outcome);
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

/// The span of taking `job` in. Its trace is that of its seat, whatever the sender says.
pub(super) fn taking_in(run: &str, job: &Job<Trajectory>) -> Span {
    job.checked_span(root(run, &job.body))
}

fn root(run: &str, trajectory: &Trajectory) -> TraceContext {
    TraceContext::root(run, &trajectory.seat.to_string())
}
