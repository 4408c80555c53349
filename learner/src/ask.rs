//! What the head asks of replay and tells samplers, for whoever drives a run: the learner, or an evaluation by itself.

use std::{sync::Arc, time::Duration};

use folgore_actors::{Backoff, CallError, LinkError, Links, ServiceError, Shutdown};
use folgore_config::EvalSection;
use folgore_protocol::{
    Digest, PolicyId, PolicyPublished,
    replay::{EvalSummary, ReplayReply, ReplayRequest},
    subjects,
};

use crate::evaluation::Evaluated;

/// Longest that one ask may take; a batch that is not there by then is asked for again.
const ASK_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at an evaluation that is under way.
const EVAL_POLL: Duration = Duration::from_millis(20);
/// Earlier policies that stay fetchable.
const KEPT: usize = 4;

/// What a wait ended with.
pub enum Waited<T> {
    /// With what was waited for.
    Got(T),
    /// With the order to stop.
    Stopping,
}

/// Asks replay; waits while it is being started.
pub async fn ask_replay(links: &Links, request: ReplayRequest, key: &str) -> Result<ReplayReply, CallError> {
    links.call_when_served(subjects::REPLAY, &request, key, ASK_DEADLINE).await
}

/// A policy with what samplers need to serve it.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Which policy.
    pub policy: PolicyId,
    /// The bytes that its digest names; none: the base as it is.
    pub bytes: Option<Arc<[u8]>>,
    /// Log-probs of the fixed text; empty: not said.
    pub fingerprint: Vec<f32>,
}

/// Puts a policy where samplers find it. Earlier ones stay fetchable for a while, because a sampler far away may be reading
/// one; publishing the same twice is publishing once.
///
/// # Errors
/// [`PublishError::Fenced`] if another head has published under a higher epoch: this one must not go on.
pub async fn publish(links: &Links, publication: &Publication) -> Result<(), PublishError> {
    let Publication { policy, bytes, fingerprint } = publication;
    let blob = match bytes {
        Some(bytes) => Some(links.blob.put(bytes.clone()).await?.hex()),
        None => None,
    };
    let before = links.get_state::<PolicyPublished>(subjects::POLICY).await?;
    let revision = before.as_ref().map_or(0, |b| b.revision);
    let mut kept = Vec::new();
    if let Some(before) = before.map(|b| b.value) {
        if before.policy.epoch > policy.epoch {
            return Err(PublishError::Fenced { own: policy.epoch, found: before.policy.epoch });
        }
        if before.policy == *policy && before.blob == blob {
            return Ok(());
        }
        kept = before.kept;
        kept.extend(before.blob);
        kept.retain(|old| Some(old) != blob.as_ref());
    }
    let gone: Vec<String> = kept.drain(..kept.len().saturating_sub(KEPT)).collect();
    let size = bytes.as_ref().map_or(0, |b| b.len() as u64);
    let published = PolicyPublished { policy: *policy, blob, bytes: size, fingerprint: fingerprint.clone(), kept };
    links.put_state_if(subjects::POLICY, revision, &published).await?;
    for digest in gone.into_iter().filter_map(|name| Digest::try_from(name).ok()) {
        if let Err(error) = links.blob.delete(digest).await {
            tracing::warn!(%error, "an old policy was not deleted");
        }
    }
    Ok(())
}

/// As [`publish`], tried again while the links do not answer; false if the process was asked to stop first. `waiting` is told
/// why it takes so long.
pub async fn publish_surely(
    links: &Links,
    shutdown: &Shutdown,
    publication: &Publication,
    waiting: impl Fn(&str),
) -> Result<bool, PublishError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), publication.policy.step);
    loop {
        match shutdown.unless_stopping(publish(links, publication)).await {
            None => return Ok(false),
            Some(Ok(())) => return Ok(true),
            Some(Err(error)) if error.may_pass() => {
                tracing::warn!(%error, policy = %publication.policy, "policy not published yet");
                waiting(&format!("policy {} cannot be published: {error}", publication.policy));
                let _ = shutdown.unless_stopping(tokio::time::sleep(backoff.next_wait())).await;
            }
            Some(Err(error)) => return Err(error),
        }
    }
}

/// Why a policy was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Another head has the run.
    #[error("this head is fenced: it publishes under epoch {own}, and epoch {found} is there already")]
    Fenced {
        /// Epoch of this head.
        own: u32,
        /// Epoch of the published policy.
        found: u32,
    },
    /// The link did not do it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The state could not be read or written.
    #[error(transparent)]
    State(#[from] CallError),
}

impl PublishError {
    /// True if trying again may succeed. A conflict may be a write of ours whose answer was lost: looking again tells.
    fn may_pass(&self) -> bool {
        let link = match self {
            PublishError::Fenced { .. } => return false,
            PublishError::Link(error) => Some(error),
            PublishError::State(error) => error.link(),
        };
        link.is_some_and(|e| {
            matches!(
                e,
                LinkError::Deadline { .. }
                    | LinkError::Conflict { .. }
                    | LinkError::NoResponder { .. }
                    | LinkError::Full { .. }
            )
        })
    }
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
    let mut evaluated = Evaluated { when: when.to_owned(), step, k: section.ks(), greedy: None, sampled: None };
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
            // Replay is busy, as it may be while a batch is asked for: no reason to lose what was sampled so far.
            Some(Err(CallError::Link(LinkError::Deadline { subject, waited_ms }))) => {
                tracing::warn!(label, subject, waited_ms, "evaluation: asking again");
            }
            Some(Ok(other)) => return Err(unexpected("EvalResult", &other)),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// The error for an answer of the wrong kind.
pub(crate) fn unexpected(asked: &str, got: &ReplayReply) -> ServiceError {
    format!("replay answered {asked} with {got:.200?}").into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use folgore_actors::{LocalConfig, local};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_evaluation_outlasts_a_replay_that_is_busy() {
        let folder = tempfile::tempdir().unwrap();
        let links = local("test", LocalConfig::new(folder.path()));
        let policy = PolicyId { epoch: 1, step: 2, digest: Digest::of(b"p") };
        let busy = Arc::new(AtomicBool::new(true));
        let was_busy = busy.clone();
        let answer = move |request: ReplayRequest| {
            let slow = matches!(request, ReplayRequest::EvalResult { .. }) && busy.swap(false, Ordering::Relaxed);
            async move {
                if slow {
                    tokio::time::sleep(2 * ASK_DEADLINE).await;
                }
                Ok::<_, String>(match request {
                    ReplayRequest::EvalResult { label } => {
                        ReplayReply::Eval(EvalSummary { label, policy, expected: 0, items: Vec::new() })
                    }
                    _ => ReplayReply::Done {},
                })
            }
        };
        let _served = links.serve_typed(subjects::REPLAY, 4, answer).await.unwrap();
        let section = EvalSection { sampled: 0, ..EvalSection::default() };
        let evaluated = evaluate(&links, &Shutdown::new(), &section, 5, "before", 2, policy).await.unwrap().unwrap();
        assert_eq!(evaluated.greedy.unwrap().policy, policy);
        assert!(!was_busy.load(Ordering::Relaxed), "nothing was late");
    }
}
