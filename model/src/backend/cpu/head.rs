//! From the last hidden state to log-probs and tokens, in chunks of the vocabulary.
//!
//! A task is a chunk for a block of rows: its logits are made, reduced to three numbers a row and forgotten, unless a token
//! is to be drawn from them. Log-probs of the learner and of the sampler come from the same reduction.

use std::ops::Range;

use super::{
    Cpu,
    buffer::CpuBuf,
    gemm::MC,
    isa::kernel,
    linear::{Rows, piece, scratch_row},
    matrix::CpuMatrix,
    pointwise,
    simd::Simd,
    team::Parts,
};
use crate::backend::{
    Head, HeadOut, SampleSpec, Sampled,
    choice::{self, CHUNK, Stats},
    lanes::{LANES, check_len},
};

/// Rows whose logits of a chunk are held at once when only log-probs are wanted.
const SCORE_ROWS: usize = 48;
/// Rows of a block in the backward: their gradients of a chunk are 2 MiB.
const GRADIENT_ROWS: usize = 256;
/// Numbers of the logits that are held at once in [`held_rows`]: 32 MiB, unless a row is very long.
const HELD: usize = 8 << 20;
/// Rows that are sampled together: their logits are held in full.
const SAMPLE_ROWS: usize = 32;
/// Rows that a task of theirs takes at least, where the vocabulary has fewer chunks than there are threads.
const FEWEST_ROWS: usize = 8;
/// Panels of a chunk.
const CHUNK_PANELS: usize = CHUNK / LANES;

/// `logit / temperature`; `divisor` is none where the temperature is 1.
#[inline(always)]
fn tempered<S: Simd>(s: S, logit: S::F, divisor: Option<S::F>) -> S::F {
    match divisor {
        None => logit,
        Some(divisor) => s.div(logit, divisor),
    }
}

/// Adds sixteen logits to the sums of exponentials and of exponentials times logits.
#[inline(always)]
fn add_exponentials<S: Simd>(s: S, z: S::F, max: S::F, (sum, weighted): (S::F, S::F)) -> (S::F, S::F) {
    let e = s.exp(s.sub(z, max));
    (s.add(sum, e), s.fma(e, s.max(s.splat(f32::MIN), z), weighted))
}

/// [`choice::chunk_stats`] of `logits / temperature`, by vectors.
#[inline(always)]
fn chunk_stats_in<S: Simd>(s: S, logits: &[f32], temperature: f32) -> Stats {
    let divisor = if temperature == 1.0 { None } else { Some(s.splat(temperature)) };
    let (whole, rest) = logits.as_chunks::<LANES>();
    let last = tempered(s, s.load_part(rest, f32::NEG_INFINITY), divisor);
    let mut max = s.max(s.splat(f32::NEG_INFINITY), last);
    for chunk in whole {
        max = s.max(max, tempered(s, s.load(chunk), divisor));
    }
    let max = s.largest(max);
    if max == f32::NEG_INFINITY {
        return choice::chunk_stats(logits);
    }
    let shift = s.splat(max);
    let mut sums = (s.splat(0.0), s.splat(0.0));
    for chunk in whole {
        sums = add_exponentials(s, tempered(s, s.load(chunk), divisor), shift, sums);
    }
    // the lanes beyond the end are negative infinity and add nothing
    let (sum, weighted) = add_exponentials(s, last, shift, sums);
    Stats { max, sum: s.sum(sum), weighted: s.sum(weighted) }
}

/// `exp(z - max)` of all of `z`, in place.
#[inline(always)]
fn weigh_in<S: Simd>(s: S, z: &mut [f32], max: f32) {
    let max = s.splat(max);
    let (blocks, rest) = z.as_chunks_mut::<LANES>();
    for block in blocks {
        let weight = s.exp(s.sub(s.load(block), max));
        s.store(block, weight);
    }
    let last = s.exp(s.sub(s.load_part(rest, 0.0), max));
    s.store_part(rest, last);
}

kernel!(fn weigh = weigh_in(z: &mut [f32], max: f32));

kernel!(fn chunk_stats = chunk_stats_in(logits: &[f32], temperature: f32) -> Stats);

fn merge(chunks: &[Stats]) -> Stats {
    let mut all = Stats::EMPTY;
    chunks.iter().for_each(|c| all.merge(*c));
    all
}

/// Panels of chunk `c`.
fn panels_of(head: &CpuMatrix, c: usize) -> Range<usize> {
    c * CHUNK_PANELS..((c + 1) * CHUNK_PANELS).min(head.out.div_ceil(LANES))
}

/// Columns of chunk `c`.
fn columns_of(head: &CpuMatrix, c: usize) -> Range<usize> {
    c * CHUNK..((c + 1) * CHUNK).min(head.out)
}

/// Rows whose logits are held in full where log-probs and their gradients are made together.
pub fn held_rows(vocab: usize) -> usize {
    (HELD / vocab.max(1)).clamp(SAMPLE_ROWS, MC)
}

/// Place of `target` among `columns`, if it is there.
fn within(columns: &Range<usize>, target: u32) -> Option<usize> {
    (target as usize).checked_sub(columns.start).filter(|t| *t < columns.len())
}

/// Adds a row to `out` for each of `targets`: `stats` are those of its chunks, `wanted` its logit.
fn add_scores(out: &mut HeadOut, stats: &[Stats], wanted: &[f32], targets: &[u32], vocab: usize) {
    let merged = stats.chunks_exact(vocab.div_ceil(CHUNK).max(1)).map(merge);
    for ((stats, z), target) in merged.zip(wanted).zip(targets) {
        assert!((*target as usize) < vocab, "head_logprobs: token {target} of {vocab}");
        out.lse.push(stats.lse());
        out.logprobs.push(z - stats.lse());
        out.entropy.push(stats.entropy());
        out.likeliest.push(*z >= stats.max);
    }
}

/// Guess of the time in nanoseconds to choose a token by `spec`.
fn drawing(spec: &SampleSpec, vocab: usize) -> usize {
    match (choice::is_plain(spec), spec.temperature == 0.0) {
        (true, false) => vocab.min(CHUNK),
        (true, true) => vocab,
        (false, _) => vocab * 4,
    }
}

fn work(rows: usize, head: &CpuMatrix) -> usize {
    rows * head.out * (head.inner + 20) / 40
}

impl Cpu {
    /// Caps logits, where the head has a cap.
    fn cap(&self, softcap: Option<f32>, logits: &mut [f32]) {
        if let Some(cap) = softcap {
            pointwise::softcap(self.isa, logits, cap);
        }
    }

    pub(super) fn score(
        &self,
        hidden: &[f32],
        head: Head<'_, CpuMatrix>,
        targets: &[u32],
        temperature: f32,
    ) -> HeadOut {
        let Head { matrix: head, softcap } = head;
        check_len("head_logprobs hidden", hidden.len(), targets.len() * head.inner);
        let (n, chunks) = (targets.len(), head.out.div_ceil(CHUNK));
        let hidden = Rows { values: hidden, row: head.inner };
        let mut stats = vec![Stats::EMPTY; n * chunks];
        let mut wanted = vec![f32::NAN; n];
        let (stats_parts, wanted_parts) = (Parts::new(&mut stats), Parts::new(&mut wanted));
        self.team.run(n.div_ceil(SCORE_ROWS) * chunks, work(n, head), |task| {
            let (block, c) = (task / chunks, task % chunks);
            let rows = block * SCORE_ROWS..((block + 1) * SCORE_ROWS).min(n);
            let columns = columns_of(head, c);
            let row = scratch_row(columns.len());
            let mut logits = self.buffers.alloc(rows.len() * row);
            let x = Rows { values: &hidden.values[rows.start * head.inner..], row: head.inner };
            let panels = panels_of(head, c);
            let first = panels.start;
            // SAFETY: the buffer is this task's own.
            unsafe {
                let out = Parts::new(&mut logits);
                self.product_piece(x, head, panels, first, out, row, 0..rows.len(), false);
            }
            for (r, logits) in rows.zip(logits.chunks_exact_mut(row)) {
                let logits = &mut logits[..columns.len()];
                self.cap(softcap, logits);
                let target = targets[r] as usize;
                // SAFETY: a row's place for a chunk belongs to one task, and so does its target's.
                unsafe {
                    stats_parts.part(r * chunks + c..r * chunks + c + 1)[0] =
                        chunk_stats(self.isa, logits, temperature);
                    if columns.contains(&target) {
                        wanted_parts.part(r..r + 1)[0] = logits[target - columns.start] / temperature;
                    }
                }
            }
        });
        let mut result = HeadOut::default();
        add_scores(&mut result, &stats, &wanted, targets, head.out);
        result
    }

    /// [`Self::score`] and gradients by `hidden`, for blocks of rows whose logits are held in full.
    pub(super) fn score_gradients(
        &self,
        hidden: &[f32],
        head: Head<'_, CpuMatrix>,
        targets: &[u32],
        temperature: f32,
    ) -> (HeadOut, CpuBuf) {
        let Head { matrix: head, softcap } = head;
        let (n, width, chunks) = (targets.len(), head.inner, head.out.div_ceil(CHUNK));
        check_len("head_gradients hidden", hidden.len(), n * width);
        let row_len = scratch_row(head.out);
        let step = held_rows(head.out).min(n.max(1));
        let (mut logits, mut gradients) = (self.buffers.alloc(step * row_len), self.buffers.alloc(n * width));
        let (mut stats, mut wanted) = (vec![Stats::EMPTY; step * chunks], vec![f32::NAN; step]);
        let mut result = HeadOut::default();
        for first in (0..n).step_by(step) {
            let rows = first..(first + step).min(n);
            let (m, targets) = (rows.len(), &targets[rows.clone()]);
            let x = Rows { values: &hidden[rows.start * width..rows.end * width], row: width };
            self.product(x, head, 0..head.out.div_ceil(LANES), Parts::new(&mut logits), row_len, m, false);
            let (parts, stats_parts, wanted_parts) =
                (Parts::new(&mut logits), Parts::new(&mut stats), Parts::new(&mut wanted));
            self.team.run(m * chunks, m * head.out, |task| {
                let (r, c) = (task / chunks, task % chunks);
                let columns = columns_of(head, c);
                let target = targets[r] as usize;
                // SAFETY: a row's chunk belongs to one task, and so does its target.
                unsafe {
                    let row = parts.part(r * row_len + columns.start..r * row_len + columns.end);
                    self.cap(softcap, row);
                    stats_parts.part(task..task + 1)[0] = chunk_stats(self.isa, row, temperature);
                    if columns.contains(&target) {
                        wanted_parts.part(r..r + 1)[0] = row[target - columns.start] / temperature;
                    }
                }
            });
            add_scores(&mut result, &stats[..m * chunks], &wanted, targets, head.out);
            let lse = &result.lse[rows.clone()];
            self.team.run(m * chunks, m * head.out, |task| {
                let (r, c) = (task / chunks, task % chunks);
                let columns = columns_of(head, c);
                // SAFETY: as above.
                let row = unsafe { parts.part(r * row_len + columns.start..r * row_len + columns.end) };
                self.logit_slopes(row, softcap, within(&columns, targets[r]), temperature, lse[r], 1.0);
            });
            let dx = &mut gradients[rows.start * width..rows.end * width];
            for c in 0..chunks {
                let dy = Rows { values: &logits[c * CHUNK..], row: row_len };
                self.product_back(dy, head, panels_of(head, c), Parts::new(dx), width, m, c > 0);
            }
        }
        (result, gradients)
    }

    /// From a row's capped logits of a chunk to `dlogprob` times the derivatives of its log-prob; `target` is a place in the chunk.
    fn logit_slopes(
        &self,
        row: &mut [f32],
        softcap: Option<f32>,
        target: Option<usize>,
        temperature: f32,
        lse: f32,
        dlogprob: f32,
    ) {
        let capped = softcap.map(|cap| (cap, row.to_vec()));
        pointwise::logit_grad(self.isa, row, target, temperature, lse, dlogprob / temperature);
        if let Some((cap, z)) = capped {
            pointwise::softcap_back(self.isa, &z, cap, row);
        }
    }

    pub(super) fn score_back(
        &self,
        hidden: &[f32],
        head: Head<'_, CpuMatrix>,
        targets: &[u32],
        temperature: f32,
        lse: &[f32],
        dlogprobs: &[f32],
        dhidden: &mut [f32],
        mut dhead: Option<&mut [f32]>,
    ) {
        let Head { matrix: head, softcap } = head;
        let (n, width) = (targets.len(), head.inner);
        for len in [hidden.len(), dhidden.len()] {
            check_len("head_backward hidden", len, n * width);
        }
        check_len("head_backward lse", lse.len(), n);
        check_len("head_backward dlogprobs", dlogprobs.len(), n);
        let step = GRADIENT_ROWS.min(n.max(1));
        let row_len = scratch_row(CHUNK.min(head.out));
        let mut buffer = self.buffers.alloc(step * row_len);
        for first in (0..n).step_by(step) {
            let rows = first..(first + step).min(n);
            let x = Rows { values: &hidden[rows.start * width..rows.end * width], row: width };
            for c in 0..head.out.div_ceil(CHUNK) {
                let columns = columns_of(head, c);
                let grads = &mut buffer[..rows.len() * row_len];
                self.product(x, head, panels_of(head, c), Parts::new(grads), row_len, rows.len(), false);
                let parts = Parts::new(grads);
                self.team.split(rows.len(), 1, rows.len() * columns.len(), |some| {
                    for i in some {
                        let r = rows.start + i;
                        // SAFETY: a row belongs to one piece.
                        let row = unsafe { parts.part(i * row_len..i * row_len + columns.len()) };
                        self.cap(softcap, row);
                        self.logit_slopes(
                            row,
                            softcap,
                            within(&columns, targets[r]),
                            temperature,
                            lse[r],
                            dlogprobs[r],
                        );
                    }
                });
                let dy = Rows { values: grads, row: row_len };
                let dx = Parts::new(&mut dhidden[rows.start * width..rows.end * width]);
                self.product_back(dy, head, panels_of(head, c), dx, width, rows.len(), true);
                if let Some(dhead) = dhead.as_deref_mut() {
                    let dw = Parts::new(&mut dhead[columns.start * width..columns.end * width]);
                    self.product_weights(dy, x, dw, columns.len(), width, rows.len(), 1.0);
                }
            }
        }
    }

    /// Logits of all rows, with rows of the vocabulary's length.
    pub(super) fn all_logits(&self, hidden: &[f32], head: Head<'_, CpuMatrix>) -> Vec<f32> {
        let Head { matrix: head, softcap } = head;
        let n = hidden.len() / head.inner;
        let mut out = vec![0.0; n * head.out];
        let x = Rows { values: hidden, row: head.inner };
        self.product(x, head, 0..head.out.div_ceil(LANES), Parts::new(&mut out), head.out, n, false);
        self.cap(softcap, &mut out);
        out
    }

    pub(super) fn choose(&self, hidden: &[f32], head: Head<'_, CpuMatrix>, specs: &[SampleSpec]) -> Vec<Sampled> {
        let width = head.matrix.inner;
        check_len("sample hidden", hidden.len(), specs.len() * width);
        let groups = specs.chunks(SAMPLE_ROWS).zip(hidden.chunks(SAMPLE_ROWS * width));
        groups.flat_map(|(specs, hidden)| self.choose_group(hidden, head, specs)).collect()
    }

    fn choose_group(&self, hidden: &[f32], head: Head<'_, CpuMatrix>, specs: &[SampleSpec]) -> Vec<Sampled> {
        const { assert!(SAMPLE_ROWS <= MC) };
        let Head { matrix: head, softcap } = head;
        let (n, vocab, chunks) = (specs.len(), head.out, head.out.div_ceil(CHUNK));
        let hidden = Rows { values: hidden, row: head.inner };
        let row_len = scratch_row(vocab);
        let mut logits = self.buffers.alloc(n * row_len);
        let mut stats = vec![Stats::EMPTY; n * chunks];
        let (logits_parts, stats_parts) = (Parts::new(&mut logits), Parts::new(&mut stats));
        let row_pieces = (4 * self.team.hands()).div_ceil(chunks).min(n / FEWEST_ROWS).max(1);
        self.team.run(row_pieces * chunks, work(n, head), |task| {
            let (rows, c) = (piece(n, row_pieces, task / chunks), task % chunks);
            let columns = columns_of(head, c);
            // SAFETY: the columns of a chunk, and a row's place for it, belong to one task.
            unsafe {
                self.product_piece(hidden, head, panels_of(head, c), 0, logits_parts, row_len, rows.clone(), false);
                for (r, spec) in rows.clone().zip(&specs[rows]) {
                    let logits = logits_parts.part(r * row_len + columns.start..r * row_len + columns.end);
                    self.cap(softcap, logits);
                    stats_parts.part(r * chunks + c..r * chunks + c + 1)[0] =
                        chunk_stats(self.isa, logits, SampleSpec::logprob_temperature(spec.temperature));
                }
            }
        });
        let mut sampled = vec![Sampled::default(); n];
        let parts = Parts::new(&mut sampled);
        let drawing: usize = specs.iter().map(|spec| drawing(spec, vocab)).sum();
        self.team.run(n, drawing, |r| {
            let row = &logits[r * row_len..][..vocab];
            // SAFETY: a row belongs to one task.
            unsafe { parts.part(r..r + 1)[0] = self.choose_one(row, &stats[r * chunks..(r + 1) * chunks], &specs[r]) };
        });
        sampled
    }

    /// One token from a row of raw logits and the statistics of its chunks.
    fn choose_one(&self, logits: &[f32], stats: &[Stats], spec: &SampleSpec) -> Sampled {
        let temperature = SampleSpec::logprob_temperature(spec.temperature);
        let weigh = |z: &mut [f32], max| weigh(self.isa, z, max);
        let id = if choice::is_plain(spec) {
            if spec.temperature == 0.0 {
                choice::argmax(logits)
            } else {
                let chunk = |columns: Range<usize>| logits[columns].iter().map(|l| l / temperature).collect();
                choice::draw(stats, spec.uniform, chunk, weigh, logits.len())
            }
        } else {
            let mut z = self.buffers.alloc(logits.len());
            z.copy_from_slice(logits);
            choice::penalise(&mut z, spec);
            if spec.temperature == 0.0 {
                choice::argmax(&z)
            } else {
                z.iter_mut().for_each(|z| *z /= temperature);
                choice::cut(&mut z, spec);
                let stats: Vec<Stats> = z.chunks(CHUNK).map(|z| chunk_stats(self.isa, z, 1.0)).collect();
                choice::draw(&stats, spec.uniform, |columns| z[columns].to_vec(), weigh, z.len())
            }
        };
        let all = merge(stats);
        let lse = all.lse();
        Sampled { id: id as u32, logprob: logits[id] / temperature - lse, lse, entropy: all.entropy() }
    }
}
