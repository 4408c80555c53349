//! BM25 under additions and removals: always what a fresh index of the same chunks says, and the formula itself.

use std::{collections::BTreeMap, sync::Arc, thread};

use folgore_retriever::{
    Allowed, Hit, Ranking,
    lexical::{Bm25, Bm25Settings, Words},
};

fn index(texts: &BTreeMap<u32, String>) -> Bm25 {
    let index = Bm25::new(Bm25Settings::default()).unwrap();
    texts.iter().for_each(|(&chunk, text)| index.add(chunk, text));
    index
}

/// Straight from the formula, in f64.
fn by_hand(texts: &BTreeMap<u32, String>, query: &str) -> Vec<(u32, f64)> {
    let words: BTreeMap<u32, Vec<String>> = texts.iter().map(|(&c, t)| (c, Words::default().list(t))).collect();
    let n = words.len() as f64;
    let mean = words.values().map(Vec::len).sum::<usize>() as f64 / n;
    let score = |own: &Vec<String>| -> f64 {
        let of = |term: &String| {
            let df = words.values().filter(|w| w.contains(term)).count() as f64;
            let tf = own.iter().filter(|w| *w == term).count() as f64;
            (1.0 + (n - df + 0.5) / (df + 0.5)).ln() * tf / (tf + 1.5 * (0.25 + 0.75 * own.len() as f64 / mean))
        };
        Words::default().list(query).iter().map(of).sum()
    };
    let mut all: Vec<(u32, f64)> = words.iter().map(|(&c, own)| (c, score(own))).filter(|(_, s)| *s > 0.0).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    fn text(&mut self, words: u64) -> String {
        let length = 1 + self.below(30);
        (0..length).map(|_| format!("word{} ", self.below(words).min(self.below(words)))).collect()
    }
}

fn all(_: u32) -> bool {
    true
}

fn search(index: &Bm25, query: &str, top_k: usize, allowed: Allowed<'_>) -> Vec<Hit> {
    index.search(&[query], top_k, allowed).unwrap().swap_remove(0)
}

#[test]
fn scores_are_those_of_the_formula_whatever_came_and_went() {
    let mut dice = Dice(7);
    let mut texts = BTreeMap::new();
    let index = index(&texts);
    let mut next = 0;
    for round in 0..300 {
        match dice.below(10) {
            0..5 => {
                texts.insert(next, dice.text(40));
                index.add(next, &texts[&next]);
                next += 1;
            }
            5..8 if next > 0 => {
                let chunk = dice.below(next.into()) as u32;
                assert_eq!(index.remove(chunk), texts.remove(&chunk).is_some());
            }
            8 if next > 0 => {
                // Another text under a number that is there, or was.
                let chunk = dice.below(next.into()) as u32;
                texts.insert(chunk, dice.text(40));
                index.add(chunk, &texts[&chunk]);
            }
            _ => {}
        }
        let query = dice.text(45);
        let (hits, expected) = (search(&index, &query, 10, &all), by_hand(&texts, &query));
        assert_eq!(index.len(), texts.len());
        assert_eq!(hits.len(), expected.len().min(10), "round {round}");
        for (hit, (_, score)) in hits.iter().zip(&expected) {
            assert!((f64::from(hit.score) - score).abs() < 1e-4, "round {round}: {hit:?} for {score}");
            let own = expected.iter().find(|(chunk, _)| *chunk == hit.chunk).expect("a chunk that is there");
            assert!((own.1 - score).abs() < 1e-4, "round {round}: {hit:?} is out of place");
        }
    }
}

#[test]
fn kept_weights_and_weights_on_the_way_give_the_same_bits() {
    let mut dice = Dice(3);
    let texts: BTreeMap<u32, String> = (0..200).map(|chunk| (chunk, dice.text(40))).collect();
    let (once, often) = (index(&texts), index(&texts));
    for _ in 0..200 {
        search(&often, "word1 word2 word3 word0", 10, &all);
    }
    assert_eq!(search(&once, "word1 word5 word1", 50, &all), search(&often, "word1 word5 word1", 50, &all));
}

#[test]
fn equal_chunks_come_in_their_order_and_filters_hold() {
    let texts: BTreeMap<u32, String> = (0..40).map(|chunk| (chunk, "the same words".to_owned())).collect();
    let index = index(&texts);
    let chunks = |hits: Vec<Hit>| hits.iter().map(|h| h.chunk).collect::<Vec<_>>();
    assert_eq!(chunks(search(&index, "same", 5, &all)), [0, 1, 2, 3, 4]);
    assert_eq!(chunks(search(&index, "same", 3, &|chunk| chunk % 7 == 6)), [6, 13, 20]);
    assert!(search(&index, "other", 5, &all).is_empty(), "no chunk holds the word");
    assert!(search(&index, "", 5, &all).is_empty());
    assert!(search(&index, "same", 0, &all).is_empty());
}

#[test]
fn searches_go_on_while_chunks_come_and_go() {
    let index = Arc::new(Bm25::new(Bm25Settings::default()).unwrap());
    for chunk in 0..100 {
        index.add(chunk, "stays for good");
    }
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let index = index.clone();
            thread::spawn(move || {
                for _ in 0..300 {
                    // A removed chunk is never found, one that stays always is.
                    let hits = search(&index, "stays", 100, &|chunk| chunk < 100);
                    assert_eq!(hits.len(), 100);
                }
            })
        })
        .collect();
    for chunk in 100..600 {
        index.add(chunk, "comes and stays only until it goes");
        if chunk >= 150 {
            assert!(index.remove(chunk - 50));
        }
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(index.len(), 150);
}

#[test]
fn parameters_that_mean_nothing_are_refused() {
    for (k1, b, name) in [(-1.0, 0.5, "k1"), (f32::NAN, 0.5, "k1"), (1.5, 1.1, "b"), (1.5, f32::NAN, "b")] {
        let error = Bm25::new(Bm25Settings { k1, b, ..Bm25Settings::default() }).err().expect("refused").to_string();
        assert!(error.contains(name), "{error}");
    }
}
