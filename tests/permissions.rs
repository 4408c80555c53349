//! What each role may do on a server that `folgore nats init` set up, with TLS on: everything that it needs, through the
//! links, and nothing else, tried with a client of our own against the real server.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event};
use folgore_actors::{
    Shutdown,
    nats::{
        Holder, Identity, Limits, Nats, NatsConfig, acquire, admin, connect,
        server::{LocalServer, SERVER_VARIABLE, ServerOptions, nats_server_for_tests},
    },
};
use folgore_protocol::{
    Heartbeat, Names, Role, RunName, Search,
    subjects::{CONFIG, EPOCH, HEARTBEATS, HELLO, JOBS, POLICY, REWARD, SEARCH, TRAJECTORIES},
};
use serde_json::{Value, json};
use support::{folder, folgore, refused, run};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
const RUN: &str = "demo";
/// One identity of each role, and their names; another rollout worker is called `other`.
const FLEET: [(Role, &str); 5] = [
    (Role::Head, "head"),
    (Role::Rollout, "w1"),
    (Role::Reward, "r1"),
    (Role::Retriever, "s1"),
    (Role::Console, "eye"),
];

/// A server with the files that the commands made, and the folders of its identities.
struct Fleet {
    dir: TempDir,
    server: LocalServer,
}

impl Fleet {
    fn start() -> Self {
        let dir = folder();
        files(dir.path());
        let options = ServerOptions {
            config_file: Some(dir.path().join("nats/server.conf")),
            ..ServerOptions::new(dir.path().join("nats/data"))
        };
        let server = LocalServer::start_with(nats_server_for_tests().unwrap(), options).unwrap();
        Self { dir, server }
    }

    fn identity(&self, name: &str) -> PathBuf {
        identity(self.dir.path(), name)
    }

    async fn join(&self, role: Role, name: &str) -> Nats {
        let mut config = NatsConfig::new(self.server.url(), names(), role, name).unwrap();
        config.identity = Some(Identity::read(&self.identity(name)).unwrap());
        config.request_timeout = Duration::from_secs(10);
        connect(config).await.unwrap()
    }

    /// The head, with the stores of the run made.
    async fn head(&self) -> Nats {
        let head = self.join(Role::Head, "head").await;
        let made = admin::ensure(&head, &Limits::within(1 << 29)).await.unwrap();
        assert!(!made.is_empty());
        assert_eq!(admin::ensure(&head, &Limits::within(1 << 29)).await.unwrap(), Vec::<String>::new());
        head
    }
}

/// Makes the files of a server and its identities in `at`, by the commands.
fn files(at: &Path) {
    let command = |args: &[&str]| {
        let mut command = folgore([["nats"].as_slice(), args].concat());
        command.current_dir(at).env(SERVER_VARIABLE, nats_server_for_tests().unwrap());
        run(command).well().stdout
    };
    let said = command(&["init", "--max-file-store", "2GB"]);
    assert!(said.contains("server.conf is good"), "{said}");
    assert!(command(&["init"]).contains("nothing changed"));
    for (role, name) in FLEET.into_iter().skip(1).chain([(Role::Rollout, "other")]) {
        command(&["add-worker", name, "--role", role.name()]);
    }
}

fn identity(at: &Path, name: &str) -> PathBuf {
    at.join("nats/identities").join(name)
}

fn names() -> Names {
    Names::new(&RunName::new(RUN).unwrap()).unwrap()
}

fn search(query: &str) -> Search {
    Search { query: query.into(), top_k: 1 }
}

fn heartbeat(role: Role, name: &str) -> Heartbeat {
    Heartbeat {
        role,
        worker: name.into(),
        host: "here".into(),
        pid: 1,
        build: "0".into(),
        state: "working".into(),
        slots: 1,
        active: 1,
        policy: None,
        status: Value::Null,
    }
}

/// A client without our links, and what the server complained to it about.
struct Raw {
    client: Client,
    told: Arc<Mutex<Vec<String>>>,
}

/// How a client of the identity in `folder` connects, with its certificate and the key of `seed_of`.
fn options(folder: &Path, seed_of: &Path) -> ConnectOptions {
    anonymous(folder).nkey(seed(seed_of))
}

fn seed(folder: &Path) -> String {
    fs::read_to_string(folder.join("nkey.seed")).unwrap().trim().to_owned()
}

fn anonymous(folder: &Path) -> ConnectOptions {
    trusting(folder).add_client_certificate(folder.join("cert.pem"), folder.join("key.pem"))
}

fn trusting(folder: &Path) -> ConnectOptions {
    ConnectOptions::new().add_root_certificates(folder.join("ca.pem")).require_tls(true).tls_first()
}

impl Raw {
    async fn connect(fleet: &Fleet, name: &str) -> Self {
        let (folder, told) = (fleet.identity(name), Arc::new(Mutex::new(Vec::new())));
        let listener = told.clone();
        let options =
            options(&folder, &folder).custom_inbox_prefix(format!("_INBOX.{name}")).event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    listener.lock().unwrap().push(error.to_string());
                }
                std::future::ready(())
            });
        Self { client: options.connect(fleet.server.url()).await.unwrap(), told }
    }

    /// Whether the server refuses to let it publish to `subject`.
    async fn publish_is_refused(&self, subject: &str, body: &Value, expected: bool) -> bool {
        let reply = self.client.new_inbox();
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.client.publish_with_reply(subject.to_owned(), reply, body.into()).await.unwrap();
        self.complained(&format!("Publish to \"{subject}\""), expected).await
    }

    /// Whether the server refuses to let it hear `subject`.
    async fn subscribe_is_refused(&self, subject: &str, queue: Option<&str>, expected: bool) -> bool {
        let subject_owned = subject.to_owned();
        let heard = match queue {
            Some(queue) => self.client.queue_subscribe(subject_owned, queue.to_owned()).await,
            None => self.client.subscribe(subject_owned).await,
        };
        let _heard = heard.unwrap();
        self.complained(&format!("Subscription to \"{subject}\""), expected).await
    }

    /// Whether the server complains about `what`. Its complaint comes before the answer to a later request; the client tells
    /// of it by another task, hence one that is expected is waited for.
    async fn complained(&self, what: &str, expected: bool) -> bool {
        let there = || self.told.lock().unwrap().iter().any(|told| told.contains(what));
        self.barrier().await;
        let until = Instant::now() + if expected { LONG } else { 10 * LOOK };
        while !there() && Instant::now() < until {
            sleep(LOOK).await;
        }
        there()
    }

    /// Everything sent before has been looked at by the server.
    async fn barrier(&self) {
        let request = format!("$JS.API.STREAM.INFO.{}", names().jobs_stream());
        timeout(LONG, self.client.request(request, "".into())).await.unwrap().unwrap();
    }
}

/// Something that a process may try: what it is, the subject, the body, and the roles that may.
type Attempt = (&'static str, String, Value, &'static [Role]);

const ANYBODY: &[Role] = &Role::ALL;
const WORKERS: &[Role] = &[Role::Head, Role::Rollout, Role::Reward, Role::Retriever];
const HEAD: &[Role] = &[Role::Head];
const ROLLOUT: &[Role] = &[Role::Rollout];
const NOBODY: &[Role] = &[];

/// What is tried by publishing, as the identity `me` in `role`.
fn publishing(role: Role, me: &str) -> Vec<Attempt> {
    let n = names();
    let (jobs, trajectories) = (n.jobs_stream(), n.trajectories_stream());
    let key = |bucket: &str, key: &str| format!("$KV.{bucket}.{key}");
    let (state, lease, adapters) = (n.state_bucket(), n.lease_bucket(), n.adapters_bucket());
    let bodies = n.bodies_bucket();
    let api = |rest: String| format!("$JS.API.{rest}");
    let consumer = |stream: &str, config: Value| json!({ "stream_name": stream, "config": config, "action": "" });
    let elsewhere = if role == Role::Reward { Role::Console } else { Role::Reward };
    vec![
        ("publish a job", n.rollout_jobs(), json!({}), HEAD),
        ("hand in a trajectory", n.trajectories_by(me), json!({}), ROLLOUT),
        ("hand in a trajectory as another", n.trajectories_by("other"), json!({}), NOBODY),
        ("show oneself", n.heartbeat(role, me), json!({}), ANYBODY),
        ("show oneself as another", n.heartbeat(role, "other"), json!({}), NOBODY),
        ("show oneself in another role", n.heartbeat(elsewhere, me), json!({}), NOBODY),
        ("tell of progress", n.events_of(role), json!({}), ANYBODY),
        ("tell of progress as another role", n.events_of(elsewhere), json!({}), NOBODY),
        ("reject a trajectory", n.dead_letters("traj"), json!({}), HEAD),
        ("ask to be let in", n.request(HELLO), json!({}), WORKERS),
        ("ask for scores", n.request(REWARD), json!({}), &[Role::Head, Role::Rollout]),
        ("ask for passages", n.request(SEARCH), json!({}), &[Role::Head, Role::Rollout]),
        ("ask replay", n.request("replay"), json!({}), NOBODY),
        ("write the policy", key(&state, POLICY), json!(1), HEAD),
        ("write the configuration", key(&state, "config"), json!(1), HEAD),
        ("write the epoch", key(&state, EPOCH), json!(1), HEAD),
        ("take the lease", key(&lease, "head"), json!(1), HEAD),
        ("write a chunk of an adapter", format!("$O.{adapters}.C.x"), json!(1), HEAD),
        ("replace an adapter", format!("$O.{adapters}.M.x"), json!(1), HEAD),
        ("store a body", format!("$O.{}.C.x", n.bodies_bucket()), json!(1), &[Role::Head, Role::Rollout]),
        ("answer somebody", "_INBOX.nobody.x".into(), json!(1), &[Role::Head, Role::Reward, Role::Retriever]),
        ("create a stream", api("STREAM.CREATE.mine".into()), json!({}), HEAD),
        ("change a stream", api("STREAM.UPDATE.mine".into()), json!({}), HEAD),
        ("delete a stream", api("STREAM.DELETE.mine".into()), Value::Null, HEAD),
        ("purge a stream", api("STREAM.PURGE.mine".into()), Value::Null, HEAD),
        ("read a job as stored", api(format!("STREAM.MSG.GET.{jobs}")), json!({ "seq": 1 }), HEAD),
        ("delete a message", api("STREAM.MSG.DELETE.mine".into()), json!({ "seq": 1 }), HEAD),
        ("read the policy", api(format!("DIRECT.GET.KV_{state}.$KV.{state}.{POLICY}")), Value::Null, ANYBODY),
        (
            "read who leads",
            api(format!("DIRECT.GET.KV_{lease}.$KV.{lease}.head")),
            Value::Null,
            &[Role::Head, Role::Console],
        ),
        (
            "read chunks of an adapter",
            api(format!("DIRECT.GET.OBJ_{adapters}")),
            json!({ "seq": 1 }),
            &[Role::Head, Role::Rollout],
        ),
        (
            "read chunks of a body",
            api(format!("DIRECT.GET.OBJ_{bodies}")),
            json!({ "seq": 1 }),
            &[Role::Head, Role::Rollout, Role::Reward],
        ),
        (
            "consume trajectories by a consumer of one's own",
            api(format!("CONSUMER.CREATE.{trajectories}.mine.{}", n.trajectories_by("nobody"))),
            consumer(&trajectories, json!({ "name": "mine", "filter_subject": n.trajectories_by("nobody") })),
            HEAD,
        ),
        (
            "consume values, for somebody else to get",
            api(format!("CONSUMER.CREATE.KV_{state}")),
            consumer("x", json!({ "deliver_subject": n.rollout_jobs() })),
            HEAD,
        ),
        ("make a durable consumer", api(format!("CONSUMER.DURABLE.CREATE.{jobs}.mine")), json!({}), NOBODY),
        ("delete a consumer", api(format!("CONSUMER.DELETE.{trajectories}.mine")), Value::Null, HEAD),
        ("pause a consumer", api(format!("CONSUMER.PAUSE.{jobs}.rollout")), json!({}), NOBODY),
        (
            "pull trajectories",
            api(format!("CONSUMER.MSG.NEXT.{trajectories}.replay")),
            json!({ "batch": 1, "no_wait": true }),
            HEAD,
        ),
        (
            "pull jobs",
            api(format!("CONSUMER.MSG.NEXT.{jobs}.rollout")),
            json!({ "batch": 1, "no_wait": true }),
            ROLLOUT,
        ),
        ("settle somebody's trajectory", format!("$JS.ACK.{trajectories}.replay.1.1.1.1.0"), json!("+ACK"), HEAD),
        ("settle a job", format!("$JS.ACK.{jobs}.rollout.1.1.1.1.0"), json!("+ACK"), ROLLOUT),
        ("list the account's limits", api("INFO".into()), Value::Null, HEAD),
        ("speak to the system", "$SYS.REQ.SERVER.PING".into(), Value::Null, NOBODY),
    ]
}

/// What is tried by listening: what it is, the subject, the queue group, and the roles that may.
fn listening(me: &str) -> Vec<(&'static str, String, Option<&'static str>, &'static [Role])> {
    let n = names();
    vec![
        ("hear everything", ">".into(), None, NOBODY),
        ("hear the run", format!("{}.>", n.prefix()), None, NOBODY),
        ("hear all requests to the server", "$JS.API.>".into(), None, NOBODY),
        ("hear the system", "$SYS.>".into(), None, NOBODY),
        ("hear jobs", n.rollout_jobs(), None, NOBODY),
        ("hear trajectories", n.trajectories(), None, NOBODY),
        ("hear one's own answers", format!("_INBOX.{me}.x"), None, ANYBODY),
        ("hear another's answers", "_INBOX.other.x".into(), None, NOBODY),
        ("hear everybody's answers", "_INBOX.>".into(), None, NOBODY),
        ("hear heartbeats", n.heartbeats(), None, &[Role::Head, Role::Console]),
        ("hear progress", n.events(), None, &[Role::Head, Role::Console]),
        ("follow the policy", format!("$KV.{}.{POLICY}", n.state_bucket()), None, WORKERS),
        ("let workers in", n.request(HELLO), Some(HELLO), HEAD),
        ("give scores", n.request(REWARD), Some(REWARD), &[Role::Reward]),
        ("give passages", n.request(SEARCH), Some(SEARCH), &[Role::Retriever]),
        ("hear what others are asked", n.request(REWARD), None, NOBODY),
        ("hear rejected messages", n.dead_letters("*"), None, NOBODY),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_may_do_more_than_the_table_says() {
    let fleet = Fleet::start();
    let head = fleet.head().await;
    let mut differs = Vec::new();
    let mut tried = 0;
    for (role, me) in FLEET {
        let raw = Raw::connect(&fleet, me).await;
        for (what, subject, body, may) in publishing(role, me) {
            let expected = !may.contains(&role);
            let got = raw.publish_is_refused(&subject, &body, expected).await;
            tried += 1;
            if got != expected {
                differs.push((role, what, subject, expected));
            }
        }
        for (what, subject, queue, may) in listening(me) {
            let expected = !may.contains(&role);
            let got = raw.subscribe_is_refused(&subject, queue, expected).await;
            tried += 1;
            if got != expected {
                differs.push((role, what, subject, expected));
            }
        }
    }
    let lines: Vec<String> = differs
        .iter()
        .map(|(role, what, subject, expected)| {
            format!("{role}: {what} ({subject}) {}", if *expected { "was taken" } else { "was refused" })
        })
        .collect();
    assert!(lines.is_empty(), "{} of {tried} differ:\n{}", lines.len(), lines.join("\n"));
    // what the head's own attempts left behind: one job, no trajectory of another
    let stores = admin::status(&head).await.unwrap().stores;
    assert_eq!(
        (stores["RL_demo_JOBS"].messages, stores["RL_demo_TRAJ"].messages),
        (1, 1),
        "one of the head, one of w1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_role_needs_works_over_the_links() {
    let fleet = Fleet::start();
    let head_nats = fleet.head().await;
    let head = head_nats.links();
    let [w1, r1, s1] = [(Role::Rollout, "w1"), (Role::Reward, "r1"), (Role::Retriever, "s1")];
    let [w1, r1, s1] = [fleet.join(w1.0, w1.1).await, fleet.join(r1.0, r1.1).await, fleet.join(s1.0, s1.1).await];
    let worker = w1.links();

    // the head leads, stores and publishes
    let lease = acquire(&head_nats, Holder::here("head", "here"), 0, |other| panic!("{other}")).await.unwrap();
    assert!(lease.epoch() > 0);
    tokio::spawn(lease.keep(Shutdown::new()));
    let adapter: Arc<[u8]> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let digest = head.blob.put(adapter.clone()).await.unwrap();
    head.put_state_if(CONFIG, 0, &"first").await.unwrap();

    // everybody finds the run, and follows it
    for nats in [&w1, &r1, &s1] {
        assert_eq!(admin::missing(nats).await.unwrap(), Vec::<String>::new());
        let links = nats.links();
        let mut latest = links.watch_state::<String>(CONFIG).await.unwrap();
        assert_eq!(latest.next().await.unwrap().unwrap().value, "first");
        let at = links.get_state::<String>(CONFIG).await.unwrap().unwrap().revision;
        head.put_state_if(CONFIG, at, &"second").await.unwrap();
        assert_eq!(timeout(LONG, latest.next()).await.unwrap().unwrap().unwrap().value, "second");
        let at = links.get_state::<String>(CONFIG).await.unwrap().unwrap().revision;
        head.put_state_if(CONFIG, at, &"first").await.unwrap();
        assert!(links.put_state_if(CONFIG, at, &"mine").await.is_err());
    }
    assert!(worker.blob.get(digest).await.unwrap() == adapter);

    // requests are answered
    let echo = |request: Search| async move { Ok::<_, String>(request) };
    let _let_in = head.serve_typed(HELLO, 1, echo).await.unwrap();
    let length = |request: Search| async move { Ok::<_, String>(search(&request.query.len().to_string())) };
    let _scores = r1.links().serve_typed(REWARD, 1, length).await.unwrap();
    let _passages = s1.links().serve_typed(SEARCH, 1, echo).await.unwrap();
    for kind in [HELLO, SEARCH] {
        let answer: Search = worker.call_when_served(kind, &search(kind), kind, LONG).await.unwrap();
        assert_eq!(answer, search(kind));
    }
    for size in [10, 2 << 20] {
        let asked = search(&"x".repeat(size));
        let answer: Search = worker.call_when_served(REWARD, &asked, "scores", LONG).await.unwrap();
        assert_eq!(answer, search(&size.to_string()));
    }

    // a job goes out, trajectories of all sizes come in under the name of their sender, and heartbeats are heard
    let mut heartbeats = head.subscribe_events::<Heartbeat>(HEARTBEATS).await.unwrap();
    // a round trip, after which the server knows of the subscription
    assert_eq!(admin::missing(&head_nats).await.unwrap(), Vec::<String>::new());
    worker.publish_event(HEARTBEATS, &heartbeat(Role::Rollout, "w1"), "w1").await.unwrap();
    assert!(timeout(LONG, heartbeats.next()).await.unwrap().unwrap().is_ok());
    head.publish_job(JOBS, &search("job"), "job").await.unwrap();
    let pulled = worker.pull_jobs::<Search>(JOBS, 1, LONG).await.unwrap();
    pulled.jobs[0].progress().await.unwrap();
    for size in [10, 2 << 20] {
        worker.publish_job(TRAJECTORIES, &search(&"x".repeat(size)), &size.to_string()).await.unwrap();
    }
    pulled.jobs[0].ack().await.unwrap();
    for _ in 0..2 {
        let pulled = head.pull_jobs::<Search>(TRAJECTORIES, 1, LONG).await.unwrap();
        assert_eq!(pulled.jobs[0].sender.as_deref(), Some("w1"));
        pulled.jobs[0].ack().await.unwrap();
    }
    assert_eq!(worker.queue.depth(JOBS).await.unwrap(), (0, 0));

    // the refused writes above, and nothing else, were complained about
    for (nats, expected) in [(&head_nats, 0), (&w1, 1), (&r1, 1), (&s1, 1)] {
        assert_eq!(nats.faults().server_errors, expected, "{:?}: {:?}", nats.config().name, nats.faults());
    }
    the_commands_look_and_remove(&fleet).await;
}

/// `status` as somebody who looks on, `rm` as the head.
async fn the_commands_look_and_remove(fleet: &Fleet) {
    let (url, eye, head) = (fleet.server.url(), fleet.identity("eye"), fleet.identity("head"));
    let command = |args: &[&str], identity: &Path| {
        let mut command = folgore(["nats"]);
        command.args(args).args(["--nats", &url]).arg("--identity").arg(identity);
        command
    };
    let said = run(command(&["status", "--json"], &eye)).well().stdout;
    let said: Value = serde_json::from_str(&said).unwrap();
    let status = &said["runs"][0];
    assert_eq!((status["run"].as_str(), status["head"]["name"].as_str()), (Some(RUN), Some("head")), "{status}");
    assert_eq!(status["missing"], json!([]));
    refused(command(&["rm", RUN], &head), &[RUN, "RL_demo_JOBS", "--yes"]);
    let removed = run(command(&["rm", RUN, "--yes"], &head)).well().stdout;
    assert!(removed.contains("deleted RL_demo_JOBS"), "{removed}");
    refused(command(&["rm", RUN, "--yes"], &head), &[RUN, "nothing of it"]);
    assert!(run(command(&["status"], &head)).well().stdout.contains("no runs"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_not_let_in() {
    let fleet = Fleet::start();
    let abroad = folder();
    files(abroad.path());
    let (w1, stranger) = (fleet.identity("w1"), identity(abroad.path(), "w1"));
    let url = fleet.server.url();
    let attempts = [
        ("without a key", anonymous(&w1)),
        ("with a key that the server does not know", options(&w1, &stranger)),
        (
            "with a certificate of another authority",
            trusting(&w1).add_client_certificate(stranger.join("cert.pem"), stranger.join("key.pem")).nkey(seed(&w1)),
        ),
        ("without a certificate", trusting(&w1).nkey(seed(&w1))),
        ("without TLS", ConnectOptions::new().nkey(seed(&w1))),
        ("by a server of another authority", options(&stranger, &w1)),
    ];
    for (what, options) in attempts {
        let connected = timeout(LONG, options.connection_timeout(Duration::from_secs(10)).connect(&url)).await;
        assert!(!matches!(connected, Ok(Ok(_))), "{what}: let in");
    }
    options(&w1, &w1).connect(&url).await.expect("the same with the right ones");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_hears_of_new_and_ended_identities() {
    let fleet = Fleet::start();
    let kept = fleet.dir.path().join("old");
    let w1 = fleet.identity("w1");
    fs::create_dir(&kept).unwrap();
    for file in fs::read_dir(&w1).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), kept.join(file.file_name())).unwrap();
    }
    let command = |args: &[&str]| {
        let mut command = folgore(["nats"]);
        command.args(args).current_dir(fleet.dir.path());
        command
    };
    refused(command(&["add-worker", "w1", "--role", "rollout"]), &["w1", "--replace"]);
    refused(command(&["add-worker", "w.1", "--role", "rollout"]), &["w.1", "A-Z"]);
    let said = run(command(&["add-worker", "w1", "--role", "rollout", "--replace"])).well().stdout;
    assert!(said.contains("read its file again"), "{said}");
    // the signal is on its way
    let url = fleet.server.url();
    let until = Instant::now() + LONG;
    while options(&w1, &w1).connect(&url).await.is_err() {
        assert!(Instant::now() < until, "the new identity is not let in");
        sleep(LOOK).await;
    }
    assert!(options(&kept, &kept).connect(&url).await.is_err(), "the old key ended");
    fs::remove_dir_all(&w1).unwrap();
    let said = run(command(&["init"])).well().stdout;
    assert!(said.contains("changed users.conf"), "{said}");
    let other = fleet.identity("other");
    options(&other, &other).connect(&url).await.expect("the others stay");
}
