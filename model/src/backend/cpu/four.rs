//! Matrices in codes of four bits, in panels: a product decodes what it is about to read, never more.

use std::ops::Range;

use super::{
    isa::{Checked, kernel},
    matrix::{packed_len, rows_of_panel},
    simd::Simd,
    team::{Parts, Team},
};
use crate::{
    backend::lanes::LANES,
    quant::nf4::{Nf4, Scales},
};

/// Bytes of the codes of sixteen numbers.
const HALF: usize = LANES / 2;

/// Codes of four bits and their scales.
#[derive(Debug)]
pub(crate) struct Four {
    inner: usize,
    /// Eight bytes for the sixteen outputs of an input: output i in the low half of byte i, i + 8 in its high half.
    codes: Vec<u8>,
    /// Inputs that share a scale.
    block: usize,
    /// As the file has them, by rows: what a panel needs of them is looked up once for `block` inputs.
    scales: Scales,
    table: [f32; 16],
}

/// Decodes the codes of `inputs` inputs that share scales.
#[inline(always)]
unsafe fn decode_in<S: Simd>(
    s: S,
    table: &[f32; 16],
    scales: &[f32; LANES],
    codes: *const u8,
    inputs: usize,
    to: *mut f32,
) {
    let (table, scales) = (s.table(table), s.load(scales));
    for i in 0..inputs {
        // SAFETY: the caller promises eight bytes for each input, and room for sixteen numbers.
        unsafe { s.write(to.add(i * LANES), s.mul(s.look_up(table, codes.add(i * HALF)), scales)) }
    }
}

kernel!(unsafe fn decode = decode_in(
    table: &[f32; 16], scales: &[f32; LANES], codes: *const u8, inputs: usize, to: *mut f32));

impl Four {
    /// The codes of a matrix [out, inner]; none if its blocks run across the ends of rows.
    pub(crate) fn new(team: &Team, coded: &Nf4, out: usize, inner: usize) -> Option<Self> {
        if !inner.is_multiple_of(coded.block) {
            return None;
        }
        let mut codes = vec![0; packed_len(out, inner) / 2];
        let parts = Parts::new(&mut codes);
        team.split(out.div_ceil(LANES), 1, out * inner, |range| {
            for p in range {
                // SAFETY: every panel belongs to one task.
                let panel = unsafe { parts.part(p * HALF * inner..(p + 1) * HALF * inner) };
                for (lane, row) in rows_of_panel(p, out).enumerate() {
                    let shift = lane / HALF * 4;
                    for i in 0..inner {
                        let byte = coded.packed[(row * inner + i) / 2];
                        let code = if (row * inner + i).is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                        panel[i * HALF + lane % HALF] |= code << shift;
                    }
                }
            }
        });
        Some(Self { inner, codes, block: coded.block, scales: coded.scales.clone(), table: coded.codes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes()
    }

    /// See [`super::CpuMatrix::tile`].
    pub(crate) fn tile(&self, isa: Checked, panel: usize, inputs: Range<usize>, to: &mut [f32]) {
        let blocks = self.inner / self.block;
        let mut i = inputs.start;
        while i < inputs.end {
            let block = i / self.block;
            let many = ((block + 1) * self.block).min(inputs.end) - i;
            let mut scales = [0.0; LANES];
            for (lane, scale) in scales.iter_mut().enumerate() {
                let at = (panel * LANES + lane) * blocks + block;
                *scale = if at < self.scales.len() { self.scales.get(at) } else { 0.0 };
            }
            let codes = &self.codes[(panel * self.inner + i) * HALF..][..many * HALF];
            let to = &mut to[(i - inputs.start) * LANES..][..many * LANES];
            // SAFETY: both hold `many` inputs.
            unsafe { decode(isa, &self.table, &scales, codes.as_ptr(), many, to.as_mut_ptr()) }
            i += many;
        }
    }
}
