//! Matrices in codes, in panels: a product decodes what it is about to use, never more.

use super::{
    buffer::CpuBuf,
    exact::{self, Exact},
    matrix::{packed_len, rows_of_panel},
    panels::{Panels, Work, bytes_ahead},
    simd::Simd,
    team::{Parts, Team},
};
use crate::{
    backend::lanes::LANES,
    quant::{self, Coded, Scales},
};

/// Inputs whose codes of four bits lie together.
const QUAD: usize = 4;
/// Bytes of theirs, for sixteen outputs.
const QUAD_BYTES: usize = QUAD * LANES / 2;
/// Bytes of sixteen f32 numbers.
pub(super) const NUMBERS: usize = LANES * size_of::<f32>();

/// A matrix in codes. What a product needs for a block of a panel lies together: scales, least numbers, codes.
#[derive(Debug)]
pub(crate) struct CodedPanels {
    /// Block after block of panel after panel.
    records: CpuBuf,
    /// Bytes of a record.
    pub(super) record: usize,
    /// Inputs of a block.
    pub(super) block: usize,
    /// Blocks of a row.
    pub(super) blocks: usize,
    codes: Codes,
    scales: BlockScales,
    /// True if blocks have least numbers: sixteen f32 numbers after the scales.
    least: bool,
}

/// The codes of a record: sixteen outputs, input after input.
#[derive(Debug)]
enum Codes {
    /// Four inputs in 32 bytes, as [`Simd::look_up`] has them. `short`: the low halves of the table's numbers are zero.
    Four { table: [f32; 16], short: bool },
    /// As [`Exact`] has them.
    Whole,
    /// Sixteen bytes an input.
    Eight,
}

/// The sixteen scales of a record.
#[derive(Debug)]
enum BlockScales {
    /// f32 numbers.
    Plain,
    /// Codes, a byte each.
    Nested(NestedScales),
}

/// What the codes of scales stand for.
#[derive(Debug)]
struct NestedScales {
    /// One for `group` codes, in the order of the file: row after row.
    largest: Vec<f32>,
    group: usize,
    offset: f32,
    map: Box<[f32; 256]>,
}

impl NestedScales {
    /// The scales whose codes are at `codes`, those of block `block` of panel `panel`, of `blocks` in a row.
    #[inline(always)]
    unsafe fn sixteen<S: Simd>(&self, s: S, codes: *const u8, panel: usize, block: usize, blocks: usize) -> S::F {
        let at = panel * LANES * blocks + block;
        let (mut group, mut place) = (at / self.group, at % self.group);
        let (mut mapped, mut largest) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            // SAFETY: the caller promises sixteen codes.
            mapped[lane] = self.map[usize::from(unsafe { *codes.add(lane) })];
            // outputs beyond the last have no group, and nobody looks at them
            largest[lane] = self.largest.get(group).copied().unwrap_or(0.0);
            place += blocks;
            while place >= self.group {
                (group, place) = (group + 1, place - self.group);
            }
        }
        s.add(s.mul(s.load(&mapped), s.load(&largest)), s.splat(self.offset))
    }
}

/// Codes as numbers that are still to be multiplied by their scales.
trait Values<S: Simd>: Copy {
    /// As [`Panels::STEP`].
    const STEP: usize;
    /// Bytes of the codes of a step.
    const BYTES: usize;

    /// As [`Panels::step`], for codes that begin at `at`.
    unsafe fn step(self, s: S, at: *const u8, take: impl FnMut(usize, S::F));
}

#[derive(Clone, Copy)]
struct Four<T, const SHORT: bool>(T);

impl<S: Simd, const SHORT: bool> Values<S> for Four<S::Table, SHORT> {
    const STEP: usize = QUAD;
    const BYTES: usize = QUAD_BYTES;

    #[inline(always)]
    unsafe fn step(self, s: S, at: *const u8, mut take: impl FnMut(usize, S::F)) {
        // SAFETY: the caller's promise.
        let values = unsafe { s.look_up::<SHORT>(self.0, at) };
        for (j, value) in values.into_iter().enumerate() {
            take(j, value);
        }
    }
}

#[derive(Clone, Copy)]
struct Eight;

impl<S: Simd> Values<S> for Eight {
    const STEP: usize = 1;
    const BYTES: usize = LANES;

    #[inline(always)]
    unsafe fn step(self, s: S, at: *const u8, mut take: impl FnMut(usize, S::F)) {
        // SAFETY: the caller's promise.
        take(0, unsafe { s.read_i8(at.cast()) });
    }
}

/// Values times scales, plus the least numbers if there are any (`LEAST`).
#[derive(Clone, Copy)]
struct Scaled<'a, V, const LEAST: bool> {
    values: V,
    matrix: &'a CodedPanels,
    /// Where the records begin.
    records: *const u8,
    /// Bytes ahead of its own use that memory is asked for.
    ahead: usize,
}

impl<S: Simd, V: Values<S>, const LEAST: bool> Panels<S> for Scaled<'_, V, LEAST> {
    const STEP: usize = V::STEP;
    /// The codes, their scales and least numbers.
    type Shared = (*const u8, S::F, S::F);

    #[inline(always)]
    fn block(self) -> usize {
        self.matrix.block
    }
    #[inline(always)]
    unsafe fn shared(self, s: S, panel: usize, block: usize) -> Self::Shared {
        let CodedPanels { record, blocks, scales, .. } = self.matrix;
        // SAFETY: the caller promises that there is such a block.
        unsafe {
            let at = self.records.add((panel * blocks + block) * record);
            s.prefetch(at.wrapping_add(self.ahead).cast());
            let (scales, at) = match scales {
                BlockScales::Plain => (s.read(at.cast()), at.add(NUMBERS)),
                BlockScales::Nested(nested) => (nested.sixteen(s, at, panel, block, *blocks), at.add(LANES)),
            };
            if LEAST {
                s.prefetch(at.wrapping_add(self.ahead).cast());
                (at.add(NUMBERS), scales, s.read(at.cast()))
            } else {
                (at, scales, scales)
            }
        }
    }
    #[inline(always)]
    unsafe fn step(
        self,
        s: S,
        (codes, scales, least): Self::Shared,
        _panel: usize,
        i: usize,
        mut take: impl FnMut(usize, S::F),
    ) {
        let at = codes.wrapping_add(i / V::STEP * V::BYTES);
        s.prefetch(at.wrapping_add(self.ahead).cast());
        // SAFETY: the caller's promise.
        unsafe {
            self.values.step(s, at, |j, value| {
                let scaled = s.mul(value, scales);
                take(j, if LEAST { s.add(scaled, least) } else { scaled });
            });
        }
    }
    #[inline(always)]
    fn for_tile(self, group: usize, _tile: usize, _tiles: usize, _k: usize) -> Self {
        Self { ahead: bytes_ahead(group * self.matrix.blocks * self.matrix.record), ..self }
    }
}

impl CodedPanels {
    /// True if the blocks of `coded` end where rows of `inner` inputs do, and do not part inputs whose codes lie together.
    pub(crate) fn fit(coded: &Coded, inner: usize) -> bool {
        let quads = matches!(coded.codes, quant::Codes::Four { .. });
        inner.is_multiple_of(coded.block) && (!quads || coded.block.is_multiple_of(QUAD))
    }

    /// The codes of a matrix [out, inner] that they [`Self::fit`]. `room` makes a buffer of f32 numbers.
    pub(crate) fn new(
        team: &Team,
        coded: &Coded,
        out: usize,
        inner: usize,
        room: impl FnOnce(usize) -> CpuBuf,
    ) -> Self {
        let block = coded.block;
        let (codes, code_bytes) = match &coded.codes {
            _ if exact::holds(coded) => (Codes::Whole, LANES * block / 2),
            quant::Codes::Four { table, .. } => {
                let short = table.iter().all(|number| number.to_bits() & 0xffff == 0);
                (Codes::Four { table: *table, short }, LANES * block / 2)
            }
            quant::Codes::Eight(_) => (Codes::Eight, LANES * block),
        };
        let (scales, scale_bytes) = match &coded.scales {
            Scales::Plain(_) => (BlockScales::Plain, NUMBERS),
            Scales::Nested { largest, offset, block, map, .. } => {
                let (largest, map) = (largest.clone(), map.clone());
                (BlockScales::Nested(NestedScales { largest, group: *block, offset: *offset, map }), LANES)
            }
        };
        let (blocks, least_bytes) = (inner / block, if coded.least.is_some() { NUMBERS } else { 0 });
        let record = scale_bytes + least_bytes + code_bytes;
        let bytes = packed_len(out, blocks) / LANES * record;
        let mut records = room(bytes.div_ceil(size_of::<f32>()));
        records.fill(0.0);
        // SAFETY: the buffer has these bytes, and any are numbers.
        let all = unsafe { std::slice::from_raw_parts_mut(records.as_mut_ptr().cast::<u8>(), bytes) };
        each_panel(team, all, blocks * record, out, |panel, lane, row| {
            for (b, record) in panel.chunks_exact_mut(record).enumerate() {
                let number = row * blocks + b;
                let (scales, rest) = record.split_at_mut(scale_bytes);
                let (least, to) = rest.split_at_mut(least_bytes);
                match &coded.scales {
                    Scales::Plain(numbers) => put(scales, lane, numbers[number]),
                    Scales::Nested { codes, .. } => scales[lane] = codes[number],
                }
                if let Some(numbers) = &coded.least {
                    put(least, lane, numbers[number]);
                }
                put_codes(&codes, to, &coded.codes, lane, number * block, block);
            }
        });
        Self { records, record, block, blocks, codes, scales, least: coded.least.is_some() }
    }

    pub(super) fn start(&self) -> *const u8 {
        self.records.as_ptr().cast()
    }

    /// True if [`Panels::PAIRED`](super::panels::Panels::PAIRED) holds for them.
    pub(super) fn paired(&self) -> bool {
        matches!(self.codes, Codes::Whole)
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.records[..])
            + match &self.scales {
                BlockScales::Plain => 0,
                BlockScales::Nested(nested) => size_of_val(&nested.largest[..]) + size_of_val(&nested.map[..]),
            }
    }

    /// Does `work` on these panels.
    ///
    /// # Safety
    /// As the work says.
    #[inline(always)]
    pub(crate) unsafe fn with<S: Simd>(&self, s: S, work: impl Work<S>) {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.codes {
                Codes::Four { table, short: true } => self.scaled(s, Four::<_, true>(s.table(table)), work),
                Codes::Four { table, short: false } => self.scaled(s, Four::<_, false>(s.table(table)), work),
                Codes::Whole => work.on(s, Exact::new(self)),
                Codes::Eight => self.scaled(s, Eight, work),
            }
        }
    }

    #[inline(always)]
    unsafe fn scaled<S: Simd>(&self, s: S, values: impl Values<S>, work: impl Work<S>) {
        // SAFETY: the caller's promise.
        unsafe {
            let (matrix, records) = (self, self.start());
            match self.least {
                true => work.on(s, Scaled::<_, true> { values, matrix, records, ahead: 0 }),
                false => work.on(s, Scaled::<_, false> { values, matrix, records, ahead: 0 }),
            }
        }
    }
}

/// Writes number `lane` of sixteen.
fn put(sixteen: &mut [u8], lane: usize, number: f32) {
    sixteen[lane * size_of::<f32>()..][..size_of::<f32>()].copy_from_slice(&number.to_ne_bytes());
}

/// Writes the codes of `block` inputs of the output in `lane`, those from place `from` of `codes` on, as `kind` has them.
fn put_codes(kind: &Codes, to: &mut [u8], codes: &quant::Codes, lane: usize, from: usize, block: usize) {
    const HALF: usize = LANES / 2;
    for i in 0..block {
        match (codes, kind) {
            (quant::Codes::Four { packed, .. }, Codes::Whole) => {
                exact::put(to, lane, i, quant::nibble(packed, from + i))
            }
            (quant::Codes::Four { packed, .. }, _) => {
                let code = quant::nibble(packed, from + i) << (lane / HALF * 4);
                to[i / QUAD * QUAD_BYTES + lane % HALF * QUAD + i % QUAD] |= code;
            }
            (quant::Codes::Eight(codes), _) => to[i * LANES + lane] = codes[from + i] as u8,
        }
    }
}

/// Panels of the `columns` values of each of `out` rows: those of sixteen rows lie together.
pub(crate) fn by_panels<T: Copy + Default + Send + Sync>(
    team: &Team,
    rows: &[T],
    out: usize,
    columns: usize,
) -> Vec<T> {
    let mut panels = vec![T::default(); packed_len(out, columns)];
    each_panel(team, &mut panels, LANES * columns, out, |panel, lane, row| {
        for i in 0..columns {
            panel[i * LANES + lane] = rows[row * columns + i];
        }
    });
    panels
}

/// Fills panels of `size` from the rows of a matrix: `row` is given a panel, the lane in it and the number of the row.
fn each_panel<T: Send>(
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
