//! Sequences into calls of the model, by a budget of tokens.
//!
//! Each sequence is a span of its own with positions from 0: none attends to another, so what a call gives is what one call for each of
//! them would give. The last token of a sequence predicts nothing and is left out.

use std::ops::Range;

use folgore_model::decoder::{Ragged, Span};

use super::encode::Sequence;

/// One call of the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call {
    /// What is computed; `wanted` are the positions before learnt tokens.
    pub input: Ragged,
    /// The learnt tokens.
    pub targets: Vec<u32>,
    /// Places of the sequences in what was packed, and which targets are theirs.
    pub parts: Vec<(usize, Range<usize>)>,
}

/// Packs `sequences` in order into calls of at most `max_tokens` rows; a longer sequence gets a call of its own. With a budget of 0 every
/// one does.
pub fn pack(sequences: &[&Sequence], max_tokens: usize) -> Vec<Call> {
    let (mut calls, mut call) = (Vec::new(), Call::default());
    for (place, sequence) in sequences.iter().enumerate() {
        let read = sequence.ids.len().saturating_sub(1);
        if !call.parts.is_empty() && call.input.len() + read > max_tokens {
            calls.push(std::mem::take(&mut call));
        }
        call.push(place, sequence);
    }
    if !call.parts.is_empty() {
        calls.push(call);
    }
    calls
}

impl Call {
    fn push(&mut self, place: usize, Sequence { ids, learnt, .. }: &Sequence) {
        let (begin, first) = (self.input.len(), self.targets.len());
        let read = ids.len().saturating_sub(1);
        self.input.tokens.extend_from_slice(&ids[..read]);
        self.input.positions.extend(0..read as u32);
        self.input.spans.push(Span { rows: begin..begin + read, ..Span::default() });
        for at in (1..ids.len()).filter(|at| learnt[*at]) {
            self.input.wanted.push((begin + at - 1) as u32);
            self.targets.push(ids[at]);
        }
        self.parts.push((place, first..self.targets.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(ids: &[u32], learnt: &[usize]) -> Sequence {
        let flags = (0..ids.len()).map(|at| learnt.contains(&at)).collect();
        Sequence { example: String::new(), source: String::new(), ids: ids.to_vec(), learnt: flags }
    }

    #[test]
    fn spans_stand_alone_and_calls_keep_to_the_budget() {
        let (a, b, c) = (sequence(&[7, 8, 9], &[2]), sequence(&[5, 6], &[1]), sequence(&[1, 2, 3, 4], &[1, 3]));
        let calls = pack(&[&a, &b, &c], 3);
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0].input.tokens, [7, 8, 5]);
        assert_eq!(calls[0].input.positions, [0, 1, 0]);
        assert_eq!((&calls[0].input.wanted[..], &calls[0].targets[..]), (&[1, 2][..], &[9, 6][..]));
        assert_eq!(calls[0].parts, [(0, 0..1), (1, 1..2)]);
        assert!(calls.iter().flat_map(|call| &call.input.spans).all(|span| span.prefix.is_empty() && span.start == 0));
        assert_eq!((&calls[1].input.tokens[..], &calls[1].targets[..]), (&[1, 2, 3][..], &[2, 4][..]));
        assert_eq!(calls[1].parts, [(2, 0..2)]);
        assert_eq!(pack(&[&a, &b, &c], 0).len(), 3);
        assert_eq!(pack(&[&a, &b, &c], 100).len(), 1);
        assert!(pack(&[], 10).is_empty());
    }
}
