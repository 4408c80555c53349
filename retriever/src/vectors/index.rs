//! Vectors that come and go, in memory and in files.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use rayon::prelude::*;

use super::{GraphSettings, Vectors, VectorsError, files, graph::Graph, rows::Rows};
use crate::{Allowed, ChunkId, Hit, ranking::Top};

/// See the [module](super).
///
/// A removed vector stays in its slot until a quarter of all slots are of that kind; then slots, and with them the graph, are made
/// anew. Searches go on with what was there until then. Large graphs are built by all threads at once, so that two builds may differ
/// in what they miss.
#[derive(Debug)]
pub struct VectorIndex {
    settings: GraphSettings,
    state: RwLock<State>,
    /// Held by whoever changes something, from beginning to end.
    writer: Mutex<()>,
}

#[derive(Debug)]
struct State {
    rows: Rows,
    graph: Option<Graph>,
}

impl VectorIndex {
    /// An empty index for vectors of `dim` numbers.
    pub fn new(dim: usize, settings: GraphSettings) -> Result<Self, VectorsError> {
        Self::of(Rows::new(dim), None, settings)
    }

    /// Reads what [`VectorIndex::save`] wrote. Vectors that are not as they were written are an error; a graph that is not is built
    /// again, and so is one of other settings. The first vectors that are added make it anew.
    pub fn open(folder: &Path, settings: GraphSettings) -> Result<Self, VectorsError> {
        check(settings)?;
        let (rows, graph) = files::read(folder, settings)?;
        let index = Self::of(rows, graph, settings)?;
        index.tidy(&index.lock());
        Ok(index)
    }

    /// Writes everything below `folder`, which is made if it is not there. What was there before stays whole until all is written.
    pub fn save(&self, folder: &Path) -> Result<(), VectorsError> {
        let _writer = self.lock();
        let state = self.read();
        files::write(folder, &state.rows, state.graph.as_ref(), self.settings)
    }

    /// The vector of a chunk.
    pub fn vector(&self, chunk: ChunkId) -> Option<Vec<f32>> {
        self.read().rows.vector(chunk)
    }

    /// Whether searches go through a graph.
    pub fn has_graph(&self) -> bool {
        self.read().graph.is_some()
    }

    /// Names the files that its graph was read from; none if there is no graph, or if it was made or changed since. Graphs made of
    /// the same vectors may differ in what they miss, those of one name do not.
    pub fn graph_name(&self) -> Option<String> {
        Some(self.read().graph.as_ref()?.sums.as_ref()?.concat())
    }

    /// Whether the vector of a chunk is `vector`, to the bit.
    pub(super) fn holds(&self, chunk: ChunkId, vector: &[f32]) -> bool {
        let same = |kept: Vec<f32>| kept.iter().map(|x| x.to_bits()).eq(vector.iter().map(|x| x.to_bits()));
        self.read().rows.vector(chunk).is_some_and(same)
    }

    /// The chunks that have a vector.
    pub(super) fn chunks(&self) -> Vec<ChunkId> {
        let state = self.read();
        (0..state.rows.slots()).filter_map(|slot| state.rows.chunk(slot)).collect()
    }

    /// An index that `fill` puts vectors into, all finite and of `dim` numbers; its graph, if there is to be one, is made once.
    pub(super) fn filled<E>(
        dim: usize,
        settings: GraphSettings,
        fill: impl FnOnce(&mut dyn FnMut(ChunkId, &[f32])) -> Result<(), E>,
    ) -> Result<Self, E>
    where
        E: From<VectorsError>,
    {
        let mut rows = Rows::new(dim);
        fill(&mut |chunk, vector| rows.push(chunk, vector))?;
        let index = Self::of(rows, None, settings)?;
        index.tidy(&index.lock());
        Ok(index)
    }

    fn of(rows: Rows, graph: Option<Graph>, settings: GraphSettings) -> Result<Self, VectorsError> {
        check(settings)?;
        Ok(Self { settings, state: RwLock::new(State { rows, graph }), writer: Mutex::new(()) })
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes slots anew if many are of removed vectors, and a graph where there has to be one. Whoever calls holds the writer's lock,
    /// so that nothing changes while searches go on.
    fn tidy(&self, _writer: &MutexGuard<'_, ()>) {
        let state = self.read();
        let (slots, live) = (state.rows.slots(), state.rows.len());
        let gaps = (slots - live) * 4 > slots;
        let wanted = live >= self.settings.from;
        if !gaps && (!wanted || state.graph.is_some()) {
            return;
        }
        let compact = (slots > live).then(|| state.rows.compact());
        let graph = wanted.then(|| Graph::build(compact.as_ref().unwrap_or(&state.rows), self.settings));
        drop(state);
        let mut state = self.write();
        if let Some(rows) = compact {
            state.rows = rows;
        }
        let before = std::mem::replace(&mut state.graph, graph);
        drop(state);
        // A large graph takes its time to go: nobody has to wait for it.
        drop(before);
    }

    /// The graph's answer to one query, if it is enough.
    fn near(state: &State, graph: &Graph, query: &[f32], top_k: usize) -> Vec<(ChunkId, f32)> {
        let near = graph.near(query, top_k).into_iter();
        near.filter_map(|(slot, score)| Some((state.rows.chunk(slot)?, score))).collect()
    }
}

fn check(settings: GraphSettings) -> Result<(), VectorsError> {
    let refuse = |name, got, expected| Err(VectorsError::Setting { name, got, expected });
    match settings {
        GraphSettings { neighbours: got, .. } if !(2..=255).contains(&got) => refuse("neighbours", got, "2 to 255"),
        GraphSettings { ef_construction: 0, .. } => refuse("ef_construction", 0, "at least 1"),
        GraphSettings { ef_search: 0, .. } => refuse("ef_search", 0, "at least 1"),
        _ => Ok(()),
    }
}

fn check_vector(what: impl Fn() -> String, vector: &[f32], expected: usize) -> Result<(), VectorsError> {
    if vector.len() != expected {
        return Err(VectorsError::Dimension { what: what(), got: vector.len(), expected });
    }
    match vector.iter().find(|x| !x.is_finite()) {
        Some(&got) => Err(VectorsError::NotFinite { what: what(), got }),
        None => Ok(()),
    }
}

impl Vectors for VectorIndex {
    fn dim(&self) -> usize {
        self.read().rows.dim()
    }

    fn len(&self) -> usize {
        self.read().rows.len()
    }

    fn add(&self, batch: &[(ChunkId, &[f32])]) -> Result<(), VectorsError> {
        let dim = self.dim();
        batch.iter().try_for_each(|(chunk, vector)| check_vector(|| format!("chunk {chunk}"), vector, dim))?;
        if batch.is_empty() {
            return Ok(());
        }
        let writer = self.lock();
        let mut state = self.write();
        let first = state.rows.slots();
        batch.iter().for_each(|(chunk, vector)| state.rows.push(*chunk, vector));
        // Far more than there was: cheaper to build anew, by all threads, than to insert one by one. And what is put into a graph that was
        // read from files may be found by no search.
        if batch.len() > first || state.graph.as_ref().is_some_and(|graph| graph.sums.is_some()) {
            state.graph = None;
        }
        drop(state);
        let state = self.read();
        if let Some(graph) = &state.graph {
            batch.iter().zip(first..).for_each(|((_, vector), slot)| graph.insert(slot, vector));
        }
        drop(state);
        self.tidy(&writer);
        Ok(())
    }

    fn remove(&self, chunks: &[ChunkId]) -> usize {
        let writer = self.lock();
        let mut state = self.write();
        let removed = chunks.iter().filter(|&&chunk| state.rows.remove(chunk)).count();
        drop(state);
        self.tidy(&writer);
        removed
    }

    fn search(&self, queries: &[&[f32]], top_k: usize, allowed: Allowed<'_>) -> Result<Vec<Vec<Hit>>, VectorsError> {
        let state = self.read();
        let state = &*state;
        queries.iter().try_for_each(|query| check_vector(|| "a query".into(), query, state.rows.dim()))?;
        let Some(graph) = &state.graph else { return Ok(state.rows.search(queries, top_k, allowed)) };
        let near: Vec<_> = queries.par_iter().map(|query| Self::near(state, graph, query, top_k)).collect();
        let answer = |(query, near): (&&[f32], Vec<(ChunkId, f32)>)| {
            let mut top = Top::new(top_k);
            near.into_iter()
                .filter(|(chunk, _)| allowed(*chunk))
                .for_each(|(chunk, score)| top.offer(Hit { chunk, score }));
            let hits = top.into_hits();
            if hits.len() < top_k.min(state.rows.len()) {
                return state.rows.search(&[query], top_k, allowed).swap_remove(0);
            }
            hits
        };
        Ok(queries.iter().zip(near).map(answer).collect())
    }
}
