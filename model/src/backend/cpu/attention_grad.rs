//! The backward of attention: probabilities are computed again, tile by tile of query rows.
//!
//! With `p` the probabilities and `D = dout · out`: `dp = dout · Vᵀ`, `ds = p * (dp - D) * scale`, `dq = ds · K`,
//! `dk = dsᵀ · q`, `dv = pᵀ · dout`. A task is one key head of the spans that share keys, so every gradient has one
//! writer and one order.

use std::ops::Range;

use super::{
    Cpu,
    attention::{most_keys, soft_max, tile_rows},
    buffer::CpuBuf,
    gemm::{self, Left, Right, Target},
    isa::kernel,
    simd::Simd,
    team::Parts,
};
use crate::backend::{
    AttnShape, GradSpan, Heads,
    lanes::{LANES, check_len, check_rows},
};

/// The buffers of one call.
#[derive(Clone, Copy)]
pub(super) struct Forward<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub dout: &'a [f32],
}

/// The gradients of one call, all added to.
#[derive(Clone, Copy)]
pub(super) struct Gradients<'a> {
    pub dq: Parts<'a>,
    pub dk: Parts<'a>,
    pub dv: Parts<'a>,
}

/// One key head of one span: keys and values gathered in order, as rows and turned.
struct Keys {
    /// `[keys][padded]`.
    k: CpuBuf,
    /// `[block][head_dim][16]`.
    k_turned: CpuBuf,
    v_turned: CpuBuf,
    /// `[keys][padded]`, sums over the query rows.
    dk: CpuBuf,
    dv: CpuBuf,
}

/// From weights `exp(score - maximum)` with sum `sum` and from `dp`: probabilities in place, `ds` in place of `dp`.
#[inline(always)]
fn score_grad_in<S: Simd>(s: S, p: &mut [f32], dp: &mut [f32], sum: f32, total: f32, scale: f32) {
    let (share, total, scale) = (s.splat(1.0 / sum), s.splat(total), s.splat(scale));
    for (p, dp) in p.chunks_exact_mut(LANES).zip(dp.chunks_exact_mut(LANES)) {
        let weight = s.mul(s.load(p), share);
        s.store(p, weight);
        s.store(dp, s.mul(s.mul(weight, s.sub(s.load(dp), total)), scale));
    }
}

kernel!(fn score_grad = score_grad_in(p: &mut [f32], dp: &mut [f32], sum: f32, total: f32, scale: f32));

/// Dot product by lanes.
#[inline(always)]
fn dot_in<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    let (mut x, mut y) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in (&mut x).zip(&mut y) {
        sum = s.fma(s.load(a), s.load(b), sum);
    }
    sum = s.fma(s.load_part(x.remainder(), 0.0), s.load_part(y.remainder(), 0.0), sum);
    s.sum(sum)
}

kernel!(fn dot = dot_in(a: &[f32], b: &[f32]) -> f32);

/// `to += from`.
#[inline(always)]
fn add_in<S: Simd>(_s: S, from: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

kernel!(fn add_row = add_in(from: &[f32], to: &mut [f32]));

/// Spans in groups that share no key row.
fn independent(spans: &[GradSpan], rows: usize) -> Vec<Vec<usize>> {
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    let mut parent: Vec<usize> = (0..spans.len()).collect();
    let mut owner = vec![usize::MAX; rows];
    for (i, span) in spans.iter().enumerate() {
        for row in span.prefix.iter().cloned().flatten().chain(span.rows.clone()) {
            if owner[row] == usize::MAX {
                owner[row] = i;
            } else {
                let (a, b) = (root(&mut parent, owner[row]), root(&mut parent, i));
                parent[a.max(b)] = a.min(b);
            }
        }
    }
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
    for i in 0..spans.len() {
        let root = root(&mut parent, i);
        groups[root].push(i);
    }
    groups.retain(|g| !g.is_empty());
    groups
}

impl Cpu {
    pub(super) fn attend_back(&self, forward: Forward<'_>, spans: &[GradSpan], shape: AttnShape, grad: Gradients<'_>) {
        let heads = shape.heads;
        let (width, kv_width) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        check_len("attention_backward out", forward.out.len(), forward.q.len());
        check_len("attention_backward dout", forward.dout.len(), forward.q.len());
        check_len("attention_backward v", forward.v.len(), forward.k.len());
        let mut work = 0;
        for span in spans {
            check_rows("attention_backward q", forward.q.len(), width, &span.rows);
            let mut keys = span.rows.len();
            for range in span.prefix.iter().chain([&span.rows]) {
                check_rows("attention_backward k", forward.k.len(), kv_width, range);
                keys += range.len();
            }
            work += span.rows.len() * most_keys(keys, shape) * width / 8;
        }
        let groups = independent(spans, forward.k.len() / kv_width);
        self.team.run(groups.len() * heads.kv_heads, work, |task| {
            for span in &groups[task / heads.kv_heads] {
                self.span_back(forward, &spans[*span], shape, task % heads.kv_heads, grad);
            }
        });
    }

    fn gather_keys(
        &self,
        forward: Forward<'_>,
        ranges: &[Range<usize>],
        n: usize,
        heads: Heads,
        kv_head: usize,
    ) -> Keys {
        let (dim, padded, kv_width) =
            (heads.head_dim, heads.head_dim.next_multiple_of(LANES), heads.kv_heads * heads.head_dim);
        let blocks = n.div_ceil(LANES);
        let gather = |from: &[f32]| {
            let mut rows = self.buffers.alloc(blocks * LANES * padded);
            for (row, to) in ranges.iter().cloned().flatten().zip(rows.chunks_exact_mut(padded)) {
                to[..dim].copy_from_slice(&from[row * kv_width + kv_head * dim..][..dim]);
                to[dim..].fill(0.0);
            }
            rows[n * padded..].fill(0.0);
            rows
        };
        let turn = |rows: &CpuBuf| {
            let mut turned = self.buffers.alloc(blocks * LANES * dim);
            for (from, to) in rows.chunks_exact(LANES * padded).zip(turned.chunks_exact_mut(LANES * dim)) {
                // SAFETY: `from` holds sixteen rows of at least `dim`, `to` their turned image.
                unsafe { gemm::transpose(self.isa, from.as_ptr(), padded, LANES, dim, to.as_mut_ptr(), LANES) }
            }
            turned
        };
        let (k, v) = (gather(forward.k), gather(forward.v));
        Keys {
            k_turned: turn(&k),
            v_turned: turn(&v),
            dk: self.buffers.zeros(k.len()),
            dv: self.buffers.zeros(k.len()),
            k,
        }
    }

    fn span_back(&self, forward: Forward<'_>, span: &GradSpan, shape: AttnShape, kv_head: usize, grad: Gradients<'_>) {
        let heads = shape.heads;
        let ranges: Vec<Range<usize>> = span.prefix.iter().chain([&span.rows]).cloned().collect();
        let n: usize = ranges.iter().map(ExactSizeIterator::len).sum();
        if span.rows.is_empty() {
            return;
        }
        let mut keys = self.gather_keys(forward, &ranges, n, heads, kv_head);
        let step = tile_rows(2 * most_keys(n, shape), heads.heads / heads.kv_heads);
        for first in (0..span.rows.len()).step_by(step) {
            let rows = first..(first + step).min(span.rows.len());
            self.tile_back(forward, span, rows, n - span.rows.len(), shape, kv_head, &mut keys, grad.dq);
        }
        let (dim, padded, kv_width) =
            (heads.head_dim, heads.head_dim.next_multiple_of(LANES), heads.kv_heads * heads.head_dim);
        for (j, row) in ranges.into_iter().flatten().enumerate() {
            let at = row * kv_width + kv_head * dim;
            // SAFETY: this head of a row that serves as a key belongs to one task.
            unsafe {
                add_row(self.isa, &keys.dk[j * padded..][..dim], grad.dk.part(at..at + dim));
                add_row(self.isa, &keys.dv[j * padded..][..dim], grad.dv.part(at..at + dim));
            }
        }
    }

    /// One tile of query rows (`rows` counts from the span's first), with `before` keys ahead of the span.
    fn tile_back(
        &self,
        forward: Forward<'_>,
        span: &GradSpan,
        rows: Range<usize>,
        before: usize,
        shape: AttnShape,
        kv_head: usize,
        keys: &mut Keys,
        dq: Parts<'_>,
    ) {
        let heads = shape.heads;
        let (dim, padded) = (heads.head_dim, heads.head_dim.next_multiple_of(LANES));
        let group = heads.heads / heads.kv_heads;
        let units = rows.len() * group;
        // the keys that any row of the tile sees, from the beginning of a block
        let base = shape.first_key(before + rows.start + 1) / LANES * LANES;
        let n = before + rows.end - base;
        let stride = n.next_multiple_of(LANES);
        let place = |unit: usize| {
            let (row, head) = (span.rows.start + rows.start + unit / group, kv_head * group + unit % group);
            (row * heads.heads + head) * dim
        };
        let gather = |from: &[f32]| {
            let mut tile = self.buffers.alloc(units * padded);
            for (unit, to) in tile.chunks_exact_mut(padded).enumerate() {
                to[..dim].copy_from_slice(&from[place(unit)..place(unit) + dim]);
                to[dim..].fill(0.0);
            }
            tile
        };
        let (q, dout) = (gather(forward.q), gather(forward.dout));
        let against = |a: &CpuBuf, panels: &CpuBuf| {
            let mut c = self.buffers.alloc(units * stride);
            let a = Left { at: a.as_ptr(), row: padded, step: 1 };
            let b = Right::new(panels[base * dim..].as_ptr(), dim * LANES, LANES);
            let target = Target { at: c.as_mut_ptr(), row: stride, accumulate: false };
            // SAFETY: `units` rows of `dim` numbers, the panels of `stride` keys, room for `units` rows of `stride`.
            unsafe { gemm::multiply(self.isa, units, stride, dim, a, b, target) };
            c
        };
        let mut p = against(&q, &keys.k_turned);
        let mut ds = against(&dout, &keys.v_turned);
        for unit in 0..units {
            let (p, ds) = (&mut p[unit * stride..][..stride], &mut ds[unit * stride..][..stride]);
            let own = before + rows.start + unit / group + 1;
            let sum = soft_max(self.isa, p, shape.first_key(own) - base..own - base, shape.scale);
            let at = place(unit);
            let total = dot(self.isa, &forward.dout[at..at + dim], &forward.out[at..at + dim]);
            score_grad(self.isa, p, ds, sum, total, shape.scale);
        }
        let mut dq_tile = self.buffers.alloc(units * padded);
        let a = Left { at: ds.as_ptr(), row: stride, step: 1 };
        let b = Right::new(keys.k[base * padded..].as_ptr(), LANES, padded);
        let c = Target { at: dq_tile.as_mut_ptr(), row: padded, accumulate: false };
        // SAFETY: `units` rows of `n` numbers, `n` rows of `padded` keys, room for `units` rows of `padded`.
        unsafe { gemm::multiply(self.isa, units, padded, n, a, b, c) };
        for unit in 0..units {
            let at = place(unit);
            // SAFETY: this head of a query row belongs to one task.
            add_row(self.isa, &dq_tile[unit * padded..][..dim], unsafe { dq.part(at..at + dim) });
        }
        for (weights, rows, to) in [(&ds, &q, &mut keys.dk), (&p, &dout, &mut keys.dv)] {
            let a = Left { at: weights.as_ptr(), row: 1, step: stride };
            let b = Right::new(rows.as_ptr(), LANES, padded);
            let c = Target { at: to[base * padded..].as_mut_ptr(), row: padded, accumulate: true };
            // SAFETY: `n` columns of `units` numbers, `units` rows of `padded`, `n` rows of `padded` sums.
            unsafe { gemm::multiply(self.isa, n, padded, units, a, b, c) };
        }
    }
}
