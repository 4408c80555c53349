//! State, blobs, lease and administration over a real NATS server, which is also killed, wiped and written to behind our back.
#![cfg(unix)]

mod with_server;

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use folgore_actors::{
    Blob, BoxFuture, Level, LinkError, Shutdown, Versioned, Watch, cached,
    nats::{
        Fenced, Holder, Lease, LeaseLost, Limits, Nats, NatsConfig, acquire,
        admin::{self, ensure},
        connect,
        server::LocalServer,
    },
};
use folgore_protocol::{
    Digest, RunName, decode,
    names::{Names, Role},
    subjects,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use with_server::{LONG, becomes_true, join, start};

/// Small stores, and a lease that runs out soon.
fn small() -> Limits {
    Limits { lease_age: Duration::from_secs(2), ..Limits::within(0) }
}

/// Joins `run` and makes its stores.
async fn run(server: &LocalServer, run: &str) -> Nats {
    let nats = join(server, run, "head").await;
    ensure(&nats, &small()).await.expect("stores");
    nats
}

fn value(text: &str) -> Arc<[u8]> {
    text.as_bytes().into()
}

/// The next value of `watch`, as text.
async fn told(watch: &mut Box<dyn Watch>) -> String {
    let seen = timeout(LONG, watch.next()).await.expect("told in time").expect("open");
    String::from_utf8(seen.value.to_vec()).expect("text")
}

async fn silent(watch: &mut Box<dyn Watch>) {
    // Longer than a watch waits before it reads again.
    assert!(timeout(Duration::from_secs(4), watch.next()).await.is_err(), "nothing new");
}

/// A client of nobody's, to do what none of ours would.
async fn stranger(server: &LocalServer) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(async_nats::connect(server.url()).await.expect("a connection"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_created_again_after_it_was_deleted_and_bad_keys_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let nats = run(&server, "keys").await;
    let state = nats.links().state;
    let first = state.put_if("policy", 0, value("one")).await.unwrap();
    let bucket = stranger(&server).await.get_key_value("rl_keys_state").await.unwrap();
    bucket.delete("policy").await.unwrap();
    assert_eq!(state.get("policy").await, Ok(None));
    let found = state.put_if("policy", first, value("two")).await;
    assert_eq!(found, Err(LinkError::Conflict { key: "policy".into(), expected: first, found: 0 }));
    let second = state.put_if("policy", 0, value("two")).await.unwrap();
    assert_eq!(state.get("policy").await, Ok(Some(Versioned { revision: second, value: value("two") })));
    for bad in ["", "a..b", "a b", ">", "*"] {
        assert!(matches!(state.get(bad).await, Err(LinkError::Refused { .. })), "{bad:?}");
        assert!(matches!(state.put_if(bad, 0, value("x")).await, Err(LinkError::Refused { .. })), "{bad:?}");
        assert!(matches!(state.watch(bad).await.err(), Some(LinkError::Refused { .. })), "{bad:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_the_server_and_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path());
    let (head, worker) = (run(&server, "watch").await, join(&server, "watch", "w0").await);
    let (state, mut watch) = (head.links().state, worker.links().state.watch("policy").await.unwrap());
    let mut revision = 0;
    for text in ["a", "b", "c"] {
        revision = state.put_if("policy", revision, value(text)).await.unwrap();
    }
    while told(&mut watch).await != "c" {}

    server.restart(false).unwrap();
    silent(&mut watch).await;
    becomes_true("written after the restart", async || state.put_if("policy", revision, value("d")).await.is_ok())
        .await;
    assert_eq!(told(&mut watch).await, "d");

    // Without the bucket there is trouble that passes.
    server.restart(true).unwrap();
    let error = state.get("policy").await.unwrap_err();
    assert!(matches!(error, LinkError::Deadline { .. }), "{error}");
    becomes_true("restored", async || head.restore().await.is_ok()).await;
    silent(&mut watch).await;
    let found = state.get("policy").await.unwrap().unwrap();
    assert!(found.value == value("d") && found.revision < revision, "revisions begin anew: {found:?}");
    state.put_if("policy", found.revision, value("e")).await.unwrap();
    assert_eq!(told(&mut watch).await, "e");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_lost_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path());
    // The stores are made by somebody else; the head sees them when it looks for the first time.
    run(&server, "wipe").await;
    let nats = join(&server, "wipe", "head").await;
    let links = nats.links();
    let mut digests = Vec::new();
    for n in 0..4_u8 {
        digests.push(links.blob.put(vec![n; 300_000].into()).await.unwrap());
    }
    links.state.put_if("policy", 0, value("served")).await.unwrap();
    links.state.put_if("config", 0, value("card")).await.unwrap();
    assert!(nats.restore().await.unwrap().is_empty(), "nothing is missing");

    server.restart(true).unwrap();
    becomes_true("connected again", async || admin::missing(&nats).await.is_ok_and(|missing| missing.len() == 8)).await;
    let error = links.blob.get(digests[3]).await.unwrap_err();
    assert!(matches!(error, LinkError::Deadline { .. }), "{error}");
    let restored = nats.restore().await.unwrap();
    assert_eq!(restored.stores.len(), 10, "eight stores, two consumers: {:?}", restored.stores);
    assert_eq!(restored.values, ["config", "policy"]);
    assert_eq!(restored.blobs, digests[1..], "the last three");
    for digest in &digests[1..] {
        assert_eq!(Digest::of(&links.blob.get(*digest).await.unwrap()), *digest);
    }
    assert!(matches!(links.blob.get(digests[0]).await, Err(LinkError::Blob { .. })), "too long ago");
    assert_eq!(links.state.get("policy").await.unwrap().unwrap().value, value("served"));
    let jetstream = stranger(&server).await;
    let lease = jetstream.get_stream("KV_rl_wipe_lease").await.unwrap();
    let jobs = jetstream.get_stream("RL_wipe_JOBS").await.unwrap();
    let found = (lease.cached_info().config.max_age, jobs.cached_info().config.max_bytes as u64);
    assert_eq!(found, (small().lease_age, small().jobs), "as they were made");
    assert!(nats.restore().await.unwrap().is_empty(), "and once is enough");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_those_of_their_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path());
    let nats = run(&server, "blobs").await;
    let blob = nats.links().blob;
    let bytes: Arc<[u8]> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let digest = blob.put(bytes.clone()).await.unwrap();
    assert!(blob.get(digest).await.is_ok_and(|got| got == bytes));

    let other = Digest::of(b"other");
    let store = stranger(&server).await.get_object_store("rl_blobs_adapters").await.unwrap();
    store.put(other.hex().as_str(), &mut &b"something"[..]).await.unwrap();
    let error = blob.get(other).await.unwrap_err();
    assert!(matches!(&error, LinkError::Blob { name, .. } if *name == other.hex()), "{error}");
    let gone = blob.get(Digest::of(b"gone")).await.unwrap_err();
    assert!(matches!(gone, LinkError::Blob { .. }), "{gone}");

    // A record whose chunks are gone.
    let chunks = stranger(&server).await.get_stream("OBJ_rl_blobs_adapters").await.unwrap();
    chunks.purge().filter("$O.rl_blobs_adapters.C.*").await.unwrap();
    let error = timeout(LONG, blob.get(digest)).await.expect("an end").unwrap_err();
    assert!(matches!(error, LinkError::Blob { .. }), "{error}");
    blob.delete(digest).await.unwrap();
    assert_eq!(blob.put(bytes.clone()).await, Ok(digest), "and it can be stored again");
    assert!(blob.get(digest).await.is_ok_and(|got| got == bytes));

    server.kill();
    for error in [blob.get(digest).await.unwrap_err(), blob.put(b"x"[..].into()).await.unwrap_err()] {
        assert!(matches!(error, LinkError::Deadline { .. }), "{error}");
    }
}

/// Counts downloads.
struct Counting(Arc<dyn Blob>, AtomicUsize);

impl Blob for Counting {
    fn put(&self, bytes: Arc<[u8]>) -> BoxFuture<'_, Result<Digest, LinkError>> {
        self.0.put(bytes)
    }
    fn get(&self, digest: Digest) -> BoxFuture<'_, Result<Arc<[u8]>, LinkError>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.get(digest)
    }
    fn delete(&self, digest: Digest) -> BoxFuture<'_, Result<(), LinkError>> {
        self.0.delete(digest)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_host_downloads_a_blob_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("server"));
    let nats = run(&server, "host").await;
    let bytes: Arc<[u8]> = vec![7; 3_000_000].into();
    let digest = nats.links().blob.put(bytes.clone()).await.unwrap();
    let counting = Arc::new(Counting(nats.links().blob, AtomicUsize::new(0)));
    let mut getting = JoinSet::new();
    for _ in 0..4 {
        let cache = cached(counting.clone(), dir.path().join("cache"), 4);
        getting.spawn(async move { cache.get(digest).await });
    }
    while let Some(got) = getting.join_next().await {
        assert!(got.unwrap().unwrap() == bytes);
    }
    assert_eq!(counting.1.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_are_made_compared_told_of_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let (nats, other) = (join(&server, "one", "head").await, run(&server, "two").await);
    assert_eq!(admin::missing(&nats).await.unwrap().len(), 7, "all but the bodies, which are every run's");
    assert_eq!(ensure(&nats, &small()).await.unwrap().len(), 9, "seven stores, two consumers");
    assert_eq!(ensure(&nats, &small()).await.unwrap(), Vec::<String>::new());
    let larger = Limits { trajectories: 17 << 20, lease_age: Duration::from_secs(3), ..small() };
    let changes = ensure(&nats, &larger).await.unwrap();
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!(changes[0].contains("KV_rl_one_lease") && changes[0].contains("max_age from 2s to 3s"), "{changes:?}");
    assert!(changes[1].contains("RL_one_TRAJ") && changes[1].contains("to 17825792"), "{changes:?}");
    assert!(admin::missing(&nats).await.unwrap().is_empty());
    assert_eq!(admin::runs(&nats).await.unwrap(), ["one", "two"]);

    let status = admin::status(&nats).await.unwrap();
    assert_eq!((status.policy_revision, status.epoch, status.head.clone()), (None, None, None));
    assert!(status.server.starts_with("2."), "{status:?}");
    assert_eq!(status.stores["RL_one_TRAJ"].max_bytes, Some(17 << 20));
    assert_eq!(status.consumers["RL_one_JOBS/rollout"].waiting, 0);
    let lease = acquire(&nats, Holder::here("head", "box"), 4, |_| {}).await.unwrap();
    let revision = nats.links().state.put_if(subjects::POLICY, 0, value("p")).await.unwrap();
    let status = admin::status(&nats).await.unwrap();
    assert_eq!((status.policy_revision, status.epoch), (Some(revision), Some(5)));
    let head = status.head.clone().expect("a head");
    assert_eq!((head.name.as_str(), head.pid, head.epoch), ("head", std::process::id(), lease.epoch()));
    assert_eq!(serde_json::from_str::<admin::Status>(&serde_json::to_string(&status).unwrap()).unwrap(), status);

    assert_eq!(admin::remove(&nats).await.unwrap().len(), 7);
    assert_eq!(admin::runs(&nats).await.unwrap(), ["two"]);
    assert!(admin::missing(&other).await.unwrap().is_empty(), "the other run is untouched");
    assert_eq!(admin::remove(&other).await.unwrap().len(), 8, "the bodies go with the last run");
    assert!(admin::runs(&nats).await.unwrap().is_empty());
}

async fn lease(nats: &Nats, name: &str) -> Lease {
    timeout(LONG, acquire(nats, Holder::here(name, "box"), 0, |_| {})).await.expect("in time").expect("a lease")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_head_waits_and_knows_for_whom() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let (one, two) = (run(&server, "lease").await, join(&server, "lease", "two").await);
    let first = timeout(LONG, acquire(&one, Holder::here("first", "box"), 6, |_| {})).await.unwrap().unwrap();
    let (epoch, fence, done) = (first.epoch(), first.fence(), Shutdown::new());
    assert_eq!((epoch, fence.check()), (7, Ok(())), "above the floor");
    let keeping = tokio::spawn(first.keep(done.clone()));
    let (waiting, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let second = tokio::spawn({
        let (two, waiting, told) = (two.clone(), waiting.clone(), told.clone());
        async move {
            let on_wait = |holder: &Holder| {
                waiting.fetch_add(1, Ordering::SeqCst);
                told.lock().unwrap().push(holder.name.clone());
            };
            acquire(&two, Holder::here("second", "box"), 0, on_wait).await
        }
    });
    becomes_true("waits", async || waiting.load(Ordering::SeqCst) > 0).await;
    // Longer than the lease lasts: it is renewed.
    sleep(3 * small().lease_age).await;
    assert!(!second.is_finished() && fence.check().is_ok());
    done.request(Level::Stopping);
    assert_eq!(timeout(LONG, keeping).await.unwrap().unwrap(), Ok(()));
    assert_eq!(fence.check(), Err(Fenced::Released));
    let second = timeout(LONG, second).await.expect("in time").unwrap().unwrap();
    assert_eq!((second.epoch(), told.lock().unwrap().as_slice()), (8, &["first".to_owned()][..]));
    let stored = two.links().state.get(subjects::EPOCH).await.unwrap().unwrap();
    assert_eq!(decode::<u32>(&stored.value).unwrap(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_survives_the_server_and_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path());
    let nats = run(&server, "outage").await;
    let (first, done) = (lease(&nats, "first").await, Shutdown::new());
    let (fence, epoch) = (first.fence(), first.epoch());
    let keeping = tokio::spawn(first.keep(done.clone()));
    server.kill();
    becomes_true("stale", async || matches!(fence.check(), Err(Fenced::Stale { .. }))).await;
    server.restart(false).unwrap();
    assert_eq!(fence.confirmed(LONG).await, Ok(()), "held again");
    server.restart(true).unwrap();
    becomes_true("restored", async || nats.restore().await.is_ok()).await;
    becomes_true("the lease is there again", async || {
        let status = admin::status(&nats).await;
        status.is_ok_and(|status| status.epoch == Some(epoch) && status.head.is_some())
    })
    .await;
    assert_eq!(fence.confirmed(LONG).await, Ok(()));
    assert!(!keeping.is_finished());
    // A head that came and went meanwhile has raised the epoch.
    let state = nats.links().state;
    let stored = state.get(subjects::EPOCH).await.unwrap().unwrap();
    state
        .put_if(subjects::EPOCH, stored.revision, folgore_protocol::encode(&(epoch + 3)).unwrap().into())
        .await
        .unwrap();
    let lost = timeout(LONG, keeping).await.unwrap().unwrap().unwrap_err();
    assert_eq!(lost, LeaseLost { by: None, epoch: epoch + 3 });
    assert_eq!(fence.check(), Err(Fenced::Lost(lost)));
}

const HOLDER: &str = "FOLGORE_TEST_HOLDER_OF";

/// Not a test by itself: the process that [`a_paused_head_is_fenced`] pauses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_process() {
    let Ok(url) = std::env::var(HOLDER) else { return };
    let names = Names::new(&RunName::new("paused").expect("a run name")).expect("names");
    let config = NatsConfig::new(url, names, Role::Head, "first").expect("a configuration");
    let nats = connect(config).await.expect("a connection");
    let held = lease(&nats, "first").await;
    let fence = held.fence();
    let keeping = tokio::spawn(held.keep(Shutdown::new()));
    println!("answer: held {:?}", fence.check());
    // A byte asks what the head would be told before its next write.
    let asked = tokio::task::spawn_blocking(|| std::io::stdin().read_exact(&mut [0])).await;
    asked.expect("a task").expect("a byte");
    println!("answer: {}", if fence.check().is_ok() { "may write" } else { "may not write" });
    let lost = timeout(LONG, keeping).await.expect("learns in time").expect("a task").unwrap_err();
    println!("answer: {lost}");
}

struct Paused(Child);

impl Paused {
    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args(["-s", signal, &self.0.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_head_is_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let nats = run(&server, "paused").await;
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder_process", "--nocapture"])
        .env(HOLDER, server.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Paused(child);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut answer = move || {
        let answer = lines.by_ref().map(Result::unwrap).find(|line| line.contains("answer: ")).expect("an answer");
        answer.split("answer: ").last().unwrap_or_default().to_owned()
    };
    assert_eq!(answer(), "held Ok(())");
    child.signal("STOP");
    let second = lease(&nats, "second").await;
    child.0.stdin.as_mut().unwrap().write_all(b"?").unwrap();
    child.signal("CONT");
    assert_eq!(answer(), "may not write");
    let lost = answer();
    assert!(lost.contains("second on box") && lost.contains(&format!("epoch {}", second.epoch())), "{lost}");
    assert_eq!(second.fence().epoch(), second.epoch());
}
