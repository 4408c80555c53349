//! Where the keys of a learning call lie: the block tables that a cache would have given its sequences.
//!
//! The cache of a learning call holds one layer and is refilled layer by layer. Spans with the same prefix share its whole
//! blocks; the last, partly filled block of a prefix is written once for every span that goes on from it, which is what
//! copy-on-write leaves behind when sampling.

use std::{collections::HashMap, ops::Range};

use super::Ragged;
use crate::backend::{AttnSpan, BLOCK, GradSpan};

/// Tables and writes of one learning call.
pub(super) struct Layout {
    pub(super) blocks: usize,
    pub(super) writes: Vec<(u32, u32)>,
    pub(super) attention: Vec<AttnSpan>,
    pub(super) gradient: Vec<GradSpan>,
}

impl Layout {
    pub(super) fn of(input: &Ragged) -> Self {
        let mut layout = Self { blocks: 0, writes: Vec::new(), attention: Vec::new(), gradient: Vec::new() };
        // whole blocks of a prefix, by the rows that it is made of
        let mut shared: HashMap<Vec<Range<usize>>, Vec<u32>> = HashMap::new();
        for span in &input.spans {
            let rows: Vec<usize> = span.prefix.iter().cloned().flatten().chain(span.rows.clone()).collect();
            assert_eq!(rows.len(), span.start + span.rows.len(), "learning span: prefix rows against its start");
            let mut table = shared.get(&span.prefix).cloned().unwrap_or_default();
            let begin = table.len() * BLOCK;
            while table.len() * BLOCK < rows.len() {
                table.push(layout.blocks as u32);
                layout.blocks += 1;
            }
            for (place, row) in rows.iter().enumerate().skip(begin) {
                layout.writes.push((*row as u32, table[place / BLOCK] * BLOCK as u32 + (place % BLOCK) as u32));
            }
            let mut whole = span.prefix.clone();
            if !span.prefix.is_empty() && !shared.contains_key(&span.prefix) {
                shared.insert(span.prefix.clone(), table[..span.start / BLOCK].to_vec());
            }
            whole.push(span.rows.clone());
            shared.insert(whole, table[..rows.len() / BLOCK].to_vec());
            layout.attention.push(AttnSpan { rows: span.rows.clone(), start: span.start, table });
            layout.gradient.push(GradSpan { rows: span.rows.clone(), prefix: span.prefix.clone() });
        }
        layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Span;

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "a prefix is a list of ranges, here of one")]
    fn members_share_whole_blocks_and_own_the_partial_one() {
        let spans = vec![
            Span { rows: 0..37, ..Span::default() },
            Span { rows: 37..47, start: 37, prefix: vec![0..37], ..Span::default() },
            Span { rows: 47..50, start: 37, prefix: vec![0..37], ..Span::default() },
        ];
        let input = Ragged { tokens: vec![0; 50], positions: vec![0; 50], spans, wanted: vec![] };
        let layout = Layout::of(&input);
        let tables: Vec<_> = layout.attention.iter().map(|s| s.table.clone()).collect();
        assert_eq!(tables, [vec![0, 1, 2], vec![0, 1, 3], vec![0, 1, 4]]);
        assert_eq!(layout.blocks, 5);
        // the five tail rows of the prompt are written three times, every other row once
        for row in 0..50u32 {
            let times = layout.writes.iter().filter(|(r, _)| *r == row).count();
            assert_eq!(times, if (32..37).contains(&row) { 3 } else { 1 }, "row {row}");
        }
        let mut slots: Vec<u32> = layout.writes.iter().map(|(_, slot)| *slot).collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), layout.writes.len(), "two rows in one slot");
    }
}
