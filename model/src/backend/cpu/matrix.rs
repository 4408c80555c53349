//! Matrices in the order in which the products read them, in the numbers that they came in.

use std::ops::Range;

use super::{
    buffer::CpuBuf,
    coded::{CodedPanels, each_panel},
    gemm,
    isa::{Checked, kernel},
    simd::Simd,
    team::{Parts, Team},
};
use crate::backend::{MatrixData, lanes::LANES};

/// W [out, in] in panels of sixteen outputs: for each input the numbers of sixteen outputs are neighbours.
#[derive(Debug)]
pub struct CpuMatrix {
    pub(crate) out: usize,
    pub(crate) inner: usize,
    pub(crate) store: Store,
}

/// The numbers of a matrix.
#[derive(Debug)]
pub(crate) enum Store {
    /// f32.
    F32(CpuBuf),
    /// bfloat16.
    Bf16(Vec<u16>),
    /// Codes.
    Coded(CodedPanels),
}

/// Numbers that a matrix takes.
pub(crate) fn packed_len(out: usize, inner: usize) -> usize {
    out.div_ceil(LANES) * LANES * inner
}

/// Copies sixteen bfloat16 numbers of each of `inputs` inputs to f32.
#[inline(always)]
unsafe fn widen_in<S: Simd>(s: S, from: *const u16, inputs: usize, to: *mut f32) {
    for i in 0..inputs {
        // SAFETY: the caller promises `inputs` times sixteen numbers, and room for as many.
        unsafe { s.write(to.add(i * LANES), s.read_bf16(from.add(i * LANES))) }
    }
}

kernel!(unsafe fn widen = widen_in(from: *const u16, inputs: usize, to: *mut f32));

impl CpuMatrix {
    /// Takes over `data`. `room` makes a buffer of f32 numbers.
    pub(crate) fn new(
        isa: Checked,
        team: &Team,
        data: MatrixData<'_>,
        out: usize,
        inner: usize,
        room: impl FnOnce(usize) -> CpuBuf,
    ) -> Self {
        let store = match data {
            MatrixData::F32(values) => {
                let mut panels = room(packed_len(out, inner));
                pack(isa, team, &mut panels, values, out, inner, 1.0);
                Store::F32(panels)
            }
            MatrixData::Bf16(bits) => Store::Bf16(turned(team, bits, out, inner)),
            MatrixData::Coded(coded) => match CodedPanels::new(team, coded, out, inner) {
                Some(panels) => Store::Coded(panels),
                // blocks that run across the ends of rows have no place in panels
                None => return Self::new(isa, team, MatrixData::F32(&coded.decoded()), out, inner, room),
            },
        };
        Self { out, inner, store }
    }

    /// Becomes `scale * values` in f32. `room` makes a buffer, if there is none yet.
    pub(crate) fn set(
        &mut self,
        isa: Checked,
        team: &Team,
        values: &[f32],
        scale: f32,
        room: impl FnOnce(usize) -> CpuBuf,
    ) {
        if !matches!(self.store, Store::F32(_)) {
            self.store = Store::F32(room(packed_len(self.out, self.inner)));
        }
        if let Store::F32(panels) = &mut self.store {
            pack(isa, team, panels, values, self.out, self.inner, scale);
        }
    }

    /// Bytes of the numbers.
    pub(crate) fn bytes(&self) -> usize {
        match &self.store {
            Store::F32(panels) => size_of_val(&panels[..]),
            Store::Bf16(panels) => size_of_val(&panels[..]),
            Store::Coded(panels) => panels.bytes(),
        }
    }

    /// Writes the numbers of `panel` for `inputs` to `to`: sixteen outputs for each input.
    pub(crate) fn tile(&self, isa: Checked, panel: usize, inputs: Range<usize>, to: &mut [f32]) {
        assert!(inputs.end <= self.inner && panel * LANES < self.out && to.len() >= inputs.len() * LANES);
        let range = (panel * self.inner + inputs.start) * LANES..(panel * self.inner + inputs.end) * LANES;
        match &self.store {
            Store::F32(panels) => to[..range.len()].copy_from_slice(&panels[range]),
            Store::Bf16(panels) => {
                // SAFETY: the panel holds these inputs, and `to` has room for them.
                unsafe { widen(isa, panels[range].as_ptr(), inputs.len(), to.as_mut_ptr()) }
            }
            Store::Coded(panels) => panels.tile(isa, panel, inputs, to),
        }
    }

    /// Copies row `row` of W to `to`.
    pub(crate) fn copy_row(&self, isa: Checked, row: usize, to: &mut [f32]) {
        assert!(row < self.out, "row {row} of a matrix of {}", self.out);
        let mut tile = [0.0; 32 * LANES];
        for (piece, to) in to.chunks_mut(32).enumerate() {
            self.tile(isa, row / LANES, piece * 32..piece * 32 + to.len(), &mut tile);
            to.iter_mut().zip(tile.chunks_exact(LANES)).for_each(|(to, lanes)| *to = lanes[row % LANES]);
        }
    }
}

/// The rows of panel `p` of a matrix with `out` rows.
pub(crate) fn rows_of_panel(p: usize, out: usize) -> Range<usize> {
    p * LANES..((p + 1) * LANES).min(out)
}

/// Writes `scale * values` to `panels`.
fn pack(isa: Checked, team: &Team, panels: &mut CpuBuf, values: &[f32], out: usize, inner: usize, scale: f32) {
    let panels = Parts::new(panels);
    team.split(out.div_ceil(LANES), 1, out * inner, |range| {
        for p in range {
            // SAFETY: every panel belongs to one task.
            let panel = unsafe { panels.part(p * LANES * inner..(p + 1) * LANES * inner) };
            let rows = rows_of_panel(p, out);
            if rows.len() < LANES {
                panel.fill(0.0);
            }
            let from = &values[rows.start * inner..rows.end * inner];
            // SAFETY: `from` holds the rows, the panel their turned image.
            unsafe { gemm::transpose(isa, from.as_ptr(), inner, rows.len(), inner, panel.as_mut_ptr(), LANES) };
            if scale != 1.0 {
                panel.iter_mut().for_each(|w| *w *= scale);
            }
        }
    });
}

/// bfloat16 numbers in panels.
fn turned(team: &Team, bits: &[u16], out: usize, inner: usize) -> Vec<u16> {
    let mut panels = vec![0; packed_len(out, inner)];
    each_panel(team, &mut panels, LANES * inner, out, |panel, lane, row| {
        for i in 0..inner {
            panel[i * LANES + lane] = bits[row * inner + i];
        }
    });
    panels
}
