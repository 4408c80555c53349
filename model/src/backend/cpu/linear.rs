//! Products with a packed matrix, forward, and how they are cut into pieces.

use std::ops::Range;

use super::{
    Cpu,
    buffer::CpuBuf,
    gemm::{self, KC, Left, MC, Right, Target},
    isa::Isa,
    matrix::{CpuMatrix, Store},
    team::Parts,
    wide,
};
use crate::backend::lanes::LANES;

/// Panels that are multiplied before a second input continues their chains: their sums stay in the second-level cache.
const LOW_PANELS: usize = 24;

/// Tasks for each thread where a product is cut by columns: so many that threads end together, whatever else the machine does.
const FINE_TASKS: usize = 16;

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
pub(super) fn work(m: usize, n: usize, k: usize) -> usize {
    (2 * m * n * k / 80).max(n * k / 4)
}

/// How `tasks` are cut from a grid: pieces over rows and over columns, so many that each thread has equally many, or that one more does not
/// matter.
pub(super) fn grid(threads: usize, row_blocks: usize, columns: usize) -> (usize, usize) {
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
    /// Another input and its matrix with the same outputs, whose products continue the chain.
    pub low: Option<(Rows<'a>, &'a CpuMatrix)>,
}

/// A product in pieces: of its rows, and of whole groups of its panels.
struct Cut {
    wide: usize,
    groups: usize,
    row_pieces: usize,
    column_pieces: usize,
}

impl Cut {
    fn new(cpu: &Cpu, product: &Product<'_>, m: usize) -> Self {
        let wide = if cpu.wide() && m >= wide::LEAST_ROWS { wide::PANELS } else { product.w.wide(m) };
        let groups = product.panels.len().div_ceil(wide);
        let (row_pieces, column_pieces) = cpu.grid(m, groups);
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
pub(super) unsafe fn pack_rows(room: Option<&mut [f32]>, a: Left, rows: usize, depth: usize) -> Left {
    let Some(room) = room else { return a };
    let row = scratch_row(depth);
    for (r, to) in room.chunks_exact_mut(row).take(rows).enumerate() {
        // SAFETY: the caller's promise.
        to[..depth].copy_from_slice(unsafe { std::slice::from_raw_parts(a.at.add(r * a.row), depth) });
    }
    Left { at: room.as_ptr(), row, step: 1 }
}

impl Cpu {
    /// Products are made by the tiles of [`wide`].
    pub(super) fn wide(&self) -> bool {
        self.isa.isa() == Isa::Avx512
    }

    /// Strips that are turned and multiplied together: as many as a tile may take.
    pub(super) fn strips_at_once(&self) -> usize {
        if self.wide() { wide::PANELS } else { 2 }
    }

    /// Rows of a block.
    fn block_rows(&self) -> usize {
        if self.wide() { wide::MC } else { MC }
    }

    /// Pieces over `m` rows and over columns of a product. Where rows are enough for all threads, wide tiles take all columns of theirs, so
    /// that the rows come from memory once.
    pub(super) fn grid(&self, m: usize, columns: usize) -> (usize, usize) {
        let (threads, row_blocks) = (self.team.hands(), m.div_ceil(self.block_rows()));
        if !self.wide() || threads == 1 {
            return grid(threads, row_blocks, columns);
        }
        if row_blocks < 2 {
            return (1, (FINE_TASKS * threads).clamp(1, columns.max(1)));
        }
        let rows = row_blocks.next_multiple_of(threads);
        (rows, (2 * threads).div_ceil(rows).clamp(1, columns.max(1)))
    }

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
        self.products(x, &[Product { w, panels, out, out_row, accumulate, low: None }], m);
    }

    /// As [`Self::product`], with several matrices: threads wait for each other once.
    pub(crate) fn products(&self, x: Rows<'_>, products: &[Product<'_>], m: usize) {
        if m == 0 {
            return;
        }
        // before the tasks begin: within one there are no hands but its own
        let cuts: Vec<Cut> = products.iter().map(|p| Cut::new(self, p, m)).collect();
        let all = products.iter().map(|p| work(m, p.panels.len() * LANES, p.w.inner)).sum();
        self.team.run(cuts.iter().map(Cut::tasks).sum(), all, |mut task| {
            for (p, cut) in products.iter().zip(&cuts) {
                if task < cut.tasks() {
                    let (rows, group) = cut.piece(task, p, m);
                    // SAFETY: every piece of a grid belongs to one task.
                    return unsafe { self.whole_piece(x, p, group, rows) };
                }
                task -= cut.tasks();
            }
        });
    }

    /// The rows `rows` and panels `group` of a product, with its second input while the sums are in a cache.
    ///
    /// # Safety
    /// As [`Self::product_piece`].
    unsafe fn whole_piece(&self, x: Rows<'_>, p: &Product<'_>, group: Range<usize>, rows: Range<usize>) {
        let piece = |x: Rows<'_>, w: &CpuMatrix, group: Range<usize>, accumulate: bool| {
            // SAFETY: the caller's promise.
            unsafe { self.product_piece(x, w, group, p.panels.start, p.out, p.out_row, rows.clone(), accumulate) }
        };
        let Some((low, second)) = p.low else { return piece(x, p.w, group, p.accumulate) };
        let step = if self.wide() { LOW_PANELS } else { group.len().max(1) };
        for start in group.clone().step_by(step) {
            let some = start..(start + step).min(group.end);
            piece(x, p.w, some.clone(), p.accumulate);
            piece(low, second, some, true);
        }
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
        let b = Right::new(from.as_ptr(), LANES * k, LANES);
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
        let together = if self.wide() { wide::PANELS } else { 1 };
        let mut decoded = self.buffers.alloc(together * depth * LANES);
        let most = self.block_rows();
        let mut packed = self.pack_room(m.min(most), group.len() * LANES, a.row, depth);
        for r in (0..m).step_by(most) {
            let rows = most.min(m - r);
            let mut i = 0;
            loop {
                let deep = depth.min(k - i);
                // SAFETY: the caller's promise, cut to this block.
                let a =
                    unsafe { pack_rows(packed.as_deref_mut(), Left { at: a.at.add(r * a.row + i), ..a }, rows, deep) };
                for first in group.clone().step_by(together) {
                    let panels = first..(first + together).min(group.end);
                    for (panel, to) in panels.clone().zip(decoded.chunks_exact_mut(depth * LANES)) {
                        w.tile(self.isa, panel, i..i + deep, to);
                    }
                    let columns = (panels.end * LANES).min(w.out) - panels.start * LANES;
                    let b = Right::new(decoded.as_ptr(), depth * LANES, LANES);
                    // SAFETY: as above; `decoded` holds these panels.
                    unsafe {
                        let at = c.at.add(r * c.row + (first - group.start) * LANES);
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
        let most = self.block_rows();
        let mut packed = self.pack_room(m.min(most), n, a.row, depth);
        for r in (0..m).step_by(most) {
            let rows = most.min(m - r);
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
    pub(super) fn pack_room(&self, rows: usize, columns: usize, row: usize, depth: usize) -> Option<CpuBuf> {
        let pays = !self.wide() && rows > FEW_ROWS && columns >= 8 * LANES && row != scratch_row(depth);
        pays.then(|| self.buffers.alloc(rows * scratch_row(depth)))
    }
}
