//! Temporary: delegates to the reference.
use super::{AdamW, AttnSpan, Backend, GradSpan, HeadOut, Heads, MatrixData, Naive, SampleSpec, Sampled};
use std::ops::Range;
/// The CPU backend.
#[derive(Debug, Default)]
pub struct Cpu(Naive);
/// Instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Portable.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
}
impl Cpu {
    /// Uses the global pool.
    pub fn new() -> Self {
        Self(Naive)
    }
    /// Uses `threads` threads.
    pub fn with_threads(_threads: usize) -> Self {
        Self(Naive)
    }
    /// Uses one instruction set.
    pub fn with_isa(_isa: Isa) -> Self {
        Self(Naive)
    }
}
impl Backend for Cpu {
    type Buf = Vec<f32>;
    type Matrix = super::naive::NaiveMatrix;
    type Kv = super::naive::NaiveKv;
    fn name(&self) -> String {
        self.0.name()
    }
    fn alloc(&self, len: usize) -> Self::Buf {
        self.0.alloc(len)
    }
    fn zeros(&self, len: usize) -> Self::Buf {
        self.0.zeros(len)
    }
    fn upload(&self, values: &[f32]) -> Self::Buf {
        self.0.upload(values)
    }
    fn download(&self, buf: &Self::Buf) -> Vec<f32> {
        self.0.download(buf)
    }
    fn len(&self, buf: &Self::Buf) -> usize {
        self.0.len(buf)
    }
    fn fill_zero(&self, buf: &mut Self::Buf) {
        self.0.fill_zero(buf)
    }
    fn gather_rows(&self, src: &Self::Buf, index: &[u32], width: usize, out: &mut Self::Buf) {
        self.0.gather_rows(src, index, width, out)
    }
    fn scatter_add_rows(&self, src: &Self::Buf, index: &[u32], width: usize, out: &mut Self::Buf) {
        self.0.scatter_add_rows(src, index, width, out)
    }
    fn add(&self, x: &mut Self::Buf, y: &Self::Buf) {
        self.0.add(x, y)
    }
    fn scale(&self, x: &mut Self::Buf, factor: f32) {
        self.0.scale(x, factor)
    }
    fn matrix(&self, data: MatrixData<'_>, out: usize, inner: usize) -> Self::Matrix {
        self.0.matrix(data, out, inner)
    }
    fn set_matrix(&self, matrix: &mut Self::Matrix, values: &Self::Buf, scale: f32) {
        self.0.set_matrix(matrix, values, scale)
    }
    fn shape(&self, matrix: &Self::Matrix) -> (usize, usize) {
        self.0.shape(matrix)
    }
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize {
        self.0.matrix_bytes(matrix)
    }
    fn embed(&self, table: &Self::Matrix, ids: &[u32], out: &mut Self::Buf) {
        self.0.embed(table, ids, out)
    }
    fn linear(&self, x: &Self::Buf, w: &Self::Matrix, out: &mut Self::Buf, rows: Range<usize>, accumulate: bool) {
        self.0.linear(x, w, out, rows, accumulate)
    }
    fn rms_norm(&self, x: &Self::Buf, weight: &Self::Buf, eps: f32, out: &mut Self::Buf) {
        self.0.rms_norm(x, weight, eps, out)
    }
    fn rope(
        &self,
        x: &mut Self::Buf,
        table: &Self::Buf,
        positions: &[u32],
        heads: usize,
        head_dim: usize,
        inverse: bool,
    ) {
        self.0.rope(x, table, positions, heads, head_dim, inverse)
    }
    fn swiglu(&self, gate: &Self::Buf, up: &Self::Buf, out: &mut Self::Buf) {
        self.0.swiglu(gate, up, out)
    }
    fn dropout(&self, x: &Self::Buf, p: f32, seed: u64, out: &mut Self::Buf) {
        self.0.dropout(x, p, seed, out)
    }
    fn kv(&self, blocks: usize, heads: Heads) -> Self::Kv {
        self.0.kv(blocks, heads)
    }
    fn kv_write(&self, kv: &mut Self::Kv, k: &Self::Buf, v: &Self::Buf, writes: &[(u32, u32)]) {
        self.0.kv_write(kv, k, v, writes)
    }
    fn kv_copy(&self, kv: &mut Self::Kv, copies: &[(u32, u32)]) {
        self.0.kv_copy(kv, copies)
    }
    fn attention(
        &self,
        q: &Self::Buf,
        kv: &Self::Kv,
        spans: &[AttnSpan],
        heads: Heads,
        scale: f32,
        out: &mut Self::Buf,
    ) {
        self.0.attention(q, kv, spans, heads, scale, out)
    }
    fn attention_backward(
        &self,
        q: &Self::Buf,
        k: &Self::Buf,
        v: &Self::Buf,
        out: &Self::Buf,
        dout: &Self::Buf,
        spans: &[GradSpan],
        heads: Heads,
        scale: f32,
        dq: &mut Self::Buf,
        dk: &mut Self::Buf,
        dv: &mut Self::Buf,
    ) {
        self.0.attention_backward(q, k, v, out, dout, spans, heads, scale, dq, dk, dv)
    }
    fn linear_dx(&self, dy: &Self::Buf, w: &Self::Matrix, dx: &mut Self::Buf, rows: Range<usize>, accumulate: bool) {
        self.0.linear_dx(dy, w, dx, rows, accumulate)
    }
    fn linear_dw(
        &self,
        dy: &Self::Buf,
        x: &Self::Buf,
        dw: &mut Self::Buf,
        out: usize,
        inner: usize,
        rows: Range<usize>,
        scale: f32,
    ) {
        self.0.linear_dw(dy, x, dw, out, inner, rows, scale)
    }
    fn embed_backward(&self, dx: &Self::Buf, ids: &[u32], width: usize, dtable: &mut Self::Buf) {
        self.0.embed_backward(dx, ids, width, dtable)
    }
    fn rms_norm_backward(
        &self,
        x: &Self::Buf,
        weight: &Self::Buf,
        eps: f32,
        dy: &Self::Buf,
        dx: &mut Self::Buf,
        dweight: Option<&mut Self::Buf>,
    ) {
        self.0.rms_norm_backward(x, weight, eps, dy, dx, dweight)
    }
    fn swiglu_backward(
        &self,
        gate: &Self::Buf,
        up: &Self::Buf,
        dout: &Self::Buf,
        dgate: &mut Self::Buf,
        dup: &mut Self::Buf,
    ) {
        self.0.swiglu_backward(gate, up, dout, dgate, dup)
    }
    fn head_logprobs(&self, hidden: &Self::Buf, head: &Self::Matrix, targets: &[u32], temperature: f32) -> HeadOut {
        self.0.head_logprobs(hidden, head, targets, temperature)
    }
    fn head_backward(
        &self,
        hidden: &Self::Buf,
        head: &Self::Matrix,
        targets: &[u32],
        temperature: f32,
        lse: &[f32],
        dlogprobs: &[f32],
        dhidden: &mut Self::Buf,
        dhead: Option<&mut Self::Buf>,
    ) {
        self.0.head_backward(hidden, head, targets, temperature, lse, dlogprobs, dhidden, dhead)
    }
    fn logits(&self, hidden: &Self::Buf, head: &Self::Matrix) -> Vec<f32> {
        self.0.logits(hidden, head)
    }
    fn sample(&self, hidden: &Self::Buf, head: &Self::Matrix, specs: &[SampleSpec]) -> Vec<Sampled> {
        self.0.sample(hidden, head, specs)
    }
    fn sum_of_squares(&self, x: &Self::Buf) -> f64 {
        self.0.sum_of_squares(x)
    }
    fn adamw(&self, param: &mut Self::Buf, grad: &Self::Buf, m: &mut Self::Buf, v: &mut Self::Buf, settings: &AdamW) {
        self.0.adamw(param, grad, m, v, settings)
    }
}
