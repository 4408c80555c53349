//! Products of slices on the calling thread, for those who cut their work themselves and whose operands are no weights: attention of
//! an encoder, a search over vectors.

use super::{
    Cpu,
    gemm::{self, KC, Left, Right, Target},
};
use crate::backend::lanes::LANES;

/// Columns of a panel.
pub const PANEL: usize = LANES;

/// Rows with which blocks of a panel are worth reading twice.
const FEW_ROWS: usize = 12;

/// `x[rows, depth]` times `panels[depth, columns]`.
#[derive(Clone, Copy, Debug)]
pub struct DirectProduct<'a> {
    /// Row `r` begins at `r * x_row`.
    pub x: &'a [f32],
    /// How far apart rows of `x` are.
    pub x_row: usize,
    /// Rows that are multiplied.
    pub rows: usize,
    /// Number `(i, j)` is at `(j / 16 * depth + i) * 16 + j % 16`; what fills the last panel is read, and has no say.
    pub panels: &'a [f32],
    /// Numbers of a row.
    pub depth: usize,
    /// Columns that are computed.
    pub columns: usize,
}

impl Cpu {
    /// Writes number `(r, j)` of a product to `out[r * out_row + j]`: the chain of [`crate::backend::Backend::linear`], so that its bits depend on
    /// row `r` and column `j` alone.
    pub fn multiply(&self, product: DirectProduct<'_>, out: &mut [f32], out_row: usize) {
        let DirectProduct { x, x_row, rows, panels, depth, columns } = product;
        if rows == 0 || columns == 0 {
            return;
        }
        assert!(x_row >= depth && x.len() >= (rows - 1) * x_row + depth, "multiply: {rows} rows of {depth}");
        assert!(panels.len() >= columns.div_ceil(LANES) * LANES * depth, "multiply: {columns} columns of {depth}");
        assert!(out_row >= columns && out.len() >= (rows - 1) * out_row + columns, "multiply: out");
        let blocks = if rows <= FEW_ROWS { 1 } else { depth.div_ceil(KC).max(1) };
        let deep = depth.div_ceil(blocks).max(1);
        let mut first = 0;
        loop {
            let a = Left { at: x[first..].as_ptr(), row: x_row, step: 1 };
            let b = Right::new(panels[first * LANES..].as_ptr(), LANES * depth, LANES);
            let c = Target { at: out.as_mut_ptr(), row: out_row, accumulate: first > 0 };
            // SAFETY: the operands were just checked to hold these rows and columns, and `out` is borrowed alone.
            unsafe { gemm::multiply(self.isa, rows, columns, deep.min(depth - first), a, b, c) }
            first += deep;
            if first >= depth {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend as _, Isa, MatrixData};

    #[test]
    fn direct_products_have_the_bits_of_linear() {
        let number = |i: usize| ((i * 2654435761) % 1009) as f32 / 400.0 - 1.2;
        for isa in Isa::ALL {
            let cpu = Cpu::with_isa(isa);
            for (rows, depth, columns) in [(1, 384, 1), (3, 0, 5), (5, 33, 40), (70, 700, 32), (16, 5, 16)] {
                let (x_row, out_row) = (depth + 3, columns + 2);
                let x: Vec<f32> = (0..rows * x_row).map(number).collect();
                let w: Vec<f32> = (0..columns * depth).map(|i| number(i + 11)).collect();
                let mut panels = vec![f32::NAN; columns.div_ceil(PANEL) * PANEL * depth];
                for (j, i) in (0..columns).flat_map(|j| (0..depth).map(move |i| (j, i))) {
                    panels[(j / PANEL * depth + i) * PANEL + j % PANEL] = w[j * depth + i];
                }
                let mut out = vec![7.0; rows * out_row];
                cpu.multiply(DirectProduct { x: &x, x_row, rows, panels: &panels, depth, columns }, &mut out, out_row);
                let close: Vec<f32> = (0..rows).flat_map(|r| &x[r * x_row..r * x_row + depth]).copied().collect();
                let mut expected = cpu.zeros(rows * columns);
                if depth > 0 {
                    let matrix = cpu.matrix(MatrixData::F32(&w), columns, depth);
                    cpu.linear(&cpu.upload(&close), &matrix, &mut expected, 0..rows, false);
                }
                for r in 0..rows {
                    assert_eq!(out[r * out_row..][..columns], expected[r * columns..][..columns], "{isa:?}, row {r}");
                    assert_eq!(out[r * out_row + columns..][..2], [7.0; 2], "beside the columns");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "multiply: 2 rows of 4")]
    fn operands_that_are_too_short_are_refused() {
        let product = DirectProduct { x: &[0.0; 7], x_row: 4, rows: 2, panels: &[0.0; 64], depth: 4, columns: 1 };
        Cpu::new().multiply(product, &mut [0.0; 2], 1);
    }
}
