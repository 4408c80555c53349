//! Texts through the model.

use std::sync::OnceLock;

use folgore_model::backend::{Backend as _, CpuBuf};

use super::{
    Bert, Linear, Tokens,
    attention::{Asked, Span, attention},
    kernels::{add_and_gelu, add_and_norm},
};

/// Tokens of texts that go through the model together: enough for products at full speed, few enough for the cache of a thread.
const TOGETHER: usize = 256;

/// Places of texts in `lengths`, in parts of at most [`TOGETHER`] tokens, texts of like length side by side.
fn parts(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for i in order {
        match parts.last_mut() {
            Some(part) if lengths[i] <= room => part.push(i),
            _ => {
                parts.push(vec![i]);
                room = TOGETHER;
            }
        }
        room = room.saturating_sub(lengths[i]);
    }
    parts
}

impl Bert {
    /// What `read` makes of each text and of the last hidden states of its tokens, in order. Ids are of the vocabulary and texts no longer
    /// than [`Bert::max_tokens`]: [`super::Vocabulary`] sees to it.
    ///
    /// A thread takes whole texts through all layers. Where there are fewer parts than threads, they share each operation.
    pub(crate) fn each<T: Send + Sync>(&self, texts: &[Tokens], read: impl Fn(usize, &[f32]) -> T + Sync) -> Vec<T> {
        let parts = parts(&texts.iter().map(|text| text.ids.len()).collect::<Vec<_>>());
        let made: Vec<OnceLock<T>> = texts.iter().map(|_| OnceLock::new()).collect();
        let run = |part: &[usize]| {
            let states = self.forward(&part.iter().map(|&i| &texts[i]).collect::<Vec<_>>());
            let mut states = &states[..];
            for &i in part {
                let (own, rest) = states.split_at(texts[i].ids.len() * self.width());
                states = rest;
                // a text is in one part
                let _ = made[i].set(read(i, own));
            }
        };
        if parts.len() < self.cpu.threads() {
            parts.iter().for_each(|part| run(part));
        } else {
            self.cpu.together(parts.len(), usize::MAX, &|i| run(&parts[i]));
        }
        made.into_iter().map(|made| made.into_inner().expect("every text is in a part")).collect()
    }

    /// `x` times the matrix. The bias is left to whoever reads the result next.
    fn product(&self, linear: &Linear, x: &CpuBuf) -> CpuBuf {
        let (out, inner) = self.cpu.shape(&linear.weight);
        let rows = x.len() / inner;
        let mut y = self.cpu.alloc(rows * out);
        self.cpu.linear(x, &linear.weight, &mut y, 0..rows, false);
        y
    }

    /// The last hidden states of all tokens of all texts, one behind the other.
    fn forward(&self, texts: &[&Tokens]) -> CpuBuf {
        let mut spans = Vec::new();
        let mut first = 0;
        for text in texts {
            spans.push(Span { first, rows: text.ids.len(), seen: text.seen });
            first += text.ids.len();
        }
        let mut x = self.embed(texts, first);
        let (cpu, heads, eps) = (&self.cpu, self.config.num_attention_heads, self.config.layer_norm_eps);
        for layer in &self.layers {
            let qkv = self.product(&layer.qkv, &x);
            let mut seen = cpu.alloc(x.len());
            let asked = Asked { rows: &qkv, bias: &layer.qkv.bias, heads, dim: self.width() / heads };
            attention(cpu, asked, &spans, &mut seen);
            let attended = self.product(&layer.attended, &seen);
            add_and_norm(cpu, &mut x, &attended, &layer.attended.bias, &layer.attention_norm, eps);
            let mut wide = self.product(&layer.wide, &x);
            add_and_gelu(cpu, &mut wide, &layer.wide.bias);
            let narrow = self.product(&layer.narrow, &wide);
            add_and_norm(cpu, &mut x, &narrow, &layer.narrow.bias, &layer.output_norm, eps);
        }
        x
    }

    fn embed(&self, texts: &[&Tokens], rows: usize) -> CpuBuf {
        let width = self.width();
        let row = |index: usize| index * width..(index + 1) * width;
        let mut x = self.cpu.alloc(rows * width);
        let mut more = self.cpu.alloc(rows * width);
        let tokens = texts.iter().flat_map(|text| text.ids.iter().zip(&text.kinds).enumerate());
        for ((place, (id, kind)), (x, more)) in tokens.zip(x.chunks_exact_mut(width).zip(more.chunks_exact_mut(width)))
        {
            x.copy_from_slice(&self.words[row(*id as usize)]);
            let (place, kind) = (&self.places[row(place)], &self.kinds[row(*kind as usize)]);
            more.iter_mut().zip(place.iter().zip(kind)).for_each(|(more, (place, kind))| *more = place + kind);
        }
        let none = self.cpu.zeros(width);
        add_and_norm(&self.cpu, &mut x, &more, &none, &self.norm, self.config.layer_norm_eps);
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_one_part_and_parts_are_bounded() {
        let lengths: Vec<usize> = (0..300).map(|i| 1 + i * 37 % 260).chain([TOGETHER + 7]).collect();
        let parts = parts(&lengths);
        let mut places: Vec<usize> = parts.concat();
        places.sort_unstable();
        assert_eq!(places, (0..lengths.len()).collect::<Vec<_>>());
        for part in &parts {
            assert!(part.len() == 1 || part.iter().map(|&i| lengths[i]).sum::<usize>() <= TOGETHER);
        }
        assert!(super::parts(&[]).is_empty());
    }
}
