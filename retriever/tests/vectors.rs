//! Vectors: exact and through the graph, while they come and go, and in files.

use std::{fs, sync::Arc, thread};

use folgore_retriever::{
    Allowed,
    vectors::{GraphSettings, VectorIndex, Vectors, VectorsError},
};

const DIM: usize = 24;

struct Dice(u64);

impl Dice {
    fn number(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A unit vector near one of forty centres, as texts are near their topics.
    fn vector(&mut self) -> Vec<f32> {
        let mut centre = Dice(((self.number() + 1.0) * 20.0) as u64 * 7919);
        let mut vector: Vec<f32> = (0..DIM).map(|_| centre.number() + 0.7 * self.number()).collect();
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
        vector
    }

    fn vectors(&mut self, count: usize) -> Vec<Vec<f32>> {
        (0..count).map(|_| self.vector()).collect()
    }
}

fn all(_: u32) -> bool {
    true
}

fn small_graph() -> GraphSettings {
    GraphSettings { from: 500, ef_search: 64, ..GraphSettings::default() }
}

fn add(index: &VectorIndex, first: u32, vectors: &[Vec<f32>]) {
    let batch: Vec<(u32, &[f32])> = (first..).zip(vectors.iter().map(Vec::as_slice)).collect();
    index.add(&batch).unwrap();
}

/// By the definition, in f64.
fn by_hand(vectors: &[(u32, Vec<f32>)], query: &[f32], top_k: usize) -> Vec<u32> {
    let score = |v: &[f32]| v.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let mut all: Vec<(u32, f64)> = vectors.iter().map(|(chunk, v)| (*chunk, score(v))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.into_iter().take(top_k).map(|(chunk, _)| chunk).collect()
}

fn search(index: &VectorIndex, query: &[f32], top_k: usize, allowed: Allowed<'_>) -> Vec<u32> {
    index.search(&[query], top_k, allowed).unwrap()[0].iter().map(|hit| hit.chunk).collect()
}

fn recall(index: &VectorIndex, vectors: &[(u32, Vec<f32>)], queries: &[Vec<f32>], allowed: Allowed<'_>) -> f64 {
    let left: Vec<(u32, Vec<f32>)> = vectors.iter().filter(|(chunk, _)| allowed(*chunk)).cloned().collect();
    let found = queries.iter().map(|query| {
        let (expected, got) = (by_hand(&left, query, 10), search(index, query, 10, allowed));
        assert_eq!(got.len(), expected.len());
        got.iter().filter(|chunk| expected.contains(chunk)).count() as f64 / expected.len() as f64
    });
    found.sum::<f64>() / queries.len() as f64
}

#[test]
fn exact_search_is_that_of_the_definition_while_vectors_come_and_go() {
    let mut dice = Dice(1);
    let index = VectorIndex::new(DIM, GraphSettings::never()).unwrap();
    let vectors = dice.vectors(1300);
    add(&index, 0, &vectors);
    let mut there: Vec<(u32, Vec<f32>)> = (0..).zip(vectors).collect();
    for round in 0..5 {
        // every third goes, some of them come back as something else
        let gone: Vec<u32> = there.iter().map(|(chunk, _)| *chunk).filter(|chunk| chunk % 3 == round % 3).collect();
        assert_eq!(index.remove(&gone), gone.len());
        assert_eq!(index.remove(&gone), 0);
        there.retain(|(chunk, _)| !gone.contains(chunk));
        let back = dice.vectors(50);
        add(&index, 5000, &back);
        there.retain(|(chunk, _)| *chunk < 5000);
        there.extend((5000..).zip(back));
        assert_eq!(index.len(), there.len());
        let queries = dice.vectors(40);
        let asked: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
        let together = index.search(&asked, 10, &all).unwrap();
        for (query, hits) in queries.iter().zip(together) {
            let hits: Vec<u32> = hits.iter().map(|hit| hit.chunk).collect();
            assert_eq!(hits, by_hand(&there, query, 10));
            assert_eq!(hits, search(&index, query, 10, &all), "alone or together");
        }
    }
    assert!(!index.has_graph());
    assert_eq!(index.vector(5000).as_deref(), Some(&there[there.len() - 50].1[..]));
}

#[test]
fn equal_vectors_come_in_the_order_of_chunks() {
    let index = VectorIndex::new(2, GraphSettings::never()).unwrap();
    for chunk in [9, 3, 7, 5] {
        index.add(&[(chunk, &[0.6, 0.8])]).unwrap();
    }
    assert_eq!(search(&index, &[0.6, 0.8], 3, &all), [3, 5, 7]);
    assert_eq!(search(&index, &[0.6, 0.8], 3, &|chunk| chunk != 3), [5, 7, 9]);
    assert!(search(&index, &[0.6, 0.8], 0, &all).is_empty());
}

#[test]
fn the_graph_finds_what_the_exact_search_finds_whatever_came_and_went() {
    let mut dice = Dice(2);
    let index = VectorIndex::new(DIM, small_graph()).unwrap();
    let vectors = dice.vectors(3000);
    add(&index, 0, &vectors[..400]);
    assert!(!index.has_graph());
    add(&index, 400, &vectors[400..2500]);
    assert!(index.has_graph());
    // one after the other, into the graph that is there
    (2500..).zip(&vectors[2500..]).for_each(|(chunk, vector)| index.add(&[(chunk, vector)]).unwrap());
    let mut there: Vec<(u32, Vec<f32>)> = (0..).zip(vectors).collect();
    let queries = dice.vectors(100);
    let found = recall(&index, &there, &queries, &all);
    assert!(found > 0.95, "{found}");
    // tombstones in the graph, then so many that it is built again
    for gone in [0..400u32, 400..1200] {
        assert_eq!(index.remove(&gone.clone().collect::<Vec<_>>()), gone.len());
        there.retain(|(chunk, _)| !gone.contains(chunk));
        let found = recall(&index, &there, &queries, &all);
        assert!(index.has_graph() && found > 0.95, "{found}");
    }
    // filters, mild and so strict that the graph has no answer
    let mild = recall(&index, &there, &queries, &|chunk| chunk % 2 == 0);
    assert!(mild > 0.9, "{mild}");
    let strict = recall(&index, &there, &queries, &|chunk| chunk % 400 == 1);
    assert_eq!(strict, 1.0);
    index.remove(&(1200..2700).collect::<Vec<_>>());
    assert!(!index.has_graph(), "too few for a graph");
}

#[test]
fn searches_go_on_while_a_graph_grows() {
    let mut dice = Dice(3);
    let (first, more) = (dice.vectors(600), dice.vectors(900));
    let index = Arc::new(VectorIndex::new(DIM, small_graph()).unwrap());
    add(&index, 0, &first);
    let reader = |query: Vec<f32>| {
        let index = index.clone();
        thread::spawn(move || {
            for _ in 0..200 {
                // the query is itself a vector that stays
                assert_eq!(search(&index, &query, 1, &|chunk| chunk < 600).len(), 1);
            }
        })
    };
    let readers: Vec<_> = first.iter().take(2).cloned().map(reader).collect();
    for (chunk, vector) in (600..).zip(&more) {
        index.add(&[(chunk, vector)]).unwrap();
        if chunk % 2 == 0 {
            index.remove(&[chunk]);
        }
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(index.len(), 600 + 450);
}

#[test]
fn vectors_that_do_not_fit_are_refused_and_nothing_changes() {
    let index = VectorIndex::new(2, GraphSettings::never()).unwrap();
    let error = |batch: &[(u32, &[f32])]| index.add(batch).unwrap_err().to_string();
    assert_eq!(error(&[(1, &[1.0, 0.0]), (2, &[1.0])]), "vector of chunk 2: 1 numbers, expected 2");
    assert_eq!(error(&[(1, &[1.0, f32::NAN])]), "vector of chunk 1: NaN is not finite");
    assert_eq!(index.len(), 0);
    assert!(index.search(&[&[1.0]], 1, &all).is_err());
    assert!(VectorIndex::new(2, GraphSettings { neighbours: 300, ..GraphSettings::default() }).is_err());
}

/// What is put into a graph that was read from files may be found by no search, so that such a graph is made anew.
#[test]
fn what_is_added_after_opening_is_found() {
    let mut dice = Dice(5);
    let folder = tempfile::tempdir().unwrap();
    let index = VectorIndex::new(DIM, small_graph()).unwrap();
    let vectors = dice.vectors(2000);
    add(&index, 0, &vectors);
    index.save(folder.path()).unwrap();
    let opened = VectorIndex::open(folder.path(), small_graph()).unwrap();
    assert!(opened.has_graph() && opened.graph_name().is_some());
    opened.add(&[]).unwrap();
    assert!(opened.graph_name().is_some(), "nothing was added");
    let more = dice.vectors(400);
    for (chunk, vector) in (2000..).zip(&more) {
        opened.add(&[(chunk, vector)]).unwrap();
    }
    assert!(opened.has_graph() && opened.graph_name().is_none());
    let missed = (2000..).zip(&more).filter(|(chunk, vector)| search(&opened, vector, 1, &all) != [*chunk]).count();
    assert_eq!(missed, 0, "of {} that were added", more.len());
}

#[test]
fn files_give_the_same_answers_and_damage_is_seen() {
    let mut dice = Dice(4);
    let folder = tempfile::tempdir().unwrap();
    let index = VectorIndex::new(DIM, small_graph()).unwrap();
    add(&index, 0, &dice.vectors(800));
    index.remove(&(100..150).collect::<Vec<_>>());
    index.save(folder.path()).unwrap();
    index.save(folder.path()).unwrap();
    let names = || -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["graph-1.hnsw.data", "graph-1.hnsw.graph", "vectors.bin"], "the first graph is gone");

    let queries = dice.vectors(30);
    let asked: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
    let answers = index.search(&asked, 10, &all).unwrap();
    let same = |index: &VectorIndex| index.search(&asked, 10, &all).unwrap() == answers;
    let opened = VectorIndex::open(folder.path(), small_graph()).unwrap();
    assert!(opened.has_graph() && opened.len() == 750 && same(&opened));
    assert!(same(&VectorIndex::open(folder.path(), GraphSettings::never()).unwrap()), "the exact search agrees");
    // the opened one goes on living
    add(&opened, 800, &dice.vectors(20));
    assert_eq!(opened.remove(&[0, 800]), 2);

    // a damaged graph is built again
    let graph = folder.path().join("graph-1.hnsw.graph");
    let mut bytes = fs::read(&graph).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&graph, &bytes).unwrap();
    let rebuilt = VectorIndex::open(folder.path(), small_graph()).unwrap();
    assert!(rebuilt.has_graph() && rebuilt.len() == 750);
    fs::remove_file(&graph).unwrap();
    assert!(VectorIndex::open(folder.path(), small_graph()).unwrap().has_graph());

    // damaged vectors are an error, wherever the damage is
    let record = folder.path().join("vectors.bin");
    let whole = fs::read(&record).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 50) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(&record, &bytes).unwrap();
        let error = VectorIndex::open(folder.path(), small_graph()).unwrap_err();
        assert!(matches!(error, VectorsError::Damaged { .. }), "{error}");
        fs::write(&record, &whole[..at]).unwrap();
        let error = VectorIndex::open(folder.path(), small_graph()).unwrap_err();
        assert!(matches!(error, VectorsError::Damaged { .. }), "{error}");
    }
    fs::remove_file(&record).unwrap();
    let error = VectorIndex::open(folder.path(), small_graph()).unwrap_err();
    assert!(matches!(error, VectorsError::Io { .. }) && error.to_string().contains("vectors.bin"), "{error}");
}
