//! The 16-lane rule by which every sum over a row is taken, and the shape checks that all backends share.

/// Lanes of a sum over a row.
pub(crate) const LANES: usize = 16;

/// Folds lanes as 8, 4, 2, 1: `lane[j] += lane[j + 8]`, and so on.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for j in 0..half {
            lanes[j] += lanes[j + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum over a row: element `i` is added into lane `i % 16`, then the lanes are folded.
pub(crate) fn sum(values: impl IntoIterator<Item = f32>) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (i, value) in values.into_iter().enumerate() {
        lanes[i % LANES] += value;
    }
    fold(lanes)
}

/// Sum of products over a row: `lane[i % 16] = fma(a[i], b[i], lane[i % 16])`, then the lanes are folded.
pub(crate) fn sum_of_products(pairs: impl IntoIterator<Item = (f32, f32)>) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (i, (a, b)) in pairs.into_iter().enumerate() {
        lanes[i % LANES] = a.mul_add(b, lanes[i % LANES]);
    }
    fold(lanes)
}

/// Numbers whose squares make one partial sum of [`sum_of_squares_block`].
pub(crate) const SQUARES_BLOCK: usize = 1 << 14;

/// Sum of squares of at most [`SQUARES_BLOCK`] numbers in f64, by lanes; blocks are then added in ascending order.
#[inline(always)]
pub(crate) fn sum_of_squares_block(block: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (whole, rest) = block.as_chunks::<LANES>();
    for chunk in whole {
        for j in 0..LANES {
            lanes[j] += f64::from(chunk[j]) * f64::from(chunk[j]);
        }
    }
    for (j, x) in rest.iter().enumerate() {
        lanes[j] += f64::from(*x) * f64::from(*x);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for j in 0..half {
            lanes[j] += lanes[j + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Rows of a buffer of `len` numbers whose rows are `width` long.
///
/// # Panics
/// If they are not whole rows.
#[track_caller]
pub(crate) fn rows_of(what: &str, len: usize, width: usize) -> usize {
    assert!(width > 0 && len.is_multiple_of(width), "{what}: {len} numbers are not rows of {width}");
    len / width
}

/// Checks that `len` is `expected`.
#[track_caller]
pub(crate) fn check_len(what: &str, len: usize, expected: usize) {
    assert_eq!(len, expected, "{what}: {len} numbers, expected {expected}");
}

/// Checks that `rows` lie in a buffer of `len` numbers with rows of `width`.
#[track_caller]
pub(crate) fn check_rows(what: &str, len: usize, width: usize, rows: &std::ops::Range<usize>) {
    assert!(
        rows.start <= rows.end && rows.end * width <= len,
        "{what}: rows {}..{} of {width} do not lie in {len} numbers",
        rows.start,
        rows.end
    );
}
