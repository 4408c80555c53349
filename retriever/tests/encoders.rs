//! Encoders and rerankers beside the software that their models come from: what `tests/parity/make_encoders.py` wrote.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use folgore_retriever::{
    encode::{Encoder, Sentence},
    rerank::{CrossEncoder, LateInteraction, Reranker},
};
use serde::Deserialize;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures/bert-tiny").join(name)
}

#[derive(Deserialize)]
struct Vectors {
    texts: Vec<String>,
    vectors: Vec<Vec<f32>>,
    queries: Option<Vec<Vec<f32>>>,
    passages: Option<Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Scores {
    query: String,
    passages: Vec<String>,
    scores: Vec<f32>,
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn strings(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// The smallest cosine between vectors and those expected; all have length 1.
fn least_cosine(got: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    for vector in got {
        assert!((dot(vector, vector) - 1.0).abs() < 1e-5);
    }
    got.iter().zip(expected).map(|(a, b)| dot(a, b) / dot(b, b).sqrt()).fold(f64::INFINITY, f64::min)
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    for name in ["sentence-mean", "sentence-cls"] {
        let expected: Vectors = read(&folder(name).join("expected.json"));
        let encoder = Sentence::open(&folder(name)).unwrap();
        assert_eq!((encoder.dim(), encoder.name(), encoder.max_tokens()), (24, name, 48));
        let texts = strings(&expected.texts);
        let cosine = least_cosine(&encoder.encode(&texts).unwrap(), &expected.vectors);
        println!("{name}: cosine at least {cosine:.9}");
        assert!(cosine > 0.999_99, "{name}: {cosine}");
        // one by one as all together
        let alone: Vec<Vec<f32>> = texts.iter().map(|text| encoder.encode(&[text]).unwrap().remove(0)).collect();
        assert!(least_cosine(&alone, &expected.vectors) > 0.999_99);
        if let (Some(queries), Some(passages)) = (&expected.queries, &expected.passages) {
            assert!(least_cosine(&encoder.encode_queries(&texts).unwrap(), queries) > 0.999_99);
            assert!(least_cosine(&encoder.encode_passages(&texts).unwrap(), passages) > 0.999_99);
            assert_eq!((encoder.query_prefix(), encoder.passage_prefix()), ("query: ", "passage: "));
        }
    }
    assert_ne!(
        Sentence::open(&folder("sentence-mean")).unwrap().digest(),
        Sentence::open(&folder("sentence-cls")).unwrap().digest()
    );
}

/// Another model, if `FOLGORE_ENCODER` names its folder and `FOLGORE_ENCODER_EXPECTED` what `make_encoders.py --model` wrote:
/// all-MiniLM-L6-v2 is too large to be committed.
#[test]
fn a_real_encoder() {
    let (Ok(model), Ok(file)) = (env::var("FOLGORE_ENCODER"), env::var("FOLGORE_ENCODER_EXPECTED")) else { return };
    let expected: Vectors = read(Path::new(&file));
    let encoder = Sentence::open(Path::new(&model)).unwrap();
    let cosine = least_cosine(&encoder.encode(&strings(&expected.texts)).unwrap(), &expected.vectors);
    println!("{}: cosine at least {cosine:.9} over {} texts", encoder.name(), expected.texts.len());
    assert!(cosine > 0.9999, "{cosine}");
}

fn compare(reranker: &dyn Reranker, expected: &Scores) {
    let passages = strings(&expected.passages);
    let scores = reranker.scores(&expected.query, &passages).unwrap();
    assert_eq!(scores.len(), expected.scores.len());
    for ((passage, got), expected) in passages.iter().zip(&scores).zip(&expected.scores) {
        assert!((got - expected).abs() < 2e-4 * expected.abs().max(1.0), "{passage:?}: {got}, expected {expected}");
    }
    let spread = |s: &[f32]| s.iter().fold(f32::MIN, |a, b| a.max(*b)) - s.iter().fold(f32::MAX, |a, b| a.min(*b));
    assert!(spread(&scores) > 0.05, "scores that are all alike compare nothing: {scores:?}");
    let chunks: Vec<(u32, &str)> = (10..).zip(passages.iter().copied()).collect();
    let hits = reranker.rerank(&expected.query, &chunks, 3).unwrap();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    assert_eq!(
        hits.iter().map(|hit| hit.chunk).collect::<Vec<_>>(),
        order[..3].iter().map(|i| *i as u32 + 10).collect::<Vec<_>>()
    );
}

#[test]
fn cross_encoder_scores_are_those_of_transformers() {
    let expected: Scores = read(&folder("cross").join("expected.json"));
    compare(&CrossEncoder::open(&folder("cross")).unwrap(), &expected);
}

#[test]
fn late_interaction_scores_are_those_of_colbert_s_rules() {
    let expected: Scores = read(&folder("late").join("expected.json"));
    compare(&LateInteraction::open(&folder("late")).unwrap(), &expected);
}

#[test]
fn folders_that_are_no_encoder_are_refused_by_name() {
    let copy = |change: &dyn Fn(&Path)| {
        let to = tempfile::tempdir().unwrap();
        fs::create_dir(to.path().join("1_Pooling")).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"] {
            fs::copy(folder("sentence-mean").join(name), to.path().join(name)).unwrap();
        }
        change(to.path());
        Sentence::open(to.path()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let edit = |name: &'static str, from: &'static str, to: &'static str| {
        copy(&move |folder: &Path| {
            let text = fs::read_to_string(folder.join(name)).unwrap();
            assert!(text.contains(from), "{from}");
            fs::write(folder.join(name), text.replace(from, to)).unwrap();
        })
    };
    assert!(edit("config.json", "\"bert\"", "\"roberta\"").contains("model_type is \"roberta\""));
    assert!(
        edit("config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\": 0")
            .contains("num_attention_heads is 0")
    );
    assert!(
        edit("config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\": 5").contains("no multiple of 5")
    );
    assert!(
        edit("config.json", "\"hidden_size\": 24", "\"hidden_size\": 48")
            .contains("shape [128, 24], expected [128, 48]")
    );
    assert!(edit("config.json", "\"gelu\"", "\"relu\"").contains("hidden_act"));
    assert!(edit("modules.json", "pooling.Pooling", "dense.Dense").contains("Dense"));
    let missing = |name: &'static str| copy(&move |folder: &Path| fs::remove_file(folder.join(name)).unwrap());
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(missing(name).contains(name), "{name}");
    }
    let error = CrossEncoder::open(&folder("sentence-mean")).err().unwrap().to_string();
    assert!(error.contains("classifier.weight"), "{error}");
    let error = LateInteraction::open(&folder("cross")).err().unwrap().to_string();
    assert!(error.contains("linear.weight"), "{error}");
    assert_eq!(copy(&|_| ()), "", "unchanged, it opens");
}
