//! The one matrix product: a tile of outputs in registers, each output one ascending chain of fused multiply-adds.
//!
//! `C[r, j] (+)= Σ_i A[r, i] * B[i, j]` where sixteen neighbouring `j` are the lanes of one vector. A is read one number at
//! a time and spread over the lanes, B sixteen numbers at a time. Blocking over `i` stores the running sums to C and goes
//! on from there, which leaves the bits as they are: an f32 register and an f32 in memory hold the same number.

use super::{isa::kernel, simd::Simd};
use crate::backend::lanes::LANES;

/// A: number `i` of row `r` is at `at + r * row + i * step`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub at: *const f32,
    pub row: usize,
    pub step: usize,
}

/// B: the sixteen numbers of panel `p` at `i` begin at `at + p * panel + i * step`.
#[derive(Clone, Copy)]
pub(crate) struct Right {
    pub at: *const f32,
    pub panel: usize,
    pub step: usize,
}

/// C: number `j` of row `r` is at `at + r * row + j`.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub at: *mut f32,
    pub row: usize,
    /// Sums go on from what is there.
    pub accumulate: bool,
}

/// Rows of a register tile: with one panel, 12 accumulators of the 16 AVX2 registers.
const TILE_ROWS: usize = 6;
/// Depth of a block: its panel (KC * 64 bytes) stays in the first-level cache while the row tiles pass.
pub(crate) const KC: usize = 320;
/// Rows of a block: its part of A (MC * KC * 4 bytes) stays in the second-level cache while the panels pass.
pub(crate) const MC: usize = 192;

/// What to ask of memory ahead of use: one place per step of the chain, for each panel.
#[derive(Clone, Copy)]
struct Ahead {
    at: *const f32,
    step: usize,
}

/// Cache lines ahead of their own use that panels are asked for when few rows make the product a matter of reading.
const NEAR: usize = 96;

/// One register tile: `R` rows by `P` panels. The last panel has `lanes` columns.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const P: usize>(
    s: S,
    k: usize,
    a: Left,
    b: Right,
    c: Target,
    lanes: usize,
    mut ahead: Ahead,
) {
    // SAFETY: the caller of `multiply` promises the extents; partial panels only touch `lanes` numbers of C.
    unsafe {
        let mut acc = [[s.splat(0.0); P]; R];
        if c.accumulate {
            for r in 0..R {
                for p in 0..P {
                    let at = c.at.add(r * c.row + p * LANES);
                    acc[r][p] = if p + 1 < P || lanes == LANES {
                        s.read(at)
                    } else {
                        s.load_part(std::slice::from_raw_parts(at, lanes), 0.0)
                    };
                }
            }
        }
        let (mut x, mut w) = (a.at, b.at);
        for _ in 0..k {
            let mut panels = [s.splat(0.0); P];
            for p in 0..P {
                panels[p] = s.read(w.add(p * b.panel));
                s.prefetch(ahead.at.wrapping_add(p * b.panel));
            }
            for r in 0..R {
                let x = s.splat(*x.add(r * a.row));
                for p in 0..P {
                    acc[r][p] = s.fma(x, panels[p], acc[r][p]);
                }
            }
            x = x.wrapping_add(a.step);
            w = w.wrapping_add(b.step);
            ahead.at = ahead.at.wrapping_add(ahead.step);
        }
        for r in 0..R {
            for p in 0..P {
                let at = c.at.add(r * c.row + p * LANES);
                if p + 1 < P || lanes == LANES {
                    s.write(at, acc[r][p]);
                } else {
                    s.store_part(std::slice::from_raw_parts_mut(at, lanes), acc[r][p]);
                }
            }
        }
    }
}

/// All rows of one group of `P` panels, in tiles of nearly equal height.
#[inline(always)]
unsafe fn column<S: Simd>(s: S, m: usize, k: usize, a: Left, b: Right, c: Target, lanes: usize) {
    let tiles = m.div_ceil(TILE_ROWS).max(1);
    let (height, taller) = (m / tiles, m % tiles);
    let mut r = 0;
    for t in 0..tiles {
        let rows = height + usize::from(t < taller);
        // While this panel is used, the next is fetched, spread evenly over the tiles.
        let ahead = match tiles {
            1 => Ahead { at: b.at.wrapping_add(NEAR * b.step), step: b.step },
            _ => Ahead { at: b.at.wrapping_add(b.panel + t * k * b.step / tiles), step: b.step / tiles },
        };
        // SAFETY: rows r..r + rows lie in A and C.
        unsafe {
            for next in r + rows..(r + rows + height).min(m) {
                s.prefetch(c.at.add(next * c.row));
            }
            let a = Left { at: a.at.add(r * a.row), ..a };
            let c = Target { at: c.at.add(r * c.row), ..c };
            match rows {
                0 => {}
                1 => tile::<S, 1, 1>(s, k, a, b, c, lanes, ahead),
                2 => tile::<S, 2, 1>(s, k, a, b, c, lanes, ahead),
                3 => tile::<S, 3, 1>(s, k, a, b, c, lanes, ahead),
                4 => tile::<S, 4, 1>(s, k, a, b, c, lanes, ahead),
                5 => tile::<S, 5, 1>(s, k, a, b, c, lanes, ahead),
                _ => tile::<S, 6, 1>(s, k, a, b, c, lanes, ahead),
            }
        }
        r += rows;
    }
}

/// # Safety
/// A has `m` rows of `k` numbers, B `n.div_ceil(16)` panels of `k` times sixteen, C `m` rows of `n` numbers that nothing
/// else touches meanwhile.
#[inline(always)]
unsafe fn multiply_in<S: Simd>(s: S, m: usize, n: usize, k: usize, a: Left, b: Right, c: Target) {
    let panels = n.div_ceil(LANES);
    // Few rows leave registers idle: several panels at once hide the latency of the chain.
    let wide = match m {
        1 => 4,
        2 | 3 => 2,
        _ => 1,
    };
    let mut p = 0;
    while p < panels {
        let group = if p + wide <= panels { wide } else { 1 };
        let lanes = (n - (p + group - 1) * LANES).min(LANES);
        // SAFETY: the caller's promise, cut to this group.
        unsafe {
            let b = Right { at: b.at.add(p * b.panel), ..b };
            let c = Target { at: c.at.add(p * LANES), ..c };
            let ahead = Ahead { at: b.at.wrapping_add(NEAR / group * b.step), step: b.step };
            match (m, group) {
                (1, 4) => tile::<S, 1, 4>(s, k, a, b, c, lanes, ahead),
                (2, 2) => tile::<S, 2, 2>(s, k, a, b, c, lanes, ahead),
                (3, 2) => tile::<S, 3, 2>(s, k, a, b, c, lanes, ahead),
                _ => column(s, m, k, a, b, c, lanes),
            }
        }
        p += group;
    }
}

kernel!(pub(crate) unsafe fn multiply =
    multiply_in(m: usize, n: usize, k: usize, a: Left, b: Right, c: Target));

/// Copies a block of `rows` by `columns` numbers to `to`, turned: number (r, j) goes to `to[j * to_row + r]`. Fewer than
/// sixteen are copied one by one.
#[inline(always)]
unsafe fn transpose_in<S: Simd>(
    s: S,
    from: *const f32,
    from_row: usize,
    rows: usize,
    columns: usize,
    to: *mut f32,
    to_row: usize,
) {
    let (whole_rows, whole_columns) = (rows - rows % LANES, columns - columns % LANES);
    // SAFETY: every place read lies in the block, every place written in its turned image.
    unsafe {
        for r in (0..whole_rows).step_by(LANES) {
            for j in (0..whole_columns).step_by(LANES) {
                // who turns one block of a panel will turn the one below it next
                for below in LANES..2 * LANES {
                    s.prefetch(from.wrapping_add((r + below) * from_row + j));
                }
                s.transpose(from.add(r * from_row + j), from_row, to.add(j * to_row + r), to_row);
            }
        }
        for r in 0..rows {
            let first = if r < whole_rows { whole_columns } else { 0 };
            for j in first..columns {
                *to.add(j * to_row + r) = *from.add(r * from_row + j);
            }
        }
    }
}

/// Copies sixteen neighbouring columns of `rows` rows, times `scale`, to `[rows][16]`; of the last columns only `lanes`.
#[inline(always)]
unsafe fn pack_strip_in<S: Simd>(
    s: S,
    from: *const f32,
    row: usize,
    rows: usize,
    lanes: usize,
    scale: f32,
    to: *mut f32,
) {
    let factor = s.splat(scale);
    for r in 0..rows {
        // SAFETY: the caller promises `rows` rows of `lanes` numbers, and room for as many vectors.
        unsafe {
            let from = from.add(r * row);
            let x = if lanes == LANES {
                // the next strip is the next line of every row
                s.prefetch(from.wrapping_add(LANES));
                s.read(from)
            } else {
                s.load_part(std::slice::from_raw_parts(from, lanes), 0.0)
            };
            s.write(to.add(r * LANES), s.mul(x, factor));
        }
    }
}

kernel!(pub(crate) unsafe fn pack_strip = pack_strip_in(
    from: *const f32, row: usize, rows: usize, lanes: usize, scale: f32, to: *mut f32));

kernel!(pub(crate) unsafe fn transpose = transpose_in(
    from: *const f32, from_row: usize, rows: usize, columns: usize, to: *mut f32, to_row: usize));
