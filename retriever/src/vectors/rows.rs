//! The vectors themselves, each in a slot of its own, and exact search over them.

use std::collections::HashMap;

use rayon::prelude::*;

use super::dot::dots;
use crate::{Allowed, ChunkId, Hit, ranking::Top};

/// Rows that a thread takes at once: with 384 numbers each they fit into its second-level cache.
const PIECE: usize = 512;
/// Queries that go over the rows together.
const TOGETHER: usize = 16;

/// Vectors in slots. A slot is never used for another vector, so that a graph can name it.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    dim: usize,
    data: Vec<f32>,
    /// By slot.
    chunks: Vec<ChunkId>,
    /// By slot: whether it is still what the chunk has.
    live: Vec<bool>,
    slots: HashMap<ChunkId, u32>,
}

impl Rows {
    pub(super) fn new(dim: usize) -> Self {
        Self { dim, ..Self::default() }
    }

    /// What was saved; none where the lengths do not fit or a chunk has two live slots.
    pub(super) fn from_parts(dim: usize, data: Vec<f32>, chunks: Vec<ChunkId>, live: Vec<bool>) -> Option<Self> {
        let mut slots = HashMap::new();
        for (slot, (&chunk, &live)) in (0..).zip(chunks.iter().zip(&live)) {
            if live && slots.insert(chunk, slot).is_some() {
                return None;
            }
        }
        let fits = live.len() == chunks.len() && chunks.len().checked_mul(dim) == Some(data.len());
        fits.then_some(Self { dim, data, chunks, live, slots })
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Vectors that are there.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Slots, those of removed vectors too.
    pub(super) fn slots(&self) -> usize {
        self.chunks.len()
    }

    pub(super) fn data(&self) -> &[f32] {
        &self.data
    }

    pub(super) fn chunks(&self) -> &[ChunkId] {
        &self.chunks
    }

    pub(super) fn live(&self) -> &[bool] {
        &self.live
    }

    pub(super) fn row(&self, slot: usize) -> &[f32] {
        &self.data[slot * self.dim..(slot + 1) * self.dim]
    }

    /// The chunk of a slot that is live.
    pub(super) fn chunk(&self, slot: usize) -> Option<ChunkId> {
        self.live[slot].then(|| self.chunks[slot])
    }

    pub(super) fn vector(&self, chunk: ChunkId) -> Option<&[f32]> {
        self.slots.get(&chunk).map(|&slot| self.row(slot as usize))
    }

    pub(super) fn push(&mut self, chunk: ChunkId, vector: &[f32]) {
        self.remove(chunk);
        self.slots.insert(chunk, self.chunks.len() as u32);
        self.data.extend_from_slice(vector);
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
        let mut rows = Self::new(self.dim);
        for slot in 0..self.slots() {
            if let Some(chunk) = self.chunk(slot) {
                rows.push(chunk, self.row(slot));
            }
        }
        rows
    }

    /// For each query the best of all rows that `allowed` lets through.
    pub(super) fn search(&self, queries: &[&[f32]], top_k: usize, allowed: Allowed<'_>) -> Vec<Vec<Hit>> {
        queries.chunks(TOGETHER).flat_map(|some| self.search_some(some, top_k, allowed)).collect()
    }

    fn search_some(&self, queries: &[&[f32]], top_k: usize, allowed: Allowed<'_>) -> Vec<Vec<Hit>> {
        let mut tops: Vec<Top> = queries.iter().map(|_| Top::new(top_k)).collect();
        if self.dim == 0 || self.chunks.is_empty() || queries.is_empty() {
            return tops.into_iter().map(Top::into_hits).collect();
        }
        // Scores of a piece of rows lie together, query after query.
        let mut scores = vec![0.0; queries.len() * self.slots().next_multiple_of(PIECE)];
        let pieces = scores.par_chunks_mut(queries.len() * PIECE).zip(self.data.par_chunks(PIECE * self.dim));
        pieces.for_each(|(scores, rows)| {
            let count = rows.len() / self.dim;
            for (query, scores) in queries.iter().zip(scores.chunks_mut(PIECE)) {
                dots(query, rows, &mut scores[..count]);
            }
        });
        for (piece, scores) in scores.chunks(queries.len() * PIECE).enumerate() {
            let first = piece * PIECE;
            let count = PIECE.min(self.slots() - first);
            for (top, scores) in tops.iter_mut().zip(scores.chunks(PIECE)) {
                top.offer_all(&scores[..count], |i| self.chunk(first + i).filter(|&chunk| allowed(chunk)));
            }
        }
        tops.into_iter().map(Top::into_hits).collect()
    }
}
