//! Indexes ranked by words, by vectors and by both, looked at again; and vectors that lag behind, are of another encoder, or fail.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use folgore_protocol::{Digest, Search};
use folgore_retriever::{
    By, Document, Fusion, Index, IndexError, Kind, Plan, Retriever, SearchError, Weights,
    encode::{EncodeError, Encoder, Hashed, Sentence},
    encoding,
    lexical::Bm25Settings,
    rerank::{self, Reranker},
    store::{Batch, EncoderRow, Filter, Store},
    vectors::{GraphSettings, keep_graph},
};

fn document(id: &str, text: &str) -> Document {
    let metadata = BTreeMap::from([("path".to_owned(), format!("docs/{id}"))]);
    Document { id: id.into(), title: String::new(), text: text.into(), kind: Kind::Prose, metadata }
}

fn documents() -> Vec<Document> {
    [
        ("kazakhstan", "Kazakhstan is a country in Asia. Its capital is Astana."),
        ("frogs", "Tree frogs eat insects and live in forests."),
        ("retrieval", "Documents are retrieved by the retriever."),
        ("capital", "Capital is money that is put to work."),
    ]
    .map(|(id, text)| document(id, text))
    .into()
}

fn hashed() -> Arc<dyn Encoder> {
    Arc::new(Hashed::default())
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures/bert-tiny").join(name)
}

fn ids(index: &Index, query: &str, top_k: usize) -> Vec<String> {
    index.find(query, top_k).unwrap().into_iter().map(|(chunk, _)| chunk.document).collect()
}

fn told<T>(made: Result<T, IndexError>) -> String {
    made.err().expect("an error").to_string()
}

/// Puts documents into the store in `folder`, and makes vectors by `encoder`.
fn fill(folder: &Path, encoder: Option<&Arc<dyn Encoder>>, documents: &[Document]) -> u64 {
    let chunker = encoding::chunker(encoder, None, None).unwrap();
    let store = Store::open(folder, chunker.settings()).unwrap();
    store.set_encoder(encoder.map(|e| EncoderRow::of("named", &**e)).as_ref()).unwrap();
    let mut batch = Batch::default();
    documents.iter().for_each(|document| batch.put("", document.clone(), chunker.chunks(document)));
    store.apply(batch).unwrap();
    encoder.map_or(0, |encoder| encoding::encode(&store, &**encoder, &mut |_, _| ()).unwrap())
}

#[test]
fn words_vectors_and_both_find_what_each_can() {
    let index = |by| Index::in_memory("test", documents(), &Plan { by, ..Plan::hybrid(hashed()) }).unwrap();
    let (words, vectors, both) = (index(By::Words), index(By::Vectors), index(By::Both));
    // a misspelt name has no word in common with anything
    assert!(ids(&words, "Kazakstan", 1).is_empty());
    assert_eq!(ids(&vectors, "Kazakstan", 1), ["kazakhstan"]);
    assert_eq!(ids(&both, "Kazakstan", 1), ["kazakhstan"]);
    assert_eq!(ids(&both, "capital of Kazakhstan", 1), ["kazakhstan"]);
    assert_eq!(ids(&vectors, "capital", 9).len(), 4, "vectors rank all that there is");
    // nothing is to be seen in it: no chunk is nearer than another
    assert!(ids(&vectors, " ?! ", 9).is_empty() && ids(&both, "", 9).is_empty());
    let digests = [words, vectors, both].map(|index| index.corpus().unwrap());
    assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
}

#[test]
fn each_setting_that_moves_a_passage_moves_the_digest() {
    let digest = |plan: &Plan| Index::in_memory("test", documents(), plan).unwrap().corpus().unwrap();
    let plan = Plan::hybrid(hashed());
    let plans = [
        plan.clone(),
        Plan { fusion: Fusion::Weighted, ..plan.clone() },
        Plan { weights: Weights { words: 0.5, vectors: 1.0 }, ..plan.clone() },
        Plan { candidates: 10, ..plan.clone() },
        Plan { bm25: Bm25Settings { k1: 1.2, ..Bm25Settings::default() }, ..plan.clone() },
        Plan { reranker: Some(rerank::open(&fixture("cross")).unwrap()), ..plan.clone() },
        Plan { reranker: Some(rerank::open(&fixture("late")).unwrap()), ..plan.clone() },
        Plan { encoder: Some(Arc::new(Hashed::new(64))), ..plan.clone() },
    ];
    let mut digests: Vec<String> = plans.iter().map(|plan| digest(plan).hex()).collect();
    assert_eq!(digests[0], digest(&plan).hex());
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), plans.len());
    let none = Weights { words: 0.0, vectors: 0.0 };
    assert!(told(Index::in_memory("test", documents(), &Plan { weights: none, ..plan })).contains("weights 0 and 0"));
}

#[test]
fn the_best_are_looked_at_again_as_deep_as_asked() {
    /// Likes what mentions frogs; remembers what it read.
    #[derive(Default)]
    struct Frogs(Mutex<Vec<usize>>);
    impl Reranker for Frogs {
        fn name(&self) -> &str {
            "frogs"
        }
        fn digest(&self) -> Digest {
            Digest::of(b"frogs")
        }
        fn scores(&self, query: &str, passages: &[&str]) -> Result<Vec<f32>, EncodeError> {
            self.0.lock().unwrap().push(passages.len());
            let score = if query == "nonsense" { f32::NAN } else { 1.0 };
            Ok(passages.iter().map(|text| if text.contains("frogs") { score } else { -1.0 }).collect())
        }
    }
    let frogs = Arc::new(Frogs::default());
    let plan =
        |candidates| Plan { by: By::Vectors, reranker: Some(frogs.clone()), candidates, ..Plan::hybrid(hashed()) };
    let deep = Index::in_memory("test", documents(), &plan(4)).unwrap();
    assert_eq!(ids(&deep, "capital", 2)[0], "frogs");
    let shallow = Index::in_memory("test", documents(), &plan(1)).unwrap();
    assert_eq!(ids(&shallow, "Kazakhstan", 1), ["kazakhstan"]);
    assert_eq!(*frogs.0.lock().unwrap(), [4, 1]);
    assert_eq!(ids(&shallow, "Kazakhstan", 4)[0], "frogs", "as many as are asked for are looked at");
    assert!(
        matches!(deep.find("nonsense", 1), Err(SearchError::Refused(why)) if why.contains("frogs: a score is NaN"))
    );
}

#[test]
fn models_of_other_software_encode_and_rerank() {
    let encoder: Arc<dyn Encoder> = Arc::new(Sentence::open(&fixture("sentence-mean")).unwrap());
    let chunker = encoding::chunker(Some(&encoder), None, None).unwrap();
    assert_eq!(chunker.settings().max_tokens, encoder.passage_tokens() / 4 * 3);
    let seen = encoder.passage_tokens();
    let refused = encoding::chunker(Some(&encoder), Some(seen + 1), None).err().unwrap().to_string();
    assert!(refused.contains("sentence-mean") && refused.contains(&seen.to_string()), "{refused}");
    let cut = chunker.chunks(&document("long", &"Many words stand in this sentence. ".repeat(40)));
    assert!(cut.len() > 5, "{}", cut.len());

    for reranker in ["cross", "late"] {
        let reranker = rerank::open(&fixture(reranker)).unwrap();
        let plan = Plan { reranker: Some(reranker.clone()), ..Plan::hybrid(encoder.clone()) };
        let index = Index::in_memory("test", documents(), &plan).unwrap();
        let found = index.find("the capital of Kazakhstan", 4).unwrap();
        // as the model itself has it
        let texts: Vec<&str> = found.iter().map(|(chunk, _)| chunk.text.as_str()).collect();
        let scores = reranker.scores("the capital of Kazakhstan", &texts).unwrap();
        assert_eq!(found.iter().map(|(_, score)| *score).collect::<Vec<_>>(), scores);
        assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    }
    let error = rerank::open(&fixture("sentence-mean")).err().unwrap().to_string();
    assert!(error.contains("classifier.weight") && error.contains("neither"), "{error}");
}

#[test]
fn vectors_follow_the_chunks_and_only_what_lacks_is_encoded() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = hashed();
    let plan = Plan::hybrid(encoder.clone());
    let all = documents();
    assert_eq!(fill(folder.path(), Some(&encoder), &all[..3]), 3);
    assert_eq!(fill(folder.path(), Some(&encoder), &all), 1);
    let open = |plan: &Plan| Index::open(folder.path(), plan, None);
    let digest = open(&plan).unwrap().corpus();
    assert_eq!(ids(&open(&plan).unwrap(), "Kazakstan", 1), ["kazakhstan"]);
    assert_eq!(digest, Index::in_memory("elsewhere", all.clone(), &plan).unwrap().corpus());

    // a changed document loses its vector with its chunks, in the same transaction
    let chunker = encoding::chunker(None, None, None).unwrap();
    let store = Store::open(folder.path(), chunker.settings()).unwrap();
    let changed = document("frogs", "Toads are no frogs.");
    let mut batch = Batch::default();
    batch.put("", changed.clone(), chunker.chunks(&changed));
    store.apply(batch).unwrap();
    drop(store);
    let behind = told(open(&plan));
    assert!(behind.contains("1 of 4 chunks have no vector yet") && behind.contains("index again"), "{behind}");
    assert_eq!(ids(&open(&Plan::default()).unwrap(), "toads", 1), ["frogs"], "words are there");
    assert_eq!(fill(folder.path(), Some(&encoder), &[]), 1);
    assert_eq!(ids(&open(&plan).unwrap(), "toad", 1), ["frogs"]);

    let filter = Filter::default().with("path=docs/c*").unwrap();
    let index = Index::open(folder.path(), &plan, Some(&filter)).unwrap();
    assert_eq!(ids(&index, "toad", 9), ["capital"]);
}

#[test]
fn another_encoder_is_refused_by_name_and_makes_vectors_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (encoder, other): (_, Arc<dyn Encoder>) = (hashed(), Arc::new(Hashed::new(64)));
    fill(folder.path(), None, &documents());
    let open = |plan: &Plan| Index::open(folder.path(), plan, None);
    assert!(told(open(&Plan::hybrid(encoder.clone()))).contains("it has no vectors"));
    // no word is read again: it cuts as an index without an encoder does
    assert_eq!(fill(folder.path(), Some(&encoder), &[]), 4);
    let refused = told(open(&Plan::hybrid(other.clone())));
    assert!(
        refused.contains("named (") && refused.contains("512 numbers") && refused.contains("64 numbers"),
        "{refused}"
    );
    assert!(told(open(&Plan { encoder: None, ..Plan::hybrid(other.clone()) })).contains("needs the encoder"));
    assert_eq!(fill(folder.path(), Some(&other), &[]), 4);
    open(&Plan::hybrid(other)).unwrap();
}

#[test]
fn a_graph_lies_beside_the_store_and_is_that_of_its_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let graph = GraphSettings { from: 50, ..GraphSettings::default() };
    let encoder = hashed();
    let plan = Plan { by: By::Vectors, graph, ..Plan::hybrid(encoder.clone()) };
    let many = |range: std::ops::Range<u32>| -> Vec<Document> {
        range.map(|n| document(&format!("d{n}"), &format!("Number {} is {} here.", n * 7919, n * n * 31))).collect()
    };
    let keep = || {
        keep_graph(&Store::open(folder.path(), encoding::chunker(None, None, None).unwrap().settings()).unwrap(), graph)
    };
    let open = || Index::open(folder.path(), &plan, None);
    fill(folder.path(), Some(&encoder), &many(0..40));
    assert!(!keep().unwrap(), "too few");
    open().unwrap();
    fill(folder.path(), Some(&encoder), &many(40..80));
    assert!(told(open()).contains("the graph of its vectors cannot be read"), "cut off before it was made");
    assert!(keep().unwrap());
    let digest = open().unwrap().corpus();
    assert_eq!(digest, open().unwrap().corpus(), "two processes search through one graph");
    assert_eq!(open().unwrap().find("Number 79190", 9).unwrap().len(), 9);
    assert!(keep().unwrap());
    assert_eq!(digest, open().unwrap().corpus(), "nothing changed");

    fill(folder.path(), Some(&encoder), &many(80..90));
    assert!(told(open()).contains("is not of these vectors"));
    assert!(keep().unwrap());
    assert_eq!(open().unwrap().find("Number 673115", 9).unwrap().len(), 9);
    assert_ne!(digest, open().unwrap().corpus());
    let store = Store::open(folder.path(), encoding::chunker(None, None, None).unwrap().settings()).unwrap();
    (0..60).for_each(|n| drop(store.remove(&format!("d{n}")).unwrap()));
    drop(store);
    assert!(!keep().unwrap() && !folder.path().join("vectors").exists(), "too few again");
    assert_eq!(ids(&open().unwrap(), "673115", 1), ["d85"]);
    assert!(fs::exists(folder.path().join("corpus.redb")).unwrap());
}

/// Encodes as hashed words do, but for one text.
struct Choosy(Hashed);

impl Encoder for Choosy {
    fn name(&self) -> &str {
        "choosy"
    }
    fn dim(&self) -> usize {
        self.0.dim()
    }
    fn digest(&self) -> Digest {
        self.0.digest()
    }
    fn max_tokens(&self) -> usize {
        self.0.max_tokens()
    }
    fn count_tokens(&self, text: &str) -> usize {
        self.0.count_tokens(text)
    }
    fn counter(&self) -> String {
        self.0.counter()
    }
    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError> {
        match texts.contains(&"no") {
            true => Err(EncodeError { encoder: "choosy".into(), what: "it will not".into() }),
            false => self.0.encode(texts),
        }
    }
}

#[tokio::test]
async fn an_encoder_that_fails_is_an_error_and_costs_no_other_query_its_answer() {
    let encoder: Arc<dyn Encoder> = Arc::new(Choosy(Hashed::default()));
    let index = Index::in_memory("test", documents(), &Plan::hybrid(encoder)).unwrap();
    let ask = |query: &str, top_k| Search { query: query.into(), top_k };
    let answers = index.search(&[ask("Kazakstan", 1), ask("no", 1), ask("frog", 2), ask("frog", 1)]).await;
    let first = |i: usize| answers[i].as_ref().unwrap().passages[0].id.clone();
    assert_eq!([first(0), first(2), first(3)], ["kazakhstan", "frogs", "frogs"]);
    assert_eq!(answers[2].as_ref().unwrap().passages.len(), 2);
    let refused = answers[1].as_ref().unwrap_err();
    assert!(matches!(refused, SearchError::Refused(why) if why.contains("choosy: it will not")), "{refused}");
    let no = vec![document("no", "no")];
    assert!(
        told(Index::in_memory("test", no, &Plan::hybrid(Arc::new(Choosy(Hashed::default()))))).contains("it will not")
    );
}
