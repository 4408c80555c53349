//! Rows into calls of the model, by a budget of tokens.

use std::{collections::HashMap, ops::Range};

use super::flat::{Flat, FlatRow};

/// A run of rows of one call that belong to one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its rows.
    pub rows: Range<usize>,
    /// Rows of earlier spans that come before it in its sequence, in order.
    pub prefix: Vec<Range<usize>>,
}

/// A token to be scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its id.
    pub id: u32,
    /// Its place in the flat list of sampled tokens.
    pub token: usize,
}

/// One call of the model. `wanted[i]` is the row whose hidden state predicts `targets[i]`; a row of a shared prompt is
/// wanted once for each sequence that begins there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// Ids by row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// What belongs together; spans cover the rows without gap or overlap.
    pub spans: Vec<Span>,
    /// Rows to score with.
    pub wanted: Vec<u32>,
    /// What they are to predict; as many as `wanted`.
    pub targets: Vec<Target>,
    /// Rows of the flat batch that are in this call, in order.
    pub rows: Vec<usize>,
}

/// Packs `rows` of `flat` into calls of at most `max_tokens` rows each.
///
/// Equal prompts are computed once in a call. A group is divided only if it alone is over the budget, and then between
/// its rows; a single row over the budget gets a call of its own, because to cut it would be to train on something else.
pub fn pack(flat: &Flat, rows: &[usize], max_tokens: usize) -> Vec<PackedBatch> {
    let mut done = Vec::new();
    let mut call = Call::default();
    for group in rows.chunk_by(|a, b| flat.rows[*a].group == flat.rows[*b].group) {
        if call.cost(flat, group) > max_tokens {
            call.finish(&mut done);
        }
        if call.cost(flat, group) <= max_tokens {
            group.iter().for_each(|r| call.push(*r, &flat.rows[*r]));
            continue;
        }
        for r in group {
            if call.cost(flat, &[*r]) > max_tokens {
                call.finish(&mut done);
            }
            call.push(*r, &flat.rows[*r]);
        }
    }
    call.finish(&mut done);
    done
}

/// A call in the making.
#[derive(Default)]
struct Call<'a> {
    batch: PackedBatch,
    prompts: HashMap<&'a [u32], Range<usize>>,
}

impl<'a> Call<'a> {
    /// Rows of the call if `rows` joined it.
    fn cost(&self, flat: &Flat, rows: &[usize]) -> usize {
        let mut new: Vec<&[u32]> = Vec::new();
        let mut sum = self.batch.tokens.len();
        for row in rows.iter().map(|r| &flat.rows[*r]) {
            let prompt = &row.ids[..row.prompt];
            if !self.prompts.contains_key(prompt) && !new.contains(&prompt) {
                new.push(prompt);
                sum += prompt.len();
            }
            sum += own(row).len();
        }
        sum
    }

    fn push(&mut self, index: usize, row: &'a FlatRow) {
        let key = &row.ids[..row.prompt];
        let prompt = match self.prompts.get(key) {
            Some(known) => known.clone(),
            None => {
                let rows = self.span(row, 0..row.prompt, Vec::new());
                self.prompts.insert(key, rows.clone());
                rows
            }
        };
        let own = own(row);
        // A completion of one token is scored by the prompt alone.
        let begin = if own.is_empty() { 0 } else { self.span(row, own, vec![prompt.clone()]).start };
        for (token, at) in row.tokens.clone().zip(&row.sampled) {
            let scorer = at - 1;
            let wanted = if scorer < row.prompt { prompt.start + scorer } else { begin + scorer - row.prompt };
            self.batch.wanted.push(wanted as u32);
            self.batch.targets.push(Target { id: row.ids[*at], token });
        }
        self.batch.rows.push(index);
    }

    fn span(&mut self, row: &FlatRow, part: Range<usize>, prefix: Vec<Range<usize>>) -> Range<usize> {
        let begin = self.batch.tokens.len();
        self.batch.tokens.extend(&row.ids[part.clone()]);
        self.batch.positions.extend(part.map(|p| p as u32));
        let rows = begin..self.batch.tokens.len();
        self.batch.spans.push(Span { rows: rows.clone(), prefix });
        rows
    }

    fn finish(&mut self, done: &mut Vec<PackedBatch>) {
        let call = std::mem::take(self);
        if !call.batch.rows.is_empty() {
            done.push(call.batch);
        }
    }
}

/// The part of a row after its prompt that scores something: its last id scores nothing.
fn own(row: &FlatRow) -> Range<usize> {
    row.prompt..row.ids.len() - 1
}
