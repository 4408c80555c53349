//! Search over 50,000 chunks of about 100 words and 384 numbers: queries a second under `thrpt`.
//!
//! How long the indexes took, and which share of the exact ten best each way finds, stands in lines that begin with `#`. Two variables
//! change what is measured, for comparisons (`tests/peers/compare_search.py`): `FOLGORE_CORPUS`, a folder of `make_corpus.py`, in
//! place of a corpus made here, and `FOLGORE_ENCODER`, the folder of an encoder, whose passages a second are measured too.

use std::{
    collections::{HashMap, HashSet},
    env, fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use folgore_protocol::Digest;
use folgore_retriever::{
    Fusion, Hit, Hybrid, Ranking,
    encode::{EncodeError, Encoder, Hashed, Sentence},
    lexical::{Bm25, Bm25Settings},
    vectors::{GraphSettings, VectorIndex, VectorRanking, Vectors},
};
use serde_json::Value;

const CHUNKS: usize = 50_000;
const QUERIES: usize = 1000;
const DIM: usize = 384;
const TOP: usize = 10;
/// Hits of each ranking that are fused.
const CANDIDATES: usize = 50;
/// Candidates of a graph search that are compared.
const EF: [usize; 3] = [16, 64, 128];

struct Corpus {
    texts: Vec<String>,
    queries: Vec<String>,
    vectors: Vec<Vec<f32>>,
    query_vectors: Vec<Vec<f32>>,
}

struct Dice(u64);

impl Dice {
    /// From 0 to 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    fn below(&mut self, n: usize) -> usize {
        ((self.next() * n as f32) as usize).min(n - 1)
    }

    /// A word of 60,000, about as often as in a language.
    fn word(&mut self) -> String {
        let rank = (60_000f32.powf(self.next()) - 1.0) as u32;
        format!("w{:x}", rank.wrapping_mul(2654435761))
    }

    /// Near the centre of a topic on a manifold of 48 dimensions, as texts are near their topic.
    fn point(&mut self, topic: usize) -> Vec<f32> {
        let mut centre = Dice(topic as u64 * 7919 + 1);
        let latent: Vec<f32> = (0..48).map(|_| (centre.next() - 0.5) + 1.5 * (self.next() - 0.5)).collect();
        let mut map = Dice(5);
        let number = |x: &mut Dice| x.next() - 0.5;
        let mut point: Vec<f32> = (0..DIM)
            .map(|_| latent.iter().map(|z| z * number(&mut map)).sum::<f32>() / 2.0 + 0.6 * number(self))
            .collect();
        let length = point.iter().map(|x| x * x).sum::<f32>().sqrt();
        point.iter_mut().for_each(|x| *x /= length);
        point
    }
}

fn made() -> Corpus {
    let mut dice = Dice(7);
    let texts: Vec<String> =
        (0..CHUNKS).map(|_| (0..50 + dice.below(100)).map(|_| dice.word() + " ").collect()).collect();
    let queries = (0..QUERIES)
        .map(|i| texts[i * 7].split(' ').step_by(9).take(8).map(|w| w.to_owned() + " ").collect())
        .collect();
    let vectors: Vec<Vec<f32>> = (0..CHUNKS).map(|i| dice.point(i % 400)).collect();
    let query_vectors = (0..QUERIES).map(|i| dice.point(i * 7 % 400)).collect();
    Corpus { texts, queries, vectors, query_vectors }
}

/// The rows of a file of numpy, f32 in two dimensions.
fn npy(path: &Path) -> Vec<Vec<f32>> {
    let bytes = fs::read(path).expect("a file of numpy");
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let numbers: Vec<f32> = bytes[start..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    numbers.chunks(DIM).map(<[f32]>::to_vec).collect()
}

fn read(folder: &Path) -> Corpus {
    let texts = |name: &str| -> Vec<String> {
        let file = fs::read_to_string(folder.join(name)).expect("a file of lines");
        let text = |line: &str| {
            serde_json::from_str::<Value>(line).expect("JSON")["text"].as_str().expect("a text").to_owned()
        };
        file.lines().map(text).collect()
    };
    Corpus {
        texts: texts("corpus.jsonl"),
        queries: texts("queries.jsonl"),
        vectors: npy(&folder.join("base.f32.npy")),
        query_vectors: npy(&folder.join("query.f32.npy")),
    }
}

/// Gives queries the vectors that were made for them.
struct Given(HashMap<String, Vec<f32>>);

impl Encoder for Given {
    fn name(&self) -> &str {
        "given"
    }

    fn dim(&self) -> usize {
        DIM
    }

    fn digest(&self) -> Digest {
        Digest::of(b"given")
    }

    fn max_tokens(&self) -> usize {
        512
    }

    fn count_tokens(&self, text: &str) -> usize {
        text.split(' ').count()
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError> {
        Ok(texts.iter().map(|text| self.0[*text].clone()).collect())
    }
}

fn all(_: u32) -> bool {
    true
}

/// Measures `ask` for one query at a time, and for 32 together.
fn measure(c: &mut Criterion, name: &str, queries: usize, mut ask: impl FnMut(Range<usize>)) {
    for together in [1, 32] {
        let mut group = c.benchmark_group(name);
        group
            .throughput(Throughput::Elements(together as u64))
            .sample_size(10)
            .measurement_time(Duration::from_secs(2));
        let mut at = 0;
        group.bench_function(format!("{together} at a time"), |b| {
            b.iter(|| {
                at = if at + together > queries { 0 } else { at };
                ask(at..at + together);
                at += together;
            });
        });
        group.finish();
    }
}

fn built<T>(name: &str, build: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let value = build();
    println!("# {name}: {:.2} s", start.elapsed().as_secs_f64());
    value
}

fn vector_index(corpus: &Corpus, settings: GraphSettings) -> VectorIndex {
    let index = VectorIndex::new(DIM, settings).expect("settings");
    let batch: Vec<(u32, &[f32])> = (0..).zip(corpus.vectors.iter().map(Vec::as_slice)).collect();
    index.add(&batch).expect("vectors");
    index
}

fn recall(found: &[Vec<Hit>], exact: &[Vec<Hit>]) -> f64 {
    let share = |(found, exact): (&Vec<Hit>, &Vec<Hit>)| {
        let exact: HashSet<u32> = exact.iter().map(|hit| hit.chunk).collect();
        found.iter().filter(|hit| exact.contains(&hit.chunk)).count() as f64 / TOP as f64
    };
    found.iter().zip(exact).map(share).sum::<f64>() / exact.len() as f64
}

/// Whether the words on the command line ask for what begins with `name`: building a graph for nothing takes a minute.
fn wanted(name: &str) -> bool {
    let filters: Vec<String> = env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    filters.is_empty() || filters.iter().any(|filter| filter.starts_with(name) || name.starts_with(filter.as_str()))
}

/// The graph of `FOLGORE_GRAPH`, or one that is made, and kept there for the next time.
fn with_graph(corpus: &Corpus) -> impl Fn(usize) -> VectorIndex {
    let settings = |ef_search| GraphSettings { from: 0, ef_search, ..GraphSettings::default() };
    let kept = env::var_os("FOLGORE_GRAPH").map(PathBuf::from);
    let made = kept.is_none().then(|| tempfile::tempdir().expect("a folder"));
    let folder = kept.unwrap_or_else(|| made.as_ref().expect("made").path().to_owned());
    if !folder.join("vectors.bin").exists() {
        built("graph", || vector_index(corpus, settings(1)).save(&folder)).expect("saved");
    }
    move |ef_search| {
        let _made = &made;
        built("graph opened", || VectorIndex::open(&folder, settings(ef_search))).expect("opened")
    }
}

fn search(c: &mut Criterion) {
    if !["bm25", "vectors", "hybrid"].into_iter().any(wanted) {
        return;
    }
    let corpus = env::var("FOLGORE_CORPUS").map_or_else(|_| made(), |folder| read(Path::new(&folder)));
    let queries: Vec<&str> = corpus.queries.iter().map(String::as_str).collect();
    let bm25 = Arc::new(Bm25::new(Bm25Settings::default()).expect("settings"));
    if wanted("bm25") || wanted("hybrid") {
        built("bm25, tokens and index", || (0..).zip(&corpus.texts).for_each(|(chunk, text)| bm25.add(chunk, text)));
    }
    measure(c, "bm25", queries.len(), |range| {
        bm25.search(&queries[range], TOP, &all).expect("words");
    });

    if !wanted("vectors") && !wanted("hybrid") {
        return;
    }
    let asked: Vec<&[f32]> = corpus.query_vectors.iter().map(Vec::as_slice).collect();
    let exact = Arc::new(built("exact index", || vector_index(&corpus, GraphSettings::never())));
    measure(c, "vectors exact", asked.len(), |range| {
        exact.search(&asked[range], TOP, &all).expect("vectors");
    });
    let given: HashMap<_, _> = corpus.queries.iter().cloned().zip(corpus.query_vectors.iter().cloned()).collect();
    let given = Arc::new(Given(given));
    let hybrid = |vectors: Arc<VectorIndex>| {
        let vectors = Arc::new(VectorRanking::new(given.clone(), vectors));
        Hybrid::new(vec![(bm25.clone(), 1.0), (vectors, 1.0)], Fusion::default(), CANDIDATES)
    };
    let ask = |hybrid: &Hybrid, range: Range<usize>| hybrid.search(&queries[range], TOP, &all).expect("both");
    let both = hybrid(exact.clone());
    measure(c, "hybrid exact", queries.len(), |range| {
        ask(&both, range);
    });

    if !wanted("vectors graph") && !wanted("hybrid graph") {
        return;
    }
    let graph = with_graph(&corpus);
    let truth = exact.search(&asked, TOP, &all).expect("vectors");
    for ef_search in EF.into_iter().filter(|_| wanted("vectors graph")) {
        let index = graph(ef_search);
        let found = index.search(&asked, TOP, &all).expect("vectors");
        println!("# graph ef {ef_search}: recall {:.4}", recall(&found, &truth));
        measure(c, &format!("vectors graph ef {ef_search}"), asked.len(), |range| {
            index.search(&asked[range], TOP, &all).expect("vectors");
        });
    }
    if wanted("hybrid graph") {
        let truth = ask(&both, 0..queries.len());
        let both = hybrid(Arc::new(graph(GraphSettings::default().ef_search)));
        println!("# hybrid graph: recall {:.4}", recall(&ask(&both, 0..queries.len()), &truth));
        measure(c, "hybrid graph", queries.len(), |range| {
            ask(&both, range);
        });
    }
}

fn encode(c: &mut Criterion) {
    if !wanted("encode") {
        return;
    }
    let mut encoders: Vec<Box<dyn Encoder>> = vec![Box::new(Hashed::default())];
    if let Ok(folder) = env::var("FOLGORE_ENCODER") {
        encoders.push(Box::new(Sentence::open(Path::new(&folder)).expect("an encoder")));
    }
    // English of any kind, cut by the encoder: 254 tokens and two special ones.
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("a text");
    let words = text.split_whitespace().collect::<Vec<_>>();
    let passages: Vec<String> =
        (0..32).map(|i| words.iter().cycle().skip(i * 97).take(256).copied().collect::<Vec<_>>().join(" ")).collect();
    let passages: Vec<&str> = passages.iter().map(String::as_str).collect();
    for encoder in encoders {
        let mut group = c.benchmark_group(format!("encode with {}", encoder.name()));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(8))
            .throughput(Throughput::Elements(passages.len() as u64));
        group.bench_function("32 passages of 256 tokens", |b| b.iter(|| encoder.encode(&passages).expect("vectors")));
        group.throughput(Throughput::Elements(1)).measurement_time(Duration::from_secs(2));
        group.bench_function("a query", |b| b.iter(|| encoder.encode(&["what is the capital of the largest country"])));
        group.finish();
    }
}

criterion_group!(benches, search, encode);
criterion_main!(benches);
