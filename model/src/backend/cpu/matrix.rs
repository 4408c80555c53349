//! Matrices in the order in which the products read them, in the numbers that they came in.

use std::ops::Range;

use super::{
    buffer::CpuBuf,
    coded::{CodedPanels, by_panels},
    gemm::{self, Left, Right, Stream, Target},
    isa::{Checked, kernel},
    panels::{Bf16, Decode, Panels, Work},
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

/// The product with the panels of a matrix from `first` on.
struct Multiply {
    m: usize,
    n: usize,
    k: usize,
    a: Left,
    first: usize,
    c: Target,
}

impl<S: Simd> Work<S> for Multiply {
    #[inline(always)]
    unsafe fn on<N: Panels<S>>(self, s: S, panels: N) {
        let Self { m, n, k, a, first, c } = self;
        // SAFETY: whoever made this promised that the operands have these rows, columns and inputs.
        unsafe { gemm::multiply_panels(s, m, n, k, a, panels, first, c) }
    }
}

/// Does `work` on the panels of `matrix`.
#[inline(always)]
unsafe fn with_in<S: Simd>(s: S, matrix: &CpuMatrix, work: impl Work<S>) {
    // SAFETY: the caller's promise.
    unsafe {
        match &matrix.store {
            Store::F32(panels) => {
                let b = Right::new(panels.as_ptr(), LANES * matrix.inner, LANES);
                work.on(s, Stream::new(b));
            }
            Store::Bf16(panels) => work.on(s, Bf16 { at: panels.as_ptr(), inner: matrix.inner, ahead: 0 }),
            Store::Coded(panels) => panels.with(s, work),
        }
    }
}

kernel!(unsafe fn decode = with_in(matrix: &CpuMatrix, work: Decode));
kernel!(unsafe fn multiply = with_in(matrix: &CpuMatrix, work: Multiply));

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
            MatrixData::Bf16(bits) => Store::Bf16(by_panels(team, bits, out, inner)),
            MatrixData::Coded(coded) if CodedPanels::fit(coded, inner) => {
                Store::Coded(CodedPanels::new(team, coded, out, inner, room))
            }
            // blocks that run across the ends of rows have no place in panels
            MatrixData::Coded(coded) => {
                return Self::new(isa, team, MatrixData::F32(&coded.decoded()), out, inner, room);
            }
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

    /// Writes the numbers of `panel` for `inputs` to `to`: sixteen outputs for each input. They begin and end at a multiple of
    /// sixteen, or at the end.
    pub(crate) fn tile(&self, isa: Checked, panel: usize, inputs: Range<usize>, to: &mut [f32]) {
        let whole = |i: usize| i.is_multiple_of(LANES) || i == self.inner;
        assert!(inputs.end <= self.inner && whole(inputs.start) && whole(inputs.end), "inputs {inputs:?}");
        assert!(panel * LANES < self.out && to.len() >= inputs.len() * LANES);
        // SAFETY: the matrix has the panel and these inputs, `to` room for their numbers.
        unsafe { decode(isa, self, Decode { panel, inputs, to: to.as_mut_ptr() }) }
    }

    /// The product of `m` rows of A and the panels `group`, straight from what the matrix is held in.
    ///
    /// # Safety
    /// A has `m` rows of as many numbers as W has inputs, C `m` rows of the panels' columns that nothing else touches meanwhile.
    pub(crate) unsafe fn multiply(&self, isa: Checked, m: usize, group: Range<usize>, a: Left, c: Target) {
        assert!(group.start < group.end && group.end <= self.out.div_ceil(LANES), "panels {group:?} of {}", self.out);
        let n = (group.end * LANES).min(self.out) - group.start * LANES;
        let work = Multiply { m, n, k: self.inner, a, first: group.start, c };
        // SAFETY: the caller's promise; the matrix has these panels.
        unsafe { multiply(isa, self, work) }
    }

    /// Panels that `m` rows are best multiplied with at once.
    pub(crate) fn wide(&self, m: usize) -> usize {
        gemm::wide(m, matches!(&self.store, Store::Coded(panels) if panels.paired()))
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
