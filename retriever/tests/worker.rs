//! The worker around retrievers that behave well and badly.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use folgore_actors::{BoxFuture, Context, Links, LocalConfig, Service, Shutdown, Status, local};
use folgore_protocol::{Digest, Passage, Passages, Search, subjects};
use folgore_retriever::{Bounds, Retriever, RetrieverWorker, SearchError};
use tokio::sync::Semaphore;

/// What it does with a query is what the query says; it remembers how it was asked.
#[derive(Default)]
struct Odd {
    batches: Mutex<Vec<Vec<Search>>>,
    asked: AtomicUsize,
    gate: Option<Semaphore>,
    /// How long it takes for a query.
    each: Duration,
}

impl Retriever for Odd {
    fn name(&self) -> &str {
        "odd"
    }

    fn corpus(&self) -> Option<Digest> {
        Some(Digest::of(b"odd"))
    }

    fn search<'a>(&'a self, queries: &'a [Search]) -> BoxFuture<'a, Vec<Result<Passages, SearchError>>> {
        Box::pin(async move {
            self.asked.fetch_add(1, SeqCst);
            self.batches.lock().unwrap().push(queries.to_vec());
            tokio::time::sleep(self.each * queries.len() as u32).await;
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            let answer = |search: &Search| {
                let passage =
                    |text: String, score| Passage { id: search.query.clone(), title: "t".into(), text, score };
                match search.query.as_str() {
                    "refused" => Err(SearchError::Refused("no".into())),
                    "nan" => Ok(Passages { passages: vec![passage(String::new(), f32::NAN)] }),
                    "long" => Ok(Passages { passages: vec![passage("é".repeat(1000), 1.0)] }),
                    "many" => Ok(Passages { passages: vec![passage(String::new(), 1.0); 1000] }),
                    _ => Ok(Passages { passages: vec![passage(search.top_k.to_string(), 1.0)] }),
                }
            };
            match queries[0].query.as_str() {
                "slow" => std::future::pending().await,
                "panic" => panic!("on purpose"),
                "short" => Vec::new(),
                _ => queries.iter().map(answer).collect(),
            }
        })
    }
}

struct Running {
    links: Links,
    context: Context,
    _folder: tempfile::TempDir,
}

fn start(retriever: Arc<Odd>, bounds: Bounds) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let links = local("test", LocalConfig::new(folder.path()));
    let context =
        Context { name: "retriever".into(), links: links.clone(), shutdown: Shutdown::new(), status: Status::new() };
    tokio::spawn(Box::new(RetrieverWorker::new(retriever, bounds)).run(context.clone()));
    Running { links, context, _folder: folder }
}

impl Running {
    async fn ask(&self, query: &str) -> Result<Passages, String> {
        let search = Search { query: query.to_owned(), top_k: 7 };
        let asked = self.links.call_when_served(subjects::SEARCH, &search, query, Duration::from_secs(20));
        asked.await.map_err(|e| e.to_string())
    }

    fn count(&self, name: &str) -> u64 {
        self.context.status.get()[name].as_u64().unwrap()
    }
}

fn bounds() -> Bounds {
    Bounds {
        deadline: Duration::from_millis(300),
        passages: 5,
        passage_bytes: 101,
        query_bytes: 9,
        ..Bounds::default()
    }
}

#[tokio::test]
async fn answers_keep_their_bounds_and_faults_are_reasons() {
    let running = start(Arc::default(), bounds());
    let plain = running.ask("a").await.unwrap();
    assert_eq!(
        (plain.passages[0].id.as_str(), plain.passages[0].text.as_str()),
        ("a", "5"),
        "no more than 5 are asked"
    );
    assert_eq!(running.ask("many").await.unwrap().passages.len(), 5);
    assert_eq!(running.ask("long").await.unwrap().passages[0].text, "é".repeat(50));
    assert_eq!(running.ask("ééééé").await.unwrap().passages[0].id, "éééé", "a query is cut at a character");
    for (query, reason) in [
        ("refused", "search: no"),
        ("nan", "finite score"),
        ("slow", "no answer within 0.3 s"),
        ("short", "expected 1 answers, got 0"),
        ("panic", "fell over"),
    ] {
        let error = running.ask(query).await.unwrap_err();
        assert!(error.contains(reason), "{query}: {error}");
    }
    // a retriever that fell over once goes on
    assert!(running.ask("b").await.is_ok());
    assert_eq!((running.count("calls"), running.count("failures"), running.count("passages")), (10, 5, 9));
}

#[tokio::test]
async fn equal_queries_are_asked_once_and_answers_are_kept() {
    let odd = Arc::new(Odd::default());
    let running = start(odd.clone(), Bounds { cache: 64, ..Bounds::default() });
    for _ in 0..5 {
        running.ask("a").await.unwrap();
    }
    assert_eq!((odd.asked.load(SeqCst), running.count("cached")), (1, 4));
    assert!(running.ask("refused").await.is_err() && running.ask("refused").await.is_err());
    assert_eq!(odd.asked.load(SeqCst), 3, "a failure is not kept");
}

#[tokio::test]
async fn what_waits_is_asked_together() {
    let odd = Arc::new(Odd { gate: Some(Semaphore::new(0)), ..Odd::default() });
    let running = Arc::new(start(odd.clone(), Bounds { batches: 1, cache: 0, ..Bounds::default() }));
    let mut asking = tokio::task::JoinSet::new();
    let ask = |asking: &mut tokio::task::JoinSet<_>, query: &'static str| {
        let running = running.clone();
        asking.spawn(async move { (query, running.ask(query).await.unwrap().passages[0].id.clone()) });
    };
    ask(&mut asking, "first");
    while odd.asked.load(SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // the retriever is busy: these wait, and those that are equal are asked once
    for query in ["a", "b", "a", "c", "a"] {
        ask(&mut asking, query);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    odd.gate.as_ref().unwrap().add_permits(100);
    while let Some(answer) = asking.join_next().await {
        let (query, found) = answer.unwrap();
        assert_eq!(query, found);
    }
    let mut asked: Vec<String> = odd.batches.lock().unwrap().iter().flatten().map(|s| s.query.clone()).collect();
    asked.sort();
    let distinct: Vec<&str> = asked.iter().map(String::as_str).collect();
    assert_eq!(distinct, ["a", "b", "c", "first"], "{:?}", odd.batches.lock().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_slow_retriever_answers_what_it_can_within_the_deadline() {
    let ask = |each: Duration| async move {
        let odd = Arc::new(Odd { each, ..Odd::default() });
        let bounds = Bounds { deadline: Duration::from_secs(10), batches: 1, ..Bounds::default() };
        let running = Arc::new(start(odd.clone(), bounds));
        let mut asking = tokio::task::JoinSet::new();
        for i in 0..100 {
            let running = running.clone();
            asking.spawn(async move { running.ask(&i.to_string()).await });
        }
        let answers = asking.join_all().await;
        let largest = odd.batches.lock().unwrap().iter().map(Vec::len).max().unwrap();
        (answers.iter().filter(|answer| answer.is_ok()).count(), largest)
    };
    // one by one there is time for nine or ten
    let (answered, largest) = ask(Duration::from_secs(1)).await;
    assert!((7..=10).contains(&answered) && largest <= 4, "{answered} answers, {largest} together");
    let (answered, largest) = ask(Duration::from_millis(5)).await;
    assert!(answered == 100 && largest >= 16, "{answered} answers, {largest} together");
}
