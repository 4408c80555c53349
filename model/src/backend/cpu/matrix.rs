//! A weight matrix in panels: for sixteen neighbouring outputs, all inputs in order, sixteen numbers each.
//!
//! Panel `p` holds `[inner][16]`; number (i, lane) is W[16 p + lane, i], zero beyond the last output. Forward and backward
//! products, the embedding and the head all read this one copy.

use super::{
    buffer::CpuBuf,
    gemm,
    isa::Checked,
    team::{Parts, Team},
};
use crate::backend::{MatrixData, lanes::LANES};

/// A matrix W of shape [out, inner] in panels of sixteen outputs.
#[derive(Debug)]
pub struct CpuMatrix {
    pub(crate) out: usize,
    pub(crate) inner: usize,
    pub(crate) panels: CpuBuf,
}

impl CpuMatrix {
    /// Numbers that a matrix takes.
    pub(crate) fn packed_len(out: usize, inner: usize) -> usize {
        out.div_ceil(LANES) * LANES * inner
    }

    /// Packs a matrix of f32 or bfloat16 numbers.
    pub(crate) fn pack(&mut self, isa: Checked, team: &Team, data: MatrixData<'_>, scale: f32) {
        let (out, inner) = (self.out, self.inner);
        let panels = Parts::new(&mut self.panels);
        team.split(out.div_ceil(LANES), 1, out * inner, |range| {
            for p in range {
                // SAFETY: every panel belongs to one task.
                let panel = unsafe { panels.part(p * LANES * inner..(p + 1) * LANES * inner) };
                let rows = p * LANES..((p + 1) * LANES).min(out);
                if rows.len() < LANES {
                    panel.fill(0.0);
                }
                match data {
                    MatrixData::F32(values) => {
                        let from = &values[rows.start * inner..rows.end * inner];
                        // SAFETY: `from` holds the rows, the panel their turned image.
                        unsafe {
                            gemm::transpose(isa, from.as_ptr(), inner, rows.len(), inner, panel.as_mut_ptr(), LANES);
                        }
                    }
                    MatrixData::Bf16(bits) => {
                        for (lane, r) in rows.enumerate() {
                            for i in 0..inner {
                                panel[i * LANES + lane] = f32::from_bits(u32::from(bits[r * inner + i]) << 16);
                            }
                        }
                    }
                }
                if scale != 1.0 {
                    panel.iter_mut().for_each(|w| *w *= scale);
                }
            }
        });
    }

    /// Copies row `row` of W to `to`.
    pub(crate) fn copy_row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.out, "row {row} of a matrix of {}", self.out);
        let panel = &self.panels[row / LANES * LANES * self.inner..][..LANES * self.inner];
        to.iter_mut().zip(panel.chunks_exact(LANES)).for_each(|(to, lanes)| *to = lanes[row % LANES]);
    }
}
