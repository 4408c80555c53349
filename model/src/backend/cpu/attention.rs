//! Causal attention over the key-value cache ([`super::kv`]).
//!
//! Scores and sums are both products with the one kernel of [`super::gemm`], for a tile of query rows: those of one sequence, or of several
//! that ask with one row each and began alike. Rows next to each other that see the same block go through it together; a block in bfloat16
//! is decoded once for them, into the first-level cache.

use std::ops::Range;

use super::{
    Cpu,
    gemm::{self, Left, Right, Target},
    isa::kernel,
    kv::CpuKv,
    simd::Simd,
    team::Parts,
};
use crate::backend::{
    AttnShape, AttnSpan, BLOCK,
    lanes::{LANES, check_len, check_rows},
};

// A block of keys is one vector of scores.
const _: () = assert!(BLOCK == LANES);

/// Query rows (times the heads that share a key head) of a tile.
pub(super) const TILE_UNITS: usize = 48;
/// Scores that a tile holds at most, unless one row has more: they should stay in the second-level cache.
pub(super) const TILE_SCORES: usize = 64 * 1024;

/// Scales the numbers `seen` of `scores` and turns them to `exp(score - maximum)`; the rest becomes 0. Returns the sum.
#[inline(always)]
fn soft_max_in<S: Simd>(s: S, scores: &mut [f32], seen: Range<usize>, scale: f32) -> f32 {
    let factor = s.splat(scale);
    for block in scores.chunks_exact_mut(LANES) {
        s.store(block, s.mul(s.load(block), factor));
    }
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let mut max = s.splat(f32::NEG_INFINITY);
    for block in scores.chunks_exact(LANES) {
        max = s.max(max, s.load(block));
    }
    let max = s.splat(s.largest(max));
    let mut sum = s.splat(0.0);
    for block in scores.chunks_exact_mut(LANES) {
        let weight = s.exp(s.sub(s.load(block), max));
        s.store(block, weight);
        sum = s.add(sum, weight);
    }
    s.sum(sum)
}

kernel!(pub(super) fn soft_max = soft_max_in(scores: &mut [f32], seen: Range<usize>, scale: f32) -> f32);

/// `to = from / divisor`.
#[inline(always)]
fn divide_in<S: Simd>(_s: S, from: &[f32], divisor: f32, to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from / divisor;
    }
}

kernel!(fn divide = divide_in(from: &[f32], divisor: f32, to: &mut [f32]));

/// Query rows that go through together, for one key head: some of one span, counted from its first, or the only rows of several.
struct Tile {
    spans: Range<usize>,
    rows: Range<usize>,
    kv_head: usize,
}

/// A row that asks.
#[derive(Clone, Copy)]
struct Ask<'a> {
    /// Row of the call.
    row: usize,
    /// Keys that it may see; of a window the last.
    seen: usize,
    table: &'a [u32],
}

impl Ask<'_> {
    /// The cache block that holds key `first`, where a block begins; none if that is behind what it sees.
    fn block(&self, first: usize) -> Option<u32> {
        (first < self.seen).then(|| self.table[first / BLOCK])
    }
}

/// Neighbours of `asks` that read the same block at key `first`, with the block.
fn runs<'a>(asks: &'a [Ask<'_>], first: usize) -> impl Iterator<Item = (u32, Range<usize>)> + 'a {
    let mut start = 0;
    asks.chunk_by(move |a, b| a.block(first) == b.block(first)).filter_map(move |run| {
        start += run.len();
        Some((run[0].block(first)?, start - run.len()..start))
    })
}

/// Rows of a tile whose last row sees `keys` keys, with `group` query heads for a key head.
pub(super) fn tile_rows(keys: usize, group: usize) -> usize {
    (TILE_UNITS / group).min(TILE_SCORES / (group * keys.max(1))).max(1)
}

/// Keys whose scores a tile holds for each of its rows: its rows' windows reach a little further than one.
pub(super) fn most_keys(keys: usize, shape: AttnShape) -> usize {
    shape.window.map_or(keys, |window| keys.min(window.saturating_add(TILE_UNITS + BLOCK)))
}

impl Cpu {
    pub(super) fn attend(&self, q: &[f32], kv: &CpuKv, spans: &[AttnSpan], shape: AttnShape, out: &mut [f32]) {
        let heads = shape.heads;
        assert_eq!(heads, kv.heads, "attention: heads of the call and of the cache differ");
        check_len("attention out", out.len(), q.len());
        let mut work = 0;
        for span in spans {
            check_rows("attention q", q.len(), heads.heads * heads.head_dim, &span.rows);
            let keys = span.start + span.rows.len();
            let blocks = keys.div_ceil(BLOCK);
            assert!(span.table.len() >= blocks, "attention: {keys} keys in a table of {} blocks", span.table.len());
            work += span.rows.len() * most_keys(keys, shape) * heads.heads * heads.head_dim / 10;
        }
        let tiles = self.tiles(spans, shape);
        let out = Parts::new(out);
        self.team.run(tiles.len(), work, |i| self.attend_tile(q, kv, spans, &tiles[i], shape, out));
    }

    /// The tiles that `spans` are cut into; every row of every key head is in one.
    fn tiles(&self, spans: &[AttnSpan], shape: AttnShape) -> Vec<Tile> {
        let heads = shape.heads;
        let group = heads.heads / heads.kv_heads;
        let most = |span: &AttnSpan| tile_rows(most_keys(span.start + span.rows.len(), shape), group);
        // samples of one prompt, a token each: its keys are read once for all of them, if that leaves work for every thread
        let alike = |a: &AttnSpan, b: &AttnSpan| {
            shape.window.is_none() && a.rows.len() == 1 && b.rows.len() == 1 && a.table.first() == b.table.first()
        };
        let fair = (spans.len() * heads.kv_heads).div_ceil(2 * self.team.hands());
        let mut tiles = Vec::new();
        let mut first = 0;
        for like in spans.chunk_by(alike) {
            let spans = first..first + like.len();
            first = spans.end;
            let together = like.iter().map(most).min().unwrap_or(1);
            for kv_head in 0..heads.kv_heads {
                if let [span] = like {
                    for first in (0..span.rows.len()).step_by(together) {
                        let rows = first..(first + together).min(span.rows.len());
                        tiles.push(Tile { spans: spans.clone(), rows, kv_head });
                    }
                } else {
                    let step = together.min(fair);
                    for first in spans.clone().step_by(step) {
                        tiles.push(Tile { spans: first..(first + step).min(spans.end), rows: 0..1, kv_head });
                    }
                }
            }
        }
        tiles
    }

    fn attend_tile(&self, q: &[f32], kv: &CpuKv, spans: &[AttnSpan], tile: &Tile, shape: AttnShape, out: Parts<'_>) {
        let heads = shape.heads;
        let (dim, padded) = (heads.head_dim, kv.padded);
        let group = heads.heads / heads.kv_heads;
        let asks = spans[tile.spans.clone()].iter().flat_map(|span| {
            let ask = |i| Ask { row: span.rows.start + i, seen: span.start + i + 1, table: &span.table };
            tile.rows.clone().map(ask)
        });
        let asks: Vec<Ask<'_>> = asks.collect();
        let units = asks.len() * group;
        // the blocks that any row of the tile sees
        let base = asks.iter().map(|ask| shape.first_key(ask.seen)).min().unwrap_or(0) / BLOCK * BLOCK;
        let end = asks.iter().map(|ask| ask.seen).max().unwrap_or(0).next_multiple_of(BLOCK);
        let stride = end - base;
        // the heads of a group lie side by side in a row
        let place = |ask: &Ask<'_>| (ask.row * heads.heads + tile.kv_head * group) * dim;

        let mut scratch = self.buffers.alloc((units * dim).next_multiple_of(LANES) + units * (stride + padded));
        let (queries, rest) = scratch.split_at_mut((units * dim).next_multiple_of(LANES));
        let (scores, sum) = rest.split_at_mut(units * stride);
        for (ask, to) in asks.iter().zip(queries.chunks_exact_mut(group * dim)) {
            to.copy_from_slice(&q[place(ask)..place(ask) + group * dim]);
        }
        let visits = (base..end)
            .step_by(BLOCK)
            .flat_map(|first| runs(&asks, first).map(move |(block, run)| (first, block, run)));
        let visits: Vec<_> = visits.collect();
        let mut room = Vec::new();
        let block_of = |visit: usize| visits.get(visit).map(|(_, block, _)| *block);
        for (i, (first, block, run)) in visits.iter().enumerate() {
            let unit = run.start * group;
            let keys = kv.keys(self.isa, *block, tile.kv_head, &mut room);
            let a = Left { at: queries[unit * dim..].as_ptr(), row: dim, step: 1 };
            let next = match block_of(i + 1) {
                Some(block) => kv.keys_in_memory(block, tile.kv_head),
                None => kv.values_in_memory(visits[0].1, tile.kv_head),
            };
            let b = Right { next, ..Right::new(keys.as_ptr(), 0, BLOCK) };
            let c = Target { at: scores[unit * stride + first - base..].as_mut_ptr(), row: stride, accumulate: false };
            // SAFETY: the run's units of `dim` numbers, one panel of `dim`, and as many units with room for a block.
            unsafe { gemm::multiply(self.isa, run.len() * group, BLOCK, dim, a, b, c) }
        }
        let mut sums = [0.0f32; TILE_UNITS];
        let mut sums_long = Vec::new();
        let sums = if units <= TILE_UNITS {
            &mut sums[..units]
        } else {
            sums_long.resize(units, 0.0);
            &mut sums_long[..]
        };
        for (unit, row) in scores.chunks_exact_mut(stride).enumerate() {
            let n = asks[unit / group].seen;
            let columns = n.next_multiple_of(BLOCK) - base;
            sums[unit] = soft_max(self.isa, &mut row[..columns], shape.first_key(n) - base..n - base, shape.scale);
        }

        // What lies behind a row is left out rather than weighted by zero: its memory may hold anything. What has left its
        // window was written once and is weighted by zero, which changes no bit of the sum.
        for (i, (first, block, run)) in visits.iter().enumerate() {
            let keys = |ask: &Ask<'_>| (ask.seen - first).min(BLOCK);
            let values = kv.values(self.isa, *block, tile.kv_head, &mut room);
            let mut unit = run.start * group;
            let next = block_of(i + 1).and_then(|block| kv.values_in_memory(block, tile.kv_head));
            for equal in asks[run.clone()].chunk_by(|a, b| keys(a) == keys(b)) {
                let units = equal.len() * group;
                let a = Left { at: scores[unit * stride + first - base..].as_ptr(), row: stride, step: 1 };
                let b = Right { next, ..Right::new(values.as_ptr(), LANES, padded) };
                let c = Target { at: sum[unit * padded..].as_mut_ptr(), row: padded, accumulate: *first > base };
                // SAFETY: rows of as many weights as there are keys of the block, these values, and the rows' sums.
                unsafe { gemm::multiply(self.isa, units, padded, keys(&equal[0]), a, b, c) }
                unit += units;
            }
        }
        for (ask, i) in asks.iter().zip((0..units).step_by(group)) {
            for (head, unit) in (i..i + group).enumerate() {
                let at = place(ask) + head * dim;
                // SAFETY: a row of a head belongs to one tile.
                let to = unsafe { out.part(at..at + dim) };
                divide(self.isa, &sum[unit * padded..][..dim], sums[unit], to);
            }
        }
    }
}
