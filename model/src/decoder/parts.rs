//! Parts of a call's sequences that go through the layers side by side.
//!
//! A decoding step of a small model is a hundred operations of a few microseconds. Cut one by one, threads meet after each of them,
//! and wait longer than they compute. So where a backend says so ([`Backend::parts`]), each thread takes some of the sequences through
//! everything between two writes of keys. A row's bits depend on no other row, so how a call is cut changes none.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use super::{Ragged, Span};
use crate::backend::{AttnSpan, BLOCK, Backend};

/// The largest part may have this many rows for each of an even share: in quarters.
const UNEVEN: usize = 5;

/// Some of a call's spans, with rows counted from the first of their own.
pub(super) struct Part {
    pub(super) input: Ragged,
    /// Its rows in the call.
    pub(super) rows: Range<usize>,
    pub(super) writes: Vec<(u32, u32)>,
    pub(super) spans: Vec<AttnSpan>,
}

impl Part {
    fn of(input: &Ragged, spans: &[Span]) -> Self {
        let begin = spans.first().map_or(0, |span| span.rows.start);
        let rows = begin..spans.last().map_or(0, |span| span.rows.end);
        let mut part = Self {
            input: Ragged {
                tokens: input.tokens[rows.clone()].to_vec(),
                positions: input.positions[rows.clone()].to_vec(),
                spans: Vec::with_capacity(spans.len()),
                wanted: Vec::new(),
            },
            writes: Vec::with_capacity(rows.len()),
            spans: Vec::with_capacity(spans.len()),
            rows,
        };
        for span in spans {
            let rows = span.rows.start - begin..span.rows.end - begin;
            for (i, row) in rows.clone().enumerate() {
                let place = span.start + i;
                part.writes.push((row as u32, span.table[place / BLOCK] * BLOCK as u32 + (place % BLOCK) as u32));
            }
            part.spans.push(AttnSpan { rows: rows.clone(), start: span.start, table: span.table.clone() });
            part.input.spans.push(Span { rows, adapter: span.adapter, start: span.start, ..Span::default() });
        }
        part
    }
}

/// `input` in `parts` parts of whole spans; in one where they would not come out even.
pub(super) fn cut(input: &Ragged, parts: usize) -> Vec<Part> {
    let (n, spans) = (input.len(), &input.spans);
    let mut cuts = vec![0];
    for (i, span) in spans.iter().enumerate() {
        if cuts.len() < parts && span.rows.end * parts >= n * cuts.len() {
            cuts.push(i + 1);
        }
    }
    cuts.push(spans.len());
    let cut: Vec<Part> = cuts.windows(2).map(|ends| Part::of(input, &spans[ends[0]..ends[1]])).collect();
    let largest = cut.iter().map(|part| part.rows.len()).max().unwrap_or(0);
    if 4 * parts * largest > UNEVEN * n { vec![Part::of(input, spans)] } else { cut }
}

/// `task` of each item after its number, side by side where `backend` can.
pub(super) fn each<B: Backend, T: Send, R: Send>(
    backend: &B,
    items: Vec<T>,
    task: impl Fn(usize, T) -> R + Sync,
) -> Vec<R> {
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new((Some(item), None))).collect();
    backend.together(items.len(), usize::MAX, &|i| {
        let mut slot = items[i].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(item) = slot.0.take() {
            slot.1 = Some(task(i, item));
        }
    });
    let done = items.into_iter().filter_map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1);
    done.collect()
}

/// Rows of all parts of a call: a buffer of each.
pub(super) struct Rows<B: Backend> {
    pub(super) bufs: Vec<B::Buf>,
    /// The rows of each in the call, in order.
    pub(super) ranges: Vec<Range<usize>>,
}

/// Where `rows` of a call lie, given the rows of its parts in order: (part, row of the part).
pub(super) fn places(ranges: &[Range<usize>], rows: &[u32]) -> Vec<(u32, u32)> {
    let place = |row: &u32| {
        let part = ranges.partition_point(|range| range.end <= *row as usize);
        (part as u32, row - ranges[part].start as u32)
    };
    rows.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(lengths: &[usize]) -> Ragged {
        let mut input = Ragged::default();
        for (i, len) in lengths.iter().enumerate() {
            let begin = input.tokens.len();
            input.tokens.extend((0..*len).map(|t| (100 * i + t) as u32));
            input.positions.extend(0..*len as u32);
            let table = (0..len.div_ceil(BLOCK) as u32).map(|block| 10 * i as u32 + block).collect();
            input.spans.push(Span { rows: begin..begin + len, table, adapter: i, ..Span::default() });
        }
        input
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one part")]
    fn parts_are_whole_spans_and_cover_the_rows_in_order() {
        for (lengths, parts, rows) in [
            (vec![1; 32], 2, vec![0..16, 16..32]),
            (vec![1; 32], 3, vec![0..11, 11..22, 22..32]),
            (vec![20, 20, 22, 18], 2, vec![0..40, 40..80]),
            (vec![64, 1, 1, 1], 2, vec![0..67]),
            (vec![5], 4, vec![0..5]),
            (vec![3, 3], 1, vec![0..6]),
        ] {
            let input = call(&lengths);
            let cut = cut(&input, parts);
            assert_eq!(cut.iter().map(|part| part.rows.clone()).collect::<Vec<_>>(), rows, "{lengths:?}");
            let tokens: Vec<u32> = cut.iter().flat_map(|part| part.input.tokens.clone()).collect();
            assert_eq!(tokens, input.tokens);
            for part in &cut {
                assert_eq!(part.input.spans[0].rows.start, 0);
                assert_eq!(part.input.spans.last().unwrap().rows.end, part.rows.len());
                for (write, row) in part.writes.iter().zip(0..) {
                    assert_eq!(write.0, row);
                }
            }
            let ranges: Vec<_> = cut.iter().map(|part| part.rows.clone()).collect();
            let all: Vec<u32> = (0..input.len() as u32).collect();
            for (row, (part, place)) in all.iter().zip(places(&ranges, &all)) {
                assert_eq!(cut[part as usize].input.tokens[place as usize], input.tokens[*row as usize]);
            }
        }
    }
}
