//! Adapters that changed their base when they began. PiSSA and OLoRA begin with a part of the weights, `s B₀ A₀`, and take it
//! out of the base; so `W - s B₀ A₀ + s B A` is what they compute. Here that becomes a plain adapter of twice the rank on the
//! unchanged base, as PEFT's `path_initial_model_for_weight_conversion` makes it: `A' = [A; A₀]`, `B' = [B, -B₀]`.
//!
//! `B₀ A₀ = U Uᵀ W`, with PiSSA over s, for columns U: with PiSSA the leading left singular vectors, with OLoRA the
//! orthogonalised first columns of W. Sums are in f64, so that U is as good as the weights.

use rayon::prelude::*;

use super::{AdapterFile, InitLoraWeights, LoraConfig};
use crate::{HostTensor, ModelError, TensorSource, decoder::Linear, files::fault, lora::Rank};

/// Vectors carried beyond the rank, which makes the iteration converge sooner.
const SPARE: usize = 8;
/// Rounds of the iteration at most; the spaces of trained weights stand long before.
const ROUNDS: usize = 600;
/// Share of the space (as a squared sine) that one round changes, from which on it stands.
const STILL: f64 = 1e-14;

pub(super) fn undone(
    mut file: AdapterFile,
    place: &str,
    base: &dyn TensorSource,
    layers: usize,
) -> Result<AdapterFile, ModelError> {
    let (leading, over_scale): (fn(&Matrix, usize) -> Matrix, bool) = match file.config.init_lora_weights {
        InitLoraWeights::Pissa => (principal, true),
        InitLoraWeights::Olora => (first_columns, false),
        _ => return Ok(file),
    };
    if file.config.use_dora {
        let what = format!("use_dora beside init_lora_weights {}", serde_json::json!(file.config.init_lora_weights));
        return Err(fault::unsupported(place, what, "merge the adapter in PEFT"));
    }
    for (layer, linear, rank) in file.config.shape().modules(layers) {
        double(&mut file, place, base, layer, linear, rank, leading, over_scale)?;
    }
    double_ranks(&mut file.config);
    Ok(file)
}

/// Puts the beginning beside the end.
fn double(
    file: &mut AdapterFile,
    place: &str,
    base: &dyn TensorSource,
    layer: usize,
    linear: Linear,
    rank: Rank,
    leading: fn(&Matrix, usize) -> Matrix,
    over_scale: bool,
) -> Result<(), ModelError> {
    let module = linear.module(layer);
    let weight = base.tensor(&format!("{module}.weight"))?;
    let [out, inner] = weight.shape[..] else {
        return Err(fault::invalid(place, module, "a matrix", format!("{:?}", weight.shape)));
    };
    let weight = Matrix { rows: out, columns: inner, values: weight.to_f32().into_iter().map(f64::from).collect() };
    let u = leading(&weight, rank.r);
    let begun = u.transposed().times(&weight);
    let divisor = if over_scale { f64::from(rank.scale) } else { 1.0 };
    if divisor == 0.0 {
        return Err(fault::unsupported(
            place,
            format!("alpha 0 of {module}"),
            "what its beginning took out is over alpha",
        ));
    }
    let mut take = |side: &str| {
        let name = format!("{module}.{side}");
        let tensor = file.tensors.remove(&name);
        tensor.map(|t| t.to_f32()).ok_or_else(|| fault::missing(place, format!("tensor {name}")))
    };
    let (mut a, b) = (take("lora_A")?, take("lora_B")?);
    let r = u.columns;
    if a.len() != rank.r * inner || b.len() != out * rank.r {
        return Err(fault::invalid(place, format!("shape of {module}'s pair"), format!("rank {}", rank.r), "another"));
    }
    a.extend(begun.values.iter().map(|v| (v / divisor) as f32));
    // where the matrix has fewer rows or columns than the rank, the rest of the beginning is nothing
    a.resize(2 * rank.r * inner, 0.0);
    let beside: Vec<f32> = (0..out)
        .flat_map(|row| {
            let end = b[row * rank.r..][..rank.r].iter().copied();
            let begin = u.values[row * r..][..r].iter().map(|v| -*v as f32);
            end.chain(begin).chain(std::iter::repeat_n(0.0, rank.r - r)).collect::<Vec<_>>()
        })
        .collect();
    file.tensors.insert(format!("{module}.lora_A"), HostTensor::f32([2 * rank.r, inner], a));
    file.tensors.insert(format!("{module}.lora_B"), HostTensor::f32([out, 2 * rank.r], beside));
    Ok(())
}

/// Twice the rank everywhere, and alphas that keep the scale.
fn double_ranks(config: &mut LoraConfig) {
    let factor = if config.use_rslora { std::f32::consts::SQRT_2 } else { 2.0 };
    config.r *= 2;
    config.lora_alpha *= factor;
    config.rank_pattern.0.iter_mut().for_each(|(_, r)| *r *= 2);
    config.alpha_pattern.0.iter_mut().for_each(|(_, alpha)| *alpha *= factor);
    config.init_lora_weights = InitLoraWeights::Kaiming;
}

/// Row-major numbers.
#[derive(Clone, Debug)]
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn transposed(&self) -> Self {
        let values = (0..self.columns).flat_map(|c| (0..self.rows).map(move |r| self.values[r * self.columns + c]));
        Self { rows: self.columns, columns: self.rows, values: values.collect() }
    }

    fn times(&self, other: &Self) -> Self {
        let mut values = vec![0.0; self.rows * other.columns];
        values.par_chunks_mut(other.columns.max(1)).zip(self.values.par_chunks(self.columns.max(1))).for_each(
            |(out, row)| {
                for (factor, other) in row.iter().zip(other.values.chunks(other.columns.max(1))) {
                    out.iter_mut().zip(other).for_each(|(o, x)| *o += factor * x);
                }
            },
        );
        Self { rows: self.rows, columns: other.columns, values }
    }

    fn first(&self, columns: usize) -> Self {
        let values = self.values.chunks(self.columns.max(1)).flat_map(|row| row[..columns].to_vec()).collect();
        Self { rows: self.rows, columns, values }
    }

    /// Its columns made orthogonal and of length 1, one after the other; twice, since once leaves rounding.
    fn orthonormal(&self) -> Self {
        let mut columns: Vec<Vec<f64>> =
            self.transposed().values.chunks(self.rows.max(1)).map(<[f64]>::to_vec).collect();
        for at in 0..columns.len() {
            let (before, rest) = columns.split_at_mut(at);
            let column = &mut rest[0];
            for other in before.iter().chain(before.iter()) {
                let along = dot(other, column);
                column.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
            }
            let length = dot(column, column).sqrt();
            column.iter_mut().for_each(|x| *x = if length > 0.0 { *x / length } else { 0.0 });
        }
        Self { rows: columns.len(), columns: self.rows, values: columns.concat() }.transposed()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Orthonormal columns that span the first `r` columns of `weight`: Q of its QR decomposition.
fn first_columns(weight: &Matrix, r: usize) -> Matrix {
    weight.first(r.min(weight.columns).min(weight.rows)).orthonormal()
}

/// The `r` leading left singular vectors of `weight`: subspace iteration on the smaller of `W Wᵀ` and `Wᵀ W`.
fn principal(weight: &Matrix, r: usize) -> Matrix {
    let turned = weight.transposed();
    let tall = weight.rows > weight.columns;
    let square = if tall { turned.times(weight) } else { weight.times(&turned) };
    let (size, r) = (square.rows, r.min(square.rows));
    let wide = (r + SPARE).min(size);
    let start = (0..size * wide).map(|i| folgore_protocol::seed::normal(0, i as u64).into()).collect();
    let mut space = Matrix { rows: size, columns: wide, values: start }.orthonormal();
    let mut leading = space.first(r);
    for _ in 0..ROUNDS {
        let image = square.times(&space);
        // the space in terms of its own singular vectors, the leading first (Rayleigh and Ritz)
        let turn = eigenvectors(space.transposed().times(&image));
        let next = space.times(&turn).first(r);
        let along = leading.transposed().times(&next);
        let outside = r as f64 - dot(&along.values, &along.values);
        leading = next;
        if outside.abs() < STILL * r as f64 {
            break;
        }
        space = image.times(&turn).orthonormal();
    }
    if tall { weight.times(&leading).orthonormal() } else { leading }
}

/// Eigenvectors of a small symmetric matrix as columns, by falling eigenvalue (Jacobi's rotations).
fn eigenvectors(mut m: Matrix) -> Matrix {
    let n = m.rows;
    let mut v: Vec<f64> = (0..n * n).map(|i| f64::from(i / n == i % n)).collect();
    for _ in 0..60 {
        let mut off = 0.0;
        for p in 0..n {
            for q in p + 1..n {
                let apq = m.values[p * n + q];
                off += apq * apq;
                if apq == 0.0 {
                    continue;
                }
                let theta = (m.values[q * n + q] - m.values[p * n + p]) / (2.0 * apq);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                rotate(&mut m.values, &mut v, n, p, q, c, t * c);
            }
        }
        let trace: f64 = (0..n).map(|i| m.values[i * n + i].abs()).sum();
        if off.sqrt() <= 1e-16 * trace {
            break;
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| m.values[b * n + b].total_cmp(&m.values[a * n + a]));
    let values = (0..n).flat_map(|row| order.iter().map(|c| v[row * n + c]).collect::<Vec<_>>()).collect();
    Matrix { rows: n, columns: n, values }
}

/// Turns axes `p` and `q` of the symmetric `m`, and the columns of `v` with them.
fn rotate(m: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize, c: f64, s: f64) {
    for k in 0..n {
        let (a, b) = (m[k * n + p], m[k * n + q]);
        (m[k * n + p], m[k * n + q]) = (c * a - s * b, s * a + c * b);
    }
    for k in 0..n {
        let (a, b) = (m[p * n + k], m[q * n + k]);
        (m[p * n + k], m[q * n + k]) = (c * a - s * b, s * a + c * b);
        let (a, b) = (v[k * n + p], v[k * n + q]);
        (v[k * n + p], v[k * n + q]) = (c * a - s * b, s * a + c * b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, columns: usize, stream: u64) -> Matrix {
        let values = (0..rows * columns).map(|i| folgore_protocol::seed::normal(stream, i as u64).into()).collect();
        Matrix { rows, columns, values }
    }

    /// Largest entry of `a - b`.
    fn far(a: &Matrix, b: &Matrix) -> f64 {
        a.values.iter().zip(&b.values).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn the_leading_vectors_are_found_in_either_form() {
        for (rows, columns) in [(20, 50), (50, 20), (24, 24)] {
            let (u, v) = (random(rows, 12, 1).orthonormal(), random(columns, 12, 2).orthonormal());
            // singular values 12, 11, ..., 1
            let mut scaled = u.clone();
            scaled.values.iter_mut().enumerate().for_each(|(i, x)| *x *= (12 - i % 12) as f64);
            let weight = scaled.times(&v.transposed());
            let found = principal(&weight, 5);
            let expected = u.first(5).times(&u.first(5).transposed());
            assert!(far(&found.times(&found.transposed()), &expected) < 1e-9, "{rows} x {columns}");
        }
        assert_eq!(principal(&random(4, 9, 3), 6).columns, 4);
    }

    #[test]
    fn the_first_columns_span_what_they_span() {
        let weight = random(16, 9, 4);
        let q = first_columns(&weight, 3);
        let identity = q.transposed().times(&q);
        assert!((0..9).all(|i| (identity.values[i] - f64::from(i % 4 == 0)).abs() < 1e-12));
        assert!(far(&q.times(&q.transposed().times(&weight.first(3))), &weight.first(3)) < 1e-12);
    }
}
