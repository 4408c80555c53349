//! Products with a packed matrix: forward, and backward to the input and to the weights.

use std::ops::Range;

use super::{
    Cpu,
    buffer::CpuBuf,
    gemm::{self, KC, Left, MC, Right, Target},
    matrix::{CpuMatrix, Store},
    team::Parts,
};
use crate::backend::lanes::LANES;

/// Rows whose products are summed before they are added to a weight gradient.
const GRADIENT_ROWS: usize = 256;
/// Outputs whose gradients a task turns at once.
const GRADIENT_OUTPUTS: usize = 192;

/// Rows up to which a product is a matter of reading the matrix.
const FEW_ROWS: usize = 12;
/// Rows up to which a matrix in few bits is decoded in registers, on its way to the multiplication.
const DIRECT_ROWS: usize = 4;

/// Rows of a buffer: row `r` begins at `r * row`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub values: &'a [f32],
    pub row: usize,
}

/// Length of the rows of a scratch matrix of `columns`: whole vectors, and no multiple of 1 KiB, so that neighbouring rows
/// do not compete for the same places of a cache.
pub(crate) fn scratch_row(columns: usize) -> usize {
    let row = columns.next_multiple_of(LANES);
    if row.is_multiple_of(256) { row + LANES } else { row }
}

/// Guess of the time of a product in nanoseconds of one core: arithmetic at 80 GFLOP/s or reading at 16 GB/s.
fn work(m: usize, n: usize, k: usize) -> usize {
    (2 * m * n * k / 80).max(n * k / 4)
}

/// How `tasks` are cut from a grid: pieces over rows and over columns, so many that each thread has equally many, or that one more does not
/// matter.
fn grid(threads: usize, row_blocks: usize, columns: usize) -> (usize, usize) {
    if threads == 1 {
        return (row_blocks, 1);
    }
    let even = |tasks: usize| tasks.is_multiple_of(threads) || tasks >= 16 * threads;
    let least = (4 * threads).div_ceil(row_blocks);
    let pieces = (least..least + threads).find(|pieces| even(row_blocks * pieces)).unwrap_or(least);
    (row_blocks, pieces.clamp(1, columns.max(1)))
}

/// A product to be made: see [`Cpu::product`].
pub(crate) struct Product<'a> {
    pub w: &'a CpuMatrix,
    pub panels: Range<usize>,
    pub out: Parts<'a>,
    pub out_row: usize,
    pub accumulate: bool,
}

/// A product in pieces: of its rows, and of whole groups of its panels.
struct Cut {
    wide: usize,
    groups: usize,
    row_pieces: usize,
    column_pieces: usize,
}

impl Cut {
    fn new(threads: usize, product: &Product<'_>, m: usize) -> Self {
        let wide = product.w.wide(m);
        let groups = product.panels.len().div_ceil(wide);
        let (row_pieces, column_pieces) = grid(threads, m.div_ceil(MC), groups);
        Self { wide, groups, row_pieces, column_pieces }
    }

    fn tasks(&self) -> usize {
        self.row_pieces * self.column_pieces
    }

    /// The rows and panels of task `task`.
    fn piece(&self, task: usize, product: &Product<'_>, m: usize) -> (Range<usize>, Range<usize>) {
        let Range { start, end } = product.panels;
        let group = piece(self.groups, self.column_pieces, task % self.column_pieces);
        let panels = start + group.start * self.wide..(start + group.end * self.wide).min(end);
        (piece(m, self.row_pieces, task / self.column_pieces), panels)
    }
}

/// Piece `i` of `pieces` of `0..items`.
pub(crate) fn piece(items: usize, pieces: usize, i: usize) -> Range<usize> {
    items * i / pieces..items * (i + 1) / pieces
}

/// Copies a block of A to `room`, close together, so that its rows fit the caches side by side; without room A stays
/// where it is.
///
/// # Safety
/// A has `rows` rows of `depth` neighbouring numbers; `room` is as [`Cpu::pack_room`] made it.
unsafe fn pack_rows(room: Option<&mut [f32]>, a: Left, rows: usize, depth: usize) -> Left {
    let Some(room) = room else { return a };
    let row = scratch_row(depth);
    for (r, to) in room.chunks_exact_mut(row).take(rows).enumerate() {
        // SAFETY: the caller's promise.
        to[..depth].copy_from_slice(unsafe { std::slice::from_raw_parts(a.at.add(r * a.row), depth) });
    }
    Left { at: room.as_ptr(), row, step: 1 }
}

impl Cpu {
    /// `out[r, j] (+)= Σ x[r, i] W[j, i]` for the columns `16 * panels.start..` of W; `out` has rows of `out_row`, its first
    /// column being the first of the panels.
    pub(crate) fn product(
        &self,
        x: Rows<'_>,
        w: &CpuMatrix,
        panels: Range<usize>,
        out: Parts<'_>,
        out_row: usize,
        m: usize,
        accumulate: bool,
    ) {
        self.products(x, &[Product { w, panels, out, out_row, accumulate }], m);
    }

    /// As [`Self::product`], with several matrices: threads wait for each other once.
    pub(crate) fn products(&self, x: Rows<'_>, products: &[Product<'_>], m: usize) {
        if m == 0 {
            return;
        }
        let threads = self.team.hands();
        let cut = |product: &Product<'_>| Cut::new(threads, product, m);
        let all = products.iter().map(|p| work(m, p.panels.len() * LANES, p.w.inner)).sum();
        self.team.run(products.iter().map(|p| cut(p).tasks()).sum(), all, |mut task| {
            for p in products {
                let cut = cut(p);
                if task < cut.tasks() {
                    let (rows, group) = cut.piece(task, p, m);
                    // SAFETY: every piece of a grid belongs to one task.
                    return unsafe {
                        self.product_piece(x, p.w, group, p.panels.start, p.out, p.out_row, rows, p.accumulate)
                    };
                }
                task -= cut.tasks();
            }
        });
    }

    /// The rows `rows` and panels `group` of [`Self::product`], on this thread; column 0 of `out` is the first of panel
    /// `first_panel`.
    ///
    /// # Safety
    /// Nothing else touches these rows and columns of `out` meanwhile.
    pub(crate) unsafe fn product_piece(
        &self,
        x: Rows<'_>,
        w: &CpuMatrix,
        group: Range<usize>,
        first_panel: usize,
        out: Parts<'_>,
        out_row: usize,
        rows: Range<usize>,
        accumulate: bool,
    ) {
        if rows.is_empty() || group.is_empty() {
            return;
        }
        let k = w.inner;
        let columns = group.start * LANES..(group.end * LANES).min(w.out);
        assert!(x.row >= k && x.values.len() >= (rows.end - 1) * x.row + k, "product: rows {rows:?} of {}", x.row);
        let first = columns.start - first_panel * LANES;
        out.at((rows.end - 1) * out_row + first + columns.len());
        let a = Left { at: x.values[rows.start * x.row..].as_ptr(), row: x.row, step: 1 };
        let c = Target { at: out.at(rows.start * out_row + first), row: out_row, accumulate };
        let Store::F32(panels) = &w.store else {
            // SAFETY: x and out were just checked to hold these rows and columns; they are the caller's alone.
            return unsafe {
                match rows.len() {
                    m @ ..=DIRECT_ROWS => w.multiply(self.isa, m, group, a, c),
                    m => self.multiply_coded(m, w, group, a, c),
                }
            };
        };
        let from = &panels[group.start * LANES * k..group.end * LANES * k];
        let b = Right { at: from.as_ptr(), panel: LANES * k, step: LANES };
        // SAFETY: as above, for the panels too.
        unsafe { self.multiply_blocked(rows.len(), columns.len(), k, a, b, c) }
    }

    /// The product with the panels `group` of a matrix that is not in f32: blocks of it are decoded, close together, and
    /// multiplied while they are in a cache.
    ///
    /// # Safety
    /// A has `m` rows of as many numbers as W has inputs, C `m` rows of the panels' columns that nothing else touches meanwhile.
    unsafe fn multiply_coded(&self, m: usize, w: &CpuMatrix, group: Range<usize>, a: Left, c: Target) {
        let k = w.inner;
        let depth = k.div_ceil(k.div_ceil(KC).max(1)).next_multiple_of(LANES);
        let mut decoded = self.buffers.alloc(depth * LANES);
        let mut packed = self.pack_room(m.min(MC), group.len() * LANES, a.row, depth);
        for r in (0..m).step_by(MC) {
            let rows = MC.min(m - r);
            let mut i = 0;
            loop {
                let deep = depth.min(k - i);
                // SAFETY: the caller's promise, cut to this block.
                let a =
                    unsafe { pack_rows(packed.as_deref_mut(), Left { at: a.at.add(r * a.row + i), ..a }, rows, deep) };
                for panel in group.clone() {
                    w.tile(self.isa, panel, i..i + deep, &mut decoded);
                    let columns = ((panel + 1) * LANES).min(w.out) - panel * LANES;
                    let b = Right { at: decoded.as_ptr(), panel: 0, step: LANES };
                    // SAFETY: as above; `decoded` holds this panel.
                    unsafe {
                        let at = c.at.add(r * c.row + (panel - group.start) * LANES);
                        let c = Target { at, accumulate: c.accumulate || i > 0, ..c };
                        gemm::multiply(self.isa, rows, columns, deep, a, b, c);
                    }
                }
                i += depth;
                if i >= k {
                    break;
                }
            }
        }
    }

    /// [`gemm::multiply`] blocked for the caches, for any `m`, `n` and `k`; the numbers of a row of A are neighbours.
    ///
    /// # Safety
    /// As [`gemm::multiply`].
    unsafe fn multiply_blocked(&self, m: usize, n: usize, k: usize, a: Left, b: Right, c: Target) {
        // few rows: reading the panels is all that matters, and it goes best from end to end
        let blocks = if m <= FEW_ROWS { 1 } else { k.div_ceil(KC).max(1) };
        let depth = k.div_ceil(blocks).max(1);
        let mut packed = self.pack_room(m.min(MC), n, a.row, depth);
        for r in (0..m).step_by(MC) {
            let rows = MC.min(m - r);
            let mut i = 0;
            loop {
                let deep = depth.min(k - i);
                // SAFETY: the caller's promise, cut to this block.
                unsafe {
                    let a = pack_rows(packed.as_deref_mut(), Left { at: a.at.add(r * a.row + i), ..a }, rows, deep);
                    let b = Right { at: b.at.add(i * b.step), ..b };
                    let c = Target { at: c.at.add(r * c.row), accumulate: c.accumulate || i > 0, ..c };
                    gemm::multiply(self.isa, rows, n, deep, a, b, c);
                }
                i += depth;
                if i >= k {
                    break;
                }
            }
        }
    }

    /// Room for a copy of a block of A, whose rows are `row` apart: where it is read often enough to pay, and does not lie close together
    /// as it is.
    fn pack_room(&self, rows: usize, columns: usize, row: usize, depth: usize) -> Option<CpuBuf> {
        let pays = rows > FEW_ROWS && columns >= 8 * LANES && row != scratch_row(depth);
        pays.then(|| self.buffers.alloc(rows * scratch_row(depth)))
    }

    /// `dx[r, i] (+)= Σ_j dy[r, j] W[j, i]` over the outputs `j` of `panels`; column 0 of `dy` is the first of them.
    ///
    /// Blocks of the panels are turned so that lanes are inputs, then the forward kernel does the rest: one chain, j
    /// ascending.
    pub(crate) fn product_back(
        &self,
        dy: Rows<'_>,
        w: &CpuMatrix,
        panels: Range<usize>,
        dx: Parts<'_>,
        dx_row: usize,
        m: usize,
        accumulate: bool,
    ) {
        let outputs = (panels.end * LANES).min(w.out).saturating_sub(panels.start * LANES);
        let inner = w.inner;
        if m == 0 {
            return;
        }
        assert!(dy.values.len() >= (m - 1) * dy.row + outputs && dy.row >= outputs);
        let strips = inner.div_ceil(LANES);
        let (row_pieces, strip_pieces) = grid(self.team.hands(), m.div_ceil(MC), strips);
        self.team.run(row_pieces * strip_pieces, work(m, outputs, inner), |task| {
            let rows = piece(m, row_pieces, task / strip_pieces);
            let group = piece(strips, strip_pieces, task % strip_pieces);
            let mut turned = self.buffers.alloc(2 * KC * LANES);
            let mut decoded = [0.0; LANES * LANES];
            let mut packed = self.pack_room(rows.len(), group.len() * LANES, dy.row, KC.min(outputs));
            let mut j = 0;
            while !rows.is_empty() && (j < outputs || j == 0) {
                let depth = KC.min(outputs - j);
                let a = Left { at: dy.values[rows.start * dy.row + j..].as_ptr(), row: dy.row, step: 1 };
                // SAFETY: dy holds these rows and columns.
                let a = unsafe { pack_rows(packed.as_deref_mut(), a, rows.len(), depth) };
                let turn = |strip: usize, turned: &mut [f32], decoded: &mut [f32]| {
                    let columns = strip * LANES..((strip + 1) * LANES).min(inner);
                    for block in 0..depth.div_ceil(LANES) {
                        let panel = panels.start + j / LANES + block;
                        let from = match &w.store {
                            Store::F32(panels) => {
                                &panels[(panel * inner + columns.start) * LANES..(panel * inner + columns.end) * LANES]
                            }
                            _ => {
                                w.tile(self.isa, panel, columns.clone(), decoded);
                                &decoded[..]
                            }
                        };
                        let to = &mut turned[block * LANES * LANES..(block + 1) * LANES * LANES];
                        // SAFETY: `from` holds the block, `to` its turned image.
                        unsafe {
                            gemm::transpose(
                                self.isa,
                                from.as_ptr(),
                                LANES,
                                columns.len(),
                                LANES,
                                to.as_mut_ptr(),
                                LANES,
                            );
                        }
                    }
                };
                // two at a time, as tiles may take them
                for first in group.clone().step_by(2) {
                    let strips = first..(first + 2).min(group.end);
                    for (strip, turned) in strips.clone().zip(turned.chunks_exact_mut(KC * LANES)) {
                        turn(strip, turned, &mut decoded);
                    }
                    let columns = strips.start * LANES..(strips.end * LANES).min(inner);
                    let b = Right { at: turned.as_ptr(), panel: KC * LANES, step: LANES };
                    dx.at((rows.end - 1) * dx_row + columns.end);
                    let at = dx.at(rows.start * dx_row + columns.start);
                    let c = Target { at, row: dx_row, accumulate: accumulate || j > 0 };
                    // SAFETY: dy, the turned block and dx hold these rows and columns, which no other task has.
                    unsafe { gemm::multiply(self.isa, rows.len(), columns.len(), depth, a, b, c) }
                }
                j += KC;
            }
        });
    }

    /// `dw[j, i] += scale * Σ_r dy[r, j] x[r, i]` for `out` columns of `dy` and `inner` of `x`; dw has rows of `inner`.
    pub(crate) fn product_weights(
        &self,
        dy: Rows<'_>,
        x: Rows<'_>,
        dw: Parts<'_>,
        out: usize,
        inner: usize,
        m: usize,
        scale: f32,
    ) {
        if m == 0 || out == 0 || inner == 0 {
            return;
        }
        assert!(dy.values.len() >= (m - 1) * dy.row + out && x.values.len() >= (m - 1) * x.row + inner);
        let strips = inner.div_ceil(LANES);
        let threads = self.team.hands();
        // few strips, as of an adapter's rank, leave the outputs to be cut more finely
        let most = out.div_ceil(LANES).min((2 * threads).div_ceil(strips));
        let (groups, strip_pieces) = grid(threads, out.div_ceil(GRADIENT_OUTPUTS).max(most), strips);
        self.team.run(groups * strip_pieces, work(m, out, inner), |task| {
            let panels = piece(out.div_ceil(LANES), groups, task / strip_pieces);
            let outputs = panels.start * LANES..(panels.end * LANES).min(out);
            let group = piece(strips, strip_pieces, task % strip_pieces);
            let mut turned = self.buffers.alloc(outputs.len() * GRADIENT_ROWS);
            let mut strip_rows = self.buffers.alloc(2 * GRADIENT_ROWS * LANES);
            for first in (0..m).step_by(GRADIENT_ROWS) {
                let rows = GRADIENT_ROWS.min(m - first);
                let from = &dy.values[first * dy.row + outputs.start..];
                // SAFETY: dy holds these rows and columns, `turned` has room for their turned image.
                unsafe {
                    gemm::transpose(
                        self.isa,
                        from.as_ptr(),
                        dy.row,
                        rows,
                        outputs.len(),
                        turned.as_mut_ptr(),
                        GRADIENT_ROWS,
                    );
                }
                for pair in group.clone().step_by(2) {
                    let strips = pair..(pair + 2).min(group.end);
                    for (strip, packed) in strips.clone().zip(strip_rows.chunks_exact_mut(GRADIENT_ROWS * LANES)) {
                        let columns = strip * LANES..((strip + 1) * LANES).min(inner);
                        let from = x.values[first * x.row + columns.start..].as_ptr();
                        // SAFETY: x holds these rows and columns, `packed` has room for as many vectors.
                        unsafe {
                            gemm::pack_strip(self.isa, from, x.row, rows, columns.len(), scale, packed.as_mut_ptr());
                        }
                    }
                    let columns = strips.start * LANES..(strips.end * LANES).min(inner);
                    let a = Left { at: turned.as_ptr(), row: GRADIENT_ROWS, step: 1 };
                    let b = Right { at: strip_rows.as_ptr(), panel: GRADIENT_ROWS * LANES, step: LANES };
                    dw.at((outputs.end - 1) * inner + columns.end);
                    let at = dw.at(outputs.start * inner + columns.start);
                    let c = Target { at, row: inner, accumulate: true };
                    // SAFETY: both operands and dw hold these rows and columns, which no other task has.
                    unsafe { gemm::multiply(self.isa, outputs.len(), columns.len(), rows, a, b, c) }
                }
            }
        });
    }
}
