//! Vectors sixteen side by side, and their products with queries.
//!
//! A product is one chain over the numbers of a vector, whatever else is asked: it has the same bits alone and among others. Vectors are
//! read from end to end, once for all queries that go together.

use std::{ops::Range, sync::OnceLock};

use folgore_model::backend::{Cpu, DirectProduct, PANEL};

/// Vectors of `dim` numbers: number `i` of vector `r` is at `(r / 16 * dim + i) * 16 + r % 16`.
#[derive(Clone, Debug, Default)]
pub(super) struct Panels {
    dim: usize,
    count: usize,
    data: Vec<f32>,
}

fn multiply(product: DirectProduct<'_>, out: &mut [f32], out_row: usize) {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    CPU.get_or_init(Cpu::new).multiply(product, out, out_row);
}

impl Panels {
    pub(super) fn new(dim: usize) -> Self {
        Self { dim, ..Self::default() }
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Where number 0 of a vector is, if it has any; the next ones are [`PANEL`] apart.
    fn first(&self, row: usize) -> usize {
        row / PANEL * PANEL * self.dim + if self.dim > 0 { row % PANEL } else { 0 }
    }

    pub(super) fn push(&mut self, vector: &[f32]) {
        if self.count.is_multiple_of(PANEL) {
            self.data.resize(self.data.len() + PANEL * self.dim, 0.0);
        }
        let first = self.first(self.count);
        self.data[first..].iter_mut().step_by(PANEL).zip(vector).for_each(|(to, x)| *to = *x);
        self.count += 1;
    }

    /// The numbers of a vector.
    pub(super) fn row(&self, row: usize) -> impl Iterator<Item = f32> {
        self.data[self.first(row)..].iter().step_by(PANEL).take(self.dim).copied()
    }

    /// The products of `queries`, which lie one behind the other, with the vectors `rows`, of which the first is that of a panel:
    /// `out_row` apart, those of a query after those of the one before.
    pub(super) fn products(&self, queries: &[f32], rows: Range<usize>, out: &mut [f32], out_row: usize) {
        let product = DirectProduct {
            x: queries,
            x_row: self.dim,
            rows: queries.len() / self.dim,
            panels: &self.data[self.first(rows.start)..],
            depth: self.dim,
            columns: rows.len(),
        };
        multiply(product, out, out_row);
    }
}

/// The products of `query` with `rows`, which lie one behind the other: to the bit those of [`Panels::products`].
pub(super) fn products_of_rows(query: &[f32], rows: &[f32]) -> Vec<f32> {
    let dim = query.len();
    let mut panel = vec![0.0; dim * PANEL];
    panel.iter_mut().step_by(PANEL).zip(query).for_each(|(to, x)| *to = *x);
    let mut out = vec![0.0; rows.len() / dim.max(1)];
    let product = DirectProduct { x: rows, x_row: dim, rows: out.len(), panels: &panel, depth: dim, columns: 1 };
    multiply(product, &mut out, 1);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_their_definition_and_the_same_however_they_are_asked() {
        for dim in [1, 3, 16, 65, 384, 1000] {
            let number = |i: usize| ((i * 2654435761) % 1000) as f32 / 500.0 - 1.0;
            let rows: Vec<f32> = (0..70 * dim).map(number).collect();
            let queries: Vec<f32> = (0..40 * dim).map(|i| number(i + 7)).collect();
            let mut panels = Panels::new(dim);
            rows.chunks(dim).for_each(|row| panels.push(row));
            assert!(panels.row(37).eq(rows[37 * dim..38 * dim].iter().copied()));
            let mut together = vec![0.0; 40 * 38];
            panels.products(&queries, 32..70, &mut together, 38);
            for (query, together) in queries.chunks(dim).zip(together.chunks(38)) {
                let mut alone = [0.0; 38];
                panels.products(query, 32..70, &mut alone, 38);
                assert_eq!(alone, together);
                assert_eq!(products_of_rows(query, &rows[32 * dim..]), together);
                for (row, got) in rows.chunks(dim).skip(32).zip(together) {
                    let exact: f64 = query.iter().zip(row).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                    assert!((f64::from(*got) - exact).abs() < 2e-4, "{dim}: {got} for {exact}");
                }
            }
        }
    }
}
