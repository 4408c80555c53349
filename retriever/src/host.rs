//! Runs one [`Retriever`] for many askers: queries that wait are asked once, together with as many others as it is quick for, within
//! bounds.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use folgore_protocol::{Passages, Search};
use serde::Serialize;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use crate::{Retriever, SearchError, cache::Cache};

/// Bounds of a retriever.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Longest wait for an answer.
    pub deadline: Duration,
    /// Queries that may wait or be answered at once; further ones are refused for now.
    pub waiting: usize,
    /// Most queries that are asked together.
    pub batch: usize,
    /// How many such batches are asked at once.
    pub batches: usize,
    /// Answers kept.
    pub cache: usize,
    /// Most bytes of a query that are searched for; the rest is left out.
    pub query_bytes: usize,
    /// Most passages of an answer.
    pub passages: u32,
    /// Most bytes of a passage; the rest is left out.
    pub passage_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            waiting: 1024,
            batch: 256,
            batches: 2,
            cache: 4096,
            query_bytes: 8 << 10,
            passages: 100,
            passage_bytes: 64 << 10,
        }
    }
}

/// What was asked so far.
#[derive(Default)]
pub(crate) struct Counts {
    calls: AtomicU64,
    cached: AtomicU64,
    failures: AtomicU64,
    passages: AtomicU64,
    batches: AtomicU64,
    micros: AtomicU64,
}

/// [`Counts`] at one moment.
#[derive(Serialize)]
pub(crate) struct Shown<'a> {
    retriever: &'a str,
    corpus: Option<String>,
    calls: u64,
    /// Calls answered from what was kept.
    cached: u64,
    failures: u64,
    /// Passages given.
    passages: u64,
    batches: u64,
    /// That calls took, all together.
    seconds: f64,
}

type Key = (String, u32);
type Found = Result<Arc<Passages>, SearchError>;

/// A query on its way, and where its answer is waited for.
struct Asked {
    key: Key,
    reply: oneshot::Sender<Found>,
}

/// The host. Whoever holds it may ask; what is under way ends with it.
pub struct Host {
    retriever: Arc<dyn Retriever>,
    bounds: Bounds,
    queue: mpsc::Sender<Asked>,
    cache: Arc<Mutex<Cache<Key, Arc<Passages>>>>,
    counts: Arc<Counts>,
    _asking: JoinSet<()>,
}

impl Host {
    /// A host of `retriever`; has to be called on a runtime.
    pub fn new(retriever: Arc<dyn Retriever>, bounds: Bounds) -> Self {
        let (queue, waiting) = mpsc::channel(bounds.waiting.max(1));
        let cache = Arc::new(Mutex::new(Cache::new(bounds.cache)));
        let counts = Arc::new(Counts::default());
        let mut asking = JoinSet::new();
        let asker = Asker {
            retriever: retriever.clone(),
            bounds,
            cache: cache.clone(),
            counts: counts.clone(),
            pace: Pace::new(),
        };
        asking.spawn(Arc::new(asker).run(waiting));
        Self { retriever, bounds, queue, cache, counts, _asking: asking }
    }

    /// Answers `search` within the bounds.
    pub async fn search(&self, search: &Search) -> Result<Arc<Passages>, SearchError> {
        let begin = Instant::now();
        let found = self.find(search).await;
        self.counts.calls.fetch_add(1, Relaxed);
        self.counts.micros.fetch_add(begin.elapsed().as_micros() as u64, Relaxed);
        match &found {
            Ok(found) => self.counts.passages.fetch_add(found.passages.len() as u64, Relaxed),
            Err(_) => self.counts.failures.fetch_add(1, Relaxed),
        };
        found
    }

    async fn find(&self, search: &Search) -> Found {
        let bounds = &self.bounds;
        let key = (head(&search.query, bounds.query_bytes).to_owned(), search.top_k.min(bounds.passages));
        if let Some(known) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            self.counts.cached.fetch_add(1, Relaxed);
            return Ok(known);
        }
        let unavailable = |reason: String| SearchError::Unavailable(reason);
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Asked { key, reply }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => unavailable(format!("{} queries wait already", bounds.waiting)),
            mpsc::error::TrySendError::Closed(_) => unavailable("the retriever is gone".into()),
        })?;
        match timeout(bounds.deadline, answer).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(unavailable("the retriever fell over".into())),
            Err(_) => Err(unavailable(format!("no answer within {:.1} s", bounds.deadline.as_secs_f64()))),
        }
    }

    /// What it shows of itself.
    pub(crate) fn shown(&self) -> Shown<'_> {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let c = &self.counts;
        Shown {
            retriever: self.retriever.name(),
            corpus: self.retriever.corpus().map(|digest| digest.short()),
            calls: read(&c.calls),
            cached: read(&c.cached),
            failures: read(&c.failures),
            passages: read(&c.passages),
            batches: read(&c.batches),
            seconds: read(&c.micros) as f64 / 1e6,
        }
    }
}

/// How many queries are asked together.
///
/// As many as wait is best for a retriever that is quick; all of them would fail together for one that needs seconds for each. So it is one
/// at first, twice as many after a call that took little of the deadline, and half after one that took much of it.
struct Pace(AtomicUsize);

impl Pace {
    const LITTLE: u32 = 16;
    const MUCH: u32 = 4;

    fn new() -> Self {
        Self(AtomicUsize::new(1))
    }

    fn together(&self, bounds: Bounds) -> usize {
        self.0.load(Relaxed).clamp(1, bounds.batch.max(1))
    }

    /// Notes that `asked` queries took that long together.
    fn note(&self, asked: usize, took: Duration, bounds: Bounds) {
        let together = self.together(bounds);
        if took > bounds.deadline / Self::MUCH {
            self.0.store(together.min(asked) / 2, Relaxed);
        } else if asked == together && took < bounds.deadline / Self::LITTLE {
            self.0.store(2 * together, Relaxed);
        }
    }
}

/// What asks a retriever.
struct Asker {
    retriever: Arc<dyn Retriever>,
    bounds: Bounds,
    cache: Arc<Mutex<Cache<Key, Arc<Passages>>>>,
    counts: Arc<Counts>,
    pace: Pace,
}

impl Asker {
    /// Asks whatever waits, as often as the bounds allow at once.
    async fn run(self: Arc<Self>, mut waiting: mpsc::Receiver<Asked>) {
        let permits = Arc::new(Semaphore::new(self.bounds.batches.max(1)));
        let mut asking = JoinSet::new();
        loop {
            // first the permit: what comes in until there is one is asked with the rest
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let mut batch = Vec::new();
            if waiting.recv_many(&mut batch, self.bounds.batch.max(1)).await == 0 {
                return;
            }
            let asker = self.clone();
            asking.spawn(async move {
                let _permit = permit;
                asker.answer(batch).await;
            });
            while asking.try_join_next().is_some() {}
        }
    }

    /// Answers `batch`, each different query once, and each as soon as it can be.
    async fn answer(&self, batch: Vec<Asked>) {
        let mut places: HashMap<Key, Vec<oneshot::Sender<Found>>> = HashMap::new();
        let mut queries: Vec<Search> = Vec::new();
        for Asked { key, reply } in batch {
            let replies = places.entry(key).or_insert_with_key(|(query, top_k)| {
                queries.push(Search { query: query.clone(), top_k: *top_k });
                Vec::new()
            });
            replies.push(reply);
        }
        let mut queries = queries.into_iter().peekable();
        while queries.peek().is_some() {
            let place = |search: &Search| places.get(&(search.query.clone(), search.top_k));
            let waited_for =
                |search: &Search| place(search).is_some_and(|of| of.iter().any(|reply| !reply.is_closed()));
            let some: Vec<Search> = queries.by_ref().filter(waited_for).take(self.pace.together(self.bounds)).collect();
            let found = self.ask(&some).await;
            for (search, found) in some.into_iter().zip(found) {
                let found =
                    found.and_then(|found| bounded(found, search.top_k, self.bounds.passage_bytes)).map(Arc::new);
                let key = (search.query, search.top_k);
                let replies = places.remove(&key).unwrap_or_default();
                if let Ok(found) = &found {
                    self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(key, found.clone());
                }
                for reply in replies {
                    // whoever has stopped waiting does not need it
                    let _ = reply.send(found.clone());
                }
            }
        }
    }

    /// Asks `queries` together.
    async fn ask(&self, queries: &[Search]) -> Vec<Result<Passages, SearchError>> {
        if queries.is_empty() {
            return Vec::new();
        }
        self.counts.batches.fetch_add(1, Relaxed);
        let Self { retriever, bounds, .. } = self;
        let begin = tokio::time::Instant::now();
        let found = timeout(bounds.deadline, retriever.search(queries)).await;
        self.pace.note(queries.len(), begin.elapsed(), *bounds);
        let all_failed = |reason: String| vec![Err(SearchError::Unavailable(reason)); queries.len()];
        match found {
            Ok(found) if found.len() == queries.len() => found,
            Ok(found) => all_failed(format!("expected {} answers, got {}", queries.len(), found.len())),
            Err(_) => all_failed(format!("no answer within {:.1} s", bounds.deadline.as_secs_f64())),
        }
    }
}

/// `found`, cut to its bounds. A score that is no number is a fault of the retriever.
fn bounded(mut found: Passages, top_k: u32, most: usize) -> Result<Passages, SearchError> {
    found.passages.truncate(top_k as usize);
    for passage in &mut found.passages {
        if !passage.score.is_finite() {
            let (id, score) = (&passage.id, passage.score);
            return Err(SearchError::Refused(format!("passage {id:?}: expected a finite score, got {score}")));
        }
        for text in [&mut passage.title, &mut passage.text] {
            let cut = head(text, most).len();
            text.truncate(cut);
        }
    }
    Ok(found)
}

/// The first `most` bytes of `text`, cut at a character.
fn head(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
