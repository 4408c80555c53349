//! The readable definition of every operation: plain loops, one number after the other, no blocking and no threads.
//!
//! The fast backends are tested against this one: forward operations bit for bit.

use std::ops::Range;

use folgore_protocol::seed;
use half::bf16;

use super::{
    AdamW, AttnShape, AttnSpan, BLOCK, Backend, GradSpan, Head, HeadOut, Heads, KvPrecision, MatrixData, SampleSpec,
    Sampled, choice, curves, exp,
    lanes::{self, check_len, check_rows, rows_of},
};
use crate::{
    Activation,
    quant::dynamic::{Blocks, SIGNED, UNSIGNED},
};

/// The reference implementation of [`Backend`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Naive;

/// A matrix as the file has it: row-major [out, inner].
#[derive(Debug)]
pub struct NaiveMatrix {
    out: usize,
    inner: usize,
    values: Vec<f32>,
}

/// Keys and values of one layer: one row of `kv_heads * head_dim` numbers per token, rounded where they are held in fewer bits.
#[derive(Debug)]
pub struct NaiveKv {
    heads: Heads,
    precision: KvPrecision,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Naive {
    /// Makes the backend; it has no state.
    pub fn new() -> Self {
        Self
    }
}

/// `acc = fma(a[i], b[i], acc)` for i ascending.
fn chain(a: &[f32], b: &[f32], start: f32) -> f32 {
    a.iter().zip(b).fold(start, |acc, (a, b)| a.mul_add(*b, acc))
}

/// 1 / sqrt(mean(x²) + eps).
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let sum = lanes::sum_of_products(x.iter().map(|x| (*x, *x)));
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// Soft-max weights before the division: `exp(score - max)`, and their sum.
fn weights(scores: &mut [f32]) -> f32 {
    let max = scores.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    scores.iter_mut().for_each(|s| *s = exp(*s - max));
    lanes::sum(scores.iter().copied())
}

impl NaiveMatrix {
    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.inner..(row + 1) * self.inner]
    }
}

impl Head<'_, NaiveMatrix> {
    /// Logits of one hidden row.
    fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let capped = |logit| self.softcap.map_or(logit, |cap| curves::softcap(logit, cap));
        (0..self.matrix.out).map(|j| capped(chain(hidden, self.matrix.row(j), 0.0))).collect()
    }
}

/// Statistics of every chunk of a row of logits.
fn chunks(z: &[f32]) -> Vec<choice::Stats> {
    z.chunks(choice::CHUNK).map(choice::chunk_stats).collect()
}

fn merged(chunks: &[choice::Stats]) -> choice::Stats {
    let mut all = choice::Stats::EMPTY;
    chunks.iter().for_each(|c| all.merge(*c));
    all
}

impl Backend for Naive {
    type Buf = Vec<f32>;
    type Matrix = NaiveMatrix;
    type Kv = NaiveKv;
    type Codes = Blocks;

    fn name(&self) -> String {
        "naive".into()
    }

    fn alloc(&self, len: usize) -> Vec<f32> {
        // a value nobody may rely on: an operation that reads what it should have written shows at once
        vec![f32::NAN; len]
    }

    fn zeros(&self, len: usize) -> Vec<f32> {
        vec![0.0; len]
    }

    fn upload(&self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }

    fn download(&self, buf: &Vec<f32>) -> Vec<f32> {
        buf.clone()
    }

    fn len(&self, buf: &Vec<f32>) -> usize {
        buf.len()
    }

    fn fill_zero(&self, buf: &mut Vec<f32>) {
        buf.fill(0.0);
    }

    fn gather_rows(
        &self,
        sources: &[&Vec<f32>],
        places: &[(u32, u32)],
        width: usize,
        out: &mut Vec<f32>,
        first: usize,
    ) {
        check_rows("gather_rows out", out.len(), width, &(first..first + places.len()));
        for (to, (source, row)) in out.chunks_mut(width).skip(first).zip(places) {
            to.copy_from_slice(&sources[*source as usize][*row as usize * width..][..width]);
        }
    }

    fn scatter_add_rows(&self, src: &Vec<f32>, index: &[u32], width: usize, out: &mut Vec<f32>) {
        check_len("scatter_add_rows src", src.len(), index.len() * width);
        for (row, i) in src.chunks(width).zip(index) {
            out[*i as usize * width..][..width].iter_mut().zip(row).for_each(|(o, x)| *o += x);
        }
    }

    fn add(&self, x: &mut Vec<f32>, y: &Vec<f32>) {
        check_len("add y", y.len(), x.len());
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }

    fn scale(&self, x: &mut Vec<f32>, factor: f32) {
        x.iter_mut().for_each(|x| *x *= factor);
    }

    fn scale_rows(&self, x: &mut Vec<f32>, factors: &[f32]) {
        let width = rows_of("scale_rows", x.len(), factors.len().max(1));
        x.chunks_mut(width.max(1)).zip(factors).for_each(|(row, factor)| row.iter_mut().for_each(|x| *x *= factor));
    }

    fn round_bf16(&self, x: &mut Vec<f32>) {
        x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    }

    fn fill_rows(&self, row: &Vec<f32>, out: &mut Vec<f32>) {
        rows_of("fill_rows out", out.len(), row.len());
        out.chunks_mut(row.len()).for_each(|out| out.copy_from_slice(row));
    }

    fn matrix(&self, data: MatrixData<'_>, out: usize, inner: usize) -> NaiveMatrix {
        let values = match data {
            MatrixData::F32(values) => values.to_vec(),
            MatrixData::Bf16(bits) => bits.iter().map(|b| f32::from_bits(u32::from(*b) << 16)).collect(),
            MatrixData::Coded(coded) => coded.decoded(),
        };
        check_len("matrix", values.len(), out * inner);
        NaiveMatrix { out, inner, values }
    }

    fn set_matrix(&self, matrix: &mut NaiveMatrix, values: &Vec<f32>, scale: f32) {
        check_len("set_matrix values", values.len(), matrix.values.len());
        matrix.values.iter_mut().zip(values).for_each(|(w, v)| *w = scale * v);
    }

    fn shape(&self, matrix: &NaiveMatrix) -> (usize, usize) {
        (matrix.out, matrix.inner)
    }

    fn matrix_bytes(&self, matrix: &NaiveMatrix) -> usize {
        size_of_val(&matrix.values[..])
    }

    fn embed(&self, table: &NaiveMatrix, ids: &[u32], out: &mut Vec<f32>) {
        check_len("embed out", out.len(), ids.len() * table.inner);
        for (row, id) in out.chunks_mut(table.inner).zip(ids) {
            row.copy_from_slice(table.row(*id as usize));
        }
    }

    fn linear(&self, x: &Vec<f32>, w: &NaiveMatrix, out: &mut Vec<f32>, rows: Range<usize>, accumulate: bool) {
        check_rows("linear x", x.len(), w.inner, &rows);
        check_rows("linear out", out.len(), w.out, &rows);
        for r in rows {
            let x = &x[r * w.inner..(r + 1) * w.inner];
            for (j, out) in out[r * w.out..(r + 1) * w.out].iter_mut().enumerate() {
                *out = chain(x, w.row(j), if accumulate { *out } else { 0.0 });
            }
        }
    }

    fn rms_norm(&self, x: &Vec<f32>, weight: &Vec<f32>, eps: f32, out: &mut Vec<f32>) {
        rows_of("rms_norm x", x.len(), weight.len());
        check_len("rms_norm out", out.len(), x.len());
        for (x, out) in x.chunks(weight.len()).zip(out.chunks_mut(weight.len())) {
            let inverse = inverse_rms(x, eps);
            for i in 0..x.len() {
                out[i] = x[i] * inverse * weight[i];
            }
        }
    }

    fn rope(
        &self,
        x: &mut Vec<f32>,
        table: &Vec<f32>,
        positions: &[u32],
        heads: usize,
        head_dim: usize,
        inverse: bool,
    ) {
        check_len("rope x", x.len(), positions.len() * heads * head_dim);
        let half = head_dim / 2;
        for (row, position) in x.chunks_mut(heads * head_dim).zip(positions) {
            let (cos, sin) = table[*position as usize * head_dim..][..head_dim].split_at(half);
            for head in row.chunks_mut(head_dim) {
                for i in 0..half {
                    let (a, b, c) = (head[i], head[half + i], cos[i]);
                    let s = if inverse { -sin[i] } else { sin[i] };
                    head[i] = a * c - b * s;
                    head[half + i] = b * c + a * s;
                }
            }
        }
    }

    fn glu(&self, activation: Activation, gate: &Vec<f32>, up: &Vec<f32>, out: &mut Vec<f32>) {
        check_len("glu up", up.len(), gate.len());
        check_len("glu out", out.len(), gate.len());
        for i in 0..gate.len() {
            out[i] = gate[i] * curves::activate(activation, gate[i]).0 * up[i];
        }
    }

    fn dropout(&self, x: &Vec<f32>, p: f32, seed: u64, out: &mut Vec<f32>) {
        check_len("dropout out", out.len(), x.len());
        let factor = 1.0 / (1.0 - p);
        for i in 0..x.len() {
            out[i] = if seed::uniform(seed, i as u64) >= p { x[i] * factor } else { 0.0 };
        }
    }

    fn kv(&self, blocks: usize, heads: Heads, precision: KvPrecision) -> NaiveKv {
        let len = blocks * BLOCK * heads.kv_heads * heads.head_dim;
        NaiveKv { heads, precision, k: vec![0.0; len], v: vec![0.0; len] }
    }

    fn kv_write(&self, kv: &mut NaiveKv, k: &Vec<f32>, v: &Vec<f32>, writes: &[(u32, u32)]) {
        let width = kv.heads.kv_heads * kv.heads.head_dim;
        let held = |x: f32| match kv.precision {
            KvPrecision::F32 => x,
            KvPrecision::Bf16 => bf16::from_f32(x).to_f32(),
        };
        for (row, slot) in writes {
            let (row, slot) = (*row as usize * width, *slot as usize * width);
            for i in 0..width {
                (kv.k[slot + i], kv.v[slot + i]) = (held(k[row + i]), held(v[row + i]));
            }
        }
    }

    fn kv_copy(&self, kv: &mut NaiveKv, copies: &[(u32, u32)]) {
        let block = BLOCK * kv.heads.kv_heads * kv.heads.head_dim;
        for (from, to) in copies {
            let from = *from as usize * block;
            kv.k.copy_within(from..from + block, *to as usize * block);
            kv.v.copy_within(from..from + block, *to as usize * block);
        }
    }

    fn attention(&self, q: &Vec<f32>, kv: &NaiveKv, spans: &[AttnSpan], shape: AttnShape, out: &mut Vec<f32>) {
        let AttnShape { heads, scale, .. } = shape;
        let (dim, width) = (heads.head_dim, heads.heads * heads.head_dim);
        assert_eq!(heads, kv.heads, "attention: heads of the call and of the cache differ");
        check_len("attention out", out.len(), q.len());
        for span in spans {
            check_rows("attention q", q.len(), width, &span.rows);
            for (i, row) in span.rows.clone().enumerate() {
                let keys = span.start + i + 1;
                let first = shape.first_key(keys);
                for head in 0..heads.heads {
                    let at = row * width + head * dim;
                    let key_head = head / (heads.heads / heads.kv_heads);
                    let slot = |j: usize| {
                        let token = span.table[j / BLOCK] as usize * BLOCK + j % BLOCK;
                        (token * heads.kv_heads + key_head) * dim
                    };
                    let q = &q[at..at + dim];
                    let mut scores = vec![f32::NEG_INFINITY; keys];
                    for j in first..keys {
                        scores[j] = chain(q, &kv.k[slot(j)..][..dim], 0.0) * scale;
                    }
                    let denominator = weights(&mut scores);
                    for d in 0..dim {
                        let sum = (first..keys).fold(0.0f32, |acc, j| scores[j].mul_add(kv.v[slot(j) + d], acc));
                        out[at + d] = sum / denominator;
                    }
                }
            }
        }
    }

    fn attention_backward(
        &self,
        q: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        out: &Vec<f32>,
        dout: &Vec<f32>,
        spans: &[GradSpan],
        shape: AttnShape,
        dq: &mut Vec<f32>,
        dk: &mut Vec<f32>,
        dv: &mut Vec<f32>,
    ) {
        let AttnShape { heads, scale, .. } = shape;
        let (dim, width, kv_width) = (heads.head_dim, heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        for span in spans {
            let prefix: Vec<usize> = span.prefix.iter().cloned().flatten().collect();
            for (i, row) in span.rows.clone().enumerate() {
                let keys: Vec<usize> = prefix.iter().copied().chain(span.rows.start..span.rows.start + i + 1).collect();
                for head in 0..heads.heads {
                    let at = row * width + head * dim;
                    let key_head = head / (heads.heads / heads.kv_heads);
                    let slot = |j: usize| keys[j] * kv_width + key_head * dim;
                    let (q, dout, out) = (&q[at..at + dim], &dout[at..at + dim], &out[at..at + dim]);
                    let first = shape.first_key(keys.len());
                    let mut p = vec![f32::NEG_INFINITY; keys.len()];
                    for j in first..keys.len() {
                        p[j] = chain(q, &k[slot(j)..][..dim], 0.0) * scale;
                    }
                    let denominator = weights(&mut p);
                    let total = chain(dout, out, 0.0);
                    for j in first..keys.len() {
                        let at_key = slot(j);
                        let p = p[j] / denominator;
                        let dp = chain(dout, &v[at_key..at_key + dim], 0.0);
                        let ds = p * (dp - total) * scale;
                        for d in 0..dim {
                            dq[at + d] = ds.mul_add(k[at_key + d], dq[at + d]);
                            dk[at_key + d] = ds.mul_add(q[d], dk[at_key + d]);
                            dv[at_key + d] = p.mul_add(dout[d], dv[at_key + d]);
                        }
                    }
                }
            }
        }
    }

    fn linear_dx(&self, dy: &Vec<f32>, w: &NaiveMatrix, dx: &mut Vec<f32>, rows: Range<usize>, accumulate: bool) {
        check_rows("linear_dx dy", dy.len(), w.out, &rows);
        check_rows("linear_dx dx", dx.len(), w.inner, &rows);
        for r in rows {
            let dx = &mut dx[r * w.inner..(r + 1) * w.inner];
            if !accumulate {
                dx.fill(0.0);
            }
            for j in 0..w.out {
                let dy = dy[r * w.out + j];
                dx.iter_mut().zip(w.row(j)).for_each(|(dx, w)| *dx = dy.mul_add(*w, *dx));
            }
        }
    }

    fn linear_dw(
        &self,
        dy: &Vec<f32>,
        x: &Vec<f32>,
        dw: &mut Vec<f32>,
        out: usize,
        inner: usize,
        rows: Range<usize>,
        scale: f32,
    ) {
        check_rows("linear_dw dy", dy.len(), out, &rows);
        check_rows("linear_dw x", x.len(), inner, &rows);
        check_len("linear_dw dw", dw.len(), out * inner);
        for j in 0..out {
            for i in 0..inner {
                let sum = rows.clone().fold(0.0f32, |acc, r| dy[r * out + j].mul_add(x[r * inner + i], acc));
                dw[j * inner + i] = scale.mul_add(sum, dw[j * inner + i]);
            }
        }
    }

    fn embed_backward(&self, dx: &Vec<f32>, ids: &[u32], width: usize, dtable: &mut Vec<f32>) {
        self.scatter_add_rows(dx, ids, width, dtable);
    }

    fn rms_norm_backward(
        &self,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        eps: f32,
        dy: &Vec<f32>,
        dx: &mut Vec<f32>,
        mut dweight: Option<&mut Vec<f32>>,
    ) {
        let width = weight.len();
        for r in 0..rows_of("rms_norm_backward x", x.len(), width) {
            let (x, dy, dx) = (&x[r * width..][..width], &dy[r * width..][..width], &mut dx[r * width..][..width]);
            let inverse = inverse_rms(x, eps);
            // dx = inverse * (dy * weight - x * inverse² * mean(dy * weight * x))
            let dot = lanes::sum_of_products((0..width).map(|i| (dy[i] * weight[i], x[i])));
            let pull = inverse * inverse * (dot / width as f32);
            for i in 0..width {
                dx[i] += inverse * (dy[i] * weight[i] - x[i] * pull);
                if let Some(dweight) = dweight.as_deref_mut() {
                    dweight[i] += dy[i] * (x[i] * inverse);
                }
            }
        }
    }

    fn glu_backward(
        &self,
        activation: Activation,
        gate: &Vec<f32>,
        up: &Vec<f32>,
        dout: &Vec<f32>,
        dgate: &mut Vec<f32>,
        dup: &mut Vec<f32>,
    ) {
        for i in 0..gate.len() {
            let (share, slope) = curves::activate(activation, gate[i]);
            dgate[i] = dout[i] * up[i] * slope;
            dup[i] = dout[i] * (gate[i] * share);
        }
    }

    fn head_logprobs(
        &self,
        hidden: &Vec<f32>,
        head: Head<'_, NaiveMatrix>,
        targets: &[u32],
        temperature: f32,
    ) -> HeadOut {
        check_len("head_logprobs hidden", hidden.len(), targets.len() * head.matrix.inner);
        let mut result = HeadOut::default();
        for (hidden, target) in hidden.chunks(head.matrix.inner).zip(targets) {
            let z: Vec<f32> = head.logits(hidden).iter().map(|l| l / temperature).collect();
            let stats = merged(&chunks(&z));
            result.logprobs.push(z[*target as usize] - stats.lse());
            result.lse.push(stats.lse());
            result.entropy.push(stats.entropy());
            result.likeliest.push(z[*target as usize] >= stats.max);
        }
        result
    }

    fn head_backward(
        &self,
        hidden: &Vec<f32>,
        head: Head<'_, NaiveMatrix>,
        targets: &[u32],
        temperature: f32,
        lse: &[f32],
        dlogprobs: &[f32],
        dhidden: &mut Vec<f32>,
        mut dhead: Option<&mut Vec<f32>>,
    ) {
        let width = head.matrix.inner;
        for r in 0..targets.len() {
            let hidden = &hidden[r * width..(r + 1) * width];
            for (j, logit) in head.logits(hidden).iter().enumerate() {
                let p = exp(logit / temperature - lse[r]);
                let hit = if targets[r] as usize == j { 1.0 } else { 0.0 };
                let slope = head.softcap.map_or(1.0, |cap| curves::softcap_slope(*logit, cap));
                let dlogit = (hit - p) * (dlogprobs[r] / temperature) * slope;
                for i in 0..width {
                    dhidden[r * width + i] = dlogit.mul_add(head.matrix.row(j)[i], dhidden[r * width + i]);
                    if let Some(dhead) = dhead.as_deref_mut() {
                        dhead[j * width + i] = dlogit.mul_add(hidden[i], dhead[j * width + i]);
                    }
                }
            }
        }
    }

    fn logits(&self, hidden: &Vec<f32>, head: Head<'_, NaiveMatrix>) -> Vec<f32> {
        hidden.chunks(head.matrix.inner).flat_map(|h| head.logits(h)).collect()
    }

    fn sample(&self, hidden: &Vec<f32>, head: Head<'_, NaiveMatrix>, specs: &[SampleSpec]) -> Vec<Sampled> {
        check_len("sample hidden", hidden.len(), specs.len() * head.matrix.inner);
        let one = |(hidden, spec): (&[f32], &SampleSpec)| {
            let logits = head.logits(hidden);
            let temperature = SampleSpec::logprob_temperature(spec.temperature);
            let z: Vec<f32> = logits.iter().map(|l| l / temperature).collect();
            let all = merged(&chunks(&z));
            let lse = all.lse();
            let mut cut = logits;
            choice::penalise(&mut cut, spec);
            let id = if spec.temperature == 0.0 {
                choice::argmax(&cut)
            } else {
                cut.iter_mut().for_each(|l| *l /= temperature);
                choice::cut(&mut cut, spec);
                choice::draw(
                    &chunks(&cut),
                    spec.uniform,
                    |columns| cut[columns].to_vec(),
                    choice::weigh,
                    head.matrix.out,
                )
            };
            Sampled { id: id as u32, logprob: z[id] - lse, lse, entropy: all.entropy() }
        };
        hidden.chunks(head.matrix.inner).zip(specs).map(one).collect()
    }

    fn sum_of_squares(&self, x: &Vec<f32>) -> f64 {
        x.chunks(lanes::SQUARES_BLOCK).map(lanes::sum_of_squares_block).sum()
    }

    fn adamw(&self, param: &mut Vec<f32>, grad: &Vec<f32>, m: &mut Vec<f32>, v: &mut Vec<f32>, settings: &AdamW) {
        for len in [grad.len(), m.len(), v.len()] {
            check_len("adamw", len, param.len());
        }
        let step = settings.constants();
        for i in 0..param.len() {
            (param[i], m[i], v[i]) = step.apply(param[i], grad[i], m[i], v[i]);
        }
    }

    fn upload_codes(&self, codes: Blocks) -> Blocks {
        codes
    }

    fn download_codes(&self, codes: &Blocks) -> Blocks {
        codes.clone()
    }

    fn adamw_8bit(&self, param: &mut Vec<f32>, grad: &Vec<f32>, m: &mut Blocks, v: &mut Blocks, settings: &AdamW) {
        let (mut first, mut second) = (m.decode(&SIGNED), v.decode(&UNSIGNED));
        self.adamw(param, grad, &mut first, &mut second, settings);
        (*m, *v) = (Blocks::encode(&first, &SIGNED), Blocks::encode(&second, &UNSIGNED));
    }
}
