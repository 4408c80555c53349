//! Numbers to blocks, as ggml's reference code makes them: F32, F16, BF16, Q8_0, Q4_0, Q5_0, Q4_K and Q6_K.
//!
//! The simple blocks are bit for bit those of the `gguf` package. The K blocks search for scales as ggml's
//! `quantize_row_q4_K_ref` and `quantize_row_q6_K_ref` do: several divisions of the range are tried, and the one with the
//! least (weighted) squared error is kept.

use half::{bf16, f16};

use super::{
    blocks::{Block, QK},
    kquants::{QK_K, scale_and_min},
};

/// Scales below this are zero.
const LEAST_SCALE: f32 = 1e-15;

impl Block {
    /// Codes `values`, whole blocks of them. None for a type that is only read, for values that do not fill blocks, and for
    /// those that the type cannot hold: infinite ones, NaN, and ones whose scale is above the range of f16.
    pub fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
        if !values.len().is_multiple_of(self.size().0) || !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        match self {
            Self::F32 => Some(values.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Self::F16 => each(values, |[x]: &[f32; 1]| finite(*x)),
            Self::Bf16 => each(values, |[x]: &[f32; 1]| {
                let rounded = bf16::from_f32(*x);
                rounded.is_finite().then(|| rounded.to_le_bytes())
            }),
            Self::Q8_0 => each(values, q8_0),
            Self::Q4_0 => each(values, q4_0),
            Self::Q5_0 => each(values, q5_0),
            Self::Q4K => each(values, q4_k),
            Self::Q6K => each(values, q6_k),
            Self::Q4_1 | Self::Q5_1 | Self::Q2K | Self::Q3K | Self::Q5K => None,
        }
    }
}

fn each<const NUMBERS: usize, const BYTES: usize>(
    values: &[f32],
    encode: fn(&[f32; NUMBERS]) -> Option<[u8; BYTES]>,
) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(values.len() / NUMBERS * BYTES);
    for block in values.as_chunks::<NUMBERS>().0 {
        out.extend(encode(block)?);
    }
    Some(out)
}

/// An f16, if it is in its range.
fn finite(x: f32) -> Option<[u8; 2]> {
    let half = f16::from_f32(x);
    half.is_finite().then(|| half.to_le_bytes())
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The first of the values that are largest in size, with its sign.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, x| if x.abs() > most.abs() { *x } else { most })
}

fn q8_0(values: &[f32; QK]) -> Option<[u8; 34]> {
    let d = extreme(values).abs() / 127.0;
    let factor = inverse(d);
    let mut out = [0; 34];
    out[..2].copy_from_slice(&finite(d)?);
    for (byte, x) in out[2..].iter_mut().zip(values) {
        *byte = (x * factor).round() as i8 as u8;
    }
    Some(out)
}

/// `q` of `bits` bits: the extreme value is the lowest.
fn centred(values: &[f32; QK], bits: u32) -> Option<([u8; 2], [u8; QK])> {
    let middle = (1 << (bits - 1)) as f32;
    let d = extreme(values) / -middle;
    let factor = inverse(d);
    let q = |x: f32| (x * factor + (middle + 0.5)) as u8;
    Some((finite(d)?, std::array::from_fn(|i| q(values[i]).min((1 << bits) - 1))))
}

fn q4_0(values: &[f32; QK]) -> Option<[u8; 18]> {
    let (d, q) = centred(values, 4)?;
    let mut out = [0; 18];
    out[..2].copy_from_slice(&d);
    for i in 0..QK / 2 {
        out[2 + i] = q[i] | q[i + QK / 2] << 4;
    }
    Some(out)
}

fn q5_0(values: &[f32; QK]) -> Option<[u8; 22]> {
    let (d, q) = centred(values, 5)?;
    let mut out = [0; 22];
    out[..2].copy_from_slice(&d);
    for i in 0..QK {
        out[2 + i / 8] |= q[i] >> 4 << (i % 8);
    }
    for i in 0..QK / 2 {
        out[6 + i] = q[i] & 15 | q[i + QK / 2] << 4;
    }
    Some(out)
}

fn q4_k(values: &[f32; QK_K]) -> Option<[u8; 144]> {
    let groups = values.as_chunks::<32>().0;
    let found: Vec<(f32, f32)> = groups.iter().map(scale_and_offset).collect();
    let largest = |of: fn(&(f32, f32)) -> f32| found.iter().map(of).fold(0.0, f32::max);
    let (scale, min) = (largest(|f| f.0), largest(|f| f.1));
    let six = |x: f32, largest: f32| (x * if largest > 0.0 { 63.0 / largest } else { 0.0 }).round_ties_even() as u8;
    let mut out = [0; 144];
    out[..2].copy_from_slice(&finite(scale / 63.0)?);
    out[2..4].copy_from_slice(&finite(min / 63.0)?);
    for (group, (s, m)) in found.iter().enumerate() {
        let (s, m) = (six(*s, scale).min(63), six(*m, min).min(63));
        if group < 4 {
            out[4 + group] = s;
            out[8 + group] = m;
        } else {
            out[8 + group] = s & 15 | m << 4;
            out[group] |= s >> 4 << 6;
            out[4 + group] |= m >> 4 << 6;
        }
    }
    let (d, dmin) = (super::blocks::half_at(&out, 0), super::blocks::half_at(&out, 2));
    for (group, values) in groups.iter().enumerate() {
        let (s, m) = scale_and_min(&out[4..16], group);
        let (d, m) = (d * f32::from(s), dmin * f32::from(m));
        for (i, x) in values.iter().enumerate() {
            let q = if d == 0.0 { 0 } else { ((x + m) / d).round_ties_even().clamp(0.0, 15.0) as u8 };
            out[16 + group / 2 * 32 + i] |= q << (group % 2 * 4);
        }
    }
    Some(out)
}

/// Scale and offset (x = scale q - offset) with the least error for q of 0 to 15, weighted by size.
fn scale_and_offset(values: &[f32; 32]) -> (f32, f32) {
    const MOST: f32 = 15.0;
    let mean = (values.iter().map(|x| x * x).sum::<f32>() / 32.0).sqrt();
    let weights = values.map(|x| mean + x.abs());
    let (mut min, max) = values.iter().fold((values[0].min(0.0), values[0]), |(a, b), x| (a.min(*x), b.max(*x)));
    if max == min {
        return (0.0, -min);
    }
    let quants = |factor: f32, low: f32| values.map(|x| (factor * (x - low)).round_ties_even().clamp(0.0, MOST));
    let error = |q: &[f32; 32], scale: f32, min: f32| -> f32 {
        (0..32).map(|i| weights[i] * (scale * q[i] + min - values[i]).powi(2)).sum()
    };
    let factor = MOST / (max - min);
    let mut scale = 1.0 / factor;
    let mut least = error(&quants(factor, min), scale, min);
    let sum_w: f32 = weights.iter().sum();
    let sum_x: f32 = (0..32).map(|i| weights[i] * values[i]).sum();
    for step in 0..=20 {
        // from the best offset so far, as ggml does
        let q = quants((-1.0 + 0.1 * step as f32 + MOST) / (max - min), min);
        let sum_q: f32 = (0..32).map(|i| weights[i] * q[i]).sum();
        let sum_qq: f32 = (0..32).map(|i| weights[i] * q[i] * q[i]).sum();
        let sum_xq: f32 = (0..32).map(|i| weights[i] * q[i] * values[i]).sum();
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        if determinant <= 0.0 {
            continue;
        }
        let mut fit = (sum_w * sum_xq - sum_x * sum_q) / determinant;
        let mut offset = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
        if offset > 0.0 {
            (fit, offset) = (sum_xq / sum_qq, 0.0);
        }
        let found = error(&q, fit, offset);
        if found < least {
            (least, scale, min) = (found, fit, offset);
        }
    }
    (scale, -min)
}

fn q6_k(values: &[f32; QK_K]) -> Option<[u8; 210]> {
    let groups = values.as_chunks::<16>().0;
    let found: Vec<f32> = groups.iter().map(signed_scale).collect();
    let largest = extreme(&found);
    let mut out = [0; 210];
    if largest.abs() < LEAST_SCALE {
        return Some(out);
    }
    let factor = -128.0 / largest;
    out[208..].copy_from_slice(&finite(1.0 / factor)?);
    let d = super::blocks::half_at(&out, 208);
    for (group, values) in groups.iter().enumerate() {
        let scale = (factor * found[group]).round_ties_even().min(127.0) as i8;
        out[192 + group] = scale as u8;
        let d = d * f32::from(scale);
        for (at, x) in values.iter().enumerate() {
            let q = if d == 0.0 { 0.0 } else { (x / d).round_ties_even().clamp(-32.0, 31.0) };
            let (q, i) = ((q + 32.0) as u8, group * 16 + at);
            out[i / 128 * 64 + i % 64] |= (q & 15) << (i % 128 / 64 * 4);
            out[128 + i / 128 * 32 + i % 32] |= q >> 4 << (i % 128 / 32 * 2);
        }
    }
    Some(out)
}

/// The scale (x = scale q) with the least error for q of -32 to 31, weighted by the square of each number.
fn signed_scale(values: &[f32; 16]) -> f32 {
    const MOST: f32 = 32.0;
    let largest = extreme(values);
    if largest.abs() < LEAST_SCALE {
        return 0.0;
    }
    let sums = |factor: f32| {
        values.iter().fold((0.0f32, 0.0f32), |(xq, qq), x| {
            let (q, w) = ((factor * x).round_ties_even().clamp(-MOST, MOST - 1.0), x * x);
            (xq + w * x * q, qq + w * q * q)
        })
    };
    let (xq, qq) = sums(-MOST / largest);
    let mut scale = if qq > 0.0 { xq / qq } else { 0.0 };
    let mut best = scale * xq;
    for step in (-9..=9).filter(|step| *step != 0) {
        let (xq, qq) = sums(-(MOST + 0.1 * step as f32) / largest);
        if qq > 0.0 && xq * xq > best * qq {
            scale = xq / qq;
            best = scale * xq;
        }
    }
    scale
}
