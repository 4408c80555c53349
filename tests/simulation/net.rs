//! The network of a simulated run: local links whose queues prove their senders and can be wiped, behind seeded faults.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use folgore_actors::{
    BoxFuture, Delivery, FaultPlan, LinkError, Links, LocalConfig, Message, Queue, Settle, State, Versioned, Watch,
    faulty, local,
};
use folgore_protocol::{seed, subjects};
use tokio::time::{Instant, sleep};

/// How often the head looks into the queues of the workers.
const LOOK: Duration = Duration::from_millis(40);
/// How long somebody waits for a network that is cut.
const GIVE_UP: Duration = Duration::from_millis(1500);

/// What all processes of one run are connected to.
#[derive(Clone)]
pub struct Net {
    /// Without faults: what is inside one process.
    pub plain: Links,
    queue: Arc<Wiped>,
    seed: u64,
    /// True if the network is bad.
    rough: bool,
}

impl Net {
    pub fn new(seed: u64, rough: bool, folder: &std::path::Path, senders: Vec<String>) -> Self {
        let config = LocalConfig {
            queue_bound: 64,
            redeliver_after: Duration::from_secs(8),
            ..LocalConfig::new(folder.join("blobs"))
        };
        let plain = local("sim", config);
        let queue = Arc::new(Wiped {
            inner: plain.queue.clone(),
            wipes: AtomicU64::new(0),
            down_until: Mutex::new(Instant::now()),
            senders,
        });
        Self { plain, queue, seed, rough }
    }

    /// Loses everything that is in a queue.
    pub fn wipe(&self) {
        self.queue.wipes.fetch_add(1, Relaxed);
    }

    /// From now on no queue and no state crosses the network, for `length`: nothing is handed over, settled, written or heard
    /// of. What is told of progress does, because the log listens to it.
    pub fn cut(&self, length: Duration) {
        *self.queue.down_until.lock().unwrap() = Instant::now() + length;
    }

    /// The links of the head: replay and reward are asked inside the process, all else crosses the network.
    pub fn head(&self, life: u64) -> Links {
        let through = self.through(seed::mix(&[self.seed, 1, life]), Arc::new(AsHead(self.queue.clone())), 0);
        Links { ask: self.plain.ask.clone(), ..through }
    }

    /// The links of the worker `name`, number `place` of all.
    pub fn worker(&self, name: &str, place: u64, life: u64) -> Links {
        let queue = Arc::new(AsWorker { queue: self.queue.clone(), name: name.to_owned() });
        self.through(seed::mix(&[self.seed, 2, place, life]), queue, place)
    }

    fn through(&self, dice: u64, queue: Arc<dyn Queue>, place: u64) -> Links {
        let state = Arc::new(Apart {
            inner: self.plain.state.clone(),
            queue: self.queue.clone(),
            late: Duration::from_millis(3 + 2 * place),
        });
        let plan = FaultPlan { loss: 0.1, ..FaultPlan::rough(dice) };
        let plan = if self.rough { plan } else { FaultPlan::none(dice) };
        faulty(Links { queue, state, ..self.plain.clone() }, plan)
    }
}

/// Queues that can be wiped: what was in them stays behind under a name that nobody reads any more.
struct Wiped {
    inner: Arc<dyn Queue>,
    wipes: AtomicU64,
    /// Until then the network is cut.
    down_until: Mutex<Instant>,
    senders: Vec<String>,
}

impl Wiped {
    /// What a caller hears while the network is cut: nothing, until it gives up.
    async fn reached(&self, subject: &str) -> Result<(), LinkError> {
        if Instant::now() >= *self.down_until.lock().unwrap() {
            return Ok(());
        }
        sleep(GIVE_UP).await;
        Err(LinkError::Deadline { subject: subject.to_owned(), waited_ms: GIVE_UP.as_millis() as u64 })
    }

    fn name(&self, subject: &str, sender: &str) -> String {
        format!("{subject}/{sender}/{}", self.wipes.load(Relaxed))
    }

    /// `delivery` as whoever took it over the network has it: to settle it, the network has to be there.
    fn over(self: &Arc<Self>, subject: &str, delivery: Delivery) -> Delivery {
        let settle = Afar { inner: delivery.settle, queue: self.clone(), subject: subject.to_owned() };
        Delivery { settle: Box::new(settle), ..delivery }
    }
}

/// Settles over the network.
struct Afar {
    inner: Box<dyn Settle>,
    queue: Arc<Wiped>,
    subject: String,
}

impl Afar {
    fn settle<'a>(&'a self, settling: BoxFuture<'a, Result<(), LinkError>>) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            self.queue.reached(&self.subject).await?;
            settling.await
        })
    }
}

impl Settle for Afar {
    fn ack(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        self.settle(self.inner.ack())
    }

    fn nak(&self, delay: Duration) -> BoxFuture<'_, Result<(), LinkError>> {
        self.settle(self.inner.nak(delay))
    }

    fn term(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        self.settle(self.inner.term())
    }

    fn progress(&self) -> BoxFuture<'_, Result<(), LinkError>> {
        self.settle(self.inner.progress())
    }
}

/// As the head sees the queues: it reads the trajectories of everybody, and knows whose they are.
struct AsHead(Arc<Wiped>);

impl AsHead {
    async fn pull_from_all(&self, max: usize) -> Result<Vec<Delivery>, LinkError> {
        let mut all = Vec::new();
        for sender in &self.0.senders {
            let name = self.0.name(subjects::TRAJECTORIES, sender);
            let deliveries = self.0.inner.pull(&name, max - all.len(), Duration::ZERO).await?;
            let proven = |d| Delivery { sender: Some(sender.clone()), ..self.0.over(subjects::TRAJECTORIES, d) };
            all.extend(deliveries.into_iter().map(proven));
            if all.len() == max {
                break;
            }
        }
        Ok(all)
    }
}

impl Queue for AsHead {
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            self.0.reached(subject).await?;
            self.0.inner.publish(&self.0.name(subject, ""), message).await
        })
    }

    fn pull<'a>(
        &'a self,
        subject: &'a str,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Delivery>, LinkError>> {
        Box::pin(async move {
            assert_eq!(subject, subjects::TRAJECTORIES, "the head works off trajectories only");
            let until = Instant::now() + wait;
            loop {
                let deliveries = match self.0.reached(subject).await {
                    Ok(()) => self.pull_from_all(max).await?,
                    Err(_) => Vec::new(),
                };
                if !deliveries.is_empty() || Instant::now() >= until {
                    return Ok(deliveries);
                }
                sleep(LOOK).await;
            }
        })
    }

    fn depth<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<(usize, usize), LinkError>> {
        Box::pin(async move {
            self.0.reached(subject).await?;
            if subject != subjects::TRAJECTORIES {
                return self.0.inner.depth(&self.0.name(subject, "")).await;
            }
            let (mut waiting, mut held) = (0, 0);
            for sender in &self.0.senders {
                let depth = self.0.inner.depth(&self.0.name(subject, sender)).await?;
                (waiting, held) = (waiting + depth.0, held + depth.1);
            }
            Ok((waiting, held))
        })
    }
}

/// As the worker `name` sees the queues: what it publishes bears its name, whatever it writes into it.
struct AsWorker {
    queue: Arc<Wiped>,
    name: String,
}

impl Queue for AsWorker {
    fn publish<'a>(&'a self, subject: &'a str, message: Message) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            self.queue.reached(subject).await?;
            self.queue.inner.publish(&self.queue.name(subject, &self.name), message).await
        })
    }

    fn pull<'a>(
        &'a self,
        subject: &'a str,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Delivery>, LinkError>> {
        Box::pin(async move {
            if self.queue.reached(subject).await.is_err() {
                return Ok(Vec::new());
            }
            let taken = self.queue.inner.pull(&self.queue.name(subject, ""), max, wait).await?;
            Ok(taken.into_iter().map(|delivery| self.queue.over(subject, delivery)).collect())
        })
    }

    fn depth<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<(usize, usize), LinkError>> {
        Box::pin(async move {
            self.queue.reached(subject).await?;
            self.queue.inner.depth(&self.queue.name(subject, "")).await
        })
    }
}

/// The state as it is heard on one machine: a little later than on the others, each by a time of its own. So who hears of a
/// policy first follows from the schedule, and not from the order in which a runtime wakes tasks.
struct Apart {
    inner: Arc<dyn State>,
    queue: Arc<Wiped>,
    late: Duration,
}

impl State for Apart {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, LinkError>> {
        Box::pin(async move {
            self.queue.reached(key).await?;
            self.inner.get(key).await
        })
    }

    fn put_if<'a>(&'a self, key: &'a str, expected: u64, value: Arc<[u8]>) -> BoxFuture<'a, Result<u64, LinkError>> {
        Box::pin(async move {
            self.queue.reached(key).await?;
            self.inner.put_if(key, expected, value).await
        })
    }

    fn watch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Box<dyn Watch>, LinkError>> {
        Box::pin(async move {
            let inner = self.inner.watch(key).await?;
            let (queue, key) = (self.queue.clone(), key.to_owned());
            Ok(Box::new(Late { inner, queue, key, late: self.late, heard: None }) as Box<dyn Watch>)
        })
    }
}

struct Late {
    inner: Box<dyn Watch>,
    queue: Arc<Wiped>,
    key: String,
    late: Duration,
    /// On its way to a reader, who may leave and come back.
    heard: Option<Versioned>,
}

impl Watch for Late {
    fn next(&mut self) -> BoxFuture<'_, Option<Versioned>> {
        Box::pin(async move {
            if self.heard.is_none() {
                self.heard = self.inner.next().await;
            }
            while self.queue.reached(&self.key).await.is_err() {}
            sleep(self.late).await;
            self.heard.take()
        })
    }
}
