//! Products back: to the input of a packed matrix, and to its weights.

use std::ops::Range;

use super::{
    Cpu,
    gemm::{self, KC, Left, Right, Target},
    linear::{Rows, grid, pack_rows, piece, work},
    matrix::{CpuMatrix, Store},
    team::Parts,
};
use crate::backend::lanes::LANES;

/// Rows whose products are summed before they are added to a weight gradient.
const GRADIENT_ROWS: usize = 256;
/// Outputs whose gradients a task turns at once.
const GRADIENT_OUTPUTS: usize = 192;

/// One of the products back of [`Cpu::products_back`]; column 0 of `dy` is the first of the panels.
pub(crate) struct BackProduct<'a> {
    pub dy: Rows<'a>,
    pub w: &'a CpuMatrix,
    pub panels: Range<usize>,
}

impl BackProduct<'_> {
    fn outputs(&self) -> usize {
        (self.panels.end * LANES).min(self.w.out).saturating_sub(self.panels.start * LANES)
    }
}

impl Cpu {
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
        self.products_back(&[BackProduct { dy, w, panels }], dx, dx_row, m, accumulate);
    }

    /// As [`Self::product_back`], one product after the other to the same `dx`, piece by piece.
    pub(crate) fn products_back(
        &self,
        each: &[BackProduct<'_>],
        dx: Parts<'_>,
        dx_row: usize,
        m: usize,
        accumulate: bool,
    ) {
        let Some(inner) = each.first().map(|p| p.w.inner) else { return };
        if m == 0 {
            return;
        }
        for p in each {
            assert!(p.dy.values.len() >= (m - 1) * p.dy.row + p.outputs() && p.dy.row >= p.outputs());
            assert_eq!(p.w.inner, inner);
        }
        let strips = inner.div_ceil(LANES);
        let (row_pieces, strip_pieces) = self.grid(m, strips);
        let all = each.iter().map(|p| work(m, p.outputs(), inner)).sum();
        self.team.run(row_pieces * strip_pieces, all, |task| {
            let rows = piece(m, row_pieces, task / strip_pieces);
            let group = piece(strips, strip_pieces, task % strip_pieces);
            for (i, p) in each.iter().enumerate() {
                // SAFETY: every piece of a grid belongs to one task.
                unsafe { self.back_piece(p, dx, dx_row, rows.clone(), group.clone(), accumulate || i > 0) }
            }
        });
    }

    /// The rows `rows` and strips `group` of [`Self::products_back`] of one of them.
    ///
    /// # Safety
    /// Nothing else touches these rows and columns of `dx` meanwhile.
    unsafe fn back_piece(
        &self,
        product: &BackProduct<'_>,
        dx: Parts<'_>,
        dx_row: usize,
        rows: Range<usize>,
        group: Range<usize>,
        accumulate: bool,
    ) {
        let BackProduct { dy, w, panels } = product;
        let (outputs, inner) = (product.outputs(), w.inner);
        let mut turned = self.buffers.alloc(self.strips_at_once() * KC * LANES);
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
                        gemm::transpose(self.isa, from.as_ptr(), LANES, columns.len(), LANES, to.as_mut_ptr(), LANES);
                    }
                }
            };
            // as many at a time as tiles may take
            for first in group.clone().step_by(self.strips_at_once()) {
                let strips = first..(first + self.strips_at_once()).min(group.end);
                for (strip, turned) in strips.clone().zip(turned.chunks_exact_mut(KC * LANES)) {
                    turn(strip, turned, &mut decoded);
                }
                let columns = strips.start * LANES..(strips.end * LANES).min(inner);
                let b = Right::new(turned.as_ptr(), KC * LANES, LANES);
                dx.at((rows.end - 1) * dx_row + columns.end);
                let at = dx.at(rows.start * dx_row + columns.start);
                let c = Target { at, row: dx_row, accumulate: accumulate || j > 0 };
                // SAFETY: dy, the turned block and dx hold these rows and columns, which no other task has.
                unsafe { gemm::multiply(self.isa, rows.len(), columns.len(), depth, a, b, c) }
            }
            j += KC;
        }
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
            let mut strip_rows = self.buffers.alloc(self.strips_at_once() * GRADIENT_ROWS * LANES);
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
                for strip in group.clone().step_by(self.strips_at_once()) {
                    let strips = strip..(strip + self.strips_at_once()).min(group.end);
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
                    let b = Right::new(strip_rows.as_ptr(), GRADIENT_ROWS * LANES, LANES);
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
