//! The one matrix product: a tile of outputs in registers, each output one ascending chain of fused multiply-adds.
//!
//! `C[r, j] (+)= Σ_i A[r, i] * B[i, j]` where sixteen neighbouring `j` are the lanes of one vector. A is read one number at
//! a time and spread over the lanes, B sixteen numbers at a time. Blocking over `i` stores the running sums to C and goes
//! on from there, which leaves the bits as they are: an f32 register and an f32 in memory hold the same number.

use super::{
    isa::kernel,
    panels::{self, Panels},
    simd::Simd,
    wide,
};
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
    /// Where the panels lie that are read after these, the same way, if known and not right behind them: memory is asked for them meanwhile.
    pub next: Option<*const f32>,
}

impl Right {
    pub(crate) fn new(at: *const f32, panel: usize, step: usize) -> Self {
        Self { at, panel, step, next: None }
    }

    /// What tile `tile` of `tiles` over the same `group` of panels asks memory for: from where on, and how many bytes an input. One tile asks
    /// for what it will read itself; of several, which find the panels in a cache, each asks for a part of the next.
    #[inline(always)]
    pub(super) fn ahead(&self, group: usize, tile: usize, tiles: usize, k: usize) -> (*const f32, usize) {
        let bytes = self.step * size_of::<f32>();
        match (self.next, tiles) {
            (None, 1) => (self.at.wrapping_add(NEAR / group * self.step), bytes),
            (next, _) => {
                let behind = next.unwrap_or(self.at.wrapping_add(group * self.panel));
                (behind.wrapping_byte_add(tile * k * (bytes / tiles)), bytes / tiles)
            }
        }
    }
}

/// C: number `j` of row `r` is at `at + r * row + j`.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub at: *mut f32,
    pub row: usize,
    /// Sums go on from what is there.
    pub accumulate: bool,
}

/// Depth of a block: its panel (KC * 64 bytes) stays in the first-level cache while the row tiles pass.
pub(crate) const KC: usize = 320;
/// Rows of a block: its part of A (MC * KC * 4 bytes) stays in the second-level cache while the panels pass.
pub(crate) const MC: usize = 192;

/// Cache lines ahead of their own use that panels are asked for when few rows make the product a matter of reading.
const NEAR: usize = 96;

/// Rows of a tile whose numbers are addressed from one pointer. With one for all, the compiler takes it down the rows and on to the next
/// input: a chain of one addition a row, which takes twice as long as the multiplications of AVX-512.
const WALK: usize = 3;
/// Pointers that the rows of the highest tile need.
const WALKS: usize = 4;

/// B, and what to ask of memory ahead of use: one place per step of the chain, for each panel, `step` bytes after the last.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    b: Right,
    ahead: *const f32,
    step: usize,
}

impl Stream {
    pub(crate) fn new(b: Right) -> Self {
        Self { b, ahead: b.at, step: 0 }
    }
}

impl<S: Simd> Panels<S> for Stream {
    const STEP: usize = 1;
    const TILE: usize = S::TILE_ROWS;
    type Shared = ();

    #[inline(always)]
    unsafe fn shared(self, _s: S, _panel: usize, _block: usize) {}
    #[inline(always)]
    unsafe fn step(self, s: S, (): (), panel: usize, i: usize, mut take: impl FnMut(usize, S::F)) {
        s.prefetch(self.ahead.wrapping_add(panel * self.b.panel).wrapping_byte_add(i * self.step));
        // SAFETY: the caller's promise.
        take(0, unsafe { s.read(self.b.at.add(panel * self.b.panel + i * self.b.step)) });
    }
    #[inline(always)]
    fn for_tile(self, group: usize, tile: usize, tiles: usize, k: usize) -> Self {
        let (ahead, step) = self.b.ahead(group, tile, tiles, k);
        Self { ahead, step, ..self }
    }
}

/// One register tile: `R` rows by `P` panels from `first` on. The last panel has `lanes` columns.
#[inline(always)]
unsafe fn tile<S: Simd, N: Panels<S>, const R: usize, const P: usize>(
    s: S,
    k: usize,
    a: Left,
    b: N,
    first: usize,
    c: Target,
    lanes: usize,
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
        const { assert!(R <= WALK * WALKS) };
        let mut x = [a.at; WALKS];
        for walk in 1..R.div_ceil(WALK) {
            x[walk] = s.apart(a.at.wrapping_add(walk * WALK * a.row));
        }
        for (block, inputs) in panels::blocks(b.block(), 0..k) {
            let mut shared = [b.shared(s, first, block); P];
            for p in 1..P {
                shared[p] = b.shared(s, first + p, block);
            }
            for i in inputs.step_by(N::STEP) {
                if N::PAIRED {
                    b.steps(s, &shared, first, i, |p, j, numbers| {
                        for r in 0..R {
                            let x = s.splat(*x[r / WALK].add(r % WALK * a.row + j * a.step));
                            acc[r][p] = s.fma(x, numbers, acc[r][p]);
                        }
                    });
                    x = x.map(|x| s.apart(x.wrapping_add(N::STEP * a.step)));
                    continue;
                }
                for p in 0..P {
                    // one panel's sums by themselves: the others may wait in memory meanwhile
                    let mut sums = [acc[0][p]; R];
                    for r in 1..R {
                        sums[r] = acc[r][p];
                    }
                    b.step(s, shared[p], first + p, i, |j, numbers| {
                        for r in 0..R {
                            let x = s.splat(*x[r / WALK].add(r % WALK * a.row + j * a.step));
                            sums[r] = s.fma(x, numbers, sums[r]);
                        }
                    });
                    for r in 0..R {
                        acc[r][p] = sums[r];
                    }
                }
                x = x.map(|x| s.apart(x.wrapping_add(N::STEP * a.step)));
            }
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

/// All rows of `P` panels, in tiles of nearly equal height.
#[inline(always)]
unsafe fn column<S: Simd, N: Panels<S>, const P: usize>(
    s: S,
    m: usize,
    k: usize,
    a: Left,
    b: N,
    first: usize,
    c: Target,
    lanes: usize,
) {
    let highest = N::TILE;
    let tiles = m.div_ceil(highest.max(1)).max(1);
    let (height, taller) = (m / tiles, m % tiles);
    let mut r = 0;
    for t in 0..tiles {
        let rows = height + usize::from(t < taller);
        let b = b.for_tile(P, t, tiles, k);
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
                0 => {}
                1 => tile::<S, N, 1, P>(s, k, a, b, first, c, lanes),
                2 => tile::<S, N, 2, P>(s, k, a, b, first, c, lanes),
                3 => tile::<S, N, 3, P>(s, k, a, b, first, c, lanes),
                4 => tile::<S, N, 4, P>(s, k, a, b, first, c, lanes),
                // the others are only compiled where tiles are so high
                5 if highest > 4 => tile::<S, N, 5, P>(s, k, a, b, first, c, lanes),
                6 if highest > 4 => tile::<S, N, 6, P>(s, k, a, b, first, c, lanes),
                7 if highest > 6 => tile::<S, N, 7, P>(s, k, a, b, first, c, lanes),
                8 if highest > 6 => tile::<S, N, 8, P>(s, k, a, b, first, c, lanes),
                9 if highest > 8 => tile::<S, N, 9, P>(s, k, a, b, first, c, lanes),
                10 if highest > 8 => tile::<S, N, 10, P>(s, k, a, b, first, c, lanes),
                11 if highest > 8 => tile::<S, N, 11, P>(s, k, a, b, first, c, lanes),
                12 if highest > 8 => tile::<S, N, 12, P>(s, k, a, b, first, c, lanes),
                _ => unreachable!("a tile of {rows} rows"),
            }
        }
        r += rows;
    }
}

/// Panels that `m` rows are multiplied with at once: few rows leave registers idle, and several panels hide the latency of the chain.
/// Panels that are `paired` need more registers: two rows of theirs have chains enough.
pub(crate) fn wide(m: usize, paired: bool) -> usize {
    match (m, paired) {
        (1, false) => 4,
        (1, true) | (2 | 3, false) => 2,
        _ => 1,
    }
}

/// The product of A and the panels of B from `first` on.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
pub(crate) unsafe fn multiply_panels<S: Simd, N: Panels<S>>(
    s: S,
    m: usize,
    n: usize,
    k: usize,
    a: Left,
    b: N,
    first: usize,
    c: Target,
) {
    let panels = n.div_ceil(LANES);
    let mut p = 0;
    while p < panels {
        let wide = wide(m, N::PAIRED);
        let group = match panels - p {
            left if wide <= left && m * wide <= N::TILE => wide,
            _ => 1,
        };
        let lanes = (n - (p + group - 1) * LANES).min(LANES);
        let (near, first) = (b.for_tile(group, 0, 1, k), first + p);
        // SAFETY: the caller's promise, cut to this group.
        unsafe {
            let c = Target { at: c.at.add(p * LANES), ..c };
            match (m, group) {
                (1, 4) if !N::PAIRED => tile::<S, N, 1, 4>(s, k, a, near, first, c, lanes),
                (1, 2) if N::PAIRED => tile::<S, N, 1, 2>(s, k, a, near, first, c, lanes),
                (2, 2) if !N::PAIRED => tile::<S, N, 2, 2>(s, k, a, near, first, c, lanes),
                (3, 2) if N::TILE > 4 && !N::PAIRED => tile::<S, N, 3, 2>(s, k, a, near, first, c, lanes),
                _ => column::<S, N, 1>(s, m, k, a, b, first, c, lanes),
            }
        }
        p += group;
    }
}

/// # Safety
/// A has `m` rows of `k` numbers, B `n.div_ceil(16)` panels of `k` times sixteen, C `m` rows of `n` numbers that nothing
/// else touches meanwhile.
#[inline(always)]
unsafe fn multiply_in<S: Simd>(s: S, m: usize, n: usize, k: usize, a: Left, b: Right, c: Target) {
    // SAFETY: the caller's promise; what wide tiles left over are the last panels.
    unsafe {
        let done = wide::columns(s, m, n, k, a, b, c);
        let c = Target { at: c.at.wrapping_add(done * LANES), ..c };
        multiply_panels(s, m, n.saturating_sub(done * LANES), k, a, Stream::new(b), done, c);
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
