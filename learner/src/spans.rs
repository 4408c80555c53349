//! What a step tells OpenTelemetry: its numbers, and the samples that it was trained on.

use folgore_actors::{
    Span, SpanKind, TraceContext,
    telemetry::{Array, Value, names, span::LINKS_MAX},
};
use folgore_protocol::Batch;

use crate::step::{StepError, StepReport};

/// The span of training on `batch`, linked to its samples as far as links go. Its trace is that of the step and the epoch: a
/// step that is trained again after a crash is another one.
pub(crate) fn step(run: &str, epoch: u32, batch: &Batch) -> Span {
    let trace = TraceContext::root(run, &format!("step-{}.{epoch}", batch.step));
    let mut span = Span::root(trace, SpanKind::Internal, names::TRAIN_STEP);
    if !span.is_on() {
        return span;
    }
    let members = || batch.groups.iter().flat_map(|group| &group.members);
    for member in members().take(LINKS_MAX) {
        span.link(&TraceContext::root(run, &member.seat.to_string()));
    }
    span.set(names::RUN, run.to_owned());
    span.set(names::STEP, batch.step as i64);
    span.set(names::EPOCH, i64::from(epoch));
    span.set(names::BATCH_SAMPLES, members().count() as i64);
    let groups = batch.groups.iter().map(|group| group.id.0.to_string().into()).collect();
    span.set(names::BATCH_GROUPS, Value::Array(Array::String(groups)));
    span
}

/// Notes what came of a step.
pub(crate) fn trained(span: &mut Span, report: &Result<StepReport, StepError>) {
    match report {
        Err(error) => span.fail("step", error),
        Ok(report) if span.is_on() => {
            span.set(names::STEP_TOKENS, report.tokens_trained as i64);
            for (name, value) in &report.metrics {
                span.set(format!("{}{name}", names::METRIC_PREFIX), *value);
            }
        }
        Ok(_) => {}
    }
}
