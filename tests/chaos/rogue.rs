//! Somebody on the server who means harm, or a network that does: repeats, shuffles and forges what others say.
//!
//! It speaks to the server directly and is held back by no permission, as if it had stolen an identity of every role. One
//! thing it leaves to the permissions of a real server: unreadable messages under another's name are strikes against that one.

use std::time::Duration;

use async_nats::{
    Client, HeaderMap, Message,
    jetstream::{self, AckKind, consumer::PullConsumer},
};
use folgore_actors::nats::{NatsConfig, connect};
use folgore_protocol::{
    Names, Outcome, PolicyId, PolicyPublished, Role, RolloutJob, Row, RunLength, RunName, Segment, SegmentKind, Source,
    StopReason, Trajectory, decode, encode, subjects,
};
use futures_util::StreamExt;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use crate::fleet::{Fleet, RUN};

/// Trajectories that it listens to before it sends them again.
const WINDOW: usize = 8;

/// Its doings, until it is dropped.
pub struct Rogue {
    _doings: JoinSet<()>,
    insider: Option<AbortHandle>,
}

impl Rogue {
    /// Takes jobs as a worker does, as many as it is struck for, and hands in what no sampler makes. Then it is done.
    pub fn insider(fleet: &Fleet) -> Self {
        let mut doings = JoinSet::new();
        let done = doings.spawn_on(nonsense(fleet.server.url()), fleet.runtime.handle());
        Self { _doings: doings, insider: Some(done) }
    }

    /// True if the insider has done what it came for.
    pub fn is_done(&self) -> bool {
        self.insider.as_ref().is_some_and(AbortHandle::is_finished)
    }

    /// Repeats what workers hand in, late and backwards, under their names and under its own; changes what it repeats;
    /// hands trajectories around before replay has them; acks what others hold.
    pub fn start(fleet: &Fleet) -> Self {
        let client = fleet.runtime.block_on(async_nats::connect(fleet.server.url())).unwrap();
        let mut doings = JoinSet::new();
        let handle = fleet.runtime.handle();
        doings.spawn_on(repeat(client.clone()), handle);
        doings.spawn_on(garbage(client.clone()), handle);
        doings.spawn_on(shuffle(client.clone()), handle);
        for (stream, consumer) in [("JOBS", "rollout"), ("TRAJ", "replay")] {
            doings.spawn_on(forge_acks(client.clone(), stream, consumer), handle);
        }
        Self { _doings: doings, insider: None }
    }
}

fn subject(worker: &str) -> String {
    format!("rl.v1.{RUN}.traj.{worker}")
}

/// The sender's headers without the id by which the server would know the message again, and without the digest of the body.
fn unknown_to_the_server(message: &Message) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        if !["Nats-Msg-Id", "Rl-Sha256"].contains(&name.to_string().as_str()) {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
    }
    headers
}

/// Listens to trajectories, and sends each window of them again: backwards, twice, and in ways that nobody may believe.
async fn repeat(client: Client) {
    let mut heard = client.subscribe(subject("*")).await.unwrap();
    let mut window = Vec::new();
    while let Some(message) = heard.next().await {
        let own = message.subject.ends_with(".rogue");
        // What it sends itself comes back: without the mark of a worker's message it is left alone.
        let original = message.headers.as_ref().is_some_and(|h| h.get("Nats-Msg-Id").is_some());
        if own || !original {
            continue;
        }
        window.push(message);
        if window.len() < WINDOW {
            continue;
        }
        for message in std::mem::take(&mut window).into_iter().rev() {
            for _ in 0..2 {
                send(&client, message.subject.to_string(), &message, message.payload.to_vec()).await;
            }
            // Another's work under its own name.
            send(&client, subject("rogue"), &message, message.payload.to_vec()).await;
            for forged in forgeries(&message) {
                send(&client, message.subject.to_string(), &message, forged).await;
            }
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Trajectories of seats that are still to come, without their tokens: nobody may believe them, whoever seems to send them.
fn forgeries(message: &Message) -> Vec<Vec<u8>> {
    let Ok(heard) = decode::<Trajectory>(&message.payload) else { return Vec::new() };
    let forge = |change: &dyn Fn(&mut Trajectory)| {
        let mut forged = heard.clone();
        forged.seat.group.0 += 4;
        change(&mut forged);
        encode(&forged).unwrap()
    };
    vec![
        forge(&|_| {}),
        forge(&|t| t.token.clear()),
        forge(&|t| {
            t.token = "0".repeat(32);
            t.rows.iter_mut().flat_map(|r| &mut r.segments).flat_map(|s| &mut s.logprobs).for_each(|p| *p = f32::NAN);
        }),
        forge(&|t| {
            t.rows.iter_mut().flat_map(|r| &mut r.segments).flat_map(|s| &mut s.ids).for_each(|id| *id = u32::MAX)
        }),
        forge(&|t| t.seat.draw += 1),
    ]
}

async fn send(client: &Client, to: String, like: &Message, body: Vec<u8>) {
    let mut headers = unknown_to_the_server(like);
    headers.insert("Rl-Len", body.len().to_string());
    client.publish_with_headers(to, headers, body.into()).await.unwrap();
}

/// What is no message of ours at all.
async fn garbage(client: Client) {
    loop {
        client.publish(subject("rogue"), "not a trajectory".into()).await.unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("Rl-Schema", "1.0");
        headers.insert("Rl-Run", "another");
        headers.insert("Rl-Id", "x");
        client.publish_with_headers(subject("rogue"), headers, vec![0xff; 4096].into()).await.unwrap();
        client.publish(format!("rl.v1.{RUN}.hb.rollout.rogue"), vec![0xc1; 64].into()).await.unwrap();
        client.publish(format!("rl.v1.{RUN}.job.rollout"), "not a job".into()).await.unwrap();
        sleep(Duration::from_millis(250)).await;
    }
}

/// Takes trajectories before replay does, and gives them back later, each in its own time.
async fn shuffle(client: Client) {
    let jetstream = jetstream::new(client);
    let mut delay = 1;
    loop {
        sleep(Duration::from_millis(50)).await;
        let Ok(stream) = jetstream.get_stream(format!("RL_{RUN}_TRAJ")).await else { continue };
        let Ok(consumer) = stream.get_consumer::<jetstream::consumer::pull::Config>("replay").await else { continue };
        let consumer: PullConsumer = consumer;
        let Ok(mut taken) = consumer.fetch().max_messages(3).messages().await else { continue };
        while let Some(Ok(message)) = taken.next().await {
            delay = delay * 7 % 31;
            // It may be gone: somebody forges acks.
            let _ = message.ack_with(AckKind::Nak(Some(Duration::from_millis(delay * 10)))).await;
        }
    }
}

/// Guesses the acks of what others hold: they are small numbers.
async fn forge_acks(client: Client, stream: &str, consumer: &str) {
    let jetstream = jetstream::new(client.clone());
    let name = format!("RL_{RUN}_{stream}");
    loop {
        sleep(Duration::from_millis(100)).await;
        let Ok(found) = jetstream.get_stream(&name).await else { continue };
        let last = found.cached_info().state.last_sequence;
        for sequence in last.saturating_sub(8)..=last {
            for delivered in last.saturating_sub(4)..=last + 8 {
                let ack = format!("$JS.ACK.{name}.{consumer}.1.{sequence}.{delivered}.1.0");
                client.publish(ack, "+ACK".into()).await.unwrap();
            }
        }
    }
}

/// Jobs that the insider takes: replay keeps a worker out after three strikes.
const TAKEN: u32 = 5;

async fn nonsense(url: String) {
    let names = Names::new(&RunName::new(RUN).unwrap()).unwrap();
    let mut config = NatsConfig::new(url, names, Role::Rollout, "rogue").unwrap();
    config.connect_within = Duration::from_secs(30);
    let links = connect(config).await.unwrap().links();
    let mut watch = links.watch_state::<PolicyPublished>(subjects::POLICY).await.unwrap();
    let policy = watch.next().await.unwrap().unwrap().value.policy;
    let mut taken = 0;
    while taken < TAKEN {
        // There are none while the head is still to make its queues.
        let Ok(pulled) = links.pull_jobs::<RolloutJob>(subjects::JOBS, 1, Duration::from_secs(1)).await else {
            continue;
        };
        for job in pulled.jobs {
            let trajectory = invented(&job.body, policy, taken);
            links.publish_job(subjects::TRAJECTORIES, &trajectory, &job.body.seat.to_string()).await.unwrap();
            job.ack().await.unwrap();
            taken += 1;
        }
    }
}

/// A trajectory for `job` that is well-formed in all but one thing.
fn invented(job: &RolloutJob, policy: PolicyId, round: u32) -> Trajectory {
    let ids = if round.is_multiple_of(2) { vec![3, 4] } else { vec![3, u32::MAX] };
    let logprobs = if round.is_multiple_of(2) { vec![-0.5, f32::NAN] } else { vec![-0.5, -0.5] };
    let segment = |kind, ids: Vec<u32>, logprobs, policies| Segment { kind, ids, logprobs, policies };
    let prompt = segment(SegmentKind::Prompt, vec![1, 2], Vec::new(), RunLength::default());
    let sampled = segment(SegmentKind::Sampled, ids, logprobs, RunLength::of(policy, 2));
    Trajectory {
        seat: job.seat,
        task_id: job.task.id.clone(),
        purpose: job.purpose.clone(),
        rows: vec![Row { segments: vec![prompt, sampled], source: Source::OnPolicy }],
        outcome: Outcome::Scored { total: 1.0, parts: Vec::new(), answer: None },
        stop_reason: StopReason::Eos,
        worker: "rogue".to_owned(),
        duration_ms: 1,
        token: job.token.clone(),
    }
}
