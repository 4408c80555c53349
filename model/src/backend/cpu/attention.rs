//! Causal attention over the key-value cache ([`super::kv`]).
//!
//! Scores and sums are both products with the one kernel of [`super::gemm`], for a tile of query rows that share a block. A block
//! in bfloat16 is decoded once a tile, into the first-level cache.

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

/// Query rows of one span that go through together, for one key head.
struct Tile {
    span: usize,
    /// Rows, counted from the span's first.
    rows: Range<usize>,
    kv_head: usize,
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
        let group = heads.heads / heads.kv_heads;
        let mut tiles = Vec::new();
        let mut work = 0;
        for (index, span) in spans.iter().enumerate() {
            check_rows("attention q", q.len(), heads.heads * heads.head_dim, &span.rows);
            let keys = span.start + span.rows.len();
            let blocks = keys.div_ceil(BLOCK);
            assert!(span.table.len() >= blocks, "attention: {keys} keys in a table of {} blocks", span.table.len());
            let held = most_keys(keys, shape);
            work += span.rows.len() * held * heads.heads * heads.head_dim / 10;
            let step = tile_rows(held, group);
            for kv_head in 0..heads.kv_heads {
                for first in (0..span.rows.len()).step_by(step) {
                    tiles.push(Tile { span: index, rows: first..(first + step).min(span.rows.len()), kv_head });
                }
            }
        }
        let out = Parts::new(out);
        self.team.run(tiles.len(), work, |i| self.attend_tile(q, kv, &spans[tiles[i].span], &tiles[i], shape, out));
    }

    fn attend_tile(&self, q: &[f32], kv: &CpuKv, span: &AttnSpan, tile: &Tile, shape: AttnShape, out: Parts<'_>) {
        let heads = shape.heads;
        let (dim, padded) = (heads.head_dim, kv.padded);
        let group = heads.heads / heads.kv_heads;
        let units = tile.rows.len() * group;
        let seen = |row: usize| span.start + row + 1;
        // the blocks that any row of the tile sees
        let base = shape.first_key(seen(tile.rows.start)) / BLOCK * BLOCK;
        let stride = seen(tile.rows.end - 1).next_multiple_of(BLOCK) - base;
        let table = &span.table[base / BLOCK..];
        // the heads of a group lie side by side in a row
        let place = |row: usize| ((span.rows.start + row) * heads.heads + tile.kv_head * group) * dim;

        let mut scratch = self.buffers.alloc((units * dim).next_multiple_of(LANES) + units * (stride + padded));
        let (queries, rest) = scratch.split_at_mut((units * dim).next_multiple_of(LANES));
        let (scores, sum) = rest.split_at_mut(units * stride);
        for (row, to) in tile.rows.clone().zip(queries.chunks_exact_mut(group * dim)) {
            to.copy_from_slice(&q[place(row)..place(row) + group * dim]);
        }
        let mut room = Vec::new();
        for (block, columns) in table.iter().zip((0..stride).step_by(BLOCK)) {
            let a = Left { at: queries.as_ptr(), row: dim, step: 1 };
            let keys = kv.keys(self.isa, *block, tile.kv_head, &mut room);
            let b = Right { at: keys.as_ptr(), panel: 0, step: BLOCK };
            let c = Target { at: scores[columns..].as_mut_ptr(), row: stride, accumulate: false };
            // SAFETY: `units` rows of `dim` numbers, one panel of `dim`, and `units` rows with room for a block.
            unsafe { gemm::multiply(self.isa, units, BLOCK, dim, a, b, c) }
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
            let n = seen(tile.rows.start + unit / group);
            let columns = n.next_multiple_of(BLOCK) - base;
            sums[unit] = soft_max(self.isa, &mut row[..columns], shape.first_key(n) - base..n - base, shape.scale);
        }

        // What lies behind a row is left out rather than weighted by zero: its memory may hold anything. What has left its
        // window was written once and is weighted by zero, which changes no bit of the sum.
        for (index, columns) in (0..stride).step_by(BLOCK).enumerate() {
            let values = kv.values(self.isa, table[index], tile.kv_head, &mut room);
            let b = Right { at: values.as_ptr(), panel: LANES, step: padded };
            let first_whole =
                (base + columns + BLOCK).saturating_sub(span.start + 1).clamp(tile.rows.start, tile.rows.end);
            for row in tile.rows.start..first_whole {
                let keys = seen(row).saturating_sub(base + columns);
                let unit = (row - tile.rows.start) * group;
                if keys > 0 {
                    let a = Left { at: scores[unit * stride + columns..].as_ptr(), row: stride, step: 1 };
                    let c = Target { at: sum[unit * padded..].as_mut_ptr(), row: padded, accumulate: index > 0 };
                    // SAFETY: a row's `group` units, `keys` of a block of values, and their sums.
                    unsafe { gemm::multiply(self.isa, group, padded, keys, a, b, c) }
                }
            }
            if first_whole < tile.rows.end {
                let unit = (first_whole - tile.rows.start) * group;
                let a = Left { at: scores[unit * stride + columns..].as_ptr(), row: stride, step: 1 };
                let c = Target { at: sum[unit * padded..].as_mut_ptr(), row: padded, accumulate: index > 0 };
                // SAFETY: the units from there on, a whole block of values, and their sums.
                unsafe { gemm::multiply(self.isa, units - unit, padded, BLOCK, a, b, c) }
            }
        }
        for row in tile.rows.clone() {
            for head in 0..group {
                let unit = (row - tile.rows.start) * group + head;
                let at = place(row) + head * dim;
                // SAFETY: a row of a head belongs to one tile.
                let to = unsafe { out.part(at..at + dim) };
                divide(self.isa, &sum[unit * padded..][..dim], sums[unit], to);
            }
        }
    }
}
