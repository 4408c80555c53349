//! Operations that go row by row or number by number: norm, rotation, gate, dropout, optimiser.

use folgore_protocol::seed;
use half::bf16;

use super::{isa::kernel, simd::Simd};
use crate::{
    backend::{
        adamw::AdamWStep,
        curves::{GELU_CUBIC, GELU_LINEAR, GELU_SLOPE},
        lanes::LANES,
    },
    quant::dynamic,
};

/// 1 / sqrt(mean(x²) + eps), the sum by lanes.
#[inline(always)]
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let mut sum = s.splat(0.0);
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        let x = s.load(chunk);
        sum = s.fma(x, x, sum);
    }
    let rest = s.load_part(chunks.remainder(), 0.0);
    sum = s.fma(rest, rest, sum);
    1.0 / (s.sum(sum) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn rms_norm_in<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let inverse = inverse_rms(s, x, eps);
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * inverse * w;
        }
    }
}

kernel!(pub(super) fn rms_norm = rms_norm_in(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]));

/// Adds to `dx`; writes the sum over these rows of the weight's gradient to `dweight` unless that is empty.
#[inline(always)]
fn rms_norm_back_in<S: Simd>(
    s: S,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    let width = weight.len();
    dweight.fill(0.0);
    for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
        let inverse = inverse_rms(s, x, eps);
        let mut dot = s.splat(0.0);
        let whole = width - width % LANES;
        for i in (0..whole).step_by(LANES) {
            dot = s.fma(s.mul(s.load(&dy[i..]), s.load(&weight[i..])), s.load(&x[i..]), dot);
        }
        let (last_dy, last_w) = (s.load_part(&dy[whole..], 0.0), s.load_part(&weight[whole..], 0.0));
        dot = s.fma(s.mul(last_dy, last_w), s.load_part(&x[whole..], 0.0), dot);
        let pull = inverse * inverse * (s.sum(dot) / width as f32);
        for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
            *dx += inverse * (dy * w - x * pull);
        }
        for ((dw, dy), x) in dweight.iter_mut().zip(dy).zip(x) {
            *dw += dy * (x * inverse);
        }
    }
}

kernel!(pub(super) fn rms_norm_back = rms_norm_back_in(
    x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dweight: &mut [f32]));

#[inline(always)]
fn rope_in<S: Simd>(_s: S, x: &mut [f32], table: &[f32], positions: &[u32], heads: usize, head_dim: usize, sign: f32) {
    let half = head_dim / 2;
    for (row, position) in x.chunks_exact_mut(heads * head_dim).zip(positions) {
        let (cos, sin) = table[*position as usize * head_dim..][..head_dim].split_at(half);
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head.split_at_mut(half);
            for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let s = sign * s;
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}

kernel!(pub(super) fn rope = rope_in(
    x: &mut [f32], table: &[f32], positions: &[u32], heads: usize, head_dim: usize, sign: f32));

/// 1 / (1 + exp(-x)).
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(one, s.add(one, s.exp(s.mul(x, s.splat(-1.0)))))
}

// Helpers are functions and not closures: a closure that is called twice may stay a function of its own, compiled without
// the instruction set.

/// The share of `x` that the activation lets through: SiLU's, or with `TANH` that of GELU by tanh.
#[inline(always)]
fn share<S: Simd, const TANH: bool>(s: S, x: S::F) -> S::F {
    if !TANH {
        return sigmoid(s, x);
    }
    sigmoid(s, s.mul(x, s.fma(s.mul(x, x), s.splat(GELU_CUBIC), s.splat(GELU_LINEAR))))
}

#[inline(always)]
fn gated<S: Simd, const TANH: bool>(s: S, gate: S::F, up: S::F) -> S::F {
    s.mul(s.mul(gate, share::<S, TANH>(s, gate)), up)
}

#[inline(always)]
fn glu_in<S: Simd, const TANH: bool>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let whole = gate.len() - gate.len() % LANES;
    for i in (0..whole).step_by(LANES) {
        s.store(&mut out[i..], gated::<S, TANH>(s, s.load(&gate[i..]), s.load(&up[i..])));
    }
    let last = gated::<S, TANH>(s, s.load_part(&gate[whole..], 0.0), s.load_part(&up[whole..], 0.0));
    s.store_part(&mut out[whole..], last);
}

#[inline(always)]
fn swiglu_in<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    glu_in::<S, false>(s, gate, up, out);
}

#[inline(always)]
fn geglu_in<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    glu_in::<S, true>(s, gate, up, out);
}

kernel!(pub(super) fn swiglu = swiglu_in(gate: &[f32], up: &[f32], out: &mut [f32]));
kernel!(pub(super) fn geglu = geglu_in(gate: &[f32], up: &[f32], out: &mut [f32]));

/// Gradients of [`gated`] with respect to both.
#[inline(always)]
fn gated_back<S: Simd, const TANH: bool>(s: S, gate: S::F, up: S::F, d: S::F) -> (S::F, S::F) {
    let one = s.splat(1.0);
    let share = share::<S, TANH>(s, gate);
    let mut inner = gate;
    if TANH {
        inner = s.mul(gate, s.fma(s.mul(gate, gate), s.splat(GELU_SLOPE), s.splat(GELU_LINEAR)));
    }
    let slope = s.mul(share, s.add(one, s.mul(inner, s.sub(one, share))));
    (s.mul(s.mul(d, up), slope), s.mul(d, s.mul(gate, share)))
}

#[inline(always)]
fn glu_back_in<S: Simd, const TANH: bool>(
    s: S,
    gate: &[f32],
    up: &[f32],
    dout: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    let whole = gate.len() - gate.len() % LANES;
    for i in (0..whole).step_by(LANES) {
        let (dg, du) = gated_back::<S, TANH>(s, s.load(&gate[i..]), s.load(&up[i..]), s.load(&dout[i..]));
        s.store(&mut dgate[i..], dg);
        s.store(&mut dup[i..], du);
    }
    let (g, u, d) = (&gate[whole..], &up[whole..], &dout[whole..]);
    let (dg, du) = gated_back::<S, TANH>(s, s.load_part(g, 0.0), s.load_part(u, 0.0), s.load_part(d, 0.0));
    s.store_part(&mut dgate[whole..], dg);
    s.store_part(&mut dup[whole..], du);
}

#[inline(always)]
fn swiglu_back_in<S: Simd>(s: S, gate: &[f32], up: &[f32], dout: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    glu_back_in::<S, false>(s, gate, up, dout, dgate, dup);
}

#[inline(always)]
fn geglu_back_in<S: Simd>(s: S, gate: &[f32], up: &[f32], dout: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    glu_back_in::<S, true>(s, gate, up, dout, dgate, dup);
}

kernel!(pub(super) fn swiglu_back = swiglu_back_in(
    gate: &[f32], up: &[f32], dout: &[f32], dgate: &mut [f32], dup: &mut [f32]));
kernel!(pub(super) fn geglu_back = geglu_back_in(
    gate: &[f32], up: &[f32], dout: &[f32], dgate: &mut [f32], dup: &mut [f32]));

/// `cap * tanh(x / cap)`.
#[inline(always)]
fn capped<S: Simd>(s: S, x: S::F, cap: S::F) -> S::F {
    let two = s.splat(2.0);
    let share = sigmoid(s, s.mul(s.div(x, cap), two));
    s.mul(s.sub(s.mul(share, two), s.splat(1.0)), cap)
}

#[inline(always)]
fn softcap_in<S: Simd>(s: S, x: &mut [f32], cap: f32) {
    let cap = s.splat(cap);
    let (blocks, rest) = x.as_chunks_mut::<LANES>();
    for block in blocks {
        let capped = capped(s, s.load(block), cap);
        s.store(block, capped);
    }
    let last = capped(s, s.load_part(rest, 0.0), cap);
    s.store_part(rest, last);
}

kernel!(pub(super) fn softcap = softcap_in(x: &mut [f32], cap: f32));

/// Multiplies `grad` by the slope of the cap where its value is `z`.
#[inline(always)]
fn softcap_back_in<S: Simd>(_s: S, z: &[f32], cap: f32, grad: &mut [f32]) {
    for (grad, z) in grad.iter_mut().zip(z) {
        let t = z / cap;
        *grad *= 1.0 - t * t;
    }
}

kernel!(pub(super) fn softcap_back = softcap_back_in(z: &[f32], cap: f32, grad: &mut [f32]));

/// Numbers `first..` of the whole.
#[inline(always)]
fn dropout_in<S: Simd>(_s: S, x: &[f32], p: f32, seed: u64, first: usize, out: &mut [f32]) {
    let factor = 1.0 / (1.0 - p);
    for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
        *out = if seed::uniform(seed, (first + i) as u64) >= p { x * factor } else { 0.0 };
    }
}

kernel!(pub(super) fn dropout = dropout_in(x: &[f32], p: f32, seed: u64, first: usize, out: &mut [f32]));

#[inline(always)]
fn add_in<S: Simd>(_s: S, x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

kernel!(pub(super) fn add = add_in(x: &mut [f32], y: &[f32]));

#[inline(always)]
fn scale_in<S: Simd>(_s: S, x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

kernel!(pub(super) fn scale = scale_in(x: &mut [f32], factor: f32));

#[inline(always)]
fn round_bf16_in<S: Simd>(_s: S, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
}

kernel!(pub(super) fn round_bf16 = round_bf16_in(x: &mut [f32]));

#[inline(always)]
fn adamw_in<S: Simd>(_s: S, step: &AdamWStep, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
    for (((param, grad), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
        (*param, *m, *v) = step.apply(*param, *grad, *m, *v);
    }
}

kernel!(pub(super) fn adamw = adamw_in(
    step: &AdamWStep, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]));

/// Codes of some blocks and their scales.
type Coded<'a> = (&'a mut [u8], &'a mut [f32]);

#[inline(always)]
fn adamw_8bit_in<S: Simd>(s: S, step: &AdamWStep, param: &mut [f32], grad: &[f32], m: Coded<'_>, v: Coded<'_>) {
    let (signed, unsigned) = (&*dynamic::SIGNED, &*dynamic::UNSIGNED);
    let mut room = [[0.0; dynamic::BLOCK]; 2];
    let numbers = param.chunks_mut(dynamic::BLOCK).zip(grad.chunks(dynamic::BLOCK));
    let m = m.0.chunks_mut(dynamic::BLOCK).zip(m.1);
    let v = v.0.chunks_mut(dynamic::BLOCK).zip(v.1);
    for (((param, grad), (m_codes, m_scale)), (v_codes, v_scale)) in numbers.zip(m).zip(v) {
        let [m, v] = room.each_mut().map(|room| &mut room[..grad.len()]);
        signed.decode(m_codes, *m_scale, m);
        unsigned.decode(v_codes, *v_scale, v);
        adamw_in(s, step, param, grad, m, v);
        *m_scale = signed.encode(m, m_codes);
        *v_scale = unsigned.encode(v, v_codes);
    }
}

kernel!(pub(super) fn adamw_8bit = adamw_8bit_in(
    step: &AdamWStep, param: &mut [f32], grad: &[f32], m: Coded<'_>, v: Coded<'_>));

/// `(hit - exp(z / temperature - lse)) * factor`.
#[inline(always)]
fn logit_slope<S: Simd>(s: S, z: S::F, hit: f32, temperature: f32, lse: f32, factor: f32) -> S::F {
    let p = s.exp(s.sub(s.div(z, s.splat(temperature)), s.splat(lse)));
    s.mul(s.sub(s.splat(hit), p), s.splat(factor))
}

/// [`logit_slope`] of all of `z` in place, hit being 1 at `target` and 0 elsewhere.
#[inline(always)]
fn logit_grad_in<S: Simd>(s: S, z: &mut [f32], target: Option<usize>, temperature: f32, lse: f32, factor: f32) {
    let hit = target.map(|t| (t, z[t]));
    let (blocks, rest) = z.as_chunks_mut::<LANES>();
    for block in blocks {
        let slope = logit_slope(s, s.load(block), 0.0, temperature, lse, factor);
        s.store(block, slope);
    }
    let last = logit_slope(s, s.load_part(rest, 0.0), 0.0, temperature, lse, factor);
    s.store_part(rest, last);
    if let Some((t, logit)) = hit {
        z[t] = s.lanes(logit_slope(s, s.splat(logit), 1.0, temperature, lse, factor))[0];
    }
}

kernel!(pub(super) fn logit_grad = logit_grad_in(
    z: &mut [f32], target: Option<usize>, temperature: f32, lse: f32, factor: f32));
