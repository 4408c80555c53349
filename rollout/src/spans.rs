//! What an episode tells OpenTelemetry: the agent, its turns, its tools.

use folgore_actors::{
    Span, SpanKind,
    telemetry::{Array, StringValue, Value, names},
};
use folgore_protocol::{Generate, Generated, Outcome, Prompt, Purpose, RolloutJob, StopReason, Trajectory};
use serde_json::json;

/// The engine, as the conventions call who samples.
const ENGINE: &str = "folgore";

/// The span of the episode of `job`.
pub(crate) fn episode(run: &str, job: &RolloutJob) -> Span {
    let mut span = Span::child(SpanKind::Internal, "invoke_agent rollout");
    if span.is_on() {
        span.set(names::OPERATION, names::INVOKE_AGENT);
        span.set(names::PROVIDER, ENGINE);
        span.set(names::AGENT, job.environment.clone());
        span.set(names::CONVERSATION, job.seat.to_string());
        span.set(names::RUN, run.to_owned());
        span.set(names::GROUP, job.seat.group.0.to_string());
        span.set(names::PURPOSE, purpose(&job.purpose));
    }
    span
}

/// Notes what came of an episode.
pub(crate) fn ended(span: &mut Span, trajectory: &Trajectory) {
    if !span.is_on() {
        return;
    }
    if let Some(policy) = trajectory.policies().last() {
        span.set(names::POLICY_VERSION, policy.step as i64);
    }
    let sampled: usize = trajectory.rows.iter().map(|row| row.sampled_len()).sum();
    span.set(names::OUTPUT_TOKENS, sampled as i64);
    match &trajectory.outcome {
        Outcome::Scored { total, .. } => span.set(names::REWARD, *total),
        Outcome::Unscorable { reason } => span.fail("unscorable", reason),
        Outcome::Error { reason } => span.fail("error", reason),
        Outcome::Unjudged { .. } => {}
    }
}

/// The span of one turn of the policy.
pub(crate) fn turn(model: &str, job: &RolloutJob, request: &Generate) -> Span {
    let operation = match job.task.prompt {
        Prompt::Text(_) => names::TEXT_COMPLETION,
        Prompt::Messages(_) => names::CHAT,
    };
    let mut span = Span::child(SpanKind::Internal, format_args!("{operation} {model}"));
    if span.is_on() {
        let sampling = &request.sampling;
        span.set(names::OPERATION, operation);
        span.set(names::PROVIDER, ENGINE);
        span.set(names::REQUEST_MODEL, model.to_owned());
        span.set(names::CONVERSATION, job.seat.to_string());
        span.set(names::REQUEST_MAX_TOKENS, i64::from(sampling.max_new_tokens));
        span.set(names::REQUEST_TEMPERATURE, f64::from(sampling.temperature));
        span.set(names::REQUEST_TOP_P, f64::from(sampling.top_p));
        // All 64 bits, in the only integer that there is.
        span.set(names::REQUEST_SEED, request.seed as i64);
        span.set(names::INPUT_TOKENS, request.ids.len() as i64);
    }
    span
}

/// Notes what the policy said in a turn.
pub(crate) fn turned(span: &mut Span, generated: &Generated) {
    if !span.is_on() {
        return;
    }
    let reason = finish_reason(generated);
    span.set(names::OUTPUT_TOKENS, generated.ids.len() as i64);
    span.set(names::FINISH_REASONS, Value::Array(Array::String(vec![StringValue::from(reason)])));
    if let Some((policy, _)) = generated.policies.runs().last() {
        span.set(names::POLICY_VERSION, policy.step as i64);
    }
}

/// The span of a tool that the policy called.
pub(crate) fn tool(name: &'static str, call: &str) -> Span {
    let mut span = Span::child(SpanKind::Internal, format_args!("{} {name}", names::EXECUTE_TOOL));
    if span.is_on() {
        span.set(names::OPERATION, names::EXECUTE_TOOL);
        span.set(names::TOOL, name);
        span.set(names::TOOL_TYPE, "datastore");
        span.set(names::TOOL_CALL, call.to_owned());
    }
    span
}

/// What the policy is asked, in the form that the conventions have for messages.
pub(crate) fn question(text: &str) -> String {
    json!([{ "role": "user", "parts": [{ "type": "text", "content": text }] }]).to_string()
}

/// What the policy said in a turn, in the same form: an answer names why it ended.
pub(crate) fn answer(text: &str, generated: &Generated) -> String {
    let reason = finish_reason(generated);
    json!([{ "role": "assistant", "parts": [{ "type": "text", "content": text }], "finish_reason": reason }])
        .to_string()
}

fn finish_reason(generated: &Generated) -> &'static str {
    match generated.stop_reason {
        StopReason::Eos | StopReason::StopString => "stop",
        StopReason::Length | StopReason::Context => "length",
    }
}

fn purpose(purpose: &Purpose) -> String {
    match purpose {
        Purpose::Train => "train".to_owned(),
        Purpose::Eval { label, .. } => label.clone(),
    }
}
