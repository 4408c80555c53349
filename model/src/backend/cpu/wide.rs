//! Tiles of several panels, for instruction sets with registers enough: the most arithmetic for what is read.
//!
//! A tile of eight rows by three panels makes 24 multiplications of 11 reads, where twelve rows by one panel need 13 reads for 12. Its 24
//! sums, three vectors of B and one number of A fill AVX-512's registers.

use super::{
    gemm::{Left, Right, Target},
    simd::Simd,
};
use crate::backend::lanes::LANES;

/// Panels of a tile.
pub(crate) const PANELS: usize = 3;
/// Rows of a block: its part of A (MC * KC * 4 bytes) stays in the second-level cache while the panels pass, and is not copied.
pub(crate) const MC: usize = 256;

/// Rows of a tile at most.
const ROWS: usize = 8;
/// Rows from which tiles are made so: fewer are a matter of reading.
pub(crate) const LEAST_ROWS: usize = 4;
/// Inputs of one round of a tile's loop.
const ROUND: usize = 4;
/// Rows of a tile whose numbers are addressed from one pointer: two offsets serve them all.
const WALK: usize = 3;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Pointers that the rows of the highest tile need.
const WALKS: usize = ROWS.div_ceil(WALK);

/// What a tile asks memory for while it computes: places `step` bytes apart, one an input, from each of its panels on.
#[derive(Clone, Copy)]
struct Ahead {
    at: *const f32,
    step: usize,
    /// Every input asks for a line of its own; else one of a round is enough.
    all: bool,
}

/// Adds the products of one input to all sums of a tile: the numbers of A are `at` after where `x` points.
#[inline(always)]
unsafe fn input<S: Simd, const R: usize, const P: usize>(
    s: S,
    x: &[*const f32; WALKS],
    row: usize,
    at: usize,
    b: *const f32,
    panel: usize,
    sums: &mut [[S::F; P]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut numbers = [s.splat(0.0); P];
        for p in 0..P {
            numbers[p] = s.read(b.add(p * panel));
        }
        for r in 0..R {
            let x = s.splat(*x[r / WALK].add(r % WALK * row + at));
            for p in 0..P {
                sums[r][p] = s.fma(x, numbers[p], sums[r][p]);
            }
        }
    }
}

/// One tile: `R` rows by `P` panels. The last panel has `lanes` columns. `CLOSE`: rows of A and vectors of B lie close together.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const P: usize, const CLOSE: bool>(
    s: S,
    k: usize,
    a: Left,
    b: Right,
    ahead: Ahead,
    c: Target,
    lanes: usize,
) {
    let (a_step, b_step) = if CLOSE { (1, LANES) } else { (a.step, b.step) };
    // SAFETY: the caller of `columns` promises the extents; a partial panel only touches `lanes` numbers of C.
    unsafe {
        let mut sums = [[s.splat(0.0); P]; R];
        if c.accumulate {
            for r in 0..R {
                for p in 0..P {
                    let at = c.at.add(r * c.row + p * LANES);
                    sums[r][p] = if p + 1 < P || lanes == LANES {
                        s.read(at)
                    } else {
                        s.load_part(std::slice::from_raw_parts(at, lanes), 0.0)
                    };
                }
            }
        }
        let mut x = [a.at; WALKS];
        for walk in 1..R.div_ceil(WALK) {
            x[walk] = s.apart(a.at.wrapping_add(walk * WALK * a.row));
        }
        let (mut y, mut near, mut i) = (b.at, ahead.at, 0);
        while i + ROUND <= k {
            for j in 0..ROUND {
                for p in 0..P {
                    if j == 0 || ahead.all {
                        s.prefetch(near.wrapping_add(p * b.panel).wrapping_byte_add(j * ahead.step));
                    }
                }
                input(s, &x, a.row, j * a_step, y.add(j * b_step), b.panel, &mut sums);
            }
            x = x.map(|x| s.apart(x.wrapping_add(ROUND * a_step)));
            (y, near, i) = (y.wrapping_add(ROUND * b_step), near.wrapping_byte_add(ROUND * ahead.step), i + ROUND);
        }
        while i < k {
            input(s, &x, a.row, 0, y, b.panel, &mut sums);
            x = x.map(|x| s.apart(x.wrapping_add(a_step)));
            (y, i) = (y.wrapping_add(b_step), i + 1);
        }
        for r in 0..R {
            for p in 0..P {
                let at = c.at.add(r * c.row + p * LANES);
                if p + 1 < P || lanes == LANES {
                    s.write(at, sums[r][p]);
                } else {
                    s.store_part(std::slice::from_raw_parts_mut(at, lanes), sums[r][p]);
                }
            }
        }
    }
}

/// All rows of `P` panels, in tiles of nearly equal height.
#[inline(always)]
unsafe fn column<S: Simd, const P: usize, const CLOSE: bool>(
    s: S,
    m: usize,
    k: usize,
    a: Left,
    b: Right,
    c: Target,
    lanes: usize,
) {
    let tiles = m.div_ceil(ROWS);
    let (height, taller) = (m / tiles, m % tiles);
    let mut r = 0;
    for t in 0..tiles {
        let rows = height + usize::from(t < taller);
        let (at, step) = b.ahead(P, t, tiles, k);
        let ahead = Ahead { at, step, all: ROUND * step > LINE };
        // SAFETY: rows r..r + rows lie in A and C.
        unsafe {
            for next in r + rows..(r + rows + height).min(m) {
                for p in 0..P {
                    s.prefetch(c.at.add(next * c.row + p * LANES));
                }
            }
            let a = Left { at: a.at.add(r * a.row), ..a };
            let c = Target { at: c.at.add(r * c.row), ..c };
            match rows {
                1 => tile::<S, 1, P, CLOSE>(s, k, a, b, ahead, c, lanes),
                2 => tile::<S, 2, P, CLOSE>(s, k, a, b, ahead, c, lanes),
                3 => tile::<S, 3, P, CLOSE>(s, k, a, b, ahead, c, lanes),
                4 => tile::<S, 4, P, CLOSE>(s, k, a, b, ahead, c, lanes),
                5 => tile::<S, 5, P, CLOSE>(s, k, a, b, ahead, c, lanes),
                6 => tile::<S, 6, P, CLOSE>(s, k, a, b, ahead, c, lanes),
                7 => tile::<S, 7, P, CLOSE>(s, k, a, b, ahead, c, lanes),
                8 => tile::<S, 8, P, CLOSE>(s, k, a, b, ahead, c, lanes),
                _ => unreachable!("a tile of {rows} rows"),
            }
        }
        r += rows;
    }
}

/// The columns of `C = A * B` that wide tiles make; returns how many panels these are, from the first on.
///
/// # Safety
/// As [`super::gemm::multiply`].
#[inline(always)]
pub(super) unsafe fn columns<S: Simd>(s: S, m: usize, n: usize, k: usize, a: Left, b: Right, c: Target) -> usize {
    if !S::WIDE || m < LEAST_ROWS {
        return 0;
    }
    let (panels, close) = (n.div_ceil(LANES), a.step == 1 && b.step == LANES);
    let mut p = 0;
    while panels - p > 1 {
        let group = (panels - p).min(PANELS);
        let lanes = (n - (p + group - 1) * LANES).min(LANES);
        // SAFETY: the caller's promise, cut to this group.
        unsafe {
            let b = Right { at: b.at.add(p * b.panel), next: b.next.map(|next| next.wrapping_add(p * b.panel)), ..b };
            let c = Target { at: c.at.add(p * LANES), ..c };
            match (group == PANELS, close) {
                (true, true) => column::<S, PANELS, true>(s, m, k, a, b, c, lanes),
                (true, false) => column::<S, PANELS, false>(s, m, k, a, b, c, lanes),
                (false, true) => column::<S, 2, true>(s, m, k, a, b, c, lanes),
                (false, false) => column::<S, 2, false>(s, m, k, a, b, c, lanes),
            }
        }
        p += group;
    }
    p
}
