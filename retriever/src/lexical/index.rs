//! The inverted index: for each word the chunks that hold it, each with what it adds to a score.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Words;
use crate::{Allowed, ChunkId, Hit, Ranking, SearchError, ranking::Top};

/// Parameters of BM25; see the [module](super).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bm25Settings {
    /// How much a word's second occurrence adds: 0 nothing, more with more. At least 0.
    pub k1: f32,
    /// How much long chunks are held back: 0 not at all, 1 in proportion.
    pub b: f32,
    /// What a word is.
    pub words: Words,
}

impl Default for Bm25Settings {
    /// Those of bm25s.
    fn default() -> Self {
        Self { k1: 1.5, b: 0.75, words: Words::default() }
    }
}

/// A parameter that means nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("BM25: {name} is {got}, expected {expected}")]
pub struct SettingsError {
    name: &'static str,
    got: f32,
    expected: &'static str,
}

/// BM25 over chunks that come and go, in memory. It is filled again from the texts wherever it is opened.
///
/// A removed chunk is left in the lists of its words until a quarter of all entries is of that kind. What an entry adds to a score
/// depends on the mean length, which every change moves: it is kept beside the entry, and worked out again once searches since a
/// change have computed it for as many entries as there are.
pub struct Bm25 {
    settings: Bm25Settings,
    state: RwLock<State>,
    /// Entries that searches computed since the weights were valid.
    computed: AtomicU64,
}

#[derive(Default)]
struct State {
    words: HashMap<Box<str>, u32>,
    lists: Vec<List>,
    /// By chunk; none where there never was one.
    chunks: Vec<Option<Entry>>,
    live: usize,
    live_words: u64,
    entries: usize,
    dead_entries: usize,
    /// Whether `List::weights` are those of the mean length.
    weighed: bool,
}

/// The chunks that hold a word; three numbers for each.
#[derive(Default)]
struct List {
    chunks: Vec<ChunkId>,
    counts: Vec<u32>,
    weights: Vec<f32>,
    /// Chunks of these that are not removed.
    live: u32,
}

struct Entry {
    /// The lists that hold it.
    words: Box<[u32]>,
    length: u32,
    live: bool,
}

impl Bm25 {
    /// An empty index.
    pub fn new(settings: Bm25Settings) -> Result<Self, SettingsError> {
        let Bm25Settings { k1, b, .. } = settings;
        if !(k1.is_finite() && k1 >= 0.0) {
            return Err(SettingsError { name: "k1", got: k1, expected: "a number of at least 0" });
        }
        if !(0.0..=1.0).contains(&b) {
            return Err(SettingsError { name: "b", got: b, expected: "a number from 0 to 1" });
        }
        Ok(Self { settings, state: RwLock::default(), computed: AtomicU64::new(0) })
    }

    /// How it scores.
    pub fn settings(&self) -> Bm25Settings {
        self.settings
    }

    /// Adds a chunk, or puts another text in its place. What should be found beside the text (title, header) stands in front of it.
    pub fn add(&self, chunk: ChunkId, text: &str) {
        let mut words = Vec::new();
        self.settings.words.each(text, |word| words.push(Box::<str>::from(word)));
        let mut state = self.write();
        state.take_out(chunk);
        state.put_in(chunk, words);
    }

    /// Removes a chunk; whether it was there.
    pub fn remove(&self, chunk: ChunkId) -> bool {
        let mut state = self.write();
        let was = state.remove(chunk);
        if state.dead_entries * 4 > state.entries {
            state.purge();
        }
        was
    }

    /// Chunks in it.
    pub fn len(&self) -> usize {
        self.read().live
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The words of the query that are known, each with how often it is there, in the order of their first places.
    fn terms(&self, state: &State, query: &str) -> Vec<(u32, f32)> {
        let mut terms: Vec<(u32, f32)> = Vec::new();
        self.settings.words.each(query, |word| {
            let Some(&list) = state.words.get(word) else { return };
            match terms.iter_mut().find(|(known, _)| *known == list) {
                Some((_, times)) => *times += 1.0,
                None => terms.push((list, 1.0)),
            }
        });
        terms
    }

    fn search_one(&self, query: &str, top_k: usize, allowed: Allowed<'_>) -> Vec<Hit> {
        thread_local! {
            static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        let state = self.read();
        let terms = self.terms(&state, query);
        if terms.is_empty() || top_k == 0 {
            return Vec::new();
        }
        // Taken, not borrowed: `allowed` is other code, which may search another index.
        let mut scores = SCORES.take();
        scores.clear();
        scores.resize(state.chunks.len(), 0.0);
        let computed: usize =
            terms.iter().map(|&(list, times)| state.score(list, times, self.settings, &mut scores)).sum();
        let mut top = Top::above_zero(top_k);
        top.offer_all(&scores, |chunk| Some(chunk as ChunkId).filter(|&chunk| state.is_live(chunk) && allowed(chunk)));
        SCORES.set(scores);
        drop(state);
        if computed > 0 {
            self.weigh(computed);
        }
        top.into_hits()
    }

    /// Works the weights out if searches have paid for it.
    fn weigh(&self, just_computed: usize) {
        let sum = self.computed.fetch_add(just_computed as u64, Ordering::Relaxed) + just_computed as u64;
        if sum < self.read().entries as u64 {
            return;
        }
        let mut state = self.write();
        if !state.weighed {
            state.weigh(self.settings);
            self.computed.store(0, Ordering::Relaxed);
        }
    }
}

impl Ranking for Bm25 {
    /// Chunks that hold no word of a query are not among its hits. Never fails.
    fn search(&self, queries: &[&str], top_k: usize, allowed: Allowed<'_>) -> Result<Vec<Vec<Hit>>, SearchError> {
        Ok(match queries {
            [query] => vec![self.search_one(query, top_k, allowed)],
            many => many.par_iter().map(|query| self.search_one(query, top_k, allowed)).collect(),
        })
    }
}

/// What one entry adds to a score, before the word's idf.
fn weight(count: u32, length: u32, mean: f32, Bm25Settings { k1, b, .. }: Bm25Settings) -> f32 {
    let count = count as f32;
    count / (count + k1 * (1.0 - b + b * length as f32 / mean))
}

impl State {
    fn is_live(&self, chunk: ChunkId) -> bool {
        matches!(self.chunks.get(chunk as usize), Some(Some(Entry { live: true, .. })))
    }

    fn mean(&self) -> f32 {
        (self.live_words as f64 / self.live as f64) as f32
    }

    /// Length of a chunk that stands in a list.
    fn length(&self, chunk: ChunkId) -> u32 {
        self.chunks[chunk as usize].as_ref().map_or(0, |entry| entry.length)
    }

    /// Adds what a word gives to the scores; how many weights had to be computed for it. Removed chunks get scores too, which
    /// nobody looks at.
    fn score(&self, list: u32, times: f32, settings: Bm25Settings, scores: &mut [f32]) -> usize {
        let list = &self.lists[list as usize];
        let (n, df) = (self.live as f64, f64::from(list.live));
        let idf = times * (1.0 + (n - df + 0.5) / (df + 0.5)).ln() as f32;
        if self.weighed {
            for (&chunk, &weight) in list.chunks.iter().zip(&list.weights) {
                scores[chunk as usize] += idf * weight;
            }
            return 0;
        }
        let mean = self.mean();
        for (&chunk, &count) in list.chunks.iter().zip(&list.counts) {
            scores[chunk as usize] += idf * weight(count, self.length(chunk), mean, settings);
        }
        list.chunks.len()
    }

    fn weigh(&mut self, settings: Bm25Settings) {
        let (chunks, mean) = (&self.chunks, self.mean());
        let length = |chunk: ChunkId| chunks[chunk as usize].as_ref().map_or(0, |entry| entry.length);
        for list in &mut self.lists {
            let entries = list.chunks.iter().zip(&list.counts);
            list.weights.clear();
            list.weights.extend(entries.map(|(&chunk, &count)| weight(count, length(chunk), mean, settings)));
        }
        self.weighed = true;
    }

    fn put_in(&mut self, chunk: ChunkId, mut words: Vec<Box<str>>) {
        let length = words.len() as u32;
        words.sort_unstable();
        let mut lists = Vec::new();
        for same in words.chunk_by(|a, b| a == b) {
            let list = match self.words.get(&same[0]) {
                Some(&list) => list,
                None => {
                    let list = self.lists.len() as u32;
                    self.words.insert(same[0].clone(), list);
                    self.lists.push(List::default());
                    list
                }
            };
            self.lists[list as usize].push(chunk, same.len() as u32);
            lists.push(list);
        }
        let at = chunk as usize;
        if self.chunks.len() <= at {
            self.chunks.resize_with(at + 1, || None);
        }
        self.entries += lists.len();
        self.live += 1;
        self.live_words += u64::from(length);
        self.weighed = false;
        self.chunks[at] = Some(Entry { words: lists.into(), length, live: true });
    }

    fn remove(&mut self, chunk: ChunkId) -> bool {
        let Some(Some(entry)) = self.chunks.get_mut(chunk as usize) else { return false };
        if !entry.live {
            return false;
        }
        entry.live = false;
        for &list in &entry.words {
            self.lists[list as usize].live -= 1;
        }
        self.live -= 1;
        self.live_words -= u64::from(entry.length);
        self.dead_entries += entry.words.len();
        self.weighed = false;
        true
    }

    /// Removes a chunk with all that the lists know of it, so that its number can stand for something else.
    fn take_out(&mut self, chunk: ChunkId) {
        self.remove(chunk);
        let Some(entry) = self.chunks.get_mut(chunk as usize).and_then(Option::take) else { return };
        for &list in &entry.words {
            self.lists[list as usize].retain(|c| c != chunk);
        }
        self.entries -= entry.words.len();
        self.dead_entries -= entry.words.len();
    }

    /// Takes all removed chunks out of the lists. Words that no chunk holds any more keep their empty list.
    fn purge(&mut self) {
        let chunks = &mut self.chunks;
        for list in &mut self.lists {
            list.retain(|chunk| chunks[chunk as usize].as_ref().is_some_and(|entry| entry.live));
        }
        chunks.iter_mut().for_each(|entry| *entry = entry.take().filter(|entry| entry.live));
        self.entries -= self.dead_entries;
        self.dead_entries = 0;
        self.weighed = false;
    }
}

impl List {
    fn push(&mut self, chunk: ChunkId, count: u32) {
        self.chunks.push(chunk);
        self.counts.push(count);
        self.live += 1;
    }

    fn retain(&mut self, keep: impl Fn(ChunkId) -> bool) {
        let mut counts = std::mem::take(&mut self.counts).into_iter();
        let mut kept = Vec::with_capacity(counts.len());
        self.chunks.retain(|&chunk| {
            let count = counts.next();
            let keep = keep(chunk);
            kept.extend(count.filter(|_| keep));
            keep
        });
        self.counts = kept;
    }
}
