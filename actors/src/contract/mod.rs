//! What every form of the links must do, as tests: the local form, the faulty one, and whatever comes next plug in here.
//!
//! Each function makes links of its own, uses them as an actor would, and panics where a promise of [`crate::link`] is
//! not kept. Waits are short but real: with tokio's paused clock they take no time, over a network a few seconds.

mod ask;
mod blob;
mod faults;
mod queue;
mod state;
mod topic;
mod typed;

use std::time::Duration;

use folgore_protocol::{Digest, Envelope, PolicyId};

use crate::{Links, Message};

/// What the suite needs of the links that it is given.
#[derive(Clone, Debug)]
pub struct ContractConfig {
    /// Name of the run; unique to each call, so that one server can hold them all.
    pub run: String,
    /// Most messages in one queue.
    pub queue_bound: usize,
    /// Redelivery time of the queues.
    pub redeliver_after: Duration,
    /// Most messages that a slow reader of a topic may be behind.
    pub topic_bound: usize,
}

/// Longer than anything here takes, and shorter than a person's patience.
const LONG: Duration = Duration::from_secs(10);
/// How long to wait for what should not come.
const SHORT: Duration = Duration::from_millis(100);
/// Redelivery time in the suite.
const REDELIVER: Duration = Duration::from_secs(1);

/// The whole contract: [`plain`], then [`under_faults`].
///
/// # Panics
/// If a promise is not kept.
pub async fn all(make: impl AsyncFn(ContractConfig) -> Links) {
    plain(&make).await;
    under_faults(&make).await;
}

/// What holds when nothing goes wrong.
///
/// # Panics
/// If a promise is not kept.
pub async fn plain(make: &impl AsyncFn(ContractConfig) -> Links) {
    ask::answers_and_errors(&make_for(make, "ask-answers").await).await;
    ask::concurrency_is_bounded(&make_for(make, "ask-bounded").await).await;
    ask::servers_share_and_leave(&make_for(make, "ask-shared").await).await;
    queue::each_message_goes_to_one_puller(&make_for(make, "queue-once").await).await;
    queue::unsettled_is_delivered_again(&make_for(make, "queue-again").await).await;
    queue::nak_term_and_progress(&make_for(make, "queue-settle").await).await;
    queue::a_full_queue_says_so(&make_for(make, "queue-full").await).await;
    queue::a_waiting_puller_is_woken(&make_for(make, "queue-wake").await).await;
    topic::readers_hear_from_then_on(&make_for(make, "topic-heard").await).await;
    topic::slow_readers_are_told(&make_for(make, "topic-slow").await).await;
    state::writes_are_compared(&make_for(make, "state-compared").await).await;
    state::watchers_see_the_latest(&make_for(make, "state-watched").await).await;
    blob::bytes_come_back(&make_for(make, "blob").await).await;
    typed::replies_keep_the_format_and_the_trace(&make_for(make, "typed-format").await).await;
    typed::what_cannot_be_read_is_refused(&make_for(make, "typed-refused").await).await;
    typed::values_and_events_read_back(&make_for(make, "typed-values").await).await;
}

/// What holds also when messages are lost, late, doubled and out of order.
///
/// # Panics
/// If a promise is not kept.
pub async fn under_faults(make: &impl AsyncFn(ContractConfig) -> Links) {
    faults::every_job_is_done_at_least_once(&make_for(make, "faults-jobs").await).await;
    faults::answers_belong_to_their_questions(&make_for(make, "faults-ask").await).await;
    faults::compared_writes_are_never_lost_or_doubled(&make_for(make, "faults-state").await).await;
    faults::blobs_are_whole(&make_for(make, "faults-blob").await).await;
    faults::events_are_whole(&make_for(make, "faults-topic").await).await;
}

async fn make_for(make: &impl AsyncFn(ContractConfig) -> Links, run: &str) -> Links {
    let config = ContractConfig { run: run.into(), queue_bound: 64, redeliver_after: REDELIVER, topic_bound: 8 };
    make(config).await
}

/// A message with every field of its envelope filled.
fn message(links: &Links, key: &str, body: &[u8]) -> Message {
    let mut envelope = Envelope::new(&links.run, key);
    envelope.policy = Some(PolicyId { epoch: 2, step: 7, digest: Digest::of(b"adapter") });
    envelope.budget_ms = Some(1500);
    envelope.digest = Some(Digest::of(body));
    envelope.traceparent = Some(crate::TraceContext::root(&links.run, key).traceparent());
    Message { envelope, body: body.into() }
}
