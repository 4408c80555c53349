//! Layer-level operations on opaque buffers: the seam between the decoder and a device.
//!
//! # Rules that every implementation keeps
//! - **A row's bits do not depend on the other rows of a call**, on the number of threads or on the instruction set: each
//!   output number of a forward operation is one fixed sequence of f32 operations. The definitions that make it so:
//!   - *dot of length k* ([`Backend::linear`], scores, log-probs): one chain `acc = fma(x[i], w[i], acc)` for i ascending,
//!     starting from 0, or from the output where the operation accumulates;
//!   - *sum over a row* (norm, soft-max denominator): 16 lanes, element i into lane `i % 16` in ascending order (products by
//!     fma), then the lanes folded as 8, 4, 2, 1 (`lane[j] += lane[j + 8]`, ...);
//!   - *log-sum-exp over the vocabulary*: maximum and sum of `exp(z - maximum)` of every 2048 columns, the chunks then merged
//!     in ascending order (`Stats::merge` in `choice.rs`); sampler and learner both report what it gives;
//!   - *exp* ([`crate::backend::exp`]): one polynomial, written once in scalar form with `f32::mul_add`; sigmoid, and with it
//!     tanh and GELU, follow from it (`curves.rs`);
//!   - *a window of attention*: key `j` keeps lane `j % 16` of the sum, and what is not seen adds nothing to it.
//!
//!   Then the sampler's log-probs equal the learner's bit for bit, whatever shares their batch.
//! - Backward operations are deterministic for a given call, but may depend on how rows are batched (within 1e-6 relative).
//! - All matrices are row-major, all buffers f32. `rows` names the rows of a call's buffers that take part; the row length
//!   follows from the matrix.
//! - Only [`Backend::download`] and the operations that return host values wait for the device.
//!
//! A shape that does not fit is a bug of the caller: operations assert and panic with both numbers.

use std::ops::Range;

use crate::{
    Activation,
    quant::{Coded, dynamic::Blocks},
};

mod adamw;
mod choice;
pub mod cpu;
mod curves;
mod exp;
mod lanes;
pub mod naive;

pub use cpu::{Cpu, CpuBuf, DirectProduct, Isa, PANEL};
pub use exp::exp;
pub use naive::Naive;

/// Tokens in one block of the key-value cache.
pub const BLOCK: usize = 16;

/// Values of a matrix as they come from a file. A backend keeps them in few bytes where it can: products give the same bits as with
/// the f32 numbers that they stand for.
#[derive(Clone, Copy, Debug)]
pub enum MatrixData<'a> {
    /// f32, row-major.
    F32(&'a [f32]),
    /// bfloat16 bits, row-major.
    Bf16(&'a [u16]),
    /// Codes, row-major.
    Coded(&'a Coded),
}

impl MatrixData<'_> {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(bits) => bits.len(),
            Self::Coded(coded) => coded.len,
        }
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The rows of one sequence in a forward call, and where its keys lie.
#[derive(Clone, Debug, PartialEq)]
pub struct AttnSpan {
    /// Rows of the call that ask, in the order of the sequence.
    pub rows: Range<usize>,
    /// Place in the sequence of the first of `rows`; row `rows.start + i` sees keys up to `start + i`.
    pub start: usize,
    /// Cache blocks of the sequence: key `j` lies in lane `j % BLOCK` of block `table[j / BLOCK]`.
    pub table: Vec<u32>,
}

/// The rows of one sequence in a backward call: all its keys are rows of the same call.
#[derive(Clone, Debug, PartialEq)]
pub struct GradSpan {
    /// Rows that ask, in the order of the sequence.
    pub rows: Range<usize>,
    /// The rows of earlier keys, in the order of the sequence (a shared prompt); the span's own rows follow them.
    pub prefix: Vec<Range<usize>>,
}

/// Heads of an attention layer. Query head `h` reads key head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
}

/// How a cache holds keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvPrecision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bfloat16, in half the memory.
    Bf16,
}

impl KvPrecision {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What one layer's attention computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttnShape {
    /// The heads.
    pub heads: Heads,
    /// Factor of the scores.
    pub scale: f32,
    /// Keys that a row sees, its own and those right before it. None: all up to its own.
    pub window: Option<usize>,
}

impl AttnShape {
    /// The first key that a row sees whose own key is the last of `keys`.
    pub(crate) fn first_key(&self, keys: usize) -> usize {
        self.window.map_or(0, |window| keys.saturating_sub(window))
    }
}

/// The output head.
#[derive(Debug)]
pub struct Head<'a, M> {
    /// [vocab, width].
    pub matrix: &'a M,
    /// Logits become `cap * tanh(logit / cap)`. None: they stay.
    pub softcap: Option<f32>,
}

impl<M> Clone for Head<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Head<'_, M> {}

impl<'a, M> From<&'a M> for Head<'a, M> {
    fn from(matrix: &'a M) -> Self {
        Self { matrix, softcap: None }
    }
}

/// How one row is to be sampled; see `SamplingParams` for the meaning of the numbers.
#[derive(Clone, Debug)]
pub struct SampleSpec {
    /// 0 means greedy (the first of equal maxima).
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// Ids that the repetition penalty applies to; may repeat.
    pub seen: Vec<u32>,
    /// Uniform draw in [0, 1).
    pub uniform: f32,
}

impl SampleSpec {
    /// Temperature under which log-probs are given where `temperature` is sampled at: greedy choice reports those of 1.
    pub fn logprob_temperature(temperature: f32) -> f32 {
        if temperature == 0.0 { 1.0 } else { temperature }
    }
}

/// One sampled token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampled {
    /// Token id.
    pub id: u32,
    /// Its log-prob over the full vocabulary under the temperature (temperature 1 when greedy), before any cut or penalty:
    /// the same bits as [`Backend::head_logprobs`] gives for this id.
    pub logprob: f32,
    /// What [`Backend::head_logprobs`] gives as `lse` at that temperature.
    pub lse: f32,
    /// What it gives as `entropy`.
    pub entropy: f32,
}

/// Log-probs of wanted tokens, one entry a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadOut {
    /// Log-prob of the row's target.
    pub logprobs: Vec<f32>,
    /// log-sum-exp of the row's logits divided by its temperature: what the backward needs.
    pub lse: Vec<f32>,
    /// Entropy of the row's distribution, in nats.
    pub entropy: Vec<f32>,
    /// True where no token is likelier than the target; empty where a sampler's log-probs were taken.
    pub likeliest: Vec<bool>,
}

/// Settings of one AdamW step (decoupled weight decay, bias-corrected moments).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Multiplies every gradient first (gradient clipping).
    pub grad_scale: f32,
    /// Number of this step, from 1.
    pub step: u64,
}

/// One of the maps of [`Backend::linears`].
pub struct Map<'a, B: Backend> {
    /// [out, in].
    pub matrix: &'a B::Matrix,
    /// [_, out].
    pub out: &'a mut B::Buf,
    /// The chain starts from `out`.
    pub accumulate: bool,
    /// Another input and its matrix (an adapter's), whose products continue the chain.
    pub low: Option<(&'a B::Buf, &'a B::Matrix)>,
}

/// A device that can run a decoder forward and backward.
pub trait Backend: Sized + Send + Sync + 'static {
    /// f32 numbers on the device; length fixed when made.
    type Buf: Send + Sync;
    /// A matrix W of shape [out, in] in the backend's own layout.
    type Matrix: Send + Sync;
    /// Keys and values of one layer, in blocks of [`BLOCK`] tokens.
    type Kv: Send + Sync;
    /// Moments in codes of eight bits.
    type Codes: Send + Sync;

    /// Name for people (`cpu avx2`, `naive`).
    fn name(&self) -> String;

    // Threads

    /// Parts in which a call of `rows` rows, each through all of `bytes` of weights, is computed best: whole rows through whole layers,
    /// each part on a thread of its own. 1: all rows together, and each operation cut for the threads.
    fn parts(&self, _rows: usize, _bytes: usize) -> usize {
        1
    }
    /// Runs `task(0)` to `task(tasks - 1)` in any order, side by side where the device can; an operation within one of several is not
    /// cut further. `work` is a guess of the whole in nanoseconds of one core.
    fn together(&self, tasks: usize, _work: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }

    // Buffers

    /// `len` numbers of unspecified value, from a pool where the backend has one.
    fn alloc(&self, len: usize) -> Self::Buf;
    /// `len` zeros.
    fn zeros(&self, len: usize) -> Self::Buf;
    /// Gives memory that nobody uses back to the system, but for a little: before others need much of it.
    fn trim(&self) {}
    /// Copies `values` to the device.
    fn upload(&self, values: &[f32]) -> Self::Buf;
    /// Copies to the host.
    fn download(&self, buf: &Self::Buf) -> Vec<f32>;
    /// Number of numbers in `buf`.
    fn len(&self, buf: &Self::Buf) -> usize;
    /// Sets all numbers of `buf` to 0.
    fn fill_zero(&self, buf: &mut Self::Buf);
    /// Copies row `row` of `sources[source]` (rows of `width`) to row `first + i` of `out`, where `places[i]` is (source, row).
    fn gather_rows(
        &self,
        sources: &[&Self::Buf],
        places: &[(u32, u32)],
        width: usize,
        out: &mut Self::Buf,
        first: usize,
    );
    /// Adds row `i` of `src` to row `index[i]` of `out`; an index may repeat.
    fn scatter_add_rows(&self, src: &Self::Buf, index: &[u32], width: usize, out: &mut Self::Buf);
    /// `x += y`.
    fn add(&self, x: &mut Self::Buf, y: &Self::Buf);
    /// `x *= factor`.
    fn scale(&self, x: &mut Self::Buf, factor: f32);
    /// Row `r` of `x` times `factors[r]`.
    fn scale_rows(&self, x: &mut Self::Buf, factors: &[f32]);
    /// Rounds each number to the nearest of bfloat16, of two that are as near the even one.
    fn round_bf16(&self, x: &mut Self::Buf);
    /// Sets every row of `out` to `row`: the start of a product with a bias.
    fn fill_rows(&self, row: &Self::Buf, out: &mut Self::Buf);

    // Matrices

    /// Takes over a matrix of `out` rows and `inner` columns.
    fn matrix(&self, data: MatrixData<'_>, out: usize, inner: usize) -> Self::Matrix;
    /// Sets `matrix` to `scale * values`; `values` is row-major [out, in]. For adapters and all-weights training.
    fn set_matrix(&self, matrix: &mut Self::Matrix, values: &Self::Buf, scale: f32);
    /// (out, in) of `matrix`.
    fn shape(&self, matrix: &Self::Matrix) -> (usize, usize);
    /// Bytes that `matrix` takes on the device.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;

    // Forward

    /// Copies row `ids[i]` of `table` [vocab, width] to row `i` of `out`.
    fn embed(&self, table: &Self::Matrix, ids: &[u32], out: &mut Self::Buf);
    /// `out[rows] (+)= x[rows] · Wᵀ`: x is [_, in], out is [_, out]; with `accumulate` the chain starts from `out`.
    fn linear(&self, x: &Self::Buf, w: &Self::Matrix, out: &mut Self::Buf, rows: Range<usize>, accumulate: bool);
    /// [`Self::linear`] of the same rows by several maps.
    fn linears(&self, x: &Self::Buf, maps: &mut [Map<'_, Self>], rows: Range<usize>) {
        for Map { matrix, out, accumulate, low } in maps {
            self.linear(x, matrix, out, rows.clone(), *accumulate);
            if let Some((low, matrix)) = low {
                self.linear(low, matrix, out, rows.clone(), true);
            }
        }
    }
    /// `out = x / sqrt(mean(x²) + eps) * weight`, row by row; the row length is that of `weight`.
    fn rms_norm(&self, x: &Self::Buf, weight: &Self::Buf, eps: f32, out: &mut Self::Buf);
    /// Turns the halves of each head of `x` [_, heads * head_dim] by the angle of its row's position, in place
    /// (`rotate_half` convention). `table` is [max_positions, head_dim]: cosines of the half, then sines. `inverse` turns
    /// back: the backward.
    fn rope(
        &self,
        x: &mut Self::Buf,
        table: &Self::Buf,
        positions: &[u32],
        heads: usize,
        head_dim: usize,
        inverse: bool,
    );
    /// `out = activation(gate) * up`.
    fn glu(&self, activation: Activation, gate: &Self::Buf, up: &Self::Buf, out: &mut Self::Buf);
    /// `out = x * keep / (1 - p)` where keep is drawn per number from stream `seed`; the same call is its own backward.
    fn dropout(&self, x: &Self::Buf, p: f32, seed: u64, out: &mut Self::Buf);

    // Attention

    /// Room for `blocks` blocks of one layer.
    fn kv(&self, blocks: usize, heads: Heads, precision: KvPrecision) -> Self::Kv;
    /// Writes rows of `k` and `v` [_, kv_heads * head_dim] to the cache: `writes` holds (row, block * BLOCK + lane). One of
    /// bfloat16 rounds them as [`Backend::round_bf16`] does.
    fn kv_write(&self, kv: &mut Self::Kv, k: &Self::Buf, v: &Self::Buf, writes: &[(u32, u32)]);
    /// Copies whole blocks within the cache: (from, to).
    fn kv_copy(&self, kv: &mut Self::Kv, copies: &[(u32, u32)]);
    /// Causal attention of `q` [_, heads * head_dim] over the cache: per row and head, scores `dot(q, k) * scale`, minus their
    /// maximum, exp, weighted sum of values as one chain over keys ascending, divided by the row sum of the weights.
    fn attention(&self, q: &Self::Buf, kv: &Self::Kv, spans: &[AttnSpan], shape: AttnShape, out: &mut Self::Buf);
    /// The backward of [`Backend::attention`]: `dq`, `dk` and `dv` are added to. `q`, `k`, `v` are the rows of the call (after
    /// rope), `out` what the forward gave. Never holds a matrix of all rows by all rows.
    fn attention_backward(
        &self,
        q: &Self::Buf,
        k: &Self::Buf,
        v: &Self::Buf,
        out: &Self::Buf,
        dout: &Self::Buf,
        spans: &[GradSpan],
        shape: AttnShape,
        dq: &mut Self::Buf,
        dk: &mut Self::Buf,
        dv: &mut Self::Buf,
    );

    // Backward

    /// `dx[rows] (+)= dy[rows] · W`.
    fn linear_dx(&self, dy: &Self::Buf, w: &Self::Matrix, dx: &mut Self::Buf, rows: Range<usize>, accumulate: bool);
    /// [`Self::linear_dx`], then the same with `low`, another gradient and its matrix (an adapter's), accumulated.
    fn linear_dx_low(
        &self,
        dy: &Self::Buf,
        w: &Self::Matrix,
        low: (&Self::Buf, &Self::Matrix),
        dx: &mut Self::Buf,
        rows: Range<usize>,
        accumulate: bool,
    ) {
        self.linear_dx(dy, w, dx, rows.clone(), accumulate);
        self.linear_dx(low.0, low.1, dx, rows, true);
    }
    /// `dw += scale * dy[rows]ᵀ · x[rows]`: dy is [_, out], x is [_, in], dw row-major [out, in].
    fn linear_dw(
        &self,
        dy: &Self::Buf,
        x: &Self::Buf,
        dw: &mut Self::Buf,
        out: usize,
        inner: usize,
        rows: Range<usize>,
        scale: f32,
    );
    /// Adds row `i` of `dx` to row `ids[i]` of `dtable` [vocab, width].
    fn embed_backward(&self, dx: &Self::Buf, ids: &[u32], width: usize, dtable: &mut Self::Buf);
    /// `dx += ...`; where `dweight` is given, its gradient is added too.
    fn rms_norm_backward(
        &self,
        x: &Self::Buf,
        weight: &Self::Buf,
        eps: f32,
        dy: &Self::Buf,
        dx: &mut Self::Buf,
        dweight: Option<&mut Self::Buf>,
    );
    /// Writes `dgate` and `dup`.
    fn glu_backward(
        &self,
        activation: Activation,
        gate: &Self::Buf,
        up: &Self::Buf,
        dout: &Self::Buf,
        dgate: &mut Self::Buf,
        dup: &mut Self::Buf,
    );

    // Head: from the last hidden state to log-probs, in chunks of the vocabulary, so that full logits never exist

    /// Log-probs of `targets[i]` in row `i` of `hidden` [n, width], logits divided by `temperature`.
    fn head_logprobs(
        &self,
        hidden: &Self::Buf,
        head: Head<'_, Self::Matrix>,
        targets: &[u32],
        temperature: f32,
    ) -> HeadOut;
    /// [`Backend::head_logprobs`], and the gradient of each log-prob by its row of `hidden`, [n, width]: the bits of
    /// [`Backend::head_backward`] into zeros with every dL/dlogprob 1, for which logits need not be computed a second time.
    fn head_gradients(
        &self,
        hidden: &Self::Buf,
        head: Head<'_, Self::Matrix>,
        targets: &[u32],
        temperature: f32,
    ) -> (HeadOut, Self::Buf) {
        let scored = self.head_logprobs(hidden, head, targets, temperature);
        let (mut gradients, ones) = (self.zeros(self.len(hidden)), vec![1.0; targets.len()]);
        self.head_backward(hidden, head, targets, temperature, &scored.lse, &ones, &mut gradients, None);
        (scored, gradients)
    }
    /// Backward of the log-probs: given dL/dlogprob of each row, adds to `dhidden`, and to `dhead` [vocab, width] if given.
    fn head_backward(
        &self,
        hidden: &Self::Buf,
        head: Head<'_, Self::Matrix>,
        targets: &[u32],
        temperature: f32,
        lse: &[f32],
        dlogprobs: &[f32],
        dhidden: &mut Self::Buf,
        dhead: Option<&mut Self::Buf>,
    );
    /// All logits of `hidden` [n, width], on the host: [n, vocab].
    fn logits(&self, hidden: &Self::Buf, head: Head<'_, Self::Matrix>) -> Vec<f32>;
    /// Samples one token for each row of `hidden`.
    fn sample(&self, hidden: &Self::Buf, head: Head<'_, Self::Matrix>, specs: &[SampleSpec]) -> Vec<Sampled>;

    // Optimiser

    /// Sum of squares in f64, in a fixed order.
    fn sum_of_squares(&self, x: &Self::Buf) -> f64;
    /// One AdamW step on `param` with moments `m` and `v`.
    fn adamw(&self, param: &mut Self::Buf, grad: &Self::Buf, m: &mut Self::Buf, v: &mut Self::Buf, settings: &AdamW);
    /// Copies codes to the device.
    fn upload_codes(&self, codes: Blocks) -> Self::Codes;
    /// Copies codes to the host.
    fn download_codes(&self, codes: &Self::Codes) -> Blocks;
    /// [`Backend::adamw`] on moments in codes, `m` in those of [`dynamic::SIGNED`](crate::quant::dynamic::SIGNED), `v` in those of
    /// [`dynamic::UNSIGNED`](crate::quant::dynamic::UNSIGNED): decoded, used as the step makes them, then coded again.
    fn adamw_8bit(
        &self,
        param: &mut Self::Buf,
        grad: &Self::Buf,
        m: &mut Self::Codes,
        v: &mut Self::Codes,
        settings: &AdamW,
    );
}
