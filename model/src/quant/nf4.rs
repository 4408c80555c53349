//! NF4: codes for the quantiles of a normal distribution, over the largest magnitude of each block of consecutive weights. Byte for
//! byte those of bitsandbytes' GPU kernels.

use rayon::prelude::*;

use super::{Coded, Codes, Scales, dynamic, scaled};

/// Usual length of a block.
pub const BLOCK: usize = 64;

/// What the codes of NF4 stand for, ascending.
pub const CODES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The length of blocks for rows of `row` weights: the usual one, or 32; none if whole blocks do not fill a row, which products
/// could not work on.
pub fn block_of(row: usize) -> Option<usize> {
    [BLOCK, 32].into_iter().find(|block| row.is_multiple_of(*block))
}

/// Codes `values` in blocks of `block` (at least 1), which may run across the ends of rows; with `nested`, their scales too (double
/// quantisation: 4.127 bits a weight, and 4.5 without). On all threads.
pub fn encode(values: &[f32], block: usize, nested: bool) -> Coded {
    let mut packed = vec![0; values.len().div_ceil(2)];
    let mut scales = vec![0.0; values.len().div_ceil(block)];
    // an even number of blocks fills whole bytes
    let piece = PIECE_BLOCKS * block;
    let into = packed.par_chunks_mut(piece / 2).zip(scales.par_chunks_mut(PIECE_BLOCKS));
    values
        .par_chunks(piece)
        .zip(into)
        .for_each(|(values, (packed, scales))| encode_piece(values, block, packed, scales));
    let scales = if nested { Scales::nested(&scales) } else { Scales::Plain(scales) };
    Coded { codes: Codes::Four { packed, table: CODES }, scales, least: None, block, len: values.len() }
}

/// Bytes of [`Coded`] of `count` weights.
pub fn bytes(count: usize, block: usize, nested: bool) -> usize {
    let scales = count.div_ceil(block);
    let scales = if nested { scales + 4 * scales.div_ceil(dynamic::BLOCK) + 4 * 256 } else { 4 * scales };
    count.div_ceil(2) + scales
}

/// Blocks that a thread codes at once.
const PIECE_BLOCKS: usize = 512;

/// Codes `values` into bytes of zeros.
fn encode_piece(values: &[f32], block: usize, packed: &mut [u8], scales: &mut [f32]) {
    let mut at = 0;
    let mut push = |code: u8| {
        packed[at / 2] |= if at % 2 == 0 { code << 4 } else { code };
        at += 1;
    };
    for (chunk, scale) in values.chunks(block).zip(scales) {
        let (largest, numbers) = scaled(chunk, block);
        numbers.for_each(|x| push(nearest(x)));
        *scale = largest;
    }
    if !values.len().is_multiple_of(2) {
        push(nearest(0.0));
    }
}

/// The code of the number that is nearest to `x`; between two, of the lower one.
fn nearest(x: f32) -> u8 {
    let (below, bound) = CELLS[cell(x)];
    below + u8::from(x > bound)
}

/// The numbers from -1 to 1 are cut into cells so small that none holds two bounds between codes: for each cell, how many bounds lie in
/// those below it, and the bound in it.
static CELLS: [(u8, f32); 256] = cells();

/// It never falls where `x` rises, so that a bound in another cell needs no comparison.
const fn cell(x: f32) -> usize {
    let place = (x + 1.0) * 128.0;
    if place >= 255.0 { 255 } else { place as usize }
}

const fn cells() -> [(u8, f32); 256] {
    let mut cells = [(0, f32::INFINITY); 256];
    let (mut at, mut below) = (0, 0);
    while at < cells.len() {
        cells[at].0 = below as u8;
        if below < CODES.len() - 1 {
            let bound = (CODES[below] + CODES[below + 1]) / 2.0;
            if cell(bound) == at {
                cells[at].1 = bound;
                below += 1;
            }
        }
        at += 1;
    }
    assert!(below == CODES.len() - 1, "every bound has a cell of its own");
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it is defined.
    fn defined(x: f32) -> u8 {
        CODES.windows(2).filter(|pair| x > (pair[0] + pair[1]) / 2.0).count() as u8
    }

    #[test]
    fn cells_give_the_nearest_code_at_and_about_every_bound() {
        let bounds = CODES.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
        let edges = (0..=256).map(|i| i as f32 / 128.0 - 1.0);
        for x in bounds.chain(edges).chain(CODES) {
            for x in [x.next_down().next_down(), x.next_down(), x, x.next_up(), x.next_up().next_up()] {
                let x = x.clamp(-1.0, 1.0);
                assert_eq!(nearest(x), defined(x), "{x}");
            }
        }
        for x in [-0.0, f32::NAN, f32::MIN_POSITIVE, -f32::MIN_POSITIVE] {
            assert_eq!(nearest(x), defined(x), "{x}");
        }
        for i in 0..100_000u64 {
            let x = 2.0 * folgore_protocol::seed::uniform(1, i) - 1.0;
            assert_eq!(nearest(x), defined(x), "{x}");
        }
    }

    #[test]
    fn bytes_are_known_before() {
        for (count, block, nested) in [(64_000, 64, true), (64_000, 64, false), (33, 32, true)] {
            assert_eq!(encode(&vec![0.5; count], block, nested).bytes(), bytes(count, block, nested));
        }
    }

    #[test]
    fn pieces_are_coded_as_blocks_are() {
        let values: Vec<f32> =
            (0..PIECE_BLOCKS as u64 * 7 * 2 + 3).map(|i| folgore_protocol::seed::normal(2, i)).collect();
        let whole = encode(&values, 7, false);
        for (i, block) in values.chunks(7).enumerate().step_by(100).chain([(1024, &values[7 * 1024..])]) {
            assert_eq!(encode(block, 7, false).decoded()[..], whole.decoded()[i * 7..i * 7 + block.len()], "block {i}");
        }
    }
}
