//! The generator service over the fake model.

use folgore_actors::{Level, LinkError, LocalConfig, Shutdown, local};
use folgore_protocol::{Digest, SamplingParams, StopReason};
use tokio::task::JoinHandle;

use super::*;
use crate::engine::fake::{Fake, Letters, alone};

const SECOND: Duration = Duration::from_secs(1);

struct Bed {
    links: Links,
    shutdown: Shutdown,
    status: Status,
    end: JoinHandle<Result<(), ServiceError>>,
    _folder: tempfile::TempDir,
}

/// A running generator; a policy's bytes are its adapter's number as text.
fn bed(gate: Option<ComputeGate>) -> Bed {
    let folder = tempfile::tempdir().unwrap();
    let links = local("test", LocalConfig::new(folder.path()));
    let loader: PolicyLoader<u64> = Arc::new(|_, bytes| match bytes {
        None => Ok(0),
        Some(bytes) => String::from_utf8_lossy(&bytes).parse().map_err(|e| format!("adapter: {e}")),
    });
    let generator = Generator::new(Fake::new(40), Arc::new(Letters), loader, gate, GeneratorConfig::default());
    let (shutdown, status) = (Shutdown::new(), Status::new());
    let context =
        Context { name: "generator".into(), links: links.clone(), shutdown: shutdown.clone(), status: status.clone() };
    Bed { end: tokio::spawn(Box::new(generator).run(context)), links, shutdown, status, _folder: folder }
}

impl Bed {
    async fn publish(&self, step: u64, bytes: Option<&str>) -> PolicyId {
        let digest = Digest::of(bytes.unwrap_or_default().as_bytes());
        let blob = match bytes {
            Some(bytes) => Some(self.links.blob.put(bytes.as_bytes().into()).await.unwrap().hex()),
            None => None,
        };
        let policy = PolicyId { epoch: 0, step, digest };
        let revision = self.links.state.get(subjects::POLICY).await.unwrap().map_or(0, |v| v.revision);
        let published = PolicyPublished { policy, blob, bytes: 0, fingerprint: Vec::new(), kept: Vec::new() };
        self.links.put_state_if(subjects::POLICY, revision, &published).await.unwrap();
        policy
    }

    async fn generate(&self, policy: Option<PolicyId>, new: u32, wait: Duration) -> Result<Generated, LinkError> {
        let sampling = SamplingParams { max_new_tokens: new, ignore_eos: true, ..SamplingParams::default() };
        let request = Generate { ids: vec![1, 2, 3], sampling, seed: 5, policy, at_least: None, for_training: false };
        let reply = self.links.call_when_served(subjects::GENERATE, &request, "k", wait).await;
        reply.map_err(|error| error.link().unwrap().clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_its_policy_and_an_old_policy_is_refused() {
    let bed = bed(None);
    let soon = PolicyId { epoch: 0, step: 1, digest: Digest::of(b"7") };
    let (early, ()) = tokio::join!(bed.generate(Some(soon), 4, 20 * SECOND), async {
        let begin = bed.publish(0, None).await;
        assert_eq!(bed.generate(Some(begin), 4, 20 * SECOND).await.unwrap().ids, alone(0, &[1, 2, 3], 5, 4).0);
        bed.publish(1, Some("7")).await;
    });
    let early = early.unwrap();
    assert_eq!((early.ids, early.stop_reason), (alone(7, &[1, 2, 3], 5, 4).0, StopReason::Length));
    assert_eq!(early.policies.runs(), [(soon, 4)]);
    let past = PolicyId { epoch: 0, step: 0, digest: Digest::of(b"never there") };
    let refused = bed.generate(Some(past), 4, 20 * SECOND).await.unwrap_err();
    assert!(refused.to_string().contains("is not served"), "{refused}");
    assert_eq!(bed.status.get()["engine"]["finished"], 2);
    bed.shutdown.request(Level::Stopping);
    bed.end.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_policy_is_on_its_way_one_that_will_do_is_used() {
    let bed = bed(None);
    let before = bed.publish(3, None).await;
    let coming = PolicyId { epoch: 0, step: 4, digest: Digest::of(b"on its way") };
    let sampling = SamplingParams { max_new_tokens: 2, ignore_eos: true, ..SamplingParams::default() };
    let request = Generate {
        ids: vec![1, 2, 3],
        sampling,
        seed: 5,
        policy: Some(coming),
        at_least: Some((0, 3)),
        for_training: false,
    };
    let ask = async |request: &Generate, wait| -> Result<Generated, _> {
        bed.links.call_when_served(subjects::GENERATE, request, "k", wait).await
    };
    assert_eq!(ask(&request, 20 * SECOND).await.unwrap().policies.runs(), [(before, 2)]);
    for at_least in [(0, 4), (1, 0)] {
        let request = Generate { at_least: Some(at_least), ..request.clone() };
        assert!(ask(&request, SECOND / 2).await.is_err(), "{at_least:?} was given {before}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_loaded_is_kept_out() {
    let bed = bed(None);
    bed.publish(0, None).await;
    let bad = bed.publish(1, Some("not a number")).await;
    let refused = bed.generate(Some(bad), 2, 20 * SECOND).await.unwrap_err();
    assert!(refused.to_string().contains("invalid digit"), "{refused}");
    let old = bed.generate(None, 2, 20 * SECOND).await.unwrap();
    assert_eq!(old.policies.runs()[0].0.step, 0);
    assert!(bed.status.get()["policy_kept_out"].as_str().unwrap().contains("invalid digit"));
    let good = bed.publish(2, Some("9")).await;
    assert_eq!(bed.generate(Some(good), 2, 20 * SECOND).await.unwrap().ids, alone(9, &[1, 2, 3], 5, 2).0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_computed_while_somebody_else_has_the_gate() {
    let gate: ComputeGate = Arc::new(Semaphore::new(1));
    let held = gate.clone().acquire_owned().await.unwrap();
    let bed = bed(Some(gate));
    bed.publish(0, None).await;
    let waiting = bed.generate(None, 3, 20 * SECOND);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(SECOND / 5, &mut waiting).await.is_err());
    drop(held);
    assert_eq!(waiting.await.unwrap().ids.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generator_that_waits_for_the_gate_stops_when_asked() {
    let gate: ComputeGate = Arc::new(Semaphore::new(1));
    let _held = gate.clone().acquire_owned().await.unwrap();
    let bed = bed(Some(gate));
    bed.publish(0, None).await;
    let (asked, ()) = tokio::join!(bed.generate(None, 3, 20 * SECOND), async {
        tokio::time::sleep(SECOND / 10).await;
        bed.shutdown.request(Level::Stopping);
    });
    assert!(asked.is_err());
    tokio::time::timeout(20 * SECOND, bed.end).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_policy_is_still_to_come_does_not_hold_up_the_end() {
    let bed = bed(None);
    bed.publish(0, None).await;
    let never = PolicyId { epoch: 1, step: 1, digest: Digest::of(b"never there") };
    let (asked, ()) = tokio::join!(bed.generate(Some(never), 3, 60 * SECOND), async {
        tokio::time::sleep(SECOND / 10).await;
        bed.shutdown.request(Level::Stopping);
    });
    assert!(asked.is_err());
    tokio::time::timeout(20 * SECOND, bed.end).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_request_is_given_up() {
    let gate: ComputeGate = Arc::new(Semaphore::new(1));
    let held = gate.clone().acquire_owned().await.unwrap();
    let bed = bed(Some(gate));
    bed.publish(0, None).await;
    assert!(matches!(
        bed.generate(None, 100, SECOND / 5).await,
        Err(LinkError::Deadline { .. } | LinkError::Refused { .. })
    ));
    drop(held);
    let kept = bed.generate(None, 3, 20 * SECOND).await.unwrap();
    assert_eq!(kept.ids.len(), 3);
    // The abandoned sequence had 100 tokens to go: the engine is idle long before that.
    for _ in 0..200 {
        let engine = &bed.status.get()["engine"];
        if engine["running"] == 0 && engine["finished"] == 1 {
            return;
        }
        tokio::time::sleep(SECOND / 20).await;
    }
    panic!("the abandoned sequence still runs: {}", bed.status.get());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_thread_is_the_end_of_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let links = local("test", LocalConfig::new(folder.path()));
    let loader: PolicyLoader<u64> = Arc::new(|_, _| panic!("the device is gone"));
    let generator = Generator::new(Fake::new(4), Arc::new(Letters), loader, None, GeneratorConfig::default());
    let context =
        Context { name: "generator".into(), links: links.clone(), shutdown: Shutdown::new(), status: Status::new() };
    let end = tokio::spawn(Box::new(generator).run(context));
    let policy = PolicyId { epoch: 0, step: 0, digest: Digest::of(b"") };
    links
        .put_state_if(
            subjects::POLICY,
            0,
            &PolicyPublished { policy, blob: None, bytes: 0, fingerprint: Vec::new(), kept: Vec::new() },
        )
        .await
        .unwrap();
    let error = end.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("the device is gone"), "{error}");
}
