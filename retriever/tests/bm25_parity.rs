//! BM25 beside bm25s, on what `tests/parity/make_bm25.py` wrote.

use folgore_retriever::{
    Ranking,
    lexical::{Bm25, Bm25Settings},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Sample {
    documents: Vec<String>,
    queries: Vec<String>,
    found: Vec<Found>,
}

#[derive(Deserialize)]
struct Found {
    k1: f32,
    b: f32,
    /// By query: documents and scores, best first.
    top: Vec<Vec<(u32, f32)>>,
}

#[test]
fn the_ten_best_are_those_of_bm25s() {
    let written = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/parity/fixtures/bm25.json");
    let sample: Sample = serde_json::from_slice(&std::fs::read(written).unwrap()).unwrap();
    assert!(sample.queries.len() >= 100 && sample.found.len() == 3);
    for found in &sample.found {
        let index = Bm25::new(Bm25Settings { k1: found.k1, b: found.b, ..Bm25Settings::default() }).unwrap();
        (0..).zip(&sample.documents).for_each(|(chunk, text)| index.add(chunk, text));
        let (mut shared, mut all) = (0, 0);
        for (query, expected) in sample.queries.iter().zip(&found.top) {
            let hits = index.search(&[query.as_str()], 10, &|_| true).unwrap().swap_remove(0);
            assert_eq!(hits.len(), expected.len(), "{query:?}");
            for (hit, (_, score)) in hits.iter().zip(expected) {
                assert!((hit.score - score).abs() <= 2e-5 * score.max(1.0), "{query:?}: {hit:?}, bm25s has {score}");
            }
            shared += hits.iter().filter(|hit| expected.iter().any(|(chunk, _)| *chunk == hit.chunk)).count();
            all += expected.len();
        }
        let overlap = shared as f64 / all as f64;
        println!("k1 {}, b {}: {overlap:.4} of {all} hits shared", found.k1, found.b);
        assert!(all > 900, "too few hits to compare: {all}");
        assert!(overlap >= 0.98, "k1 {}, b {}: only {overlap} of the hits are shared", found.k1, found.b);
    }
}
