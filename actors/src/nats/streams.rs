//! The streams and consumers of a run, as the server is told about them: what the administrator creates is what the
//! actors expect.

use std::time::Duration;

use async_nats::jetstream::{
    consumer::{AckPolicy, pull},
    stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
};
use folgore_protocol::names::{Names, REPLAY_CONSUMER, ROLLOUT_CONSUMER};

use super::NatsConfig;

const MIB: i64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);
/// How long the server knows the id of a publish, which makes a publisher's own retry harmless.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(600);
/// Largest message in the queue of jobs, headers included.
pub(crate) const JOB_MAX: usize = 256 << 10;
/// Largest message in any other stream, headers included; the server's own bound is 1 MB.
pub(crate) const MESSAGE_MAX: usize = 900 << 10;
/// Durable consumer of a queue outside the two of a run.
pub(crate) const WORK_CONSUMER: &str = "work";

fn work_queue(name: String, subject: String, config: &NatsConfig) -> stream::Config {
    stream::Config {
        name,
        subjects: vec![subject],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_messages: config.queue_bound as i64,
        max_message_size: MESSAGE_MAX as i32,
        max_age: 24 * HOUR,
        duplicate_window: DUPLICATE_WINDOW,
        num_replicas: config.replicas,
        ..Default::default()
    }
}

fn kept(name: String, subject: String, days: u32, config: &NatsConfig) -> stream::Config {
    stream::Config {
        name,
        subjects: vec![subject],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_bytes: 256 * MIB,
        max_age: 24 * HOUR * days,
        num_replicas: config.replicas,
        ..Default::default()
    }
}

/// The queue of jobs.
pub(crate) fn jobs(names: &Names, config: &NatsConfig) -> stream::Config {
    stream::Config {
        max_bytes: 256 * MIB,
        max_message_size: JOB_MAX as i32,
        ..work_queue(names.jobs_stream(), names.rollout_jobs(), config)
    }
}

/// The queue of trajectories.
pub(crate) fn trajectories(names: &Names, config: &NatsConfig) -> stream::Config {
    stream::Config { max_bytes: 2048 * MIB, ..work_queue(names.trajectories_stream(), names.trajectories(), config) }
}

/// What was rejected, for a week.
pub(crate) fn dead_letters(names: &Names, config: &NatsConfig) -> stream::Config {
    kept(names.dead_letters_stream(), names.dead_letters("*"), 7, config)
}

/// Progress, for a day.
pub(crate) fn events(names: &Names, config: &NatsConfig) -> stream::Config {
    kept(names.events_stream(), names.events(), 1, config)
}

/// Any other queue.
pub(crate) fn other(names: &Names, queue: &str, config: &NatsConfig) -> stream::Config {
    stream::Config {
        max_bytes: 64 * MIB,
        ..work_queue(other_stream(names, queue), other_subject(names, queue), config)
    }
}

/// Stream of queue `queue`, which is not one of the two of a run.
pub(crate) fn other_stream(names: &Names, queue: &str) -> String {
    format!("RL_{}_Q_{queue}", names.run())
}

/// Subject of queue `queue`, which is not one of the two of a run.
pub(crate) fn other_subject(names: &Names, queue: &str) -> String {
    format!("{}.q.{queue}", names.prefix())
}

/// There is no `max_deliver`: a message past it would stay in the work queue for ever, counted and never delivered.
fn consumer(name: &str, filter: String, ack_wait: Duration, max_ack_pending: i64) -> pull::Config {
    pull::Config {
        durable_name: Some(name.to_owned()),
        filter_subject: filter,
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        max_deliver: -1,
        max_ack_pending,
        ..Default::default()
    }
}

/// What rollout workers pull from.
pub(crate) fn rollout_consumer(names: &Names, config: &NatsConfig) -> pull::Config {
    consumer(ROLLOUT_CONSUMER, names.rollout_jobs(), config.ack_wait_jobs, 4096)
}

/// What replay pulls from.
pub(crate) fn replay_consumer(names: &Names, config: &NatsConfig) -> pull::Config {
    consumer(REPLAY_CONSUMER, names.trajectories(), config.ack_wait_trajectories, 256)
}

/// What readers of any other queue pull from.
pub(crate) fn other_consumer(names: &Names, queue: &str, config: &NatsConfig) -> pull::Config {
    consumer(WORK_CONSUMER, other_subject(names, queue), config.ack_wait_jobs, 4096)
}
