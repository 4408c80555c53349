//! What the head asks of replay and tells samplers, for whoever drives a run: the learner, or an evaluation by itself.

use std::time::Duration;

use folgore_actors::{CallError, Links, ServiceError, Shutdown};
use folgore_config::EvalSection;
use folgore_protocol::{
    Digest, PolicyId, PolicyPublished,
    replay::{EvalSummary, ReplayReply, ReplayRequest},
    subjects,
};

/// Longest that one ask may take; a batch that is not there by then is asked for again.
const ASK_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at an evaluation that is under way.
const EVAL_POLL: Duration = Duration::from_millis(20);

/// What a wait ended with.
pub enum Waited<T> {
    /// With what was waited for.
    Got(T),
    /// With the order to stop.
    Stopping,
}

/// One evaluation of one policy.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// `before`, `step-<n>` or `after`.
    pub when: String,
    /// The step whose policy it is.
    pub step: u64,
    /// Greedy answers.
    pub greedy: Option<EvalSummary>,
    /// Answers sampled as in training.
    pub sampled: Option<EvalSummary>,
}

/// Asks replay; waits while it is being started.
pub async fn ask_replay(links: &Links, request: ReplayRequest, key: &str) -> Result<ReplayReply, CallError> {
    links.call_when_served(subjects::REPLAY, &request, key, ASK_DEADLINE).await
}

/// Puts a policy where samplers find it. `bytes` are those that its digest names; none: the base as it is.
pub async fn publish(links: &Links, policy: PolicyId, bytes: Option<Vec<u8>>) -> Result<(), ServiceError> {
    let size = bytes.as_ref().map_or(0, |b| b.len() as u64);
    let blob = match bytes {
        Some(bytes) => Some(links.blob.put(bytes.into()).await?.hex()),
        None => None,
    };
    let before = links.get_state::<PolicyPublished>(subjects::POLICY).await?;
    let revision = before.as_ref().map_or(0, |b| b.revision);
    links
        .put_state_if(subjects::POLICY, revision, &PolicyPublished { policy, blob: blob.clone(), bytes: size })
        .await?;
    // nobody begins with the one before any more; a reader in flight still gets whole bytes
    let old = before.and_then(|b| b.value.blob).filter(|old| Some(old) != blob.as_ref());
    if let Some(digest) = old.and_then(|name| Digest::try_from(name).ok()) {
        links.blob.delete(digest).await?;
    }
    Ok(())
}

/// Evaluates `policy` on the first `eval_items` of the `held_out` tasks, on the same path as training. None if there is
/// nothing to evaluate, or if the process is asked to stop on the way.
pub async fn evaluate(
    links: &Links,
    shutdown: &Shutdown,
    section: &EvalSection,
    held_out: u64,
    when: &str,
    step: u64,
    policy: PolicyId,
) -> Result<Option<Evaluated>, ServiceError> {
    let items = u64::from(section.eval_items).min(held_out);
    if items == 0 {
        return Ok(None);
    }
    let mut evaluated = Evaluated { when: when.to_owned(), step, greedy: None, sampled: None };
    for (greedy, samples) in [(true, u32::from(section.greedy)), (false, section.sampled)] {
        if samples == 0 {
            continue;
        }
        let label = format!("{when}/{}", if greedy { "greedy" } else { "sampled" });
        let open = ReplayRequest::OpenEval { label: label.clone(), policy, greedy, samples, tasks: 0..items };
        let key = format!("open-{label}");
        let Some(opened) = shutdown.unless_stopping(ask_replay(links, open, &key)).await else { return Ok(None) };
        opened?;
        let Waited::Got(summary) = eval_result(links, shutdown, &label).await? else { return Ok(None) };
        *(if greedy { &mut evaluated.greedy } else { &mut evaluated.sampled }) = Some(summary);
    }
    Ok(Some(evaluated))
}

async fn eval_result(links: &Links, shutdown: &Shutdown, label: &str) -> Result<Waited<EvalSummary>, ServiceError> {
    loop {
        let key = format!("eval-{label}");
        let ask = ask_replay(links, ReplayRequest::EvalResult { label: label.to_owned() }, &key);
        match shutdown.unless_stopping(ask).await {
            None => return Ok(Waited::Stopping),
            Some(Ok(ReplayReply::Eval(summary))) if summary.complete() => return Ok(Waited::Got(summary)),
            Some(Ok(ReplayReply::Eval(_) | ReplayReply::NotYet { .. })) => tokio::time::sleep(EVAL_POLL).await,
            Some(Ok(other)) => return Err(unexpected("EvalResult", &other)),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// The error for an answer of the wrong kind.
pub(crate) fn unexpected(asked: &str, got: &ReplayReply) -> ServiceError {
    format!("replay answered {asked} with {got:.200?}").into()
}
