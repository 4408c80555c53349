//! NF4: codes for the quantiles of a normal distribution, over the largest magnitude of each block of consecutive weights. Byte for
//! byte those of bitsandbytes' GPU kernels.

use super::{Coded, Codes, Scales, scaled};

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
/// quantisation: 4.127 bits a weight, and 4.5 without).
pub fn encode(values: &[f32], block: usize, nested: bool) -> Coded {
    let mut packed = Vec::with_capacity(values.len().div_ceil(2));
    let mut scales = Vec::with_capacity(values.len().div_ceil(block));
    let mut high = None;
    let mut push = |code: u8| match high.take() {
        None => high = Some(code << 4),
        Some(first) => packed.push(first | code),
    };
    for chunk in values.chunks(block) {
        let (scale, numbers) = scaled(chunk, block);
        numbers.for_each(|x| push(nearest(x)));
        scales.push(scale);
    }
    if !values.len().is_multiple_of(2) {
        push(nearest(0.0));
    }
    let scales = if nested { Scales::nested(&scales) } else { Scales::Plain(scales) };
    Coded { codes: Codes::Four { packed, table: CODES }, scales, least: None, block, len: values.len() }
}

/// The code of the number that is nearest to `x`; between two, of the lower one.
fn nearest(x: f32) -> u8 {
    CODES.windows(2).filter(|pair| x > (pair[0] + pair[1]) / 2.0).count() as u8
}
