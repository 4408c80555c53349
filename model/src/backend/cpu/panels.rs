//! How a product reads a matrix: panels of sixteen outputs, a few inputs at a time, whatever the numbers are held in. What is held
//! in fewer bits is decoded in registers, on its way to the multiplication.

use std::ops::Range;

use super::simd::Simd;
use crate::backend::lanes::LANES;

/// Bytes ahead of their own use that large panels are asked for.
const NEAR: usize = 2048;
/// Bytes of panels in hand up to which the next ones are asked for instead.
const FAR: usize = 1 << 16;

/// How far ahead of its use to ask for panels in few bits while `bytes` of them are in hand.
pub(crate) fn bytes_ahead(bytes: usize) -> usize {
    if bytes <= FAR { bytes } else { NEAR }
}

/// The numbers of panels.
pub(crate) trait Panels<S: Simd>: Copy {
    /// Inputs that are read at once: whoever reads begins and ends at a multiple of them.
    const STEP: usize;
    /// Accumulators of a register tile at most, rows times panels: decoding needs registers too.
    const TILE: usize = 4;
    /// True if [`Self::steps`] mixes the panels of a tile, so that two of them hide the latency of their chains.
    const PAIRED: bool = false;
    /// What the numbers of a block of a panel share.
    type Shared: Copy;

    /// Inputs of a block: a multiple of [`Self::STEP`]. More than any row has where inputs share nothing.
    #[inline(always)]
    fn block(self) -> usize {
        1 << 48
    }

    /// What block `block` of panel `panel` shares.
    ///
    /// # Safety
    /// The panel has this block.
    unsafe fn shared(self, s: S, panel: usize, block: usize) -> Self::Shared;

    /// Gives the numbers of [`Self::STEP`] inputs from input `i` of a block on to `take` in ascending order, each after its place
    /// among them.
    ///
    /// # Safety
    /// The block has these inputs, and `shared` is its.
    unsafe fn step(self, s: S, shared: Self::Shared, panel: usize, i: usize, take: impl FnMut(usize, S::F));

    /// The same for `P` panels from `first` on, each number after its panel and its place.
    ///
    /// # Safety
    /// As [`Self::step`], for all panels.
    #[inline(always)]
    unsafe fn steps<const P: usize>(
        self,
        s: S,
        shared: &[Self::Shared; P],
        first: usize,
        i: usize,
        mut take: impl FnMut(usize, usize, S::F),
    ) {
        for p in 0..P {
            // SAFETY: the caller's promise.
            unsafe { self.step(s, shared[p], first + p, i, |j, numbers| take(p, j, numbers)) }
        }
    }

    /// The same for tile `tile` of the `tiles` that read `k` inputs of `group` panels one after the other: it asks memory for what
    /// comes after.
    fn for_tile(self, group: usize, tile: usize, tiles: usize, k: usize) -> Self;
}

/// What can be done with panels of any kind.
pub(crate) trait Work<S: Simd> {
    /// Does it. `first` is the number of the first panel.
    ///
    /// # Safety
    /// As whoever made the work says.
    unsafe fn on<N: Panels<S>>(self, s: S, panels: N);
}

/// `inputs` as blocks of `size`: the number of each, and its inputs counted from its own first.
#[inline(always)]
pub(crate) fn blocks(size: usize, inputs: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let (mut number, mut start, mut left) = (inputs.start / size, inputs.start % size, inputs.len());
    std::iter::from_fn(move || {
        let many = left.min(size - start);
        let block = (number, start..start + many);
        (number, start, left) = (number + 1, 0, left - many);
        (many > 0).then_some(block)
    })
}

/// Writes the numbers of `inputs` of one panel, sixteen an input.
pub(crate) struct Decode {
    pub panel: usize,
    pub inputs: Range<usize>,
    pub to: *mut f32,
}

impl<S: Simd> Work<S> for Decode {
    #[inline(always)]
    unsafe fn on<N: Panels<S>>(self, s: S, panels: N) {
        let (mut to, panels) = (self.to, panels.for_tile(1, 0, 1, self.inputs.len()));
        for (block, inputs) in blocks(panels.block(), self.inputs) {
            // SAFETY: whoever made this promised that the panel has these inputs, and room for their numbers.
            unsafe {
                let shared = panels.shared(s, self.panel, block);
                for i in inputs.step_by(N::STEP) {
                    panels.step(s, shared, self.panel, i, |j, numbers| s.write(to.add(j * LANES), numbers));
                    to = to.wrapping_add(N::STEP * LANES);
                }
            }
        }
    }
}

/// bfloat16 numbers: those of input `i` of a panel lie at `at + (panel * inner + i) * 16`.
#[derive(Clone, Copy)]
pub(crate) struct Bf16 {
    pub at: *const u16,
    pub inner: usize,
    /// Numbers ahead of their own use that memory is asked for.
    pub ahead: usize,
}

impl<S: Simd> Panels<S> for Bf16 {
    const STEP: usize = 1;
    type Shared = ();

    #[inline(always)]
    unsafe fn shared(self, _s: S, _panel: usize, _block: usize) {}
    #[inline(always)]
    unsafe fn step(self, s: S, (): (), panel: usize, i: usize, mut take: impl FnMut(usize, S::F)) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.at.add((panel * self.inner + i) * LANES);
            s.prefetch(at.wrapping_add(self.ahead).cast());
            take(0, s.read_bf16(at));
        }
    }
    #[inline(always)]
    fn for_tile(self, group: usize, _tile: usize, _tiles: usize, _k: usize) -> Self {
        Self { ahead: bytes_ahead(2 * group * self.inner * LANES) / 2, ..self }
    }
}
