//! The vectors themselves, each in a slot of its own, and exact search over them: products of all queries with all vectors, of which
//! only the best are kept.

use std::collections::HashMap;

use rayon::prelude::*;

use super::panels::Panels;
use crate::{Allowed, ChunkId, Hit, ranking::Top};

/// Vectors that a thread multiplies at once: with 384 numbers each they fit into its second-level cache, and so do their scores.
const PIECE: usize = 512;
/// Pieces that a thread takes with the same lists of hits, where there are so many.
const PIECES_ALONE: usize = 8;
/// Queries that go over the vectors together.
const TOGETHER: usize = 64;

/// Vectors in slots. A slot is never used for another vector, so that a graph can name it.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    data: Panels,
    /// By slot.
    chunks: Vec<ChunkId>,
    /// By slot: whether it is still what the chunk has.
    live: Vec<bool>,
    slots: HashMap<ChunkId, u32>,
}

impl Rows {
    pub(super) fn new(dim: usize) -> Self {
        Self { data: Panels::new(dim), ..Self::default() }
    }

    /// What was saved, vectors one behind the other; none where the lengths do not fit or a chunk has two live slots.
    pub(super) fn from_parts(
        dim: usize,
        numbers: impl ExactSizeIterator<Item = f32>,
        chunks: Vec<ChunkId>,
        live: Vec<bool>,
    ) -> Option<Self> {
        let mut slots = HashMap::new();
        for (slot, (&chunk, &live)) in (0..).zip(chunks.iter().zip(&live)) {
            if live && slots.insert(chunk, slot).is_some() {
                return None;
            }
        }
        if live.len() != chunks.len() || chunks.len().checked_mul(dim) != Some(numbers.len()) {
            return None;
        }
        let (mut data, mut numbers, mut vector) = (Panels::new(dim), numbers, Vec::with_capacity(dim));
        for _ in &chunks {
            vector.clear();
            vector.extend(numbers.by_ref().take(dim));
            data.push(&vector);
        }
        Some(Self { data, chunks, live, slots })
    }

    pub(super) fn dim(&self) -> usize {
        self.data.dim()
    }

    /// Vectors that are there.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Slots, those of removed vectors too.
    pub(super) fn slots(&self) -> usize {
        self.chunks.len()
    }

    pub(super) fn chunks(&self) -> &[ChunkId] {
        &self.chunks
    }

    pub(super) fn live(&self) -> &[bool] {
        &self.live
    }

    /// The numbers of a slot.
    pub(super) fn row(&self, slot: usize) -> impl Iterator<Item = f32> {
        self.data.row(slot)
    }

    /// The chunk of a slot that is live.
    pub(super) fn chunk(&self, slot: usize) -> Option<ChunkId> {
        self.live[slot].then(|| self.chunks[slot])
    }

    pub(super) fn vector(&self, chunk: ChunkId) -> Option<Vec<f32>> {
        self.slots.get(&chunk).map(|&slot| self.row(slot as usize).collect())
    }

    pub(super) fn push(&mut self, chunk: ChunkId, vector: &[f32]) {
        self.remove(chunk);
        self.slots.insert(chunk, self.chunks.len() as u32);
        self.data.push(vector);
        self.chunks.push(chunk);
        self.live.push(true);
    }

    pub(super) fn remove(&mut self, chunk: ChunkId) -> bool {
        let slot = self.slots.remove(&chunk);
        if let Some(slot) = slot {
            self.live[slot as usize] = false;
        }
        slot.is_some()
    }

    /// The same vectors in slots without gaps.
    pub(super) fn compact(&self) -> Self {
        let mut rows = Self::new(self.dim());
        for slot in 0..self.slots() {
            if let Some(chunk) = self.chunk(slot) {
                rows.push(chunk, &self.row(slot).collect::<Vec<_>>());
            }
        }
        rows
    }

    /// For each query the best of all vectors that `allowed` lets through.
    pub(super) fn search(&self, queries: &[&[f32]], top_k: usize, allowed: Allowed<'_>) -> Vec<Vec<Hit>> {
        queries.chunks(TOGETHER).flat_map(|some| self.search_some(some, top_k, allowed)).collect()
    }

    fn search_some(&self, queries: &[&[f32]], top_k: usize, allowed: Allowed<'_>) -> Vec<Vec<Hit>> {
        let none = || -> Vec<Top> { queries.iter().map(|_| Top::new(top_k)).collect() };
        let hits = |tops: Vec<Top>| tops.into_iter().map(Top::into_hits).collect();
        if self.dim() == 0 || queries.is_empty() {
            return hits(none());
        }
        let asked = queries.concat();
        let room = || (none(), vec![0.0; queries.len() * PIECE]);
        let piece = |(mut tops, mut scores): (Vec<Top>, Vec<f32>), piece: usize| {
            let slots = piece * PIECE..((piece + 1) * PIECE).min(self.slots());
            self.data.products(&asked, slots.clone(), &mut scores, PIECE);
            for (top, scores) in tops.iter_mut().zip(scores.chunks(PIECE)) {
                let chunk = |i| self.chunk(slots.start + i).filter(|&chunk| allowed(chunk));
                top.offer_all(&scores[..slots.len()], chunk);
            }
            (tops, scores)
        };
        let pieces = (0..self.slots().div_ceil(PIECE)).into_par_iter().with_min_len(PIECES_ALONE);
        let merged = |mut tops: Vec<Top>, others: Vec<Top>| {
            tops.iter_mut()
                .zip(others)
                .for_each(|(top, other)| other.into_hits().into_iter().for_each(|h| top.offer(h)));
            tops
        };
        hits(pieces.fold(room, piece).map(|(tops, _)| tops).reduce(none, merged))
    }
}
