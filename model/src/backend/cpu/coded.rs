//! Matrices in codes, in panels: a product decodes what it is about to read, never more.

use std::ops::Range;

use super::{
    isa::{Checked, kernel},
    matrix::{packed_len, rows_of_panel},
    simd::Simd,
    team::{Parts, Team},
};
use crate::{
    backend::lanes::LANES,
    quant::{self, Coded, Scales},
};

/// Bytes of sixteen codes of four bits.
const HALF: usize = LANES / 2;

/// The codes of a matrix and what stands beside them.
#[derive(Debug)]
pub(crate) struct CodedPanels {
    inner: usize,
    codes: Codes,
    /// Inputs that share a scale.
    block: usize,
    scales: PanelScales,
    /// Sixteen for each block of a panel.
    least: Option<Vec<f32>>,
}

/// The scales of a matrix.
#[derive(Debug)]
enum PanelScales {
    /// Sixteen for each block of a panel.
    Plain(Vec<f32>),
    /// As the file has them, by rows.
    Nested(Scales),
}

/// For each input the codes of sixteen outputs.
#[derive(Debug)]
enum Codes {
    /// Eight bytes: output i in the low half of byte i, i + 8 in its high half.
    Four { packed: Vec<u8>, table: [f32; 16] },
    /// Sixteen bytes.
    Eight(Vec<i8>),
}

/// What sixteen outputs share for a block of inputs.
struct Block {
    scales: [f32; LANES],
    least: Option<[f32; LANES]>,
}

/// Decodes `inputs` times sixteen codes, which `read` gives by the number of the input.
#[inline(always)]
unsafe fn decode_in<S: Simd>(s: S, block: &Block, inputs: usize, to: *mut f32, read: impl Fn(usize) -> S::F) {
    let scales = s.load(&block.scales);
    let least = block.least.as_ref().map(|least| s.load(least));
    for i in 0..inputs {
        let scaled = s.mul(read(i), scales);
        let number = least.map_or(scaled, |least| s.add(scaled, least));
        // SAFETY: the caller promises room for the numbers.
        unsafe { s.write(to.add(i * LANES), number) }
    }
}

#[inline(always)]
unsafe fn four_in<S: Simd>(s: S, block: &Block, table: &[f32; 16], codes: *const u8, inputs: usize, to: *mut f32) {
    let table = s.table(table);
    // SAFETY: the caller promises eight bytes for each input, and room for the numbers.
    unsafe { decode_in(s, block, inputs, to, |i| s.look_up(table, codes.add(i * HALF))) }
}

#[inline(always)]
unsafe fn eight_in<S: Simd>(s: S, block: &Block, codes: *const i8, inputs: usize, to: *mut f32) {
    // SAFETY: the caller promises sixteen bytes for each input, and room for the numbers.
    unsafe { decode_in(s, block, inputs, to, |i| s.read_i8(codes.add(i * LANES))) }
}

kernel!(unsafe fn four = four_in(block: &Block, table: &[f32; 16], codes: *const u8, inputs: usize, to: *mut f32));
kernel!(unsafe fn eight = eight_in(block: &Block, codes: *const i8, inputs: usize, to: *mut f32));

impl CodedPanels {
    /// The codes of a matrix [out, inner]; none if its blocks run across the ends of rows.
    pub(crate) fn new(team: &Team, coded: &Coded, out: usize, inner: usize) -> Option<Self> {
        if !inner.is_multiple_of(coded.block) {
            return None;
        }
        let len = packed_len(out, inner);
        let codes = match &coded.codes {
            quant::Codes::Four { packed, table } => {
                let mut panels = vec![0; len / 2];
                each_panel(team, &mut panels, HALF * inner, out, |panel, lane, row| {
                    for i in 0..inner {
                        panel[i * HALF + lane % HALF] |= quant::nibble(packed, row * inner + i) << (lane / HALF * 4);
                    }
                });
                Codes::Four { packed: panels, table: *table }
            }
            quant::Codes::Eight(codes) => {
                let mut panels = vec![0; len];
                each_panel(team, &mut panels, LANES * inner, out, |panel, lane, row| {
                    for i in 0..inner {
                        panel[i * LANES + lane] = codes[row * inner + i];
                    }
                });
                Codes::Eight(panels)
            }
        };
        let blocks = inner / coded.block;
        let by_panels = |rows: &[f32]| {
            let mut panels = vec![0.0; packed_len(out, blocks)];
            each_panel(team, &mut panels, LANES * blocks, out, |panel, lane, row| {
                for block in 0..blocks {
                    panel[block * LANES + lane] = rows[row * blocks + block];
                }
            });
            panels
        };
        let scales = match &coded.scales {
            Scales::Plain(scales) => PanelScales::Plain(by_panels(scales)),
            nested => PanelScales::Nested(nested.clone()),
        };
        let least = coded.least.as_ref().map(|least| by_panels(least));
        Some(Self { inner, codes, block: coded.block, scales, least })
    }

    pub(crate) fn bytes(&self) -> usize {
        let codes = match &self.codes {
            Codes::Four { packed, .. } => packed.len(),
            Codes::Eight(codes) => codes.len(),
        };
        let scales = match &self.scales {
            PanelScales::Plain(scales) => size_of_val(&scales[..]),
            PanelScales::Nested(scales) => scales.bytes(),
        };
        codes + scales + self.least.as_ref().map_or(0, |least| size_of_val(&least[..]))
    }

    /// What the outputs of `panel` share for the inputs of `block`; nothing but zeros for outputs beyond the last.
    fn shared(&self, panel: usize, block: usize) -> Block {
        let blocks = self.inner / self.block;
        let sixteen = |numbers: &[f32]| {
            let at = (panel * blocks + block) * LANES;
            std::array::from_fn(|lane| numbers[at + lane])
        };
        let scales = match &self.scales {
            PanelScales::Plain(scales) => sixteen(scales),
            PanelScales::Nested(scales) => std::array::from_fn(|lane| {
                let at = (panel * LANES + lane) * blocks + block;
                if at < scales.len() { scales.get(at) } else { 0.0 }
            }),
        };
        Block { scales, least: self.least.as_deref().map(sixteen) }
    }

    /// See [`super::CpuMatrix::tile`].
    pub(crate) fn tile(&self, isa: Checked, panel: usize, inputs: Range<usize>, to: &mut [f32]) {
        let mut i = inputs.start;
        while i < inputs.end {
            let block = i / self.block;
            let many = ((block + 1) * self.block).min(inputs.end) - i;
            let (shared, from) = (self.shared(panel, block), panel * self.inner + i);
            let to = &mut to[(i - inputs.start) * LANES..][..many * LANES];
            match &self.codes {
                Codes::Four { packed, table } => {
                    let codes = &packed[from * HALF..][..many * HALF];
                    // SAFETY: both hold `many` inputs.
                    unsafe { four(isa, &shared, table, codes.as_ptr(), many, to.as_mut_ptr()) }
                }
                Codes::Eight(codes) => {
                    let codes = &codes[from * LANES..][..many * LANES];
                    // SAFETY: both hold `many` inputs.
                    unsafe { eight(isa, &shared, codes.as_ptr(), many, to.as_mut_ptr()) }
                }
            }
            i += many;
        }
    }
}

/// Fills panels of `size` from the rows of a matrix: `row` is given a panel, the lane in it and the number of the row.
pub(crate) fn each_panel<T: Send>(
    team: &Team,
    panels: &mut [T],
    size: usize,
    out: usize,
    row: impl Fn(&mut [T], usize, usize) + Sync,
) {
    let work = panels.len();
    let parts = Parts::new(panels);
    team.split(out.div_ceil(LANES), 1, work, |range| {
        for p in range {
            // SAFETY: every panel belongs to one task.
            let panel = unsafe { parts.part(p * size..(p + 1) * size) };
            for (lane, number) in rows_of_panel(p, out).enumerate() {
                row(panel, lane, number);
            }
        }
    });
}
