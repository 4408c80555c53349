//! Attention: every token of a text to its seen ones, head by head, as small products of `folgore_model` with a soft-max in between.

use folgore_model::backend::{Backend as _, Cpu, DirectProduct, PANEL};

use super::kernels::{softmax_rows, split};

/// Rows whose scores are in hand at once: with 256 keys they fit into the first-level cache beside the values.
const ROWS: usize = 32;
/// Rows that a task takes.
const TASK_ROWS: usize = 64;

/// Where a text lies among the rows of a batch, and how many of its tokens are seen: from its first on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) seen: usize,
}

/// What is attended to: a row of `rows` holds a query, a key and a value of `heads * dim` numbers each, to which `bias` is yet to be
/// added.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) rows: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) heads: usize,
    pub(super) dim: usize,
}

impl<'a> Asked<'a> {
    /// Query (0), key (1) or value (2) of a head in a row, each number with its bias.
    fn part(self, which: usize, row: usize, head: usize) -> impl Iterator<Item = f32> + 'a {
        let width = self.heads * self.dim;
        let at = which * width + head * self.dim;
        let numbers = &self.rows[row * 3 * width + at..][..self.dim];
        numbers.iter().zip(&self.bias[at..][..self.dim]).map(|(x, bias)| x + bias)
    }

    /// Keys and values of a head, as panels of as many columns as there are keys, and of `dim`.
    fn pack(self, span: Span, head: usize, keys: &mut [f32], values: &mut [f32]) {
        for row in 0..span.seen {
            let key = &mut keys[row / PANEL * PANEL * self.dim + row % PANEL..];
            let numbers = self.part(1, span.first + row, head);
            key.iter_mut().step_by(PANEL).zip(numbers).for_each(|(to, x)| *to = x);
            for (d, x) in self.part(2, span.first + row, head).enumerate() {
                values[(d / PANEL * span.seen + row) * PANEL + d % PANEL] = x;
            }
        }
    }
}

/// Attention within each of `spans`, into rows of `heads * dim`.
pub(super) fn attention(cpu: &Cpu, asked: Asked<'_>, spans: &[Span], out: &mut [f32]) {
    let Asked { heads, dim, .. } = asked;
    let width = heads * dim;
    let scale = 1.0 / (dim as f32).sqrt();
    for &span in spans {
        let (padded_keys, padded_dim) = (span.seen.next_multiple_of(PANEL), dim.next_multiple_of(PANEL));
        let (keys_len, values_len) = (padded_keys * dim, padded_dim * span.seen);
        let mut packed = cpu.alloc(heads * (keys_len + values_len));
        let work = 2 * span.seen * width;
        split(cpu, &mut packed, keys_len + values_len, work, |head, packed| {
            let (keys, values) = packed.split_at_mut(keys_len);
            asked.pack(span, head, keys, values);
        });
        let out = &mut out[span.first * width..][..span.rows * width];
        let work = span.rows * span.seen * width / 10;
        split(cpu, out, TASK_ROWS * width, work, |task, out| {
            let (mut q, mut scores) = (cpu.alloc(ROWS * dim), cpu.alloc(ROWS * padded_keys));
            for (block, out) in out.chunks_mut(ROWS * width).enumerate() {
                let (first, rows) = (span.first + task * TASK_ROWS + block * ROWS, out.len() / width);
                for (head, packed) in packed.chunks_exact(keys_len + values_len).enumerate() {
                    let (keys, values) = packed.split_at(keys_len);
                    for (row, q) in q.chunks_exact_mut(dim).take(rows).enumerate() {
                        let query = asked.part(0, first + row, head);
                        q.iter_mut().zip(query).for_each(|(to, x)| *to = x * scale);
                    }
                    let products =
                        DirectProduct { x: &q, x_row: dim, rows, panels: keys, depth: dim, columns: span.seen };
                    cpu.multiply(products, &mut scores, padded_keys);
                    softmax_rows(&mut scores[..rows * padded_keys], padded_keys, span.seen);
                    let sums = DirectProduct {
                        x: &scores,
                        x_row: padded_keys,
                        rows,
                        panels: values,
                        depth: span.seen,
                        columns: dim,
                    };
                    cpu.multiply(sums, &mut out[head * dim..], width);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_that_of_its_definition() {
        let (heads, dim) = (3, 5);
        let width = heads * dim;
        let number = |i: usize| ((i * 2654435761) % 1009) as f32 / 400.0 - 1.2;
        let qkv: Vec<f32> = (0..107 * 3 * width).map(number).collect();
        let bias: Vec<f32> = (0..3 * width).map(|i| number(i + 5) / 3.0).collect();
        let spans = [
            Span { first: 0, rows: 1, seen: 1 },
            Span { first: 1, rows: 100, seen: 100 },
            Span { first: 101, rows: 6, seen: 4 },
        ];
        let mut got = vec![f32::NAN; 107 * width];
        let asked = Asked { rows: &qkv, bias: &bias, heads, dim };
        attention(&Cpu::new(), asked, &spans, &mut got);
        for span in spans {
            for (row, head) in
                (span.first..span.first + span.rows).flat_map(|row| (0..heads).map(move |head| (row, head)))
            {
                let at = |which: usize, row: usize, d: usize| {
                    f64::from(qkv[(row * 3 + which) * width + head * dim + d] + bias[which * width + head * dim + d])
                };
                let seen = span.first..span.first + span.seen;
                let score =
                    |key: usize| (0..dim).map(|d| at(0, row, d) * at(1, key, d)).sum::<f64>() / (dim as f64).sqrt();
                let weights: Vec<f64> = seen.clone().map(|key| score(key).exp()).collect();
                for d in 0..dim {
                    let sum: f64 = seen.clone().zip(&weights).map(|(key, weight)| weight * at(2, key, d)).sum();
                    let expected = sum / weights.iter().sum::<f64>();
                    assert!(
                        (f64::from(got[row * width + head * dim + d]) - expected).abs() < 1e-5,
                        "row {row}, head {head}"
                    );
                }
            }
        }
    }
}
