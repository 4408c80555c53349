//! The fast implementation on the processor: kernels on sixteen lanes, compiled for each instruction set and chosen when
//! the backend is made, spread over threads.

use std::{ops::Range, sync::Arc};

mod attention;
mod attention_grad;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod buffer;
mod coded;
mod direct;
mod exact;
mod gemm;
mod head;
mod isa;
mod kv;
mod linear;
mod linear_grad;
mod matrix;
mod panels;
mod pointwise;
mod simd;
mod team;
mod wide;

pub use self::{
    buffer::CpuBuf,
    direct::{DirectProduct, PANEL},
    head::held_rows,
    isa::Isa,
    kv::CpuKv,
    matrix::CpuMatrix,
};

use self::{
    buffer::BufferPool,
    isa::Checked,
    linear::{Product, Rows},
    linear_grad::BackProduct,
    team::{Parts, Team},
};
use super::{
    AdamW, AttnShape, AttnSpan, Backend, GradSpan, Head, HeadOut, Heads, KvPrecision, Map, MatrixData, SampleSpec,
    Sampled,
    lanes::{LANES, SQUARES_BLOCK, check_len, check_rows, rows_of, sum_of_squares_block},
};
use crate::{
    Activation,
    quant::dynamic::{self, Blocks},
};

/// Rows whose gradients of a norm's weight are summed before they are added: fixed, so that threads do not matter.
const NORM_ROWS: usize = 64;
/// Bytes of weights that are taken to stay in caches from one step to the next.
const CACHED: usize = 16 << 20;
/// Rows that a part of a call has at least.
const PART_ROWS: usize = 4;
/// Numbers of a piece of an operation that goes number by number.
const PIECE: usize = 4096;

/// The CPU backend.
pub struct Cpu {
    isa: Checked,
    team: Arc<Team>,
    buffers: Arc<BufferPool>,
}

impl Cpu {
    /// The best instruction set (see [`Isa::best`]) on the team of threads that all such
    /// backends share, one per core.
    pub fn new() -> Self {
        Self { isa: Checked::new(Isa::best()), team: Team::global(), buffers: Arc::default() }
    }

    /// The best instruction set on a team of its own with `threads` threads (at least one, the calling one).
    pub fn with_threads(threads: usize) -> Self {
        Self { team: Arc::new(Team::new(threads)), ..Self::new() }
    }

    /// The instruction set `isa`, or the best below it that the processor has, on the shared team.
    pub fn with_isa(isa: Isa) -> Self {
        Self { isa: Checked::new(isa), ..Self::new() }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa.isa()
    }

    /// Threads that an operation may use.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({}, {} threads)", self.isa().name(), self.threads())
    }
}

impl Cpu {
    /// [`Backend::linear_dx`] of one gradient and its matrix after the other.
    fn dx(&self, each: &[(&CpuBuf, &CpuMatrix)], dx: &mut CpuBuf, rows: Range<usize>, accumulate: bool) {
        let Some(inner) = each.first().map(|(_, w)| w.inner) else { return };
        check_rows("linear_dx dx", dx.len(), inner, &rows);
        let each = each.iter().map(|(dy, w)| {
            check_rows("linear_dx dy", dy.len(), w.out, &rows);
            let dy = Rows { values: &dy[rows.start * w.out..rows.end * w.out], row: w.out };
            BackProduct { dy, w, panels: 0..w.out.div_ceil(LANES) }
        });
        let dx = Parts::new(&mut dx[rows.start * inner..rows.end * inner]);
        self.products_back(&each.collect::<Vec<_>>(), dx, inner, rows.len(), accumulate);
    }
}

impl Backend for Cpu {
    type Buf = CpuBuf;
    type Matrix = CpuMatrix;
    type Kv = CpuKv;
    type Codes = Blocks;

    fn name(&self) -> String {
        format!("cpu {}", self.isa().name())
    }

    /// A part reads all weights, where an operation that is cut by columns reads a share of them on each thread. That costs nothing as
    /// long as they come from a cache, and each part has rows enough to use what it reads.
    fn parts(&self, rows: usize, bytes: usize) -> usize {
        let threads = self.team.hands();
        if bytes <= CACHED && rows >= PART_ROWS * threads { threads } else { 1 }
    }

    fn together(&self, tasks: usize, work: usize, task: &(dyn Fn(usize) + Sync)) {
        self.team.run(tasks, work, task);
    }

    fn alloc(&self, len: usize) -> CpuBuf {
        self.buffers.alloc(len)
    }

    fn zeros(&self, len: usize) -> CpuBuf {
        self.buffers.zeros(len)
    }

    fn trim(&self) {
        self.buffers.trim();
    }

    fn upload(&self, values: &[f32]) -> CpuBuf {
        let mut buf = self.alloc(values.len());
        buf.copy_from_slice(values);
        buf
    }

    fn download(&self, buf: &CpuBuf) -> Vec<f32> {
        buf.to_vec()
    }

    fn len(&self, buf: &CpuBuf) -> usize {
        buf.len()
    }

    fn fill_zero(&self, buf: &mut CpuBuf) {
        buf.fill(0.0);
    }

    fn gather_rows(&self, sources: &[&CpuBuf], places: &[(u32, u32)], width: usize, out: &mut CpuBuf, first: usize) {
        check_rows("gather_rows out", out.len(), width, &(first..first + places.len()));
        let parts = Parts::new(&mut out[first * width..]);
        self.team.split(places.len(), 1, places.len() * width / 4, |rows| {
            for r in rows {
                let (source, row) = places[r];
                // SAFETY: a row belongs to one piece.
                let to = unsafe { parts.part(r * width..(r + 1) * width) };
                to.copy_from_slice(&sources[source as usize][row as usize * width..][..width]);
            }
        });
    }

    fn scatter_add_rows(&self, src: &CpuBuf, index: &[u32], width: usize, out: &mut CpuBuf) {
        check_len("scatter_add_rows src", src.len(), index.len() * width);
        // an index may repeat: in order, on one thread
        for (row, i) in src.chunks_exact(width.max(1)).zip(index) {
            pointwise::add(self.isa, &mut out[*i as usize * width..][..width], row);
        }
    }

    fn add(&self, x: &mut CpuBuf, y: &CpuBuf) {
        check_len("add y", y.len(), x.len());
        let parts = Parts::new(x);
        self.team.split(y.len(), PIECE, y.len() / 4, |range| {
            // SAFETY: a number belongs to one piece.
            pointwise::add(self.isa, unsafe { parts.part(range.clone()) }, &y[range]);
        });
    }

    fn scale(&self, x: &mut CpuBuf, factor: f32) {
        let len = x.len();
        let parts = Parts::new(x);
        self.team.split(len, PIECE, len / 4, |range| {
            // SAFETY: a number belongs to one piece.
            pointwise::scale(self.isa, unsafe { parts.part(range) }, factor);
        });
    }

    fn scale_rows(&self, x: &mut CpuBuf, factors: &[f32]) {
        let (len, width) = (x.len(), rows_of("scale_rows", x.len(), factors.len().max(1)));
        let parts = Parts::new(x);
        self.team.split(factors.len(), 1, len / 4, |rows| {
            for r in rows {
                // SAFETY: a row belongs to one piece.
                pointwise::scale(self.isa, unsafe { parts.part(r * width..(r + 1) * width) }, factors[r]);
            }
        });
    }

    fn round_bf16(&self, x: &mut CpuBuf) {
        let (len, parts) = (x.len(), Parts::new(x));
        // SAFETY: a number belongs to one piece.
        self.team.split(len, PIECE, len / 4, |range| pointwise::round_bf16(self.isa, unsafe { parts.part(range) }));
    }

    fn fill_rows(&self, row: &CpuBuf, out: &mut CpuBuf) {
        let (width, len) = (row.len(), out.len());
        let n = rows_of("fill_rows out", len, width);
        let parts = Parts::new(out);
        self.team.split(n, 1, len / 8, |rows| {
            // SAFETY: a row belongs to one piece.
            let out = unsafe { parts.part(rows.start * width..rows.end * width) };
            out.chunks_exact_mut(width).for_each(|out| out.copy_from_slice(row));
        });
    }

    fn matrix(&self, data: MatrixData<'_>, out: usize, inner: usize) -> CpuMatrix {
        check_len("matrix", data.len(), out * inner);
        CpuMatrix::new(self.isa, &self.team, data, out, inner, |len| self.alloc(len))
    }

    fn set_matrix(&self, matrix: &mut CpuMatrix, values: &CpuBuf, scale: f32) {
        check_len("set_matrix values", values.len(), matrix.out * matrix.inner);
        matrix.set(self.isa, &self.team, values, scale, |len| self.alloc(len));
    }

    fn shape(&self, matrix: &CpuMatrix) -> (usize, usize) {
        (matrix.out, matrix.inner)
    }

    fn matrix_bytes(&self, matrix: &CpuMatrix) -> usize {
        matrix.bytes()
    }

    fn embed(&self, table: &CpuMatrix, ids: &[u32], out: &mut CpuBuf) {
        let width = table.inner;
        check_len("embed out", out.len(), ids.len() * width);
        let parts = Parts::new(out);
        self.team.split(ids.len(), 1, ids.len() * width, |rows| {
            for r in rows {
                // SAFETY: a row belongs to one piece.
                table.copy_row(self.isa, ids[r] as usize, unsafe { parts.part(r * width..(r + 1) * width) });
            }
        });
    }

    fn linear(&self, x: &CpuBuf, w: &CpuMatrix, out: &mut CpuBuf, rows: Range<usize>, accumulate: bool) {
        self.linears(x, &mut [Map { matrix: w, out, accumulate, low: None }], rows);
    }

    fn linears(&self, x: &CpuBuf, maps: &mut [Map<'_, Self>], rows: Range<usize>) {
        let Some(inner) = maps.first().map(|map| map.matrix.inner) else { return };
        check_rows("linear x", x.len(), inner, &rows);
        let products = maps.iter_mut().map(|Map { matrix: w, out, accumulate, low }| {
            assert_eq!(w.inner, inner, "linears: inputs of matrices differ");
            check_rows("linear out", out.len(), w.out, &rows);
            let low = low.map(|(low, matrix)| {
                assert_eq!(matrix.out, w.out, "linears: outputs of a map's matrices differ");
                check_rows("linear low", low.len(), matrix.inner, &rows);
                (Rows { values: &low[rows.start * matrix.inner..rows.end * matrix.inner], row: matrix.inner }, matrix)
            });
            let out = Parts::new(&mut out[rows.start * w.out..rows.end * w.out]);
            Product { w, panels: 0..w.out.div_ceil(LANES), out, out_row: w.out, accumulate: *accumulate, low }
        });
        let products: Vec<_> = products.collect();
        let x = Rows { values: &x[rows.start * inner..rows.end * inner], row: inner };
        self.products(x, &products, rows.len());
    }

    fn rms_norm(&self, x: &CpuBuf, weight: &CpuBuf, eps: f32, out: &mut CpuBuf) {
        let width = weight.len();
        let n = rows_of("rms_norm x", x.len(), width);
        check_len("rms_norm out", out.len(), x.len());
        let parts = Parts::new(out);
        self.team.split(n, 1, x.len() / 2, |rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: a row belongs to one piece.
            pointwise::rms_norm(self.isa, &x[range.clone()], weight, eps, unsafe { parts.part(range) });
        });
    }

    fn rope(&self, x: &mut CpuBuf, table: &CpuBuf, positions: &[u32], heads: usize, head_dim: usize, inverse: bool) {
        let width = heads * head_dim;
        check_len("rope x", x.len(), positions.len() * width);
        let sign = if inverse { -1.0 } else { 1.0 };
        let parts = Parts::new(x);
        self.team.split(positions.len(), 1, positions.len() * width, |rows| {
            // SAFETY: a row belongs to one piece.
            let x = unsafe { parts.part(rows.start * width..rows.end * width) };
            pointwise::rope(self.isa, x, table, &positions[rows], heads, head_dim, sign);
        });
    }

    fn glu(&self, activation: Activation, gate: &CpuBuf, up: &CpuBuf, out: &mut CpuBuf) {
        check_len("glu up", up.len(), gate.len());
        check_len("glu out", out.len(), gate.len());
        let kernel = match activation {
            Activation::Silu => pointwise::swiglu,
            Activation::GeluTanh => pointwise::geglu,
        };
        let parts = Parts::new(out);
        self.team.split(gate.len(), PIECE, gate.len() * 2, |range| {
            // SAFETY: a number belongs to one piece.
            kernel(self.isa, &gate[range.clone()], &up[range.clone()], unsafe { parts.part(range) });
        });
    }

    fn dropout(&self, x: &CpuBuf, p: f32, seed: u64, out: &mut CpuBuf) {
        check_len("dropout out", out.len(), x.len());
        let parts = Parts::new(out);
        self.team.split(x.len(), PIECE, x.len() * 3, |range| {
            // SAFETY: a number belongs to one piece.
            pointwise::dropout(self.isa, &x[range.clone()], p, seed, range.start, unsafe { parts.part(range) });
        });
    }

    fn kv(&self, blocks: usize, heads: Heads, precision: KvPrecision) -> CpuKv {
        CpuKv::new(self, blocks, heads, precision)
    }

    fn kv_write(&self, kv: &mut CpuKv, k: &CpuBuf, v: &CpuBuf, writes: &[(u32, u32)]) {
        kv.write(&self.team, k, v, writes);
    }

    fn kv_copy(&self, kv: &mut CpuKv, copies: &[(u32, u32)]) {
        kv.copy(copies);
    }

    fn attention(&self, q: &CpuBuf, kv: &CpuKv, spans: &[AttnSpan], shape: AttnShape, out: &mut CpuBuf) {
        self.attend(q, kv, spans, shape, out);
    }

    fn attention_backward(
        &self,
        q: &CpuBuf,
        k: &CpuBuf,
        v: &CpuBuf,
        out: &CpuBuf,
        dout: &CpuBuf,
        spans: &[GradSpan],
        shape: AttnShape,
        dq: &mut CpuBuf,
        dk: &mut CpuBuf,
        dv: &mut CpuBuf,
    ) {
        let forward = attention_grad::Forward { q, k, v, out, dout };
        let grad = attention_grad::Gradients { dq: Parts::new(dq), dk: Parts::new(dk), dv: Parts::new(dv) };
        self.attend_back(forward, spans, shape, grad);
    }

    fn linear_dx(&self, dy: &CpuBuf, w: &CpuMatrix, dx: &mut CpuBuf, rows: Range<usize>, accumulate: bool) {
        self.dx(&[(dy, w)], dx, rows, accumulate);
    }

    fn linear_dx_low(
        &self,
        dy: &CpuBuf,
        w: &CpuMatrix,
        low: (&CpuBuf, &CpuMatrix),
        dx: &mut CpuBuf,
        rows: Range<usize>,
        accumulate: bool,
    ) {
        assert_eq!(low.1.inner, w.inner, "linear_dx_low: inputs of the matrices differ");
        self.dx(&[(dy, w), low], dx, rows, accumulate);
    }

    fn linear_dw(
        &self,
        dy: &CpuBuf,
        x: &CpuBuf,
        dw: &mut CpuBuf,
        out: usize,
        inner: usize,
        rows: Range<usize>,
        scale: f32,
    ) {
        check_rows("linear_dw dy", dy.len(), out, &rows);
        check_rows("linear_dw x", x.len(), inner, &rows);
        check_len("linear_dw dw", dw.len(), out * inner);
        let dy = Rows { values: &dy[rows.start * out..rows.end * out], row: out };
        let x = Rows { values: &x[rows.start * inner..rows.end * inner], row: inner };
        self.product_weights(dy, x, Parts::new(dw), out, inner, rows.len(), scale);
    }

    fn embed_backward(&self, dx: &CpuBuf, ids: &[u32], width: usize, dtable: &mut CpuBuf) {
        self.scatter_add_rows(dx, ids, width, dtable);
    }

    fn rms_norm_backward(
        &self,
        x: &CpuBuf,
        weight: &CpuBuf,
        eps: f32,
        dy: &CpuBuf,
        dx: &mut CpuBuf,
        dweight: Option<&mut CpuBuf>,
    ) {
        let width = weight.len();
        let n = rows_of("rms_norm_backward x", x.len(), width);
        check_len("rms_norm_backward dy", dy.len(), x.len());
        check_len("rms_norm_backward dx", dx.len(), x.len());
        let blocks = n.div_ceil(NORM_ROWS);
        let partial = if dweight.is_some() { width } else { 0 };
        let mut sums = self.alloc(blocks * partial);
        let (dx, sums_parts) = (Parts::new(dx), Parts::new(&mut sums));
        self.team.run(blocks, x.len(), |block| {
            let range = block * NORM_ROWS * width..((block + 1) * NORM_ROWS).min(n) * width;
            // SAFETY: a block of rows belongs to one task.
            let (dx, sum) =
                unsafe { (dx.part(range.clone()), sums_parts.part(block * partial..(block + 1) * partial)) };
            pointwise::rms_norm_back(self.isa, &x[range.clone()], weight, eps, &dy[range], dx, sum);
        });
        if let Some(dweight) = dweight {
            check_len("rms_norm_backward dweight", dweight.len(), width);
            sums.chunks_exact(width).for_each(|sum| pointwise::add(self.isa, dweight, sum));
        }
    }

    fn glu_backward(
        &self,
        activation: Activation,
        gate: &CpuBuf,
        up: &CpuBuf,
        dout: &CpuBuf,
        dgate: &mut CpuBuf,
        dup: &mut CpuBuf,
    ) {
        for len in [up.len(), dout.len(), dgate.len(), dup.len()] {
            check_len("glu_backward", len, gate.len());
        }
        let kernel = match activation {
            Activation::Silu => pointwise::swiglu_back,
            Activation::GeluTanh => pointwise::geglu_back,
        };
        let (dgate, dup) = (Parts::new(dgate), Parts::new(dup));
        self.team.split(gate.len(), PIECE, gate.len() * 3, |range| {
            // SAFETY: a number belongs to one piece.
            let (dgate, dup) = unsafe { (dgate.part(range.clone()), dup.part(range.clone())) };
            kernel(self.isa, &gate[range.clone()], &up[range.clone()], &dout[range], dgate, dup);
        });
    }

    fn head_logprobs(&self, hidden: &CpuBuf, head: Head<'_, CpuMatrix>, targets: &[u32], temperature: f32) -> HeadOut {
        self.score(hidden, head, targets, temperature)
    }

    fn head_gradients(
        &self,
        hidden: &CpuBuf,
        head: Head<'_, CpuMatrix>,
        targets: &[u32],
        temperature: f32,
    ) -> (HeadOut, CpuBuf) {
        self.score_gradients(hidden, head, targets, temperature)
    }

    fn head_backward(
        &self,
        hidden: &CpuBuf,
        head: Head<'_, CpuMatrix>,
        targets: &[u32],
        temperature: f32,
        lse: &[f32],
        dlogprobs: &[f32],
        dhidden: &mut CpuBuf,
        dhead: Option<&mut CpuBuf>,
    ) {
        let dhead = dhead.map(|d| &mut d[..]);
        self.score_back(hidden, head, targets, temperature, lse, dlogprobs, dhidden, dhead);
    }

    fn logits(&self, hidden: &CpuBuf, head: Head<'_, CpuMatrix>) -> Vec<f32> {
        self.all_logits(hidden, head)
    }

    fn sample(&self, hidden: &CpuBuf, head: Head<'_, CpuMatrix>, specs: &[SampleSpec]) -> Vec<Sampled> {
        self.choose(hidden, head, specs)
    }

    fn sum_of_squares(&self, x: &CpuBuf) -> f64 {
        let mut sums = vec![0.0f64; x.len().div_ceil(SQUARES_BLOCK)];
        let parts = Parts::new(&mut sums);
        self.team.run(x.len().div_ceil(SQUARES_BLOCK), x.len() / 2, |block| {
            let range = block * SQUARES_BLOCK..((block + 1) * SQUARES_BLOCK).min(x.len());
            // SAFETY: a block belongs to one task.
            unsafe { parts.part(block..block + 1)[0] = sum_of_squares_block(&x[range]) };
        });
        sums.into_iter().sum()
    }

    fn adamw(&self, param: &mut CpuBuf, grad: &CpuBuf, m: &mut CpuBuf, v: &mut CpuBuf, settings: &AdamW) {
        for len in [grad.len(), m.len(), v.len()] {
            check_len("adamw", len, param.len());
        }
        let step = settings.constants();
        let (param, m, v) = (Parts::new(param), Parts::new(m), Parts::new(v));
        self.team.split(grad.len(), PIECE, grad.len() * 2, |range| {
            // SAFETY: a number belongs to one piece.
            let (param, m, v) = unsafe { (param.part(range.clone()), m.part(range.clone()), v.part(range.clone())) };
            pointwise::adamw(self.isa, &step, param, &grad[range], m, v);
        });
    }

    fn upload_codes(&self, codes: Blocks) -> Blocks {
        codes
    }

    fn download_codes(&self, codes: &Blocks) -> Blocks {
        codes.clone()
    }

    fn adamw_8bit(&self, param: &mut CpuBuf, grad: &CpuBuf, m: &mut Blocks, v: &mut Blocks, settings: &AdamW) {
        let len = grad.len();
        for got in [param.len(), m.codes.len(), v.codes.len()] {
            check_len("adamw_8bit", got, len);
        }
        let step = settings.constants();
        let param = Parts::new(param);
        let (m_codes, m_scales) = (Parts::new(&mut m.codes), Parts::new(&mut m.scales));
        let (v_codes, v_scales) = (Parts::new(&mut v.codes), Parts::new(&mut v.scales));
        self.team.split(len.div_ceil(dynamic::BLOCK), PIECE / dynamic::BLOCK, len * 8, |blocks| {
            let range = blocks.start * dynamic::BLOCK..(blocks.end * dynamic::BLOCK).min(len);
            // SAFETY: a block belongs to one piece.
            let (param, m, v) = unsafe {
                (
                    param.part(range.clone()),
                    (m_codes.part(range.clone()), m_scales.part(blocks.clone())),
                    (v_codes.part(range.clone()), v_scales.part(blocks)),
                )
            };
            pointwise::adamw_8bit(self.isa, &step, param, &grad[range], m, v);
        });
    }
}
